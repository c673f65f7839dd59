"""The parts that decoders share: norms, rotary positions, thin products.

D model width, H head size, B rows, T tokens, N heads; of a product X rows, I
numbers in and O out.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def accumulator(x: jax.Array) -> jnp.dtype:
  """The dtype of sums over x: float32, or float64 where x is."""
  return jnp.promote_types(x.dtype, jnp.float32)


def apart(x: jax.Array) -> jax.Array:
  """x itself, but what follows is compiled apart from what came before.

  XLA's CPU library would take roots and exponentials into its products and
  sums, but where there are many rows only, and rounds them otherwise: the
  sampler would drift from the trainer (test_drift.py).
  """
  exact = jnp.finfo(x.dtype)
  return jax.lax.reduce_precision(x, exact.nexp, exact.nmant)


def rms_norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
  """Root mean square norm in float32 (arxiv.org/abs/1910.07467)."""
  wide = x_BTD.astype(accumulator(x_BTD))
  mean_square = jnp.mean(wide**2, axis=-1, keepdims=True)
  normed = wide * jax.lax.rsqrt(apart(mean_square) + eps)
  return (normed * scale_D.astype(wide.dtype)).astype(x_BTD.dtype)


def thin_product(x_XI: jax.Array, w_OI: jax.Array, dtype=None) -> jax.Array:
  """x @ w.T for the few rows of a decode step; sums are of `dtype`, or x's.

  On a CPU the weights are the left factor, which XLA's library reads as they
  lie: a rollout of shape S1 in experiments/benchmark.py took 0.90 of the time,
  of S2 0.79, of S3 0.67 (2 cores of an AMD Zen 3). On one device the rows
  are filled up to a multiple of 64, where it takes the sums in the order of an
  update's products. (Without AVX-512 a multiple of 16 is enough; with it 40
  rows, filled up to 48, drifted 2e-4 in test_drift.py, where attention is
  sharp.) At most 32 rows are filled up to a multiple of 16 only, as 64 would be
  twice the work: with AVX-512, 32 of them drift 1e-4 in that test.
  """

  def weights_first(x_XI, w_OI):
    X = len(x_XI)
    if jax.sharding.get_abstract_mesh().size <= 1:  # Else rows would move.
      x_XI = jnp.pad(x_XI, ((0, -X % (64 if X > 32 else 16)), (0, 0)))
    y_OX = jnp.einsum('oi,xi->ox', w_OI, x_XI, preferred_element_type=dtype)
    # Else XLA takes the transposition away, and x is the left factor again.
    return jax.lax.optimization_barrier(y_OX)[:, :X].T

  def rows_first(x_XI, w_OI):
    return jnp.einsum('xi,oi->xo', x_XI, w_OI, preferred_element_type=dtype)

  return jax.lax.platform_dependent(
    x_XI, w_OI, cpu=weights_first, default=rows_first
  )


def frequencies(
  head_size: int,
  theta: float,
  linear: float = 1.0,
  llama3: Sequence[float] = (),
) -> np.ndarray:
  """Radians a position of each rotary pair, (H/2,) float32.

  Args:
    head_size: even.
    theta: the base of the wave lengths, which go from 2 pi to 2 pi theta.
    linear: divides all frequencies (arxiv.org/abs/2306.15595).
    llama3: factor, low and high, original context length; as Llama 3.1 does it
      (arxiv.org/abs/2407.21783): waves that fit less than `low` times into the
      original context are slowed down by the factor, those that fit more than
      `high` times stay, and between them it is interpolated.
  """
  waves = theta ** -(np.arange(0, head_size, 2) / head_size) / linear
  if llama3:
    factor, low, high, context = llama3
    turns = context * waves / (2 * np.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    waves *= share + (1 - share) / factor
  return waves.astype(np.float32)


def rope_tables(
  positions_BT: jax.Array, frequencies_H: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Cosines and signed sines for `rope`, (B, 1, 1, T, 2, H/2) float32 each."""
  angles = positions_BT[:, None, None, :, None] * frequencies_H
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return jnp.stack([cos, cos], axis=-2), jnp.stack([-sin, sin], axis=-2)


def rope(x_BKRTH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotary positions (arxiv.org/abs/2104.09864), halves rotated as in HF.

  The halves are an axis that is reversed: XLA's CPU code for joining them
  instead was an eighth of a rollout of shape S1 in experiments/benchmark.py.
  """
  halves = x_BKRTH.astype(accumulator(x_BKRTH))
  halves = halves.reshape(*x_BKRTH.shape[:-1], 2, -1)
  turned = halves * cos + jnp.flip(halves, axis=-2) * sin
  return turned.reshape(x_BKRTH.shape).astype(x_BKRTH.dtype)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """silu(gate) * up (arxiv.org/abs/2002.05202), elementwise.

  Its gradient starts from the two arguments: what lies between them and the
  result is not kept (3.5% of a step of shape S1 in experiments/benchmark.py).
  """
  return jax.nn.silu(gate) * up


def _swiglu_and_arguments(gate, up):
  return swiglu(gate, up), (gate, up)


def _swiglu_gradients(arguments, dy):
  gate, up = arguments
  sigmoid = jax.nn.sigmoid(gate)
  slope = sigmoid * (1 + gate * (1 - sigmoid))
  return dy * up * slope, dy * gate * sigmoid


swiglu.defvjp(_swiglu_and_arguments, _swiglu_gradients)
