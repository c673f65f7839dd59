"""A penalty for saying the same again and again."""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import text as text_lib
from grpo_jax.types import Prompts, Rollout


def repetition(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  n: int = 3,
  max_penalty: float = -1.0,
) -> jax.Array:
  """max_penalty * (1 - distinct n-grams / n-grams), over the tokens.

  0 for fewer than n tokens. arXiv 2502.03373, as TRL's
  `get_repetition_penalty_reward` has it; open-r1's is over the words of the
  text in lower case. Counts are exact: hashes only say what to compare.
  """
  del prompts, text
  P, G, T = rollout.tokens_PGT.shape
  if T < n:
    return jnp.zeros((P, G))
  grams_nBT = _grams(rollout.tokens_PGT.reshape(P * G, T), n)
  total_B = jnp.maximum(rollout.lengths_PG.reshape(P * G) - (n - 1), 0)
  share_B = _distinct(grams_nBT, total_B) / jnp.maximum(total_B, 1)
  score_B = jnp.where(total_B > 0, max_penalty * (1 - share_B), 0.0)
  return score_B.reshape(P, G)


def _grams(tokens_BT, n):
  """Token k of the n-gram that begins at each place, for every k below n."""
  size = tokens_BT.shape[1] - n + 1
  return [tokens_BT[:, k : k + size] for k in range(n)]


def _distinct(grams_nBT, total_B):
  """How many of the first `total_B` n-grams are equal to no earlier one."""
  hash_BT, at_BT = _sorted(grams_nBT, total_B)
  inside_BT = at_BT < total_B[:, None]
  near_BT = (hash_BT == _before(hash_BT)).at[:, 0].set(False)
  same_BT = near_BT
  for gram_BT in grams_nBT:
    gram_BT = jnp.take_along_axis(gram_BT, at_BT, axis=1, mode='clip')
    same_BT &= gram_BT == _before(gram_BT)
  # Of one hash but unlike its neighbour: two n-grams may take turns there. That
  # is rare, so that each such place is compared with everything before it.
  unclear_BT = inside_BT & near_BT & ~same_BT
  clear_B = jnp.sum(inside_BT & ~same_BT & ~unclear_BT, axis=1)

  def step(carry):
    unclear_BT, count_B = carry
    row_B1 = jnp.argmax(unclear_BT, axis=1, keepdims=True)
    some_B = jnp.any(unclear_BT, axis=1)
    at_B1 = jnp.take_along_axis(at_BT, row_B1, axis=1)
    seen_BT = jnp.arange(at_BT.shape[1]) < at_B1
    for gram_BT in grams_nBT:
      seen_BT &= gram_BT == jnp.take_along_axis(gram_BT, at_B1, 1, mode='clip')
    count_B += some_B & ~jnp.any(seen_BT, axis=1)
    return unclear_BT & (jnp.arange(at_BT.shape[1]) > row_B1), count_B

  return jax.lax.while_loop(
    lambda carry: jnp.any(carry[0]), step, (unclear_BT, clear_B)
  )[1]


def _sorted(grams_nBT, total_B):
  """Hashes in order, and where their n-grams begin; equal ones by place."""
  B, T = grams_nBT[0].shape
  hash_BT = jnp.zeros((B, T), jnp.uint32)
  for gram_BT in grams_nBT:
    hash_BT = (hash_BT ^ gram_BT.astype(jnp.uint32)) * np.uint32(0x9E3779B1)
    hash_BT ^= hash_BT >> 15
  hash_BT *= np.uint32(0x85EBCA6B)
  at_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.uint32), (B, T))
  bits = T.bit_length()
  at_BT = jnp.where(at_BT < total_B[:, None], at_BT, np.uint32(2**bits - 1))
  if bits > 11:  # Too few would be left for the hash.
    hash_BT, at_BT = jax.lax.sort((hash_BT, at_BT), num_keys=1)
    return hash_BT, at_BT.astype(jnp.int32)
  # Both in one int32: on a CPU, four times as fast as two arrays.
  packed_BT = (hash_BT >> bits << bits) | at_BT
  packed_BT = jax.lax.bitcast_convert_type(packed_BT, jnp.int32)
  packed_BT = jax.lax.sort(packed_BT)
  return packed_BT >> bits, packed_BT & (2**bits - 1)


def _before(x_BT):
  return jnp.roll(x_BT, 1, axis=1)
