"""Whether a completion was cut off."""

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.types import Prompts, Rollout


def truncated(
  rollout: Rollout, prompts: Prompts, text: text_lib.TokenText
) -> jax.Array:
  """1 for a completion that came to the limit without a stop token, else 0.

  Meant for a negative weight. `overlong` warns before the limit, and
  `c.truncated = 'mask'` takes such completions out of the loss.
  """
  del prompts, text
  return (~rollout.ended_PG).astype(jnp.float32)
