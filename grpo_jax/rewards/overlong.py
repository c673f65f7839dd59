"""A penalty that sets in before a completion is cut off."""

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.types import Prompts, Rollout


def overlong(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  limit: int | None = None,
  cache: int | None = None,
) -> jax.Array:
  """0 up to limit - cache tokens, from there down to -1 at `limit` and beyond.

  The soft overlong punishment of DAPO (arXiv 2503.14476), as TRL has it: a
  cache of 0 is a step after `limit`. Without `limit` it is what the rollout has
  room for, and without `cache` a quarter of that.
  """
  del prompts, text
  limit = rollout.tokens_PGT.shape[2] if limit is None else limit
  cache = limit // 4 if cache is None else cache
  left_PG = limit - cache - rollout.lengths_PG
  # A token over a cache of 0 is the whole penalty, as over one of 1.
  return jnp.clip(left_PG / max(cache, 1), -1.0, 0.0)
