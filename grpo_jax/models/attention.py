"""Attention over two sources of keys: a shared prompt, and a row's own tokens.

A group of G completions has one prompt, so its keys and values exist once, for
P prompts, while each of the B = P*G rows has its own. `attend` takes a softmax
over both without copying the prompt G times: the queries of a group are
stacked, which makes a matrix product of what would be G matrix-vector ones.

Arrays are heads-first (B, heads, tokens, H), so that every product is one of
batched matrices as they lie in memory. Another kernel takes the place of
`attend` here; no model would know.

Keys: P prompts, B rows, N query heads, K key-value heads, R = N / K, T queries,
L prompt keys, S own keys, H head size, Y layers.
"""

from flax import struct
import jax
import jax.numpy as jnp

from grpo_jax.models import layers


@struct.dataclass
class Cache:
  """Keys and values of all layers."""

  prompt_k_YPKLH: jax.Array
  prompt_v_YPKLH: jax.Array
  prompt_lengths_P: jax.Array  # int32, keys from there on are padding.
  own_k: tuple[jax.Array, ...]  # One BKSH a layer: in-place in a decode loop.
  own_v: tuple[jax.Array, ...]
  used: jax.Array  # int32 scalar, own tokens so far; rows go in lockstep.


def init_cache(
  prompt_cache: tuple[jax.Array, jax.Array],
  lengths_P: jax.Array,
  group_size: int,
  max_tokens: int,
) -> Cache:
  """Room for `group_size` continuations of each prompt; see models.Model."""
  k_YPKLH, v_YPKLH = prompt_cache
  Y, P, K, _, H = k_YPKLH.shape
  shape = (P * group_size, K, max_tokens, H)
  own = tuple(jnp.zeros(shape, k_YPKLH.dtype) for _ in range(Y))
  return Cache(k_YPKLH, v_YPKLH, lengths_P, own, own, jnp.int32(0))


def attend(
  q_BNTH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  mask: jax.Array,
  prompt: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Scaled dot-product attention, float32 softmax; returns BNTH.

  Args:
    q_BNTH: queries.
    k_BKSH: own keys.
    v_BKSH: own values.
    mask: bool, broadcasts to (B, 1, T, S): which own keys a query sees.
    prompt: keys k_PKLH, values v_PKLH and lengths_P of the shared prompts.
  """
  B, N, T, H = q_BNTH.shape
  K, S = k_BKSH.shape[1:3]
  R = N // K
  q_BKMH = (q_BNTH * H**-0.5).reshape(B, K, R * T, H)  # Rows m = r*T + t.
  logits_BKMS = _product(q_BKMH, k_BKSH.swapaxes(2, 3))
  logits_BKRTS = logits_BKMS.reshape(B, K, R, T, S)
  logits_BKRTS = jnp.where(mask[:, :, None], logits_BKRTS, -jnp.inf)
  if prompt is None:
    weights = jax.nn.softmax(logits_BKRTS).astype(v_BKSH.dtype)
    return _product(weights.reshape(B, K, R * T, S), v_BKSH).reshape(B, N, T, H)

  k_PKLH, v_PKLH, lengths_P = prompt
  P, _, L, _ = k_PKLH.shape
  G = B // P
  q_PKXH = _stack_group(q_BKMH, P)  # Rows x = (g*R + r)*T + t.
  logits_PKXL = _product(q_PKXH, k_PKLH.swapaxes(2, 3))
  seen_PL = jnp.arange(L) < lengths_P[:, None]
  logits_PKXL = jnp.where(seen_PL[:, None, None], logits_PKXL, -jnp.inf)
  logits_BKRTL = _unstack_group(logits_PKXL, G).reshape(B, K, R, T, L)
  logits = jnp.concatenate([logits_BKRTL, logits_BKRTS], axis=-1)
  weights = jax.nn.softmax(logits).astype(v_BKSH.dtype)
  weights = weights.reshape(B, K, R * T, L + S)
  own_BKMH = _product(weights[..., L:], v_BKSH)
  shared_PKXH = _product(_stack_group(weights[..., :L], P), v_PKLH)
  return (own_BKMH + _unstack_group(shared_PKXH, G)).reshape(B, N, T, H)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """Batched matrix product with (at least) float32 accumulation."""
  return jnp.matmul(a, b, preferred_element_type=layers.accumulator(a))


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
