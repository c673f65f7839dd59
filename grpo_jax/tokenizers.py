"""Text to token ids and back: SentencePiece, and BPE of published checkpoints.

`load` opens a file, `train` makes a SentencePiece model from texts. Both kinds
of tokenizer have the same face:

  vocab_size    int, ids are below it
  bos_id        int, or None
  eos_ids       the ids that end a completion
  token_bytes   what each token adds to the text, b'' for control tokens
  encode(text)  ids, with nothing added
  decode(ids)   the text of `token_bytes`, so control tokens leave no trace
  prompt(chat)  ids of turns {'role': ..., 'content': ...}, ready to go on from

To read another published BPE, add the rule that its `tokenizer.ggml.pre` names
to _PRE_TOKENIZERS.
"""

from collections.abc import Iterable, Sequence
import io
import json
import os

from etils import epath
import gguf
import jinja2
import jinja2.ext
import jinja2.sandbox
import sentencepiece
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from grpo_jax import weights

_SPACE = '\u2581'  # SentencePiece writes a space so.

_PRE_TOKENIZERS = {  # tokenizer.ggml.pre -> how text is cut before merging.
  'smollm': lambda: pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(use_regex=True, add_prefix_space=False),
    ]
  ),
}


def load(path: str | os.PathLike):
  """Opens a .model (SentencePiece) or .gguf (BPE); see weights.resolve."""
  suffix = epath.Path(path).suffix
  if suffix == '.model':
    return _from_model(path)
  if suffix == '.gguf':
    return from_gguf(path)
  raise ValueError(
    f"{path}: a tokenizer file ends with '.model' or '.gguf',"
    f' not with {suffix!r}'
  )


def train(
  texts: Iterable[str],
  vocab_size: int,
  symbols: Sequence[str] = (),
  model_type: str = 'bpe',
) -> 'SentencePieceTokenizer':
  """Learns a vocabulary of at most `vocab_size` pieces, always the same one.

  Every character of the texts becomes a piece, every digit stands alone and
  each of `symbols` is one token. A small corpus may give fewer pieces. Raises
  ValueError if the characters and symbols alone need more.
  """
  texts = list(texts)
  if not any(texts):
    raise ValueError('a tokenizer cannot be trained without any text')
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type=model_type,
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      character_coverage=1.0,
      max_sentence_length=1 << 30,  # Bytes; longer texts are left out.
      user_defined_symbols=list(symbols),
      split_digits=True,
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      normalization_rule_name='identity',
      pad_id=0,
      bos_id=1,
      eos_id=2,
      unk_id=3,
      num_threads=1,  # Threads would add floats in an order of their own.
      minloglevel=2,
    )
  except RuntimeError as error:
    reason = str(error).rpartition('] ')[2]
    raise ValueError(f'vocab_size={vocab_size}: {reason}') from error
  return SentencePieceTokenizer(model.getvalue())


def _from_model(path) -> 'SentencePieceTokenizer':
  data = weights.resolve(path).read_bytes()
  try:
    if data:  # Nothing at all would be a model without pieces.
      return SentencePieceTokenizer(data)
  except RuntimeError:
    pass
  raise ValueError(
    f'{path} is not a whole SentencePiece model ({len(data)} bytes)'
  )


class SentencePieceTokenizer:
  """A SentencePiece model; `data` is the file's content."""

  def __init__(self, data: bytes):
    self.data = data
    self._pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
    self.vocab_size = self._pieces.get_piece_size()
    self.eos_ids = tuple(i for i in [self._pieces.eos_id()] if i >= 0)
    bos_id = self._pieces.bos_id()
    self.bos_id = bos_id if bos_id >= 0 else None
    self.token_bytes = [self._bytes(i) for i in range(self.vocab_size)]

  def save(self, path: str | os.PathLike) -> None:
    epath.Path(path).write_bytes(self.data)

  def encode(self, text: str) -> list[int]:
    """Raises ValueError on characters that the vocabulary lacks."""
    ids = self._pieces.encode(text)
    unknown = {_SPACE} & {*text}  # It would come back as a space.
    if self._pieces.unk_id() in ids:
      parts = zip(ids, self._pieces.encode(text, out_type=str), strict=True)
      unknown |= {c for i, s in parts if i == self._pieces.unk_id() for c in s}
    if unknown:
      raise ValueError(
        'the tokenizer has no token for the characters'
        f' {sorted(unknown)} of {_shorten(text)!r}'
      )
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    return _decode(self, ids)

  def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
    return _plain_prompt(self, messages)

  def _bytes(self, i: int) -> bytes:
    piece = self._pieces.id_to_piece(i)
    if self._pieces.is_control(i) or self._pieces.is_unknown(i):
      return b''
    if self._pieces.is_byte(i):  # A byte is written as <0x0A>.
      return bytes([int(piece[3:-1], 16)])
    return piece.replace(_SPACE, ' ').encode()


