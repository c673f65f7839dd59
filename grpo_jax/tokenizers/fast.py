"""What the `tokenizers` library runs: tokenizer.json, and BPE of GGUF files.

  from_json(text, origin)              the library's tokenizer, and its alphabet
  FastTokenizer(core, alphabet, ...)   with the face that __init__ describes

A vocabulary is written in one of two alphabets:
  bytes   GPT-2's, a character for each byte (Llama 3, SmolLM2, Qwen)
  pieces  SentencePiece's, with ▁ for a space and, where bytes stand in for
          missing characters, <0x0A> for a byte (Llama 2, Mistral, Gemma)
"""

from collections.abc import Iterable, Sequence
import json
import os
from typing import NamedTuple

from etils import epath
from tokenizers import AddedToken, Tokenizer

from grpo_jax.tokenizers import chat, export
from grpo_jax.tokenizers.chat import Special
from grpo_jax.tokenizers.export import SPACE

_MODELS = ['BPE', 'Unigram']


class Alphabet(NamedTuple):
  """How the tokens of a vocabulary are written."""

  pieces: bool  # Else bytes.
  has_bytes: bool = False  # Pieces like <0x0A>.
  unknown: str | int | None = None  # The token of missing characters.


def from_json(text: str, origin: str) -> tuple[Tokenizer, Alphabet]:
  """Raises ValueError if it is damaged, or of another kind than these."""
  try:
    content = json.loads(text)
    model = content['model']
    # Old files do not tell; only BPE has merges.
    kind = model.get('type') or ('BPE' if 'merges' in model else None)
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{origin} is not the JSON of a tokenizer ({_line(error)})'
    ) from error
  if kind not in _MODELS:
    raise ValueError(f'{origin}: model.type={kind!r} is not one of {_MODELS}')
  for key in ['continuing_subword_prefix', 'end_of_word_suffix']:
    if model.get(key):
      raise ValueError(
        f'{origin}: model.{key}={model[key]!r}, but words have to be written'
        ' as they are'
      )
  try:
    return Tokenizer.from_str(text), _alphabet(content, origin)
  except Exception as error:  # The library raises nothing more special.
    if isinstance(error, ValueError):
      raise
    raise ValueError(
      f'{origin} does not hold a tokenizer ({_line(error)})'
    ) from error


class FastTokenizer:
  """BPE or Unigram; control tokens are recognised where a text spells them.

  Bytes that a vocabulary of bytes lacks are left out, as other readers of
  these files do: SmolLM2 has no token for 21 of the 256 (none of them in
  printable ASCII). Characters that a vocabulary of pieces lacks raise.
  """

  def __init__(
    self,
    core: Tokenizer,
    alphabet: Alphabet,
    special: Special,
    folder: epath.Path | None = None,
  ):
    added = core.get_added_tokens_decoder().values()
    known = {token.content for token in added if token.special}
    core.add_special_tokens(
      [
        AddedToken(name, special=True, normalized=False)
        for name in dict.fromkeys(special.names.values())
        if name not in known and core.token_to_id(name) is not None
      ]
    )
    self.core = core
    self.folder = folder
    self.special = special
    self.bos_id, self.eos_ids = special.bos_id, special.eos_ids
    vocab = core.get_vocab(with_added_tokens=True)
    self.vocab_size = 1 + max([*vocab.values(), *self.eos_ids])
    self._pieces = alphabet.pieces
    unknown = alphabet.unknown
    self._unknown = vocab.get(unknown) if isinstance(unknown, str) else unknown
    self.token_bytes = [b''] * self.vocab_size
    text = _plain_piece if alphabet.pieces else _from_byte_level
    text = _piece if alphabet.has_bytes else text
    for token, i in vocab.items():
      if i != self._unknown or not self._pieces:
        self.token_bytes[i] = text(token)
    for i, token in core.get_added_tokens_decoder().items():
      text = _plain_piece if self._pieces else str.encode
      self.token_bytes[i] = b'' if token.special else text(token.content)

  def save_pretrained(self, folder: str | os.PathLike) -> None:
    """Writes what transformers and vLLM load; see export.py."""
    export.fast(self, epath.Path(folder))

  def encode(self, text: str) -> list[int]:
    """A vocabulary of pieces raises ValueError on characters it lacks."""
    encoding = self.core.encode(text, add_special_tokens=False)
    if not self._pieces:
      return encoding.ids
    unknown = {SPACE} & {*text}  # It would come back as a space.
    if self._unknown in encoding.ids:
      for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        unknown |= {*text[start:end]} if i == self._unknown else set()
    if unknown:
      raise chat.unknown(unknown, text)
    return encoding.ids

  def decode(self, ids: Iterable[int]) -> str:
    return chat.decode(self, ids)

  def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
    """Through the chat template, which may raise ValueError."""
    return chat.prompt(self, messages)


def _alphabet(content: dict, origin: str) -> Alphabet:
  parts = [content.get(x) for x in ('normalizer', 'pre_tokenizer', 'decoder')]
  steps = [*_steps(parts)]
  if any(step.get('type') == 'ByteLevel' for step in steps):
    return Alphabet(pieces=False)
  spaces = [(step.get('replacement'), step.get('content')) for step in steps]
  if not any(SPACE in space for space in spaces):
    raise ValueError(
      f'{origin}: neither a ByteLevel step nor one that writes a space as'
      f' {SPACE}, so that the text of its tokens is unknown'
    )
  model = content['model']
  return Alphabet(
    pieces=True,
    has_bytes=bool(model.get('byte_fallback')),
    unknown=model.get('unk_token', model.get('unk_id')),
  )


def _steps(parts) -> Iterable[dict]:
  """All steps of a normalizer, pre_tokenizer or decoder, at any depth."""
  for part in parts:
    if isinstance(part, dict):
      yield part
      for nested in part.values():
        yield from _steps(nested if isinstance(nested, list) else [])


def _piece(token: str) -> bytes:
  if len(token) == 6 and token.startswith('<0x') and token.endswith('>'):
    return bytes([int(token[3:5], 16)])
  return _plain_piece(token)


def _plain_piece(token: str) -> bytes:
  return token.replace(SPACE, ' ').encode()


def _from_byte_level(token: str) -> bytes:
  """Undoes the alphabet in which byte-level BPE writes its tokens."""
  if not {*token} <= _BYTES.keys():  # It can only mean itself.
    return token.encode()
  return bytes(_BYTES[character] for character in token)


def _byte_level_alphabet() -> dict[str, int]:
  """Character -> byte: GPT-2 shifts what does not print above U+0100."""
  printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
  shifted = [byte for byte in range(256) if byte not in printed]
  alphabet = {chr(byte): byte for byte in printed}
  return alphabet | {chr(256 + i): byte for i, byte in enumerate(shifted)}


_BYTES = _byte_level_alphabet()


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:120] or type(error).__name__
