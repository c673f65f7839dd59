"""Countdown: reach a target with given numbers and + - * / (TinyZero's task).

  words   Use each of the numbers 19, 36, 55, 7 once, with + - * and
          parentheses, to make 45.
  terse   19 36 55 7 -> 45, for small models that are trained in the run

Every problem is made from a solution, so that there is one. No step of it goes
below 1 or beyond the greatest target, and all divisions are exact:

  reasoning   36-19=17 17+7=24 no;55-36=19 ...     answer   (55-36)*7+19

The columns 'numbers' and 'target' are what a reward has to look at: `answer` is
one solution of many.
"""

from collections.abc import Iterator
import random
from typing import NamedTuple

from grpo_jax.datasets import Example

VERSION = '1.0.0'

_TRIES = 10_000  # Draws without any solution in range before giving up.
_STYLES = ('words', 'terse')


class _Term(NamedTuple):
  value: int
  text: str
  binds: int  # How tightly: 1 a sum, 2 a product, 3 a number.


def examples(
  problems: int = 60_000,
  numbers_min: int = 3,
  numbers_max: int = 4,
  largest: int = 99,
  target_max: int = 999,
  operations: str = '+-*/',
  subset: bool = False,
  tries: int = 2,
  style: str = 'words',
  seed: int = 0,
) -> Iterator[Example]:
  """Draws numbers_min to numbers_max numbers from 1 to `largest`, 3 to 6 usual.

  The solution takes all of them, or at least two if `subset`. Up to `tries`
  lines of the reasoning miss the target before the one that reaches it.
  """
  _check(problems, numbers_min, numbers_max, largest, target_max)
  if not operations or set(operations) - set('+-*/'):
    raise ValueError(f'operations={operations!r} must be some of +-*/')
  if style not in _STYLES:
    raise ValueError(f'style={style!r} is not one of {", ".join(_STYLES)}')
  if tries < 0:
    raise ValueError(f'tries={tries} must not be below 0')
  rng = random.Random(seed)
  for _ in range(problems):
    numbers, solution, steps = _solvable(
      rng, numbers_min, numbers_max, largest, target_max, operations, subset
    )
    target = solution.value
    misses = _misses(rng, numbers, target, target_max, operations, tries)
    yield Example(
      prompt=_prompt(numbers, target, operations, subset, style),
      answer=solution.text,
      reasoning=';'.join([*misses, ' '.join(steps)]),
      columns={'numbers': numbers, 'target': target},
    )


def _check(problems, numbers_min, numbers_max, largest, target_max) -> None:
  for name, value in (
    ('problems', problems),
    ('largest', largest),
    ('target_max', target_max),
  ):
    if value < 1:
      raise ValueError(f'{name}={value} must be at least 1')
  if not 2 <= numbers_min <= numbers_max:
    raise ValueError(
      f'numbers_min={numbers_min} must be from 2 to numbers_max={numbers_max}'
    )


def _prompt(numbers, target, operations, subset, style) -> str:
  if style == 'terse':
    return f'{" ".join(map(str, numbers))} -> {target}'
  listed = ', '.join(map(str, numbers))
  times = 'at most once' if subset else 'once'
  return (
    f'Use each of the numbers {listed} {times}, with {" ".join(operations)} '
    f'and parentheses, to make {target}.'
  )


def _solvable(
  rng, numbers_min, numbers_max, largest, target_max, operations, subset
) -> tuple[list[int], _Term, list[str]]:
  """Numbers, a term of them in range, and the steps that lead to it."""
  for _ in range(_TRIES):
    size = rng.randint(numbers_min, numbers_max)
    numbers = [rng.randint(1, largest) for _ in range(size)]
    used = rng.sample(numbers, rng.randint(2, size)) if subset else numbers
    found = _combine(rng, used, target_max, operations)
    if found and not (subset and found[0].value in numbers):
      return numbers, *found
  raise ValueError(
    f'operations={operations!r}, largest={largest}, target_max={target_max}: '
    f'no solution in {_TRIES} draws'
  )


def _misses(rng, numbers, target, target_max, operations, tries) -> list[str]:
  """Lines that lead elsewhere, as a solver writes them on the way."""
  lines = []
  for _ in range(rng.randint(0, tries)):
    found = _combine(rng, numbers, target_max, operations)
    if found and found[0].value != target:
      lines.append(' '.join(found[1]) + ' no')
  return lines


def _combine(
  rng: random.Random, numbers: list[int], limit: int, operations: str
) -> tuple[_Term, list[str]] | None:
  """Joins the numbers two by two at random; None where that cannot go on."""
  terms = [_Term(number, str(number), 3) for number in numbers]
  rng.shuffle(terms)
  steps = []
  while len(terms) > 1:
    # Faster than randrange, which counts when many thousands are made.
    a = terms.pop(int(rng.random() * len(terms)))
    b = terms.pop(int(rng.random() * len(terms)))
    if a.value < b.value:
      a, b = b, a
    allowed = [
      operator
      for operator in operations
      if _fits(a.value, operator, b.value, limit)
    ]
    if not allowed:
      return None
    operator = allowed[int(rng.random() * len(allowed))]
    term = _join(a, operator, b)
    steps.append(f'{a.value}{operator}{b.value}={term.value}')
    terms.append(term)
  return terms[0], steps


def _fits(a: int, operator: str, b: int, limit: int) -> bool:
  """Whether the result is a whole number from 1 to limit; a is at least b."""
  if operator == '+':
    return a + b <= limit
  if operator == '-':
    return 0 < a - b <= limit
  if operator == '*':
    return a * b <= limit
  return a % b == 0 and a // b <= limit


def _join(a: _Term, operator: str, b: _Term) -> _Term:
  """a operator b, with no more parentheses than the order needs."""
  if operator == '+':
    return _Term(a.value + b.value, f'{a.text}+{b.text}', 1)
  if operator == '-':
    return _Term(a.value - b.value, f'{a.text}-{_within(b, 2)}', 1)
  left = _within(a, 2)
  if operator == '*':
    return _Term(a.value * b.value, f'{left}*{_within(b, 2)}', 2)
  return _Term(a.value // b.value, f'{left}/{_within(b, 3)}', 2)


def _within(term: _Term, binds: int) -> str:
  return term.text if term.binds >= binds else f'({term.text})'
