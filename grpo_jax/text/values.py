"""The value of an answer's text: canonical numbers, and text in normal form.

Spans of UTF-8 text go in, bytes_BC as `text.span` returns them, and arrays come
out; all of it compiles together with the rollout. `symbols.py` says what is
taken off around an answer first, such as `\\boxed{}`.

A number is what NUMBER says: a decimal, with a comma before each group of three
digits or with none; a fraction `3/4`, `\\frac{3}{4}` or `\\frac34`; or a mixed
number `1 1/2`. A sign, a dollar sign and a percent sign may stand around it.
The last two are units, which change nothing: 50% is 50, as graders of GSM8K and
MATH have it. `1e3` is no number but text, and so are `1,23` and `5 km`.

To accept another form, write it into NUMBER, and into symbols.WORDS if it is
another spelling of something known.

Dimension key here: C bytes or symbols, S states of an automaton.
"""

import functools

from flax import struct
import interegular
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from grpo_jax.text import rationals, symbols
from grpo_jax.text.rationals import Ratio

_WHOLE = '([0-9]+|[0-9]{1,3}(,[0-9]{3})+)'
_DECIMAL = rf'({_WHOLE}(\.[0-9]*)?|\.[0-9]+)'
_FRACTION = rf'f( *\{{ *[+-]? *{_DECIMAL} *\}}){{2}}|f[0-9][0-9]'
_PROPER = rf'f( *\{{ *{_WHOLE} *\}}){{2}}|f[0-9][0-9]'
_MIXED = f'{_WHOLE}( +{_WHOLE} */ *{_WHOLE}| *({_PROPER}))'
# Over symbols, in which f is \frac.
NUMBER = (
  r'([+-]? *\$?|\$ *[+-]) *'
  f'({_DECIMAL}( */ *{_DECIMAL})?|{_FRACTION}|{_MIXED}) *%?'
)


class Value(struct.PyTreeNode):
  """A rational number in lowest terms, 0/1 where it is not known."""

  numerator_B: jax.Array  # int32, below 2**30 in size.
  denominator_B: jax.Array  # int32, above 0 and below 2**30.
  valid_B: jax.Array  # bool: the text has a value.
  exact_B: jax.Array  # bool: and this is it, as all of it fitted.


def number(bytes_BC: jax.Array) -> Value:
  """The number that the text is.

  It is exact if every decimal in it fits (see symbols.Decimals) and so does the
  result.
  """
  symbols_BC = symbols.symbols(bytes_BC)
  read = symbols.decimals(symbols_BC)
  count_B = jnp.sum(read.ends_BC, axis=1, dtype=jnp.int32)
  every = (symbols.nth(part, read.ends_BC, 3).T for part in read.value)
  first, second, third = map(Ratio, *every)
  # Three decimals are a mixed number: the first, and the others' fraction.
  mixed_B, single_B = count_B > 2, count_B < 2
  whole = _choose(mixed_B, first, (0, 1))
  over = _choose(mixed_B, second, first)
  under = _choose(mixed_B, third, _choose(single_B, (1, 1), second))
  part, part_fits_B = rationals.multiply(over, rationals.inverse(under))
  total, total_fits_B = rationals.add(whole, part)
  minuses_B = jnp.sum(symbols_BC == ord('-'), axis=1, dtype=jnp.int32)
  sign_B = 1 - 2 * (minuses_B % 2)
  fits_B = jnp.all(read.fits_BC | ~read.ends_BC, axis=1)
  return value(
    Ratio(sign_B * total.numerator, total.denominator),
    valid_B=_is_number(symbols_BC) & (under.numerator != 0),
    fits_B=fits_B & part_fits_B & total_fits_B,
  )


def plain(bytes_BC: jax.Array) -> jax.Array:
  """The text in normal form, zero-padded: equal texts are equal bytes.

  A decimal number of any length is its digits, without commas, units and zeros
  that change nothing. Any other text is in lower case (of ASCII), with a space
  for each run of whitespace. Both lose the layers around them.
  """
  inside_BC = symbols.unwrap(bytes_BC)
  space_BC = symbols.is_space(bytes_BC)
  upper_BC = (bytes_BC >= ord('A')) & (bytes_BC <= ord('Z'))
  text_BC = jnp.where(upper_BC, bytes_BC + 32, bytes_BC)
  text_BC = jnp.where(space_BC, ord(' '), text_BC).astype(jnp.uint8)
  again_BC = space_BC & symbols.shift(space_BC, 1)
  text_BC = symbols.pack(text_BC, inside_BC & ~again_BC)

  symbols_BC = symbols.symbols(bytes_BC)
  # A slash, an f: what makes a number more than one decimal.
  parted_BC = (symbols_BC == ord('/')) | (symbols_BC == ord('f'))
  decimal_B = _is_number(symbols_BC) & ~jnp.any(parted_BC, axis=1)
  return jnp.where(decimal_B[:, None], _digits(symbols_BC), text_BC)


