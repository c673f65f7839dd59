"""Fractions in int32, against Python's own."""

from fractions import Fraction
import math
import random

import jax
import numpy as np

from grpo_jax.text import rationals
from grpo_jax.text.rationals import LIMIT, Ratio


def some_fractions(seed, size=20000):
  """Small ones, and some whose sums and products come close to the limit."""
  rng = random.Random(seed)

  def part():
    return rng.randrange(2 ** rng.randrange(1, 31))

  return [
    Fraction(rng.choice([1, -1]) * part(), part() or 1) for _ in range(size)
  ]


def ratio(fractions):
  return Ratio(
    np.array([x.numerator for x in fractions], np.int32),
    np.array([x.denominator for x in fractions], np.int32),
  )


def assert_equal(actual, fits, expected):
  expected = [Fraction(1) if x is None else x for x in expected]
  np.testing.assert_array_equal(actual.numerator, ratio(expected).numerator)
  np.testing.assert_array_equal(actual.denominator, ratio(expected).denominator)
  assert actual.numerator.dtype == actual.denominator.dtype == np.int32
  assert 0.1 < np.mean(fits) < 0.9


def fitting(x):
  return max(abs(x.numerator), x.denominator) < LIMIT


def test_products_are_exact_or_known_not_to_fit():
  x, y = some_fractions(0), some_fractions(1)
  actual, fits = jax.jit(rationals.multiply)(ratio(x), ratio(y))
  products = [a * b for a, b in zip(x, y, strict=True)]
  np.testing.assert_array_equal(fits, [fitting(x) for x in products])
  assert_equal(actual, fits, [x if fitting(x) else None for x in products])


def test_sums_are_exact_or_known_not_to_fit():
  x, y = some_fractions(2), some_fractions(3)
  expected = []
  for a, b in zip(x, y, strict=True):
    common = math.lcm(a.denominator, b.denominator)
    seen = (a * common, b * common, Fraction(common), a + b)
    expected.append(a + b if all(fitting(x) for x in seen) else None)
  actual, fits = jax.jit(rationals.add)(ratio(x), ratio(y))
  np.testing.assert_array_equal(fits, [x is not None for x in expected])
  assert_equal(actual, fits, expected)


def test_the_limit_itself_does_not_fit_and_the_number_below_does():
  # The last rows wrap around in int32.
  x = np.array([2**15, 2**15 - 1, -(2**15), 3, LIMIT - 1, 2**16], np.int32)
  y = np.array([2**15, 2**15 + 1, 2**15, 357913941, 1, 2**17], np.int32)
  product, fits = rationals.product(x, y)
  np.testing.assert_array_equal(fits, [0, 1, 0, 1, 1, 0])
  expected = [0, LIMIT - 1, 0, LIMIT - 1, LIMIT - 1, 0]
  np.testing.assert_array_equal(product, expected)


def test_an_inverse_keeps_the_sign_above():
  inverse = rationals.inverse(
    ratio([Fraction(-2, 3), Fraction(5), Fraction(0)])
  )
  np.testing.assert_array_equal(inverse.numerator, [-3, 1, 0])
  np.testing.assert_array_equal(inverse.denominator, [2, 5, 1])
