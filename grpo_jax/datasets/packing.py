"""Documents side by side in rows of one width, so that no work is padding.

  documents [5 6 7] [8 9] [4], width 7      tokens       5 6 7 8 9 4 .
                                            segment ids  1 1 1 2 2 3 0
                                            positions    0 1 2 0 1 0 0

Attention stays within a segment; segment 0 is what could not be filled.
"""

import itertools
from typing import NamedTuple

import numpy as np

from grpo_jax import datasets

_WINDOW = 64  # Documents among which the rest of a row is chosen.


class Packed(NamedTuple):
  """Rows of documents, all int32."""

  tokens_BT: np.ndarray
  segment_ids_BT: np.ndarray  # From 1 in each row; 0 is padding.
  positions_BT: np.ndarray  # From 0 in each document.

  def batch(self, size: int, seed: int, cursor: int) -> 'Packed':
    """Rows cursor .. cursor + size - 1 of an endless shuffled sequence."""
    rows_B = datasets.draw(len(self.tokens_BT), size, seed, cursor)
    return Packed(*(array_BT[rows_B] for array_BT in self))


def pack(documents: list[list[int]], width: int) -> Packed:
  """Lays documents out in rows of `width` tokens, none cut, order roughly kept.

  Raises ValueError for a document that is empty or longer than a row.
  """
  lengths = [len(document) for document in documents]
  for i, length in enumerate(lengths):
    if not 0 < length <= width:
      raise ValueError(
        f'document {i} has {length} tokens, a row takes 1 to {width}'
      )
  rows = _rows(lengths, width)
  packed = Packed(*(np.zeros((len(rows), width), np.int32) for _ in range(3)))
  if not rows:
    return packed

  order = list(itertools.chain.from_iterable(rows))
  sizes = np.array([lengths[i] for i in order])
  firsts = np.cumsum(sizes) - sizes  # Where each begins if all stood in a line.
  counts = np.array([len(row) for row in rows])
  heads = np.cumsum(counts) - counts  # The first document of each row.
  line_firsts = np.repeat(firsts[heads], counts)  # Of the document's row.
  starts = np.repeat(np.arange(len(rows)), counts) * width
  starts += firsts - line_firsts
  segments = np.arange(len(order)) - np.repeat(heads, counts) + 1

  positions = np.arange(sizes.sum()) - np.repeat(firsts, sizes)
  places = np.repeat(starts, sizes) + positions
  tokens = itertools.chain.from_iterable(documents[i] for i in order)
  packed.tokens_BT.ravel()[places] = np.fromiter(tokens, np.int32, len(places))
  packed.segment_ids_BT.ravel()[places] = np.repeat(segments, sizes)
  packed.positions_BT.ravel()[places] = positions
  return packed


def _rows(lengths: list[int], width: int) -> list[list[int]]:
  """Which documents share a row: the oldest, and those that fill it best."""
  waiting = list(range(min(_WINDOW, len(lengths))))
  coming = iter(range(len(waiting), len(lengths)))
  rows = []
  while waiting:
    oldest, *others = waiting
    chosen = _best([lengths[i] for i in others], room=width - lengths[oldest])
    rows.append([oldest] + [others[i] for i in chosen])
    taken = set(rows[-1])
    waiting = [i for i in waiting if i not in taken]
    waiting += itertools.islice(coming, len(taken))
  return rows


def _best(lengths: list[int], room: int) -> list[int]:
  """Indices of lengths whose sum comes as near to `room` as any can.

  Bit s of `sums` says that some of the lengths so far add up to s.
  """
  within = (2 << room) - 1
  sums = [1]
  for length in lengths:
    if sums[-1] >> room:  # Filled to the last token.
      break
    sums.append((sums[-1] | sums[-1] << length) & within)
  total = sums[-1].bit_length() - 1
  chosen = []
  for i in reversed(range(len(sums) - 1)):
    if not sums[i] >> total & 1:  # Not to be had without it.
      chosen.append(i)
      total -= lengths[i]
  return chosen[::-1]
