"""Sums in plain words, for models that can read.

What is 34 + 5?     34 + 5 = 39     39
"""

from collections.abc import Iterator
import itertools
import math
import random

from grpo_jax.datasets import Example

VERSION = '1.0.0'


def examples(
  digits: str = '2+1', problems: int = 20_000, seed: int = 0
) -> Iterator[Example]:
  """Sums whose summands have the given numbers of digits, in any order.

  '2+1' is 34 + 5 and 5 + 34, '1+1+1' is 3 + 4 + 5. A one-digit summand is 2 or
  more. If there are no more than `problems` sums, all of them come (1440 of
  '2+1': with a quarter held out, 300 and more); else that many are drawn.
  """
  lengths = digits.split('+')
  if len(lengths) < 2 or not all(n in list('123456789') for n in lengths):
    raise ValueError(f"digits={digits!r} must be like '2+1' or '1+1+1'")
  if problems < 1:
    raise ValueError(f'problems={problems} must be at least 1')
  orders = sorted(set(itertools.permutations(map(int, lengths))))
  spaces = [[_numbers(n) for n in order] for order in orders]
  if sum(math.prod(map(len, space)) for space in spaces) <= problems:
    for space in spaces:
      yield from map(_sum, itertools.product(*space))
  else:
    rng = random.Random(seed)
    for _ in range(problems):
      yield _sum(tuple(map(rng.choice, rng.choice(spaces))))


def _numbers(digits: int) -> range:
  return range(2 if digits == 1 else 10 ** (digits - 1), 10**digits)


def _sum(summands: tuple[int, ...]) -> Example:
  question = ' + '.join(map(str, summands))
  answer = str(sum(summands))
  return Example(f'What is {question}?', answer, f'{question} = {answer}')
