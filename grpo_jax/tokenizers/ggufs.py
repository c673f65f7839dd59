"""The tokenizer and the chat template of a GGUF file.

  from_gguf(path) -> a FastTokenizer where tokenizer.ggml.model is 'gpt2', a
    SentencePieceTokenizer where it is 'llama'

To read another published BPE, add the rule that its `tokenizer.ggml.pre` names
to _RULES.
"""

from collections.abc import Callable
import os
from typing import NamedTuple

import gguf
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
)

from grpo_jax import weights
from grpo_jax.tokenizers import chat
from grpo_jax.tokenizers.chat import Special
from grpo_jax.tokenizers.export import SPACE
from grpo_jax.tokenizers.fast import Alphabet, FastTokenizer
from grpo_jax.tokenizers.sentencepieces import SentencePieceTokenizer

_TYPES = gguf.TokenType


class _Rule(NamedTuple):
  """How a family cuts a text before it merges."""

  cut: pre_tokenizers.PreTokenizer
  normalizer: normalizers.Normalizer | None = None
  whole_words: bool = False  # A word that is a token is not merged up to it.


_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _words(digits: str) -> pre_tokenizers.PreTokenizer:
  """The cut of Llama 3 and of Qwen 2, which differ in numbers only."""
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )
  split = pre_tokenizers.Split(Regex(pattern), behavior='isolated')
  return pre_tokenizers.Sequence([split, _BYTES])


_RULES = {  # By tokenizer.ggml.pre; as in the tokenizer.json of the family.
  'gpt-2': _Rule(_GPT2),
  'smollm': _Rule(
    pre_tokenizers.Sequence(
      [pre_tokenizers.Digits(individual_digits=True), _GPT2]
    )
  ),
  'llama-bpe': _Rule(_words(r'\p{N}{1,3}'), whole_words=True),
  'qwen2': _Rule(_words(r'\p{N}'), normalizers.NFC()),  # And Qwen 2.5 and 3.
}


def from_gguf(
  path: str | os.PathLike,
) -> FastTokenizer | SentencePieceTokenizer:
  """Raises FileNotFoundError or ValueError, in one line."""
  reader = weights.open_gguf(path)

  def read(key, default=None):
    return weights.metadata(reader, f'tokenizer.{key}', default)

  kinds: dict[str, Callable] = {'gpt2': _byte_level, 'llama': _sentencepieces}
  _allow(path, 'ggml.model', read('ggml.model'), kinds)
  for key in ['ggml.tokens', 'ggml.eos_token_id']:
    if read(key) is None:
      raise ValueError(f'{path}: tokenizer.{key} is missing')
  return kinds[read('ggml.model')](path, read)


def _byte_level(path, read) -> FastTokenizer:
  _allow(path, 'ggml.pre', read('ggml.pre'), _RULES)
  if read('ggml.merges') is None:
    raise ValueError(f'{path}: tokenizer.ggml.merges is missing')
  rule = _RULES[read('ggml.pre')]
  tokens, types = _tokens(read)
  ids = {
    token: i
    for i, (token, type_) in enumerate(zip(tokens, types, strict=True))
    if type_ != _TYPES.UNUSED  # These fill a vocabulary up to a round size.
  }
  merges = [tuple(merge.split(' ')) for merge in read('ggml.merges')]
  core = Tokenizer(models.BPE(ids, merges, ignore_merges=rule.whole_words))
  if rule.normalizer is not None:
    core.normalizer = rule.normalizer
  core.pre_tokenizer = rule.cut
  core.decoder = decoders.ByteLevel()
  core.add_tokens(
    [
      AddedToken(token, special=type_ == _TYPES.CONTROL, normalized=False)
      for token, type_ in zip(tokens, types, strict=True)
      if type_ in (_TYPES.CONTROL, _TYPES.USER_DEFINED)
    ]
  )
  special = _special(path, read, tokens)
  return FastTokenizer(core, Alphabet(pieces=False), special)


def _sentencepieces(path, read) -> SentencePieceTokenizer:
  """Puts the model's file together again."""
  tokens, types = _tokens(read)
  scores = read('ggml.scores')
  if scores is None:
    raise ValueError(f'{path}: tokenizer.ggml.scores is missing')
  special = _special(path, read, tokens)
  model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
  spec = model.trainer_spec
  spec.model_type = spec.BPE
  spec.vocab_size = len(tokens)
  spec.byte_fallback = _TYPES.BYTE in types
  ids = {
    'unk': read('ggml.unknown_token_id', 0),
    'bos': read('ggml.bos_token_id', -1),
    'eos': read('ggml.eos_token_id'),
    'pad': read('ggml.padding_token_id', -1),
  }
  for name, i in ids.items():
    setattr(spec, f'{name}_id', i)
    if i >= 0:
      setattr(spec, f'{name}_piece', tokens[i])
  model.normalizer_spec.name = 'identity'
  model.normalizer_spec.add_dummy_prefix = read('ggml.add_space_prefix', True)
  model.normalizer_spec.remove_extra_whitespaces = read(
    'ggml.remove_extra_whitespaces', False
  )
  control = {}
  for i, (token, score, type_) in enumerate(
    zip(tokens, scores, types, strict=True)
  ):
    if i == ids['unk']:
      type_ = _TYPES.UNKNOWN  # There has to be one, and only one.
    if type_ in (_TYPES.CONTROL, _TYPES.UNKNOWN):
      control[token] = i
    if type_ == _TYPES.USER_DEFINED:  # Only these have spaces in the file.
      token = token.replace(' ', SPACE)
    model.pieces.add(piece=token, score=score, type=int(type_))
  return SentencePieceTokenizer(
    model.SerializeToString(),
    control=control,
    special=special,
    origin=str(path),
  )


def _tokens(read) -> tuple[list[str], list[int]]:
  tokens = read('ggml.tokens')
  return tokens, read('ggml.token_type', [_TYPES.NORMAL] * len(tokens))


def _special(path, read, tokens) -> Special:
  # Some chat models end a turn with another token than a document.
  ends = [read('ggml.eos_token_id'), read('ggml.eot_token_id')]
  ids = {
    'bos_token': read('ggml.bos_token_id'),
    'eos_token': read('ggml.eos_token_id'),
    'unk_token': read('ggml.unknown_token_id'),
    'pad_token': read('ggml.padding_token_id'),
  }
  for key, i in [*ids.items(), ('eot_token', ends[1])]:
    if i is not None and not 0 <= i < len(tokens):
      raise ValueError(
        f'{path}: {key} has the id {i}, and there are {len(tokens)} tokens'
      )
  template = read('chat_template')
  chat.check(template, str(path))
  return Special(
    bos_id=ids['bos_token'] if read('ggml.add_bos_token', True) else None,
    eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
    names={key: tokens[i] for key, i in ids.items() if i is not None},
    template=template,
  )


def _allow(path, key, value, allowed) -> None:
  if value not in allowed:
    raise ValueError(
      f'{path}: tokenizer.{key}={value!r} is not one of {[*allowed]}'
    )
