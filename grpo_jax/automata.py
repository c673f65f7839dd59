"""Machines that read text: regular expressions, phrases, words of a script.

  whole(regex)       is all of the text a match?
  count(regex)       how many matches are in it?
  words(scripts)     how many words of these scripts are in it?
  listed(words)      how many of its words are on this list?

Each makes a `Machine` over the bytes of UTF-8, with as few states as there can
be, in NumPy and once at the start of a run. text.py runs it over every token of
a vocabulary and reads completions with what comes out.

Regular expressions are parsed by interegular and mean what `re` makes of them,
with ASCII and DOTALL set: `.` is any character, `\\d`, `\\s` and `\\w` are
ASCII. What is no UTF-8 reads as U+FFFD, where `bytes.decode('utf-8',
'replace')` puts it.

Dimension key here: S states, K classes of characters that are told apart.
"""

from collections.abc import Sequence
import re
from typing import NamedTuple
from unittest import mock

import interegular
from interegular import fsm
import numpy as np

MAX_STATES = 256  # Of a machine: its table for a vocabulary has V * S entries.
_MAX_CRAWLED = 2_000  # States of whatever is built on the way there.
_CODES = 0x110000  # Unicode code points.
_REPLACEMENT = 0xFFFD  # What decoding writes for bytes that are no text.


class Machine(NamedTuple):
  """Reads a text byte by byte, from state 0."""

  next_SC: np.ndarray  # uint8, the state after a byte; C is 256.
  hits_SC: np.ndarray  # uint8, how many matches that byte completes.
  end_S: np.ndarray  # uint8, how many the end of the text completes.


class _Letters(NamedTuple):
  """The same over code points, of which each has a class."""

  next_SK: np.ndarray
  hits_SK: np.ndarray
  end_S: np.ndarray
  classes: np.ndarray  # uint8, one of K for each code point.


def whole(regex: str) -> Machine:
  """Whether all of the text is a match: one hit at the end, or none.

  A `^` at the start and a `$` at the end mean nothing more, and are left out.

  Raises:
    ValueError: it is no regular expression, has what an automaton cannot do
      (`\\b`, references to groups, look-behind), or needs too many states.
  """
  next_SK, final_S, classes = _parse(_strip(regex), regex)
  hits_SK = np.zeros_like(next_SK)
  return _over_bytes(_Letters(next_SK, hits_SK, final_S, classes), regex)


def count(regex: str, as_words: bool = False) -> Machine:
  """How many matches stand one after the other, each as short as it can be.

  As many as re.findall finds if no match is the beginning of another one. With
  `as_words` a match counts only between characters that are not `\\w`, or the
  ends of the text, as if it stood between two `\\b`. Raises as `whole`, and
  ValueError for what matches the empty text.
  """
  inner = f'({_strip(regex)})'
  if as_words:
    inner = rf'\W{inner}\W'
  next_SK, final_S, classes = _parse(f'.*{inner}', regex)
  if final_S[0]:
    raise ValueError(f'regular expression {regex!r} matches the empty text')
  hits_SK = final_S[next_SK]
  # The character after a word may be the one before the next.
  again_K = next_SK[0] if as_words else 0
  next_SK = np.where(hits_SK == 1, again_K, next_SK)
  end_S = np.zeros_like(final_S)
  if as_words:  # As if the text began after a line break and ended with one.
    line_break = classes[ord('\n')]
    end_S = hits_SK[:, line_break]
    order = np.arange(len(next_SK) + 1) - 1
    order[0] = next_SK[0, line_break]  # A copy of that state comes first.
    next_SK, hits_SK, end_S = next_SK[order] + 1, hits_SK[order], end_S[order]
  return _over_bytes(_Letters(next_SK, hits_SK, end_S, classes), regex)


