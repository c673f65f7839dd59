"""Machines over characters -> the smallest ones over the bytes of UTF-8.

  over_bytes(Letters, name) -> Machine

What is no UTF-8 reads as U+FFFD, just where `bytes.decode('utf-8', 'replace')`
puts it.

Dimension key here: S states, K classes of characters that are told apart.
"""

from typing import NamedTuple

import numpy as np

MAX_STATES = 256  # Of a machine: its table for a vocabulary has V * S entries.
CODES = 0x110000  # Unicode code points.
_REPLACEMENT = 0xFFFD  # What decoding writes for bytes that are no text.


class Machine(NamedTuple):
  """Reads a text byte by byte, from state 0."""

  next_SC: np.ndarray  # uint8, the state after a byte; C is 256.
  hits_SC: np.ndarray  # uint8, how many matches that byte completes.
  end_S: np.ndarray  # uint8, how many the end of the text completes.


class Letters(NamedTuple):
  """The same over code points, of which each has a class."""

  next_SK: np.ndarray
  hits_SK: np.ndarray
  end_S: np.ndarray
  classes: np.ndarray  # uint8, one of K for each code point.


def over_bytes(letters: Letters, name: str) -> Machine:
  """The smallest machine over bytes that finds the same.

  Raises ValueError, with this name, for more than MAX_STATES states.
  """
  root = _utf8(letters.classes)
  replaced = letters.classes[_REPLACEMENT]

  def read(s, k):
    return letters.next_SK[s, k], letters.hits_SK[s, k]

  def step(s, node, byte):
    """The state, how far the next character has come, and the hits."""
    child = node.get(byte)
    if isinstance(child, dict):
      return s, child, 0
    if child is not None:
      s, hits = read(s, child)
      return s, root, hits
    s, hits = read(s, replaced)
    if node is root:
      return s, root, hits
    # A character that breaks off is replaced, and the byte begins another.
    s, node, more = step(s, root, byte)
    return s, node, hits + more

  places = {(0, id(root)): 0}
  queue, next_SC, hits_SC, end_S = [(0, root)], [], [], []
  for s, node in queue:
    row = [step(s, node, byte) for byte in range(256)]
    for after, child, _ in row:
      place = int(after), id(child)
      if place not in places:
        places[place] = len(queue)
        queue.append((int(after), child))
    next_SC.append([places[int(s), id(child)] for s, child, _ in row])
    hits_SC.append([hits for *_, hits in row])
    s, hits = (s, 0) if node is root else read(s, replaced)
    end_S.append(hits + letters.end_S[s])
  machine = smallest(*map(np.array, (next_SC, hits_SC, end_S)))
  if len(machine.end_S) > MAX_STATES:
    raise ValueError(
      f'{name!r} needs {len(machine.end_S)} states over bytes, more than '
      f'{MAX_STATES}'
    )
  return machine


def _utf8(classes: np.ndarray) -> dict:
  """Byte -> class, or what may follow the byte; equal parts are one object."""
  parts: dict[tuple, dict] = {}

  def shared(node: dict) -> dict:
    key = tuple(
      (byte, id(child) if isinstance(child, dict) else child)
      for byte, child in node.items()
    )
    return parts.setdefault(key, node)

  def tails(children, first=0, last=63):
    return shared({0x80 + i: children[i] for i in range(first, last + 1)})

  # One for each run of 64 code points, which share all bytes but the last.
  rows = [row.tobytes() for row in classes.reshape(-1, 64)]
  known = {row: tails(list(row)) for row in set(rows)}
  two = [known[row] for row in rows]
  # What else could be written in fewer bytes, or is half of a pair of UTF-16,
  # is no UTF-8: after E0, ED, F0 and F4 some bytes are missing.
  blocks = [two[i : i + 64] for i in range(0, len(two), 64)]
  three = [tails(block) for block in blocks]
  root = dict(enumerate(classes[:0x80].tolist()))
  root |= {0xC0 + i: two[i] for i in range(2, 32)}
  root |= {0xE0 + i: three[i] for i in range(16)}
  root[0xE0] = tails(blocks[0], first=32)
  root[0xED] = tails(blocks[13], last=31)
  planes = [three[i : i + 64] for i in range(0, len(three), 64)]
  root |= {0xF0 + i: tails(plane) for i, plane in enumerate(planes[:4])}
  root[0xF0] = tails(planes[0], first=16)
  root[0xF4] = tails(planes[4], last=15)
  return root


def smallest(next_SC, hits_SC, end_S) -> Machine:
  """Joins states that no text tells apart (Moore's algorithm)."""
  label_S = _labels(hits_SC, end_S)
  while True:
    finer_S = _labels(label_S, label_S[next_SC])
    if finer_S.max() == label_S.max():
      break
    label_S = finer_S
  # States are numbered as they first appear: that of the start stays 0.
  _, first, label_S = np.unique(label_S, return_index=True, return_inverse=True)
  kept = np.sort(first)
  place = np.argsort(np.argsort(first))
  next_SC = place[label_S[next_SC[kept]]]
  return Machine(next_SC, hits_SC[kept], end_S[kept])


def _labels(*columns) -> np.ndarray:
  """Equal rows have equal numbers."""
  rows = np.column_stack(columns)
  return np.unique(rows, axis=0, return_inverse=True)[1].ravel()
