"""Attention over two sources of keys: a shared prompt, and a row's own tokens.

A group of G completions has one prompt, so its keys and values exist once, for
P prompts, while each of the B = P*G rows has its own. `plain` takes a softmax
over both without copying the prompt G times: the queries of a group are
stacked, which makes a matrix product of what would be G matrix-vector ones.

Arrays are heads-first (B, heads, tokens, H), so that every product is one of
batched matrices as they lie in memory. Own keys and values are transposed (HS),
of a prompt the values are (HL) and the keys are not (LH): with these XLA's CPU
library takes each sum in the same order for the few queries of a decode step
and for the many of an update, if a device has 32 rows at least (128 wide; fewer
numbers it sums by another rule). (With own values SH and prompt keys HL it does
not on a CPU with AVX-512, and the sampler's log-probabilities drifted ten times
as far from the update's: `rollout/logp_drift` in experiments/RESULTS.md.)

Kernels have one signature and are chosen by name (config.model.attention):

  plain     all logits at one time
  chunked   some queries at a time: memory linear in the number of keys
  splash    a block of logits at a time, in one program of a TPU (flash.py)
  cudnn     the same on NVIDIA's GPUs, in bfloat16 (flash.py)

To add one, write its function here, or in flash.py if it adapts somebody
else's; no model knows which it is.

Keys: P prompts, B rows, N query heads, K key-value heads, R = N / K, T queries,
L prompt keys, S own keys, H head size, Y layers.
"""

from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from grpo_jax.models import layers

KERNELS = ('plain', 'chunked')


class Cache(struct.PyTreeNode):
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


def grow_cache(cache: Cache, max_tokens: int) -> Cache:
  """Room for so many own tokens; what is there stays. See models.Model."""

  def grow(x_BKHS):
    return jnp.pad(x_BKHS, [(0, 0)] * 3 + [(0, max_tokens - x_BKHS.shape[3])])

  return cache.replace(
    own_k=tuple(map(grow, cache.own_k)), own_v=tuple(map(grow, cache.own_v))
  )


class Reach(NamedTuple):
  """Which keys a query sees, told without a mask of all pairs.

  Query t is at place `used` + t of its row's own keys: it sees those up to
  itself, in its own document, and all of its prompt; of both only the last
  `window`. Where layers of several kinds are scanned, `kind` is not known
  before they run, but `windows` are: kernels that need a number to be compiled
  take them all.
  """

  segment_ids_BS: jax.Array | None = None  # Of own keys, queries among them.
  used: jax.Array | int = 0  # Own keys before the first query.
  windows: tuple[int, ...] = ()  # Keys, a query's own one counted; () is all.
  kind: jax.Array | int = 0  # Which of `windows` is this layer's.

  @property
  def window(self) -> jax.Array | int | None:
    if not self.windows or isinstance(self.kind, int):
      return self.windows[self.kind] if self.windows else None
    return jnp.asarray(self.windows, jnp.int32)[self.kind]