# The code points, first and last, of each script's letters. A script without
# spaces has words of one character.
SCRIPTS = {
  'latin': (
    (0x41, 0x5A),
    (0x61, 0x7A),
    (0xC0, 0xD6),
    (0xD8, 0xF6),
    (0xF8, 0x24F),
    (0x1E00, 0x1EFF),
  ),
  'greek': ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
  'cyrillic': ((0x400, 0x52F),),
  'hebrew': ((0x590, 0x5FF),),
  'arabic': ((0x600, 0x6FF), (0x750, 0x77F)),
  'devanagari': ((0x900, 0x97F),),
  'thai': ((0xE00, 0xE7F),),
  'hangul': ((0x1100, 0x11FF), (0xAC00, 0xD7AF)),
  'kana': ((0x3040, 0x30FF),),
  'han': ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x323AF)),
  'other': (
    (0x250, 0x36F),
    (0x530, 0x58F),
    (0x780, 0x8FF),
    (0x980, 0xDFF),
    (0xE80, 0x10FF),
    (0x1200, 0x1CFF),
    (0xA000, 0xABFF),
  ),
}
_SINGLE = ('kana', 'han')
_JOINERS = "'-\u2019"  # They do not end a word that they stand in.


def words(scripts: Sequence[str]) -> Machine:
  """How many words are written in these scripts.

  A word is a run of their letters, with apostrophes and hyphens; a character
  of Han or kana is a word of its own. Raises ValueError for an unknown script.
  """
  classes = _word_classes(scripts)
  # State 0 is outside of a word and state 1 is inside.
  next_SK = np.array([[0, 1, 0, 0], [0, 1, 0, 1]])
  hits_SK = np.array([[0, 1, 1, 0], [0, 0, 1, 0]])
  end_S = np.zeros(2, int)
  name = f'words of {scripts}'
  return _over_bytes(_Letters(next_SK, hits_SK, end_S, classes), name)


def listed(words: Sequence[str]) -> Machine:
  """How many words are on a list, in small letters or capitals.

  What a word is, `words` of all scripts says: it counts each of these, and
  others. Hyphens and apostrophes after a word do not belong to it.

  Raises:
    ValueError: there is none, one is not a single word, or the list is so long
      that it needs too many states (100 common words of English need 110).
  """
  classes = _word_classes(tuple(SCRIPTS))
  known = {word.lower() for word in words}
  for word in known or ['']:
    kinds = bytes(classes[ord(letter)] for letter in word)
    if not re.fullmatch(rb'\x01([\x01\x03]*\x01)?|\x02', kinds):
      raise ValueError(f'{word!r} in a list of words is not one word')
  singles = [word for word in known if classes[ord(word[0])] == 2]
  letters = sorted({*''.join(known - {*singles})})
  name = f'a list of {len(known)} words'
  if len(letters) > MAX_STATES - 5:
    raise ValueError(
      f'{name} has {len(letters)} letters, too many to tell apart'
    )
  # Four kinds of characters, as in `words`, then what the list has of them.
  kinds = [0, 1, 2, 3, 2, *(classes[ord(letter)] for letter in letters)]
  for k, symbols in enumerate([singles, *letters], start=4):
    for symbol in symbols:
      both = symbol, symbol.upper()
      classes[[ord(x) for x in both if len(x) == 1]] = k

  # A state is the beginning of a word of the list; or another word, or a word
  # of the list and hyphens after it.
  begun = sorted({word[:n] for word in known for n in range(len(word) + 1)})
  places = {beginning: s for s, beginning in enumerate(begun)}
  other, tail = len(begun), len(begun) + 1
  end_S = np.array([*(x.rstrip(_JOINERS) in known for x in begun), False, True])
  next_SK = np.full((tail + 1, len(kinds)), other)
  for s in range(tail + 1):
    for k, kind in enumerate(kinds):
      longer = begun[s] + letters[k - 5] if s < other and k >= 5 else None
      if kind in (0, 2) or (kind == 3 and s == 0):
        next_SK[s, k] = 0
      elif longer in places:
        next_SK[s, k] = places[longer]
      elif kind == 3 and end_S[s]:
        next_SK[s, k] = tail
  hits_SK = np.outer(end_S, np.isin(kinds, (0, 2))).astype(int)
  hits_SK[:, 4] += 1
  found = _smallest(next_SK, hits_SK, end_S.astype(int))
  if len(found.end_S) > MAX_STATES:  # Over bytes there are no fewer.
    raise ValueError(
      f'{name} needs {len(found.end_S)} states, more than {MAX_STATES}'
    )
  return _over_bytes(_Letters(*found, classes), name)


