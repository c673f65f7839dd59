"""Regular expressions as machines that read text.

  whole(regex)       is all of the text a match?
  count(regex)       how many matches are in it?

Each makes a `Machine` over the bytes of UTF-8, with as few states as there can
be, in NumPy and once at the start of a run. reader.py runs it over every token
of a vocabulary and reads completions with what comes out. words.py makes
machines that no regular expression is good for.

interegular parses the expressions, which mean what `re` makes of them with
ASCII and DOTALL set: `.` is any character, `\\d`, `\\s` and `\\w` are ASCII.

Dimension key here: S states, K classes of characters that are told apart.
"""

import functools
import re
from unittest import mock

import interegular
from interegular import fsm
import numpy as np

from grpo_jax.text.utf8 import CODES, Letters, Machine, over_bytes

_MAX_CRAWLED = 2_000  # States of whatever is built on the way there.


def whole(regex: str) -> Machine:
  """Whether all of the text is a match: one hit at the end, or none.

  A `^` at the start and a `$` at the end mean nothing more, and are left out.

  Raises:
    ValueError: it is no regular expression, has what an automaton cannot do
      (`\\b`, references to groups, look-behind), or needs too many states.
  """
  next_SK, final_S, classes = _parse(_strip(regex), regex)
  hits_SK = np.zeros_like(next_SK)
  return over_bytes(Letters(next_SK, hits_SK, final_S, classes), regex)


@functools.cache  # A recipe reads the same ones for each of its stages.
def count(regex: str, as_words: bool = False) -> Machine:
  """How many matches stand one after the other, each as short as it can be.

  As many as re.findall finds if no match is the beginning of another one. With
  `as_words` a match counts only between characters that are not `\\w`, or the
  ends of the text, as if it stood between two `\\b`. Raises as `whole`, and
  ValueError for what matches the empty text, and for `^` and `$`.
  """
  inner = f'({regex})'
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
  return over_bytes(Letters(next_SK, hits_SK, end_S, classes), regex)


def _strip(regex: str) -> str:
  regex = regex.removeprefix('^')
  escaped = len(regex) - len(regex.rstrip('$').rstrip('\\')) - 1
  return regex[:-1] if regex.endswith('$') and escaped % 2 == 0 else regex


def _parse(regex: str, name: str):
  """Transitions, accepting states, and the classes of code points."""
  bare = re.sub(r'\\.|\[\^?\]?[^\]]*\]', 'x', regex)
  if re.search(r'[*+?}]\+', bare):
    raise ValueError(
      f'regular expression {name!r}: possessive repetition is not implemented'
    )
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
  except AttributeError:  # A comment, say.
    raise ValueError(
      f'regular expression {name!r} has what no automaton can do'
    ) from None
  except _TooMany:
    raise ValueError(
      f'regular expression {name!r} needs more than {_MAX_CRAWLED} states: '
      'bounded repetition after .* is what makes them many'
    ) from None

  keys = {key: k for k, key in enumerate(found.alphabet.by_transition)}
  rest = keys[found.alphabet[fsm.anything_else]]
  classes = np.full(CODES, rest, np.uint8)
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

  places = {hashable(initial): 0}
  edges: dict[int, dict] = {}
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