def same(x: Value, y: Value) -> jax.Array:
  """bool_B: both are known exactly, and they are equal."""
  known_B = x.valid_B & x.exact_B & y.valid_B & y.exact_B
  equal_B = x.numerator_B == y.numerator_B
  return known_B & equal_B & (x.denominator_B == y.denominator_B)


def equal(x_BC: jax.Array, y_BC: jax.Array) -> jax.Array:
  """bool_B: the texts are the same number, or the same text in normal form.

  The two may differ in C. Fractions that do not fit are equal only if they are
  written alike.
  """
  C = max(x_BC.shape[1], y_BC.shape[1])
  x_BC, y_BC = (jnp.pad(a, ((0, 0), (0, C - a.shape[1]))) for a in (x_BC, y_BC))
  alike_B = jnp.all(plain(x_BC) == plain(y_BC), axis=1)
  return alike_B | same(number(x_BC), number(y_BC))


def value(ratio: Ratio, valid_B: jax.Array, fits_B: jax.Array) -> Value:
  """The ratio where it is valid and fits."""
  exact_B = valid_B & fits_B
  ratio = _choose(exact_B, ratio, (0, 1))
  return Value(*ratio, valid_B=valid_B, exact_B=exact_B)


def _choose(condition_B, x, y) -> Ratio:
  pairs = zip(x, y, strict=True)
  return Ratio(*(jnp.where(condition_B, *pair) for pair in pairs))


def _digits(symbols_BC):
  """-1,234.50 -> -1234.5 and 0.50 -> .5, for the symbols of a decimal."""
  digit_BC = (symbols_BC >= ord('0')) & (symbols_BC <= ord('9'))
  point_BC = symbols_BC == ord('.')
  counts_BC = digit_BC & (symbols_BC > ord('0'))
  before_BC = lax.cumsum(counts_BC.astype(jnp.int32), axis=1) > 0
  after_BC = lax.cumsum(counts_BC.astype(jnp.int32), axis=1, reverse=True) > 0
  places_BC = lax.cumsum(point_BC.astype(jnp.int32), axis=1) > 0
  keep_BC = digit_BC & jnp.where(places_BC, after_BC, before_BC)
  keep_BC |= point_BC & after_BC
  some_B1 = jnp.any(counts_BC, axis=1, keepdims=True)
  keep_BC |= (symbols_BC == ord('-')) & some_B1
  digits_BC = symbols.pack(symbols_BC, keep_BC)
  # Nothing is left of a zero.
  return jnp.where(some_B1, digits_BC, digits_BC.at[:, 0].set(ord('0')))


def _is_number(symbols_BC):
  """bool_B: the symbols are a NUMBER."""
  next_S256, final_S = _automaton()
  next_S256, final_S = jnp.asarray(next_S256), jnp.asarray(final_S)

  def step(state_B, symbol_B):
    return next_S256[state_B, symbol_B], None

  start_B = jnp.zeros(len(symbols_BC), jnp.uint8)
  state_B, _ = lax.scan(step, start_B, symbols_BC.T)
  return final_S[state_B]


@functools.cache
def _automaton():
  """NUMBER as tables: [S, 256] the state after a symbol, [S] is it the end."""
  machine = interegular.parse_pattern(NUMBER).to_fsm().reduce()
  # One more state than the machine has: from there no symbol leads back.
  states = [machine.initial, *sorted(machine.states - {machine.initial}), None]
  number_of = {state: n for n, state in enumerate(states)}
  next_S256 = np.full((len(states), 256), len(states) - 1, np.uint8)
  for state in states[:-1]:
    for byte in b'0123456789.,+-*/()${}%f ?':
      key = machine.alphabet[chr(byte)]
      to = machine.map[state].get(key)
      next_S256[number_of[state], byte] = number_of[to]
  next_S256[:, 0] = np.arange(len(states))  # Padding.
  return next_S256, np.array([s in machine.finals for s in states])
