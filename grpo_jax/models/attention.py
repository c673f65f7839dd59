"""Attention over two sources of keys: a shared prompt, and a row's own tokens.

A group of G completions has one prompt, so its keys and values exist once, for
P prompts, while each of the B = P*G rows has its own. `attend` takes a softmax
over both without copying the prompt G times: the queries of a group are
stacked, which makes a matrix product of what would be G matrix-vector ones.

Arrays are heads-first (B, heads, tokens, H), so that every product is one of
batched matrices as they lie in memory. Own keys and values are transposed (HS),
of a prompt the values are (HL) and the keys are not (LH): with these XLA's CPU
library takes each sum in the same order for the few queries of a decode step
and for the many of an update, if there are 64 rows at least. (With own values
SH and prompt keys HL it does not, and the sampler's log-probabilities drifted
ten times as far from the update's: `rollout/logp_drift` in
experiments/RESULTS.md.) Another kernel takes the place of `attend` here; no
model would know.

Keys: P prompts, B rows, N query heads, K key-value heads, R = N / K, T queries,
L prompt keys, S own keys, H head size, Y layers.
"""

from flax import struct
import jax
import jax.numpy as jnp

from grpo_jax.models import layers


@struct.dataclass
class Cache:
  """Keys and values, one array a layer: updated in place in a decode loop."""

  prompt_k: tuple[jax.Array, ...]  # PKLH
  prompt_v: tuple[jax.Array, ...]  # PKHL
  prompt_lengths_P: jax.Array  # int32, keys from there on are padding.
  own_k: tuple[jax.Array, ...]  # BKHS
  own_v: tuple[jax.Array, ...]  # BKHS
  used: jax.Array  # int32 scalar, own tokens so far; rows go in lockstep.


def init_cache(
  prompt_cache: tuple[jax.Array, jax.Array],
  lengths_P: jax.Array,
  group_size: int,
  max_tokens: int,
) -> Cache:
  """Room for `group_size` continuations of each prompt; see models.Model."""
  k_YPKHL, v_YPKHL = prompt_cache
  Y, P, K, H, _ = k_YPKHL.shape
  B, S = P * group_size, max_tokens
  return Cache(
    prompt_k=tuple(k_YPKHL.swapaxes(3, 4)),
    prompt_v=tuple(v_YPKHL),
    prompt_lengths_P=lengths_P,
    own_k=(jnp.zeros((B, K, H, S), k_YPKHL.dtype),) * Y,
    own_v=(jnp.zeros((B, K, H, S), v_YPKHL.dtype),) * Y,
    used=jnp.int32(0),
  )


def attend(
  q_BKRTH: jax.Array,
  k_BKHS: jax.Array,
  v_BKHS: jax.Array,
  mask: jax.Array,
  prompt: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Scaled dot-product attention, float32 softmax; returns BKRTH.

  Args:
    q_BKRTH: queries, grouped by the key-value head that they read.
    k_BKHS: own keys.
    v_BKHS: own values.
    mask: bool, broadcasts to (B, 1, 1, T, S): which own keys a query sees.
    prompt: keys k_PKLH, values v_PKHL and lengths_P of the shared prompts.
  """
  B, K, R, T, H = q_BKRTH.shape
  q_BKMH = (q_BKRTH * H**-0.5).reshape(B, K, R * T, H)  # Rows m = r*T + t.
  logits_BKRTS = _product(q_BKMH, k_BKHS).reshape(B, K, R, T, -1)
  logits_BKRTS = jnp.where(mask, logits_BKRTS, -jnp.inf)
  logits_BKMS = logits_BKRTS.reshape(B, K, R * T, -1)
  top_BKM1 = jnp.max(logits_BKMS, axis=-1, keepdims=True)
  if prompt is None:
    own_BKMH, sum_BKM1 = _weigh(logits_BKMS, top_BKM1, v_BKHS)
    return (own_BKMH / sum_BKM1).reshape(B, K, R, T, H)

  # One softmax over both: each part is summed below the larger maximum. The
  # two are never put side by side, which would copy all logits twice.
  k_PKLH, v_PKHL, lengths_P = prompt
  P, _, L, _ = k_PKLH.shape
  G = B // P
  logits_PKXL = _product_t(_stack_group(q_BKMH, P), k_PKLH)
  seen_PL = jnp.arange(L) < lengths_P[:, None]
  logits_PKXL = jnp.where(seen_PL[:, None, None], logits_PKXL, -jnp.inf)
  top_PKX1 = jnp.max(logits_PKXL, axis=-1, keepdims=True)
  top_BKM1 = jnp.maximum(top_BKM1, _unstack_group(top_PKX1, G))
  own_BKMH, own_sum_BKM1 = _weigh(logits_BKMS, top_BKM1, v_BKHS)
  y_PKXH, sum_PKX1 = _weigh(logits_PKXL, _stack_group(top_BKM1, P), v_PKHL)
  y_BKMH = own_BKMH + _unstack_group(y_PKXH, G)
  y_BKMH /= own_sum_BKM1 + _unstack_group(sum_PKX1, G)
  return y_BKMH.reshape(B, K, R, T, H)


def _weigh(logits, top, values):
  """Sums of values and of weights, both times exp(-top)."""
  weights = jnp.exp(logits - jax.lax.stop_gradient(top))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return _product_t(weights.astype(values.dtype), values), total


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """a @ b in batches, with (at least) float32 accumulation."""
  return jnp.matmul(a, b, preferred_element_type=layers.accumulator(a))


def _product_t(a: jax.Array, b: jax.Array) -> jax.Array:
  """a @ b^T in batches, with (at least) float32 accumulation."""
  return jnp.einsum(
    '...mi,...ni->...mn', a, b, preferred_element_type=layers.accumulator(a)
  )


def _stack_group(x_BKMI: jax.Array, P: int) -> jax.Array:
  """(P*G, K, M, I) -> (P, K, G*M, I)."""
  B, K, M, I = x_BKMI.shape
  x_PGKMI = x_BKMI.reshape(P, B // P, K, M, I)
  return x_PGKMI.swapaxes(1, 2).reshape(P, K, B // P * M, I)


def _unstack_group(x_PKXI: jax.Array, G: int) -> jax.Array:
  """(P, K, G*M, I) -> (P*G, K, M, I)."""
  P, K, X, I = x_PKXI.shape
  x_PKGMI = x_PKXI.reshape(P, K, G, X // G, I)
  return x_PKGMI.swapaxes(1, 2).reshape(P * G, K, X // G, I)
