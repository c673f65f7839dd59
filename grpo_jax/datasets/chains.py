"""Chains of small operations that need more than one look (the quickstart).

  Start at 6: -1 *2 +2 -2. Last digit?     6-1=5;5*2=10;0+2=2;2-2=0     0

Operations are applied from left to right, and each goes on with the last digit
of the result before. No step goes below zero, so that every equation is true.
"""

from collections.abc import Iterator
import random

from grpo_jax.datasets import Example

VERSION = '1.0.0'

# Small enough to learn, and such that the last operations tell little of the
# answer: knowing the last three, the best guess is right in 24% (with all of
# -1 to -9 and *2 to *9 it would be 40%: -9 leaves only 0, *5 only 0 and 5).
_OPERANDS = {'+': range(1, 10), '-': range(1, 5), '*': range(2, 5)}


def examples(
  problems: int = 60_000,
  terms_min: int = 4,
  terms_max: int = 7,
  seed: int = 0,
) -> Iterator[Example]:
  """Draws chains of terms_min to terms_max operations, all lengths alike."""
  if problems < 1:
    raise ValueError(f'problems={problems} must be at least 1')
  if not 1 <= terms_min <= terms_max:
    raise ValueError(
      f'terms_min={terms_min} must be from 1 to terms_max={terms_max}'
    )
  rng = random.Random(seed)
  for _ in range(problems):
    yield _chain(rng, rng.randint(terms_min, terms_max))


def _chain(rng: random.Random, terms: int) -> Example:
  start = digit = rng.randrange(10)
  operations, equations = [], []
  for _ in range(terms):
    operator, operand = rng.choice(_NEXT[digit])
    result = _apply(digit, operator, operand)
    operations.append(f'{operator}{operand}')
    equations.append(f'{digit}{operator}{operand}={result}')
    digit = result % 10
  return Example(
    prompt=f'Start at {start}: {" ".join(operations)}. Last digit?',
    answer=str(digit),
    reasoning=';'.join(equations),
  )


def _apply(digit: int, operator: str, operand: int) -> int:
  if operator == '+':
    return digit + operand
  if operator == '-':
    return digit - operand
  return digit * operand


# For each digit what can follow: nothing below zero, and no zero multiplied.
_NEXT = [
  [
    (operator, operand)
    for operator, operands in _OPERANDS.items()
    for operand in operands
    if not (operator == '-' and operand > digit)
    and not (operator == '*' and digit == 0)
  ]
  for digit in range(10)
]
