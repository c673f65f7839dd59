"""What is right, where different rules tell it of different problems."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from grpo_jax.text import TokenText
from grpo_jax.types import Prompts, Rollout


def any_of(
  rollout: Rollout,
  prompts: Prompts,
  text: TokenText,
  *,
  scores: Mapping[str, jax.Array],
  parts: Sequence[str] = ('answer',),
) -> jax.Array:
  """The greatest score of these parts; NaN where none of them has one.

  With `only` on each part (mix.py) exactly one of them scores a problem, and
  eval.right='any_of' is then what is right of all.
  """
  del rollout, prompts, text
  stacked = jnp.stack([scores[name] for name in parts])
  unscored = jnp.all(jnp.isnan(stacked), axis=0)
  best_PG = jnp.max(jnp.where(jnp.isnan(stacked), -jnp.inf, stacked), axis=0)
  return jnp.where(unscored, jnp.nan, best_PG)
