"""What a short text says in mathematical symbols, one ASCII byte for each.

Numbers and expressions are read from these symbols, so that three ways to write
a minus need no three rules. First, what stands around an answer is taken off,
up to six layers of it: whitespace, a full stop, and the pairs of WRAPS. Then
Unicode and LaTeX become ASCII as WORDS says.

Arguments are spans of UTF-8 text as `text.span` returns them, zero-padded. A
text that goes on beyond its C bytes is not told apart here: whoever cut it has
the overflow flag. Zero bytes at the end of a text are taken for padding.

Dimension key here: C bytes or symbols, N decimals of a text.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from grpo_jax.text import rationals

WRAPS = (
  (b'', b'.'),
  (b'$', b'$'),
  (rb'\(', rb'\)'),
  (rb'\[', rb'\]'),
  (rb'\boxed{', b'}'),
  (rb'\boxed {', b'}'),
  (rb'\text{', b'}'),
  (rb'\textbf{', b'}'),
  (rb'\mathrm{', b'}'),
)
# The letter f is free to stand for a fraction, as other letters become `?`.
WORDS = {
  '−': '-',
  '×': '*',
  '⋅': '*',
  '·': '*',
  '÷': '/',
  r'\times': '*',
  r'\cdot': '*',
  r'\div': '/',
  r'\frac': 'f',
  r'\dfrac': 'f',
  r'\tfrac': 'f',
  r'\$': '$',
  r'\%': '%',
  '{,}': ',',
  r'\ ': ' ',
  r'\,': ' ',
  '\u00a0': ' ',
  r'\!': '',
  r'\left': '',
  r'\right': '',
}
LAYERS = 6
_ALONE = b'0123456789.,+-*/()${}%'


class Decimals(NamedTuple):
  """The decimals of a text, each told at its last symbol.

  One fits if it has up to nine places and is below 2**30 without the point,
  zeros that change nothing left aside. Elsewhere the arrays hold garbage.
  """

  ends_BC: jax.Array  # bool: a decimal ends here.
  value: rationals.Ratio  # [B, C]; 1 where it does not fit.
  fits_BC: jax.Array  # bool.
  formed_BC: jax.Array  # bool: it has a digit, and one point at most.


def symbols(bytes_BC: jax.Array) -> jax.Array:
  """symbols_BC, uint8 and zero-padded: the characters `0-9.,+-*/()${}%f ?`.

  A question mark is whatever has no symbol of its own.
  """
  inside_BC = unwrap(bytes_BC)
  bytes_BC = jnp.where(inside_BC, bytes_BC, 0)
  own_S = np.full(256, ord('?'), np.uint8)
  own_S[list(_ALONE)] = list(_ALONE)
  own_S[list(b' \t\n\v\f\r')] = ord(' ')
  symbols_BC = jnp.asarray(own_S)[bytes_BC]
  # Four bytes from each position on in one integer, and the four after these.
  each = (shift(bytes_BC, -n).astype(jnp.uint32) << 8 * n for n in range(4))
  four_BC = sum(each, start=jnp.zeros(bytes_BC.shape, jnp.uint32))
  next_BC = shift(four_BC, -4)
  size_BC = jnp.ones_like(bytes_BC)
  for word, symbol in WORDS.items():
    word = word.encode()
    found_BC = _begins(four_BC, word[:4]) & _begins(next_BC, word[4:])
    symbols_BC = jnp.where(found_BC, ord(symbol or '\0'), symbols_BC)
    size_BC = jnp.where(found_BC, len(word), size_BC)
  # The first byte of a word became the symbol, and the rest goes away.
  keep_BC = inside_BC & (symbols_BC > 0)
  for n in range(1, 8):
    keep_BC &= shift(size_BC, n) <= n
  return pack(symbols_BC, keep_BC)


def unwrap(bytes_BC: jax.Array) -> jax.Array:
  """inside_BC, bool: the text without the layers around it.

  A layer with nothing in it stays. Opening and closing are not checked to be
  each other's: `\\boxed{4} or \\boxed{5}` loses both, and is still no number
  and no text that is written otherwise.
  """
  B, C = bytes_BC.shape
  at_C = jnp.arange(C, dtype=jnp.int32)
  solid_BC = ~is_space(bytes_BC)
  width = max(len(opening) for opening, _ in WRAPS)

  def within(start_B, end_B):
    return (at_C >= start_B[:, None]) & (at_C < end_B[:, None])

  def trim(start_B, end_B):
    kept_BC = within(start_B, end_B) & solid_BC
    start_B = jnp.min(jnp.where(kept_BC, at_C, C), axis=1)
    return start_B, jnp.max(jnp.where(kept_BC, at_C + 1, 0), axis=1)

  def peel(_, edges):
    start_B, end_B = edges
    head_BW = _take(bytes_BC, start_B[:, None] + jnp.arange(width))
    tail_B2 = _take(bytes_BC, end_B[:, None] - jnp.arange(2, 0, -1))
    for opening, closing in WRAPS:
      hit_B = end_B - start_B > len(opening) + len(closing)
      for n, byte in enumerate(opening):
        hit_B &= head_BW[:, n] == byte
      for n, byte in enumerate(reversed(closing), 1):
        hit_B &= tail_B2[:, -n] == byte
      # No text wears two of them at once, so the order does not matter.
      start_B = jnp.where(hit_B, start_B + len(opening), start_B)
      end_B = jnp.where(hit_B, end_B - len(closing), end_B)
    return trim(start_B, end_B)

  # All but the padding, without the whitespace around it.
  size_B = jnp.max(jnp.where(bytes_BC > 0, at_C + 1, 0), axis=1)
  edges = trim(jnp.zeros(B, jnp.int32), size_B)
  return within(*lax.fori_loop(0, LAYERS, peel, edges))


def decimals(symbols_BC: jax.Array) -> Decimals:
  """Reads every decimal: digits, with a point among them and commas between.

  After f each of two digits is a decimal, as in `\\frac12`.
  """
  digit_BC = _is_digit(symbols_BC)
  point_BC = symbols_BC == ord('.')
  part_BC = digit_BC | point_BC | (symbols_BC == ord(','))
  lone_BC = digit_BC & (shift(symbols_BC, 1) == ord('f'))
  ends_BC = part_BC & (~shift(part_BC, -1) | lone_BC)
  # Anything but a part of a decimal puts an end to it.
  fresh_BC = shift(ends_BC, 1) | ~part_BC

  def step(carry, inputs):
    symbol_B, digit_B, point_B, fresh_B = inputs
    blank = jax.tree.map(jnp.zeros_like, carry)
    carry = jax.tree.map(
      lambda new, old: jnp.where(fresh_B, new, old), blank, carry
    )
    mantissa_B, places_B, zeros_B, points_B, digits_B, large_B = carry
    # Zeros after the point wait until a digit shows that they count.
    waits_B = digit_B & (points_B > 0) & (symbol_B == ord('0'))
    taken_B = digit_B & ~waits_B
    moved_B = jnp.where(taken_B, zeros_B + 1, 0)
    powers = jnp.asarray(_POWERS)[jnp.minimum(moved_B, 9)]
    grown_B, fits_B = rationals.product(mantissa_B, powers)
    grown_B += jnp.where(taken_B, symbol_B.astype(jnp.int32) - ord('0'), 0)
    places_B += jnp.where(points_B > 0, moved_B, 0)
    large_B |= ~fits_B | (grown_B >= rationals.LIMIT) | (places_B > 9)
    zeros_B = jnp.where(waits_B, zeros_B + 1, jnp.where(taken_B, 0, zeros_B))
    carry = (
      jnp.where(large_B, 1, grown_B),
      jnp.where(large_B, 0, places_B),
      zeros_B,
      points_B + point_B,
      digits_B | digit_B,
      large_B,
    )
    formed_B = carry[4] & (carry[3] <= 1)
    return carry, (carry[0], carry[1], ~large_B, formed_B)

  zero_B = jnp.zeros(len(symbols_BC), jnp.int32)
  no_B = jnp.zeros(len(symbols_BC), bool)
  inputs = (symbols_BC, digit_BC, point_BC, fresh_BC)
  _, outputs = lax.scan(
    step,
    (zero_B, zero_B, zero_B, zero_B, no_B, no_B),
    jax.tree.map(jnp.transpose, inputs),
  )
  mantissa_BC, places_BC, fits_BC, formed_BC = jax.tree.map(
    jnp.transpose, outputs
  )
  value = rationals.lowest(
    jnp.where(ends_BC, mantissa_BC, 1),
    jnp.where(ends_BC, jnp.asarray(_POWERS)[places_BC], 1),
  )
  return Decimals(ends_BC, value, fits_BC, formed_BC)


def nth(values_BC: jax.Array, marks_BC: jax.Array, size: int) -> jax.Array:
  """values_BN: the values at the first `size` marks, 0 where there are less."""
  rank_BC = jnp.cumsum(marks_BC, axis=1, dtype=jnp.int32)
  hit_BNC = marks_BC[:, None] & (
    rank_BC[:, None] == jnp.arange(1, size + 1)[:, None]
  )
  return jnp.sum(
    jnp.where(hit_BNC, values_BC[:, None], 0), axis=2, dtype=values_BC.dtype
  )


def pack(values_BC: jax.Array, keep_BC: jax.Array) -> jax.Array:
  """Moves what is kept to the front, in order; zeros follow."""
  C = values_BC.shape[1]
  to_BC = jnp.cumsum(keep_BC, axis=1, dtype=jnp.int32) - 1
  to_BC = jnp.where(keep_BC, to_BC, C)  # Past the end: dropped.

  def move(values_C, to_C):
    return jnp.zeros_like(values_C).at[to_C].set(values_C, mode='drop')

  return jax.vmap(move)(values_BC, to_BC)


def shift(values_BC: jax.Array, n: int) -> jax.Array:
  """values_BC[:, c - n], zero where there is none."""
  C = values_BC.shape[1]
  padded = jnp.pad(values_BC, ((0, 0), (max(n, 0), max(-n, 0))))
  return padded[:, max(-n, 0) : max(-n, 0) + C]


def is_space(bytes_BC: jax.Array) -> jax.Array:
  """bool_BC: one of the six ASCII characters of `bytes.strip()`."""
  return (bytes_BC == 32) | ((bytes_BC >= 9) & (bytes_BC <= 13))


_POWERS = np.array([10**n for n in range(10)], np.int32)


def _begins(four_BC, start):
  """Whether the first bytes of four are these."""
  mask = jnp.uint32(256 ** len(start) - 1)
  return four_BC & mask == jnp.uint32(int.from_bytes(start, 'little'))


def _is_digit(symbols_BC):
  return (symbols_BC >= ord('0')) & (symbols_BC <= ord('9'))


def _take(bytes_BC, at_BK):
  """The bytes at these positions, 0 where there are none."""
  return jnp.take_along_axis(bytes_BC, at_BK, axis=1, mode='fill', fill_value=0)
