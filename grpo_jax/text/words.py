"""Machines that count words: those of a script, and those of a list.

  words(scripts)     how many words of these scripts are in a text?
  listed(words)      how many words of a list are in it?

Dimension key here: S states, K classes of characters that are told apart.
"""

from collections.abc import Sequence
import functools
import re

import numpy as np

from grpo_jax.text.utf8 import (
  CODES,
  MAX_STATES,
  Letters,
  Machine,
  over_bytes,
  smallest,
)

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


@functools.cache
def words(scripts: tuple[str, ...]) -> Machine:
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
  return over_bytes(Letters(next_SK, hits_SK, end_S, classes), name)


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
  found = smallest(next_SK, hits_SK, end_S.astype(int))
  if len(found.end_S) > MAX_STATES:  # Over bytes there are no fewer.
    raise ValueError(
      f'{name} needs {len(found.end_S)} states, more than {MAX_STATES}'
    )
  return over_bytes(Letters(*found, classes), name)


def _word_classes(scripts: Sequence[str]) -> np.ndarray:
  """1 a letter of these scripts, 2 a word of its own, 3 a joiner, 0 others."""
  classes = np.zeros(CODES, np.uint8)
  for script in scripts:
    if script not in SCRIPTS:
      raise ValueError(f'script {script!r} is not one of {", ".join(SCRIPTS)}')
    for first, last in SCRIPTS[script]:
      classes[first : last + 1] = 2 if script in _SINGLE else 1
  classes[[ord(character) for character in _JOINERS]] = 3
  return classes