def plain(
  q_BKRTH: jax.Array,
  k_BKHS: jax.Array,
  v_BKHS: jax.Array,
  reach: Reach,
  prompt: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Dot-product attention, float32 softmax; returns BKRTH.

  Args:
    q_BKRTH: scaled queries, grouped by the key-value head that they read.
    k_BKHS: own keys.
    v_BKHS: own values.
    reach: which keys a query sees.
    prompt: keys k_PKLH, values v_PKHL and lengths_P of the shared prompts.
  """
  B, K, R, T, H = q_BKRTH.shape
  q_BKMH = q_BKRTH.reshape(B, K, R * T, H)  # Rows m = r*T + t.
  logits_BKRTS = _own_logits(q_BKMH, k_BKHS, T).reshape(B, K, R, T, -1)
  seen = own_seen(reach, T, k_BKHS.shape[-1])
  logits_BKRTS = jnp.where(seen, logits_BKRTS, -jnp.inf)
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
  seen = _prompt_seen(reach, lengths_P, T, L)
  if reach.window is None:
    logits_PKXL = jnp.where(seen, logits_PKXL, -jnp.inf)
  else:  # Rows x = (g, r, t).
    logits_PKYTL = logits_PKXL.reshape(P, K, -1, T, L)
    logits_PKYTL = jnp.where(seen, logits_PKYTL, -jnp.inf)
    logits_PKXL = logits_PKYTL.reshape(logits_PKXL.shape)
  top_PKX1 = jnp.max(logits_PKXL, axis=-1, keepdims=True)
  top_BKM1 = jnp.maximum(top_BKM1, _unstack_group(top_PKX1, G))
  own_BKMH, own_sum_BKM1 = _weigh(logits_BKMS, top_BKM1, v_BKHS)
  y_PKXH, sum_PKX1 = _weigh(logits_PKXL, _stack_group(top_BKM1, P), v_PKHL)
  y_BKMH = own_BKMH + _unstack_group(y_PKXH, G)
  y_BKMH /= own_sum_BKM1 + _unstack_group(sum_PKX1, G)
  return y_BKMH.reshape(B, K, R, T, H)


def chunked(
  q_BKRTH: jax.Array,
  k_BKHS: jax.Array,
  v_BKHS: jax.Array,
  reach: Reach,
  prompt: tuple[jax.Array, jax.Array, jax.Array] | None = None,
  *,
  chunk: int = 128,
) -> jax.Array:
  """As plain, but for `chunk` queries at a time, also in the gradient.

  Then what exists at one time grows with the number of keys, and no more with
  its product with the number of queries.
  """
  T = q_BKRTH.shape[3]
  if T <= chunk:
    return plain(q_BKRTH, k_BKHS, v_BKHS, reach, prompt)
  pieces = -(-T // chunk)
  q_BKRTH = jnp.pad(q_BKRTH, ((0, 0),) * 3 + ((0, pieces * chunk - T), (0, 0)))

  @jax.checkpoint
  def piece(first):
    part = jax.lax.dynamic_slice_in_dim(q_BKRTH, first, chunk, axis=3)
    used = reach.used + first
    return plain(part, k_BKHS, v_BKHS, reach._replace(used=used), prompt)

  y_IBKRCH = jax.lax.map(piece, jnp.arange(pieces) * chunk)
  y_BKRICH = jnp.moveaxis(y_IBKRCH, 0, 3)
  return y_BKRICH.reshape(q_BKRTH.shape)[:, :, :, :T]


def own_seen(reach: Reach, T: int, S: int) -> jax.Array:
  """Bool, broadcasts to BKRTS."""
  place_T1 = reach.used + jnp.arange(T)[:, None]
  place_S = jnp.arange(S)
  seen = place_S <= place_T1
  if reach.window is not None:
    seen &= place_S > place_T1 - reach.window
  if reach.segment_ids_BS is None:
    return seen
  ids_BS = reach.segment_ids_BS
  # Padded, because a slice that went over the end would begin earlier.
  padded = jnp.pad(ids_BS, ((0, 0), (0, T)))
  ids_BT = jax.lax.dynamic_slice_in_dim(padded, reach.used, T, axis=1)
  return seen & (ids_BT[:, :, None] == ids_BS[:, None, :])[:, None, None]


def _prompt_seen(reach: Reach, lengths_P: jax.Array, T: int, L: int):
  """Bool, (P, 1, 1, L), or (P, 1, 1, T, L) where a window makes it differ."""
  place_L = jnp.arange(L)
  seen_PL = place_L < lengths_P[:, None]
  if reach.window is None:
    return seen_PL[:, None, None]
  first_PT = lengths_P[:, None] + reach.used + jnp.arange(T) - reach.window + 1
  seen_PTL = seen_PL[:, None] & (place_L >= first_PT[:, :, None])
  return seen_PTL[:, None, None]


def _weigh(logits, top, values):
  """Sums of values and of weights, both times exp(-top)."""
  weights = layers.apart(jnp.exp(logits - jax.lax.stop_gradient(top)))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return _product_t(weights.astype(values.dtype), values), total


def _own_logits(q_BKMH, k_BKHS, T: int) -> jax.Array:
  """Products of queries and own keys, BKMS.

  For many queries XLA's CPU library takes the sums in another order where the
  number of keys is 1 to 8 above a multiple of 16 (found without AVX-512). So in
  an update there are more keys for a moment, all zero; a decode step has few
  queries and no need.
  """
  S = k_BKHS.shape[-1]
  if T > 1:
    k_BKHS = jnp.pad(k_BKHS, ((0, 0),) * 3 + ((0, -S % 16),))
  return _product(q_BKMH, k_BKHS)[..., :S]


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
