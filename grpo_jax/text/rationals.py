"""Exact fractions in int32: what numbers and expressions are made of.

A ratio is a pair (numerator, denominator) of int32 arrays of any one shape, in
lowest terms and with a denominator above 0. Both stay below LIMIT in size. Each
operation also tells where its result stays in that range; elsewhere it gives
the placeholder 1/1, by which a caller may go on to divide.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

LIMIT = 2**30  # So that a sum of two of them still fits in int32.


class Ratio(NamedTuple):
  """numerator / denominator, in lowest terms."""

  numerator: jax.Array  # int32, carries the sign.
  denominator: jax.Array  # int32, above 0.


def add(x: Ratio, y: Ratio) -> tuple[Ratio, jax.Array]:
  """The sum, and where it fits.

  Brought to their least common denominator, both terms have to fit as well.
  """
  shared = gcd(x.denominator, y.denominator)
  x_scale = lax.div(y.denominator, shared)
  y_scale = lax.div(x.denominator, shared)
  x_term, x_fits = product(x.numerator, x_scale)
  y_term, y_fits = product(y.numerator, y_scale)
  denominator, fits = product(x.denominator, x_scale)
  numerator = x_term + y_term
  # Whatever else divides the denominator does not divide the numerator.
  common = gcd(numerator, shared)
  numerator = lax.div(numerator, common)
  fits &= x_fits & y_fits & (jnp.abs(numerator) < LIMIT)
  return _where(fits, Ratio(numerator, lax.div(denominator, common))), fits


def multiply(x: Ratio, y: Ratio) -> tuple[Ratio, jax.Array]:
  """The product, and where it fits."""
  # Cancelled before the product, so that nothing is larger than the result.
  common = gcd(
    jnp.stack([x.numerator, y.numerator]),
    jnp.stack([y.denominator, x.denominator]),
  )
  x_top, y_top = lax.div(jnp.stack([x.numerator, y.numerator]), common)
  y_low, x_low = lax.div(jnp.stack([y.denominator, x.denominator]), common)
  numerator, top_fits = product(x_top, y_top)
  denominator, low_fits = product(x_low, y_low)
  fits = top_fits & low_fits
  return _where(fits, Ratio(numerator, denominator)), fits


def inverse(x: Ratio) -> Ratio:
  """1/x; a zero stays as it is, for the caller to have noticed."""
  top = jnp.where(x.numerator < 0, -x.denominator, x.denominator)
  zero = x.numerator == 0
  return Ratio(
    jnp.where(zero, 0, top), jnp.where(zero, 1, jnp.abs(x.numerator))
  )


def lowest(numerator: jax.Array, denominator: jax.Array) -> Ratio:
  """The ratio of two numbers that fit, the second of them above 0."""
  common = gcd(numerator, denominator)
  return Ratio(lax.div(numerator, common), lax.div(denominator, common))


def gcd(x: jax.Array, y: jax.Array) -> jax.Array:
  """The greatest common divisor, Euclid's; gcd(0, 0) is 0."""

  def step(pair):
    x, y = pair
    done = y == 0
    left = lax.rem(x, jnp.where(done, 1, y))
    return jnp.where(done, x, y), jnp.where(done, 0, left)

  pair = (jnp.abs(x), jnp.abs(y))
  return lax.while_loop(lambda pair: jnp.any(pair[1] != 0), step, pair)[0]


def product(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The product of two whole numbers, 0 where it does not fit, and where."""
  # The float tells a product that wraps around from one that does not; which
  # side of LIMIT the latter is on is then seen in whole numbers.
  near = jnp.abs(x.astype(jnp.float32) * y.astype(jnp.float32)) < 1.5 * LIMIT
  fits = near & (jnp.abs(x * y) < LIMIT)
  return jnp.where(fits, x * y, 0), fits


def _where(fits, ratio):
  return Ratio(*(jnp.where(fits, part, 1) for part in ratio))
