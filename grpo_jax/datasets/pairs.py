"""Preferences from files: prompts, each with a better completion and a worse.

  load(path, encode, max_tokens=..., heldout=...) -> {split: Pairs}, left out

Rows have columns `prompt`, `chosen` and `rejected`, all of them texts; which
files a path names, and of which formats, local.py says.
"""

from collections.abc import Callable, Sequence

import numpy as np

from grpo_jax.datasets import SPLITS, Example, local
from grpo_jax.types import Pairs

COLUMNS = ('prompt', 'chosen', 'rejected')


def load(
  path: str,
  encode: Callable[[str, str], list[int]],
  *,
  max_tokens: int,
  heldout: float,
) -> tuple[dict[str, Pairs], int]:
  """The pairs of each split as arrays, and how many were too long.

  Args:
    path: a file, a folder or a pattern.
    encode: (prompt, completion) -> token ids of both, and of the end.
    max_tokens: T; a pair with a longer text is left out.
    heldout: share of the prompts whose pairs are never trained on.

  Raises:
    ValueError: naming the file and line that is wrong, or the empty split.
  """
  files = local.files(path)
  if not files:
    raise ValueError(
      f'preference.path={path!r} names no {", ".join(local.SUFFIXES)} file'
    )
  found: dict[str, list] = {split: [] for split in SPLITS}
  left_out = 0
  for file in files:
    for place, row in local.rows(file):
      prompt, *texts = (local.text(row, name, place) for name in COLUMNS)
      pair = [encode(prompt, text) for text in texts]
      if max(map(len, pair)) > max_tokens:
        left_out += 1
        continue
      # Not the hash that keeps problems from training: pairs are mostly of
      # problems that are trained on, and none of these would be held out.
      below = Example(f'pair of {prompt}', '').id < heldout * 2**32
      found['heldout' if below else 'train'].append(pair)
  for split, pairs in found.items():
    if not pairs:
      raise ValueError(
        f'preference.path={path!r} leaves no {split} pair: '
        f'{sum(map(len, found.values()))} are of preference.max_tokens='
        f'{max_tokens} at the most, and preference.heldout={heldout}'
      )
  return {k: _pad(pairs, max_tokens) for k, pairs in found.items()}, left_out


def take(pairs: Pairs, rows: Sequence[int] | np.ndarray) -> Pairs:
  return Pairs(pairs.tokens_P2T[rows], pairs.lengths_P2[rows])


def _pad(pairs: Sequence[Sequence[list[int]]], max_tokens: int) -> Pairs:
  tokens_P2T = np.zeros((len(pairs), 2, max_tokens), np.int32)
  lengths_P2 = np.array(
    [[len(ids) for ids in pair] for pair in pairs], np.int32
  )
  for p, pair in enumerate(pairs):
    for i, ids in enumerate(pair):
      tokens_P2T[p, i, : len(ids)] = ids
  return Pairs(tokens_P2T, lengths_P2)