def from_gguf(path: str | os.PathLike) -> 'BpeTokenizer':
  """The tokenizer and the chat template of a GGUF file; raises ValueError."""
  reader = weights.open_gguf(path)

  def read(key, default=None):
    return weights.metadata(reader, f'tokenizer.{key}', default)

  for key, allowed in [
    ('ggml.model', ['gpt2']),
    ('ggml.pre', [*_PRE_TOKENIZERS]),
  ]:
    if read(key) not in allowed:
      raise ValueError(
        f'{path}: tokenizer.{key}={read(key)!r} is not one of {allowed}'
      )
  for key in ['ggml.tokens', 'ggml.merges', 'ggml.eos_token_id']:
    if read(key) is None:
      raise ValueError(f'{path}: tokenizer.{key} is missing')
  # Some chat models end a turn with another token than a document.
  ends = [read('ggml.eos_token_id'), read('ggml.eot_token_id')]
  tokens = read('ggml.tokens')
  types = read('ggml.token_type', [gguf.TokenType.NORMAL] * len(tokens))
  return BpeTokenizer(
    tokens=tokens,
    merges=[tuple(merge.split(' ')) for merge in read('ggml.merges')],
    pre_tokenizer=_PRE_TOKENIZERS[read('ggml.pre')](),
    control=[i for i, t in enumerate(types) if t == gguf.TokenType.CONTROL],
    bos_id=read('ggml.bos_token_id'),
    eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
    chat_template=read('chat_template'),
  )


class BpeTokenizer:
  """Byte-level BPE; control tokens are recognised where a text spells them.

  Bytes that the vocabulary lacks are left out, as other readers of these files
  do: SmolLM2 has no token for 21 of the 256 (none of them in printable ASCII).
  """

  def __init__(
    self,
    tokens: Sequence[str],
    merges: Sequence[tuple[str, str]],
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    control: Sequence[int],
    bos_id: int | None,
    eos_ids: tuple[int, ...],
    chat_template: str | None,
  ):
    self.vocab_size = len(tokens)
    self.bos_id = bos_id
    self.eos_ids = eos_ids
    ids = {token: i for i, token in enumerate(tokens)}
    self._bpe = Tokenizer(models.BPE(ids, list(merges)))
    self._bpe.pre_tokenizer = pre_tokenizer
    self._bpe.add_special_tokens(
      [AddedToken(tokens[i], special=True, normalized=False) for i in control]
    )
    self.token_bytes = [_from_byte_level(token) for token in tokens]
    for i in control:
      self.token_bytes[i] = b''
    self._template = None
    if chat_template is not None:
      self._template = _template_environment().from_string(
        chat_template,
        {
          'bos_token': '' if bos_id is None else tokens[bos_id],
          'eos_token': tokens[eos_ids[0]],
        },
      )

  def encode(self, text: str) -> list[int]:
    return self._bpe.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    return _decode(self, ids)

  def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
    """Through the chat template, which may raise ValueError."""
    if self._template is None:
      return _plain_prompt(self, messages)
    try:
      text = self._template.render(
        messages=messages, add_generation_prompt=True
      )
    except jinja2.TemplateError as error:
      raise ValueError(f'the chat template refuses: {error}') from error
    return self.encode(text)


def _decode(tokenizer, ids) -> str:
  # A model may have more ids than the tokenizer; the spare ones mean nothing.
  parts = [tokenizer.token_bytes[i] for i in ids if i < tokenizer.vocab_size]
  return b''.join(parts).decode('utf-8', 'replace')


def _plain_prompt(tokenizer, messages) -> list[int]:
  """For base models: the contents, line by line."""
  start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  text = '\n'.join(message['content'] for message in messages)
  return start + tokenizer.encode(text)


def _shorten(text: str, size: int = 60) -> str:
  return text if len(text) <= size else text[:size] + '...'


def _from_byte_level(token: str) -> bytes:
  """Undoes the alphabet in which byte-level BPE writes its tokens."""
  return bytes(_BYTES[character] for character in token)


def _byte_level_alphabet() -> dict[str, int]:
  """Character -> byte: GPT-2 shifts what does not print above U+0100."""
  printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
  shifted = [byte for byte in range(256) if byte not in printed]
  alphabet = {chr(byte): byte for byte in printed}
  return alphabet | {chr(256 + i): byte for i, byte in enumerate(shifted)}


_BYTES = _byte_level_alphabet()


def _template_environment() -> jinja2.Environment:
  """As chat templates expect it: sandboxed, blocks leave no blank lines."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[jinja2.ext.loopcontrols],
  )
  environment.globals['raise_exception'] = _raise_exception
  environment.filters['tojson'] = lambda value, **options: json.dumps(
    value, ensure_ascii=False, **options
  )
  return environment


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)