def _word_classes(scripts: Sequence[str]) -> np.ndarray:
  """1 a letter of these scripts, 2 a word of its own, 3 a joiner, 0 others."""
  classes = np.zeros(_CODES, np.uint8)
  for script in scripts:
    if script not in SCRIPTS:
      raise ValueError(f'script {script!r} is not one of {", ".join(SCRIPTS)}')
    for first, last in SCRIPTS[script]:
      classes[first : last + 1] = 2 if script in _SINGLE else 1
  classes[[ord(character) for character in _JOINERS]] = 3
  return classes


def _strip(regex: str) -> str:
  regex = regex.removeprefix('^')
  escaped = len(regex) - len(regex.rstrip('$').rstrip('\\')) - 1
  return regex[:-1] if regex.endswith('$') and escaped % 2 == 0 else regex


def _parse(regex: str, name: str):
  """Transitions, accepting states, and the classes of code points."""
  try:
    re.compile(regex)  # interegular lets 'a**' pass.
    # interegular builds automata on the way that may have any number of states.
    with mock.patch.object(fsm, 'crawl', _crawl):
      pattern = interegular.parse_pattern(regex)
      flags = interegular.REFlags.SINGLE_LINE
      alphabet, _ = fsm.Alphabet.union(
        pattern.get_alphabet(flags),
        fsm.Alphabet.from_groups({fsm.anything_else}),
      )
      found = pattern.to_fsm(alphabet, flags=flags)
  except interegular.Unsupported as e:
    raise ValueError(
      f'regular expression {name!r}: {e or "has what no automaton can do"}'
    ) from None
  except (interegular.InvalidSyntax, re.error):
    raise ValueError(f'{name!r} is no regular expression') from None
  except _TooMany:
    raise ValueError(
      f'regular expression {name!r} needs more than {_MAX_CRAWLED} states: '
      'bounded repetition after .* is what makes them many'
    ) from None

  keys = {key: k for k, key in enumerate(found.alphabet.by_transition)}
  rest = keys[found.alphabet[fsm.anything_else]]
  classes = np.full(_CODES, rest, np.uint8)
  for key, symbols in found.alphabet.by_transition.items():
    codes = [ord(x) for x in symbols if x is not fsm.anything_else]
    classes[codes] = keys[key]
  names = {state: s for s, state in enumerate(found.states)}
  dead = len(names)  # A state that nothing leaves: interegular leaves it out.
  next_SK = np.full((dead + 1, len(keys)), dead)
  for state, row in found.map.items():
    for key, after in row.items():
      next_SK[names[state], keys[key]] = names[after]
  final_S = np.array([*(state in found.finals for state in names), False])
  # The initial state becomes state 0.
  first = names[found.initial]
  order = np.r_[first, np.delete(np.arange(dead + 1), first)]
  return np.argsort(order)[next_SK[order]], final_S[order].astype(int), classes


class _TooMany(Exception):
  pass


def _crawl(alphabet, initial, final, follow):
  """As interegular's own, with a bound, and without searching a list."""

  def hashable(state):
    if isinstance(state, dict):
      return frozenset(state.items())
    return frozenset(state) if isinstance(state, set) else state

  places, edges = {hashable(initial): 0}, {}
  for i, state in enumerate(queue := [initial]):
    edges[i] = {}
    for key in alphabet.by_transition:
      try:
        after = follow(state, key)
      except fsm.OblivionError:
        continue
      place = places.setdefault(hashable(after), len(queue))
      if place == len(queue):
        queue.append(after)
      edges[i][key] = place
    if len(queue) > _MAX_CRAWLED:
      raise _TooMany
  return fsm.FSM(
    alphabet=alphabet,
    states=range(len(queue)),
    initial=0,
    finals={i for i, state in enumerate(queue) if final(state)},
    map=edges,
    __no_validation__=True,
  )


def _over_bytes(letters: _Letters, name: str) -> Machine:
  """The smallest machine over bytes that finds the same."""
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
  machine = _smallest(*map(np.array, (next_SC, hits_SC, end_S)))
  if len(machine.end_S) > MAX_STATES:
    raise ValueError(
      f'{name!r} needs {len(machine.end_S)} states over bytes, more than '
      f'{MAX_STATES}'
    )
  return machine


def _utf8(classes: np.ndarray) -> dict:
  """Byte -> class, or what may follow the byte; equal parts are one object."""
  parts = {}

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


def _smallest(next_SC, hits_SC, end_S) -> Machine:
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
