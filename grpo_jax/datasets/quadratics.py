"""Quadratic equations, and how the formula solves them.

  Solve x^2 - 5x + 6 = 0.                                x = 2 or x = 3

  a = 1, b = -5, c = 6. The discriminant is b^2 - 4ac = 25 - 24 = 1. Its square
  root is sqrt(1) = 1. By the formula, x = (-b +- sqrt(1)) / (2a), so x = (5 -
  1) / 2 = 2 or x = (5 + 1) / 2 = 3.

An answer has the smaller root first; a double root stands once. Roots are whole
numbers (-3), fractions in lowest terms (-1/2) or, with r a number without a
square in it, 1 - sqrt(2), (3 + 2sqrt(5))/2, -sqrt(7)/3. The columns hold the
'operations' that an explanation has to show, the 'roots' as text and the
'coefficients' a, b and c.
"""

from collections.abc import Iterator
from fractions import Fraction
import math
import random

from grpo_jax.datasets import Example

VERSION = '1.0.0'

OPERATIONS = ('sqrt', 'plus_minus')


def examples(
  problems: int = 20_000,
  roots: str = 'integer',
  leading: int = 5,
  largest: int = 20,
  seed: int = 0,
) -> Iterator[Example]:
  """Draws equations with real roots of the given kinds.

  `roots` is integer, rational (at least one is a fraction), irrational, or some
  of them: 'integer+irrational'. The factor before x^2 is from 1 to `leading`.
  Whole roots and the numerators of fractions are up to `largest` either way,
  and so are b and c where roots are irrational.
  """
  kinds = roots.split('+')
  if not all(kind in _DRAWS for kind in kinds):
    raise ValueError(f'roots={roots!r}: each must be of {", ".join(_DRAWS)}')
  for name, value, least in (
    ('problems', problems, 1),
    ('leading', leading, 2 if 'rational' in kinds else 1),
    ('largest', largest, 1),
  ):
    if value < least:
      raise ValueError(f'{name}={value} must be at least {least}')
  rng = random.Random(seed)
  for _ in range(problems):
    yield example(*_DRAWS[rng.choice(kinds)](rng, leading, largest))


def _integer(rng, leading, largest) -> tuple[int, int, int]:
  a = rng.randint(1, leading)
  r, s = (rng.randint(-largest, largest) for _ in range(2))
  return a, -a * (r + s), a * r * s


def _rational(rng, leading, largest) -> tuple[int, int, int]:
  """(qx - p)(tx - s) with q t up to leading, p/q no whole number."""
  while True:
    q = rng.randint(2, leading)
    t = rng.randint(1, leading // q)
    p, s = (rng.randint(-largest, largest) for _ in range(2))
    if p % q:
      return q * t, -(q * s + p * t), p * s


def _irrational(rng, leading, largest) -> tuple[int, int, int]:
  while True:
    a = rng.randint(1, leading)
    b, c = (rng.randint(-largest, largest) for _ in range(2))
    square = b * b - 4 * a * c
    if square > 0 and math.isqrt(square) ** 2 != square:
      return a, b, c


_DRAWS = {
  'integer': _integer,
  'rational': _rational,
  'irrational': _irrational,
}


def example(a: int, b: int, c: int) -> Example:
  """The equation a x^2 + b x + c = 0, whose roots are real."""
  square = b * b - 4 * a * c
  outside, inside = _root(square)
  if inside == 1:
    found = sorted({Fraction(-b + s * outside, 2 * a) for s in (-1, 1)})
    roots = [str(root) for root in found]
  else:
    roots = [_surd(-b, sign, outside, inside, 2 * a) for sign in '-+']
  answer = ' or '.join(f'x = {root}' for root in roots)
  simple = _times(outside, inside)
  shown = f'sqrt({square})' + (
    f' = {simple}' if inside != square or inside == 1 else ''
  )
  signs = '-+' if square else ['+-']
  ends = [
    f'x = ({-b} {sign} {simple}) / {2 * a} = {root}'
    for sign, root in zip(signs, roots, strict=True)
  ]
  return Example(
    prompt=f'Solve {_polynomial(a, b, c)} = 0.',
    answer=answer,
    reasoning=(
      f'a = {a}, b = {b}, c = {c}. The discriminant is b^2 - 4ac = '
      f'{b * b} {_signed(-4 * a * c)} = {square}. Its square root is {shown}. '
      f'By the formula, x = (-b +- sqrt({square})) / (2a), so '
      f'{" or ".join(ends)}.'
    ),
    columns={
      'operations': list(OPERATIONS),
      'roots': roots,
      'coefficients': [a, b, c],
    },
  )


def _root(square: int) -> tuple[int, int]:
  """sqrt(square) as outside * sqrt(inside), inside as small as can be."""
  outside, inside = 1, square
  for n in range(math.isqrt(square), 1, -1):
    if square % (n * n) == 0:
      outside, inside = n, square // (n * n)
      break
  return (outside, inside) if square else (0, 1)


def _surd(p: int, sign: str, outside: int, inside: int, q: int) -> str:
  """(p + outside sqrt(inside)) / q in lowest terms."""
  common = math.gcd(p, outside, q)
  p, outside, q = p // common, outside // common, q // common
  term = _times(outside, inside)
  if p:
    top = f'{p} {sign} {term}'
    return top if q == 1 else f'({top})/{q}'
  top = term if sign == '+' else f'-{term}'
  return top if q == 1 else f'{top}/{q}'


def _times(outside: int, inside: int) -> str:
  if inside == 1:
    return str(outside)
  return f'{"" if outside == 1 else outside}sqrt({inside})'


def _polynomial(a: int, b: int, c: int) -> str:
  """x^2 - 5x + 6: nothing is multiplied by 1, and zeros are left out."""
  text = f'{"" if a == 1 else a}x^2'
  if b:
    text += f' {"-" if b < 0 else "+"} {"" if abs(b) == 1 else abs(b)}x'
  return f'{text} {_signed(c)}' if c else text


def _signed(n: int) -> str:
  return f'- {-n}' if n < 0 else f'+ {n}'
