"""Short when right, long when wrong: a length reward along a cosine."""

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.types import Prompts, Rollout


def length_cosine(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  right_PG: jax.Array,
  correct: tuple[float, float] = (0.5, 1.0),
  wrong: tuple[float, float] = (-1.0, -0.5),
  limit: int | None = None,
) -> jax.Array:
  """From one bound to the other, in half a turn of a cosine over the length.

  A right completion falls from correct[1] at no tokens to correct[0] at `limit`
  tokens and beyond; a wrong one climbs from wrong[0] to wrong[1], as thinking
  for longer may have helped. Without `limit` it is what the rollout has room
  for. arXiv 2502.03373, as TRL's `get_cosine_scaled_reward` has it: in tokens
  and clamped. open-r1's counts characters and comes back after the limit.
  """
  del prompts, text
  limit = limit or rollout.tokens_PGT.shape[2]
  used_PG = jnp.minimum(rollout.lengths_PG / limit, 1.0)
  start_PG = jnp.where(right_PG, correct[1], wrong[0])
  end_PG = jnp.where(right_PG, correct[0], wrong[1])
  rest_PG = (1 + jnp.cos(jnp.pi * used_PG)) / 2
  return end_PG + (start_PG - end_PG) * rest_PG
