"""The value of an arithmetic expression such as `(55 + 36) - 2 * 19`.

Decimals, + - * / and signs, parentheses, in the usual order: products first,
and from left to right. `symbols.py` says which spellings of an operator there
are (`×`, `\\div`, ...) and what may stand around an expression. Whitespace may
stand between tokens. All else has no value: two numbers side by side, `2(3)`,
`2**3`, `7//2`, an equals sign, an empty pair of parentheses.

One scan over the tokens keeps, for each open parenthesis, the sum of what is
finished and the product that is being read: a token is at most one addition and
one multiplication of fractions, and nothing calls back to the host.

Dimension key here: C bytes or symbols, N numbers of an expression, D open
parentheses.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from grpo_jax.text import rationals, symbols, values
from grpo_jax.text.rationals import Ratio

DEPTH = 8  # Open parentheses at once.


def expression(bytes_BC: jax.Array) -> values.Value:
  """What the expression comes to; a division by zero has no value.

  It is exact if its decimals fit (see symbols.Decimals), every result on the
  way fits (see rationals.add), and no more than DEPTH parentheses are open at
  once. What comes after the first misfit is not looked at: a division by zero
  there goes unseen, and the value is valid but not exact.
  """
  tokens = _tokens(symbols.symbols(bytes_BC))
  kinds_BC = tokens.kinds_BC
  opens_BC, closes_BC = kinds_BC == ord('('), kinds_BC == ord(')')
  depth_BC = jnp.cumsum(
    opens_BC.astype(jnp.int32) - closes_BC, axis=1, dtype=jnp.int32
  )
  shallow_B = jnp.all(depth_BC <= DEPTH, axis=1)
  balanced_B = jnp.all(depth_BC >= 0, axis=1) & (depth_BC[:, -1] == 0)
  formed_B = tokens.formed_B & balanced_B & _alternates(kinds_BC)
  # A row that is not to be evaluated must not keep the others waiting.
  kinds_BC = jnp.where((formed_B & shallow_B)[:, None], kinds_BC, 0)
  kinds_BC = kinds_BC.at[:, -1].set(ord('+'))  # Finishes the last term.
  total, divides_B, fits_B = _evaluate(tokens._replace(kinds_BC=kinds_BC))
  return values.value(total, formed_B & divides_B, shallow_B & fits_B)


def literals(bytes_BC: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """values_BN, the first `size` numbers in order, and count_B, of all of them.

  Missing ones are -1; one that is not whole or does not fit is -2. They are
  told whether or not the rest is an expression.
  """
  read = symbols.decimals(symbols.symbols(bytes_BC))
  count_B = jnp.sum(read.ends_BC, axis=1, dtype=jnp.int32)
  whole_BC = read.fits_BC & read.formed_BC & (read.value.denominator == 1)
  whole_BC = jnp.where(whole_BC, read.value.numerator, -2)
  values_BN = symbols.nth(whole_BC, read.ends_BC, size)
  return jnp.where(jnp.arange(size) < count_B[:, None], values_BN, -1), count_B


class _Tokens(NamedTuple):
  """The tokens of an expression, at the front of each row of C + 1."""

  kinds_BC: jax.Array  # uint8: n is a number, others stand for themselves.
  number: Ratio  # [B, C], where the kind is n.
  fits_BC: jax.Array  # bool, of the number.
  formed_B: jax.Array  # bool: each of the tokens is one.


class _Level(NamedTuple):
  """What is known of the innermost parenthesis that is open."""

  total: Ratio  # The terms that are finished.
  term: Ratio  # The product that is being read.
  over_B: jax.Array  # bool: what comes next divides it.


def _tokens(symbols_BC):
  read = symbols.decimals(symbols_BC)
  operator_BC = jnp.isin(symbols_BC, jnp.array(list(b'+-*/()'), jnp.uint8))
  inside_BC = jnp.isin(symbols_BC, jnp.array(list(b'0123456789.'), jnp.uint8))
  known_BC = operator_BC | inside_BC | (symbols_BC == ord(' '))
  known_BC |= symbols_BC == 0
  formed_BC = known_BC & (read.formed_BC | ~read.ends_BC)
  kinds_BC = jnp.where(read.ends_BC, ord('n'), symbols_BC).astype(jnp.uint8)
  keep_BC = read.ends_BC | operator_BC

  def pack(x_BC):
    # With a column more, every row ends in padding.
    return jnp.pad(symbols.pack(x_BC, keep_BC), ((0, 0), (0, 1)))

  return _Tokens(
    kinds_BC=pack(kinds_BC),
    number=Ratio(*map(pack, read.value)),
    fits_BC=pack(read.fits_BC),
    formed_B=jnp.all(formed_BC, axis=1),
  )


def _alternates(kinds_BC):
  """bool_B: operands and operators take turns; parentheses are not counted."""
  last_BC = symbols.shift(kinds_BC, 1)
  after_BC = (last_BC == ord('n')) | (last_BC == ord(')'))
  begins_BC = (kinds_BC == ord('n')) | (kinds_BC == ord('('))
  sign_BC = (kinds_BC == ord('+')) | (kinds_BC == ord('-'))
  # What does not begin an operand comes after one: also the end of the text.
  padding_BC = (kinds_BC == 0) & (last_BC == 0)
  turns_BC = sign_BC | padding_BC | (begins_BC != after_BC)
  return jnp.all(turns_BC, axis=1) & (kinds_BC[:, 0] > 0)


def _evaluate(tokens):
  """The total, whether no divisor is 0, and whether all fits."""
  B, _ = tokens.kinds_BC.shape
  zero_B, one_B = jnp.zeros(B, jnp.int32), jnp.ones(B, jnp.int32)
  zero, one = Ratio(zero_B, one_B), Ratio(one_B, one_B)
  yes_B, no_B = jnp.ones(B, bool), jnp.zeros(B, bool)
  blank = _Level(zero, one, no_B)
  outer = jax.tree.map(lambda x: jnp.repeat(x[:, None], DEPTH, axis=1), blank)

  def step(carry, token):
    level, outer, after_B, divides_B, fits_B = carry
    kind_B, number, number_fits_B = token
    number_B = kind_B == ord('n')
    opens_B, closes_B = kind_B == ord('('), kind_B == ord(')')
    minus_B, over_B = kind_B == ord('-'), kind_B == ord('/')
    sign_B = minus_B | (kind_B == ord('+'))

    # A term is finished by a sign after an operand, and by a parenthesis.
    adds_B = closes_B | (sign_B & after_B)
    term = _where(adds_B, level.term, zero)
    total, sum_fits_B = rationals.add(_where(adds_B, level.total, zero), term)
    fits_B &= sum_fits_B & (number_fits_B | ~number_B)

    # A number is a factor, and so is what was in a parenthesis.
    factor_B = number_B | closes_B
    back = jax.tree.map(lambda x_BD: x_BD[:, 0], outer)
    inner = level
    level = _where(closes_B, back, level)
    factor = _where(closes_B, total, _where(number_B, number, one))
    divides_B &= ~(factor_B & level.over_B & fits_B & (factor.numerator == 0))
    factor = _where(level.over_B, rationals.inverse(factor), factor)
    term = _where(factor_B, level.term, one)
    product, product_fits_B = rationals.multiply(term, factor)
    fits_B &= product_fits_B

    term = _where(factor_B, product, level.term)
    term = _where(adds_B & ~closes_B, one, term)
    turned = Ratio(-term.numerator, term.denominator)
    level = _Level(
      total=_where(adds_B & ~closes_B, total, level.total),
      term=_where(minus_B, turned, term),
      # A sign in front of an operand leaves the operator before it as it is.
      over_B=jnp.where(sign_B & ~after_B, level.over_B, over_B),
    )
    outer = jax.tree.map(
      lambda x_B, x_BD: jnp.where(
        opens_B[:, None],
        jnp.concatenate([x_B[:, None], x_BD[:, :-1]], axis=1),
        jnp.where(closes_B[:, None], jnp.roll(x_BD, -1, axis=1), x_BD),
      ),
      inner,
      outer,
    )
    level = _where(opens_B, blank, level)
    after_B = jnp.where(kind_B > 0, factor_B, after_B)
    return (level, outer, after_B, divides_B, fits_B), None

  inputs = (tokens.kinds_BC, tokens.number, tokens.fits_BC)
  (level, _, _, divides_B, fits_B), _ = lax.scan(
    step,
    (blank, outer, no_B, yes_B, yes_B),
    jax.tree.map(jnp.transpose, inputs),
  )
  return level.total, divides_B, fits_B


def _where(condition_B, x, y):
  return jax.tree.map(lambda x, y: jnp.where(condition_B, x, y), x, y)
