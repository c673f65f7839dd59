"""SentencePiece models: learnt from texts, or read.

  train(texts, vocab_size)       a model of these texts, always the same one
  SentencePieceTokenizer(data)   `data` is the content of a .model file
  parse(data), names(pieces)     what the model itself holds

Published models come with control tokens that a text may spell; in one that is
learnt here '<s>' in a text is three characters.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import io
import os
import re

from etils import epath
import sentencepiece

from grpo_jax.tokenizers import chat, export
from grpo_jax.tokenizers.chat import Special
from grpo_jax.tokenizers.export import SPACE


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


class SentencePieceTokenizer:
  """A SentencePiece model; `data` is the file's content.

  Published models come with more:
    control: tokens without a text, and their ids. Where a text spells one of
      them it is that token. Ids may lie past the model's own.
    added: the same for tokens that stand for their spelling.
    special: None takes what the model itself says.
    folder: the Hugging Face directory that all this is from.

  Raises ValueError if the data is not a whole model.
  """

  def __init__(
    self,
    data: bytes,
    *,
    control: Mapping[str, int] | None = None,
    added: Mapping[str, int] | None = None,
    special: Special | None = None,
    folder: epath.Path | None = None,
    origin: str = 'data',
  ):
    self._pieces = parse(data, origin)
    self.data = data
    self.folder = folder
    self.special = special or _own_special(self._pieces, origin)
    self.bos_id, self.eos_ids = self.special.bos_id, self.special.eos_ids
    control = dict(control or {})
    self._spelt = dict(added or {}) | control
    self.vocab_size = 1 + max(
      self._pieces.get_piece_size() - 1, *self._spelt.values(), 0
    )
    self.token_bytes = [*map(self._bytes, range(self._pieces.get_piece_size()))]
    self.token_bytes += [b''] * (self.vocab_size - len(self.token_bytes))
    for token, i in self._spelt.items():
      self.token_bytes[i] = b'' if token in control else token.encode()

  def save(self, path: str | os.PathLike) -> None:
    epath.Path(path).write_bytes(self.data)

  def save_pretrained(self, folder: str | os.PathLike) -> None:
    """Writes what transformers and vLLM load; see export.py."""
    export.sentencepieces(self, epath.Path(folder))

  def encode(self, text: str) -> list[int]:
    """Raises ValueError on characters that the vocabulary lacks."""
    if not self._spelt:
      return self._encode(text)
    ids: list[int] = []
    for i, part in enumerate(self._spellings.split(text)):  # Odd ones match.
      ids += [self._spelt[part]] if i % 2 else self._encode(part)
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    return chat.decode(self, ids)

  def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
    """Through the chat template, which may raise ValueError."""
    return chat.prompt(self, messages)

  @functools.cached_property
  def _spellings(self) -> re.Pattern:
    longest_first = sorted(self._spelt, key=len, reverse=True)
    return re.compile(f'({"|".join(map(re.escape, longest_first))})')

  def _encode(self, text):
    ids = self._pieces.encode(text)
    unknown = {SPACE} & {*text}  # It would come back as a space.
    if self._pieces.unk_id() in ids:
      parts = zip(ids, self._pieces.encode(text, out_type=str), strict=True)
      unknown |= {c for i, s in parts if i == self._pieces.unk_id() for c in s}
    if unknown:
      raise chat.unknown(unknown, text)
    return ids

  def _bytes(self, i: int) -> bytes:
    piece = self._pieces.id_to_piece(i)
    if self._pieces.is_control(i) or self._pieces.is_unknown(i):
      return b''
    if self._pieces.is_byte(i):  # A byte is written as <0x0A>.
      return bytes([int(piece[3:-1], 16)])
    return piece.replace(SPACE, ' ').encode()


def parse(data: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
  """Raises ValueError if the data is not a whole model."""
  try:
    if data:  # Nothing at all would be a model without pieces.
      return sentencepiece.SentencePieceProcessor(model_proto=data)
  except RuntimeError:
    pass
  raise ValueError(
    f'{origin} is not a whole SentencePiece model ({len(data)} bytes)'
  )


def names(pieces: sentencepiece.SentencePieceProcessor) -> dict[str, str]:
  """The special tokens that the model names: {'bos_token': '<s>', ...}."""
  ids = {
    'bos_token': pieces.bos_id(),
    'eos_token': pieces.eos_id(),
    'unk_token': pieces.unk_id(),
    'pad_token': pieces.pad_id(),
  }
  return {name: pieces.id_to_piece(i) for name, i in ids.items() if i >= 0}


def _own_special(pieces, origin) -> Special:
  if pieces.eos_id() < 0:
    raise ValueError(f'{origin} has no piece that ends a text')
  bos_id = pieces.bos_id() if pieces.bos_id() >= 0 else None
  return Special(bos_id, (pieces.eos_id(),), names(pieces))
