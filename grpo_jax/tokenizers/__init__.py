"""Text to token ids and back: SentencePiece, and published tokenizers.

`load` opens what `tokenizer.path` names, `train` makes a SentencePiece model
from texts. All tokenizers have the same face:

  vocab_size    int, ids are below it
  bos_id        what a text starts with, or None where it starts with nothing
  eos_ids       the ids that end a completion; documents end with the first
  token_bytes   what each token adds to the text, b'' for control tokens
  encode(text)  ids, with nothing added
  decode(ids)   the text of `token_bytes`, so control tokens leave no trace
  prompt(chat)  ids of turns {'role': ..., 'content': ...}, ready to go on from
  save_pretrained(folder)  files for transformers and vLLM

A tokenizer is a SentencePieceTokenizer or, what the `tokenizers` library runs,
a FastTokenizer. Where a text spells a control token of a published one, as in
<|im_end|>, that is the token; one that was trained here has no such spellings.

token_bytes[i] is what the token adds behind other tokens. Llama 2 and Mistral
put a space before every text (and take it away again from the start of what
they decode): here that space is in the ids and in what `decode` gives back.
Some put a text into a normal form first (Qwen: NFC), and then that comes back.

  sentencepieces.py  SentencePiece models, and learning one
  fast.py            tokenizer.json: byte-level BPE, BPE and Unigram of pieces
  folders.py         Hugging Face directories in
  ggufs.py           GGUF files in
  chat.py            chat templates
  export.py          the files of save_pretrained
"""

import os

from etils import epath

from grpo_jax import weights
from grpo_jax.tokenizers import folders
from grpo_jax.tokenizers.fast import FastTokenizer as FastTokenizer
from grpo_jax.tokenizers.ggufs import from_gguf
from grpo_jax.tokenizers.sentencepieces import SentencePieceTokenizer
from grpo_jax.tokenizers.sentencepieces import train as train
from grpo_jax.weights import paths


def load(path: str | os.PathLike) -> SentencePieceTokenizer | FastTokenizer:
  """Opens a Hugging Face directory, a .gguf or a .model (SentencePiece).

  Files may be named as weights.resolve takes them. Raises FileNotFoundError,
  or ValueError in one line that names what is wrong in the file.
  """
  path = os.fspath(path)
  remote = path.startswith('hf://')
  folder = weights.resolve(path) if remote else paths.expand(path)
  if folder.is_dir():
    return folders.from_folder(folder)
  suffix = epath.Path(path).suffix
  if suffix == '.model':
    file = weights.resolve(path)
    return SentencePieceTokenizer(file.read_bytes(), origin=str(path))
  if suffix == '.gguf':
    return from_gguf(path)
  raise ValueError(
    f"{path}: a tokenizer is a folder or a file that ends with '.model' or"
    f" '.gguf', not with {suffix!r}"
  )
