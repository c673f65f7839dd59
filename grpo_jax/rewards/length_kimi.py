"""Shorter than the others of its group: the length reward of Kimi k1.5."""

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.types import Prompts, Rollout


def length_kimi(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  right_PG: jax.Array,
) -> jax.Array:
  """lambda = 0.5 - (length - min) / (max - min), over the group of a prompt.

  A right completion gets lambda: 0.5 for the shortest, -0.5 for the longest. A
  wrong one gets min(0, lambda), so that being short never pays. Where all are
  of one length they get 0. arXiv 2501.12599, in tokens; open-r1's `len_reward`
  counts characters, and compares with the whole batch instead of the group.
  """
  del prompts, text
  lengths_PG = rollout.lengths_PG
  shortest_P1 = jnp.min(lengths_PG, axis=1, keepdims=True)
  spread_P1 = jnp.max(lengths_PG, axis=1, keepdims=True) - shortest_P1
  place_PG = (lengths_PG - shortest_P1) / jnp.maximum(spread_P1, 1)
  lambda_PG = jnp.where(spread_P1 > 0, 0.5 - place_PG, 0.0)
  return jnp.where(right_PG, lambda_PG, jnp.minimum(lambda_PG, 0.0))
