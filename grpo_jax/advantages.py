"""Advantage estimators: how a group of rewards becomes a learning signal.

Each estimator maps rewards_PG, the rewards of G completions for each of P
prompts, to advantages of the same shape. It sees no tokens, devices or state,
so a new idea is one new function here, chosen by name:

  c.advantage = dict(name='rloo')

A NaN reward means 'could not be scored': it is left out of its group's mean
and deviation, and gets zero advantage. A group of equal rewards gets exactly
zero: nothing is to be learnt from it.
"""

import jax
import jax.numpy as jnp


def grpo(rewards_PG: jax.Array, ddof: int = 1, eps: float = 1e-4) -> jax.Array:
  """Z-score within the group (GRPO, arxiv.org/abs/2402.03300).

  The deviation divides by the group size minus `ddof`. Most codebases take 1,
  some 0, which makes advantages 15% larger at G=4. `eps` is added to the
  deviation; 1e-4 is TRL's, verl has 1e-6.
  """
  std_P1 = jnp.nanstd(rewards_PG, axis=1, ddof=ddof, keepdims=True)
  return dr_grpo(rewards_PG) / (jnp.nan_to_num(std_P1) + eps)


def dr_grpo(rewards_PG: jax.Array) -> jax.Array:
  """Centre only: no bonus for too-easy prompts (arxiv.org/abs/2503.20783)."""
  centred_PG = rewards_PG - jnp.nanmean(rewards_PG, axis=1, keepdims=True)
  # The mean of equal floats can miss them by a rounding error, which a tiny
  # deviation would blow up, so equality is tested on the rewards themselves.
  low_P1 = jnp.nanmin(rewards_PG, axis=1, keepdims=True)
  high_P1 = jnp.nanmax(rewards_PG, axis=1, keepdims=True)
  learnable_PG = (low_P1 < high_P1) & ~jnp.isnan(rewards_PG)
  return jnp.where(learnable_PG, centred_PG, 0.0)


def rloo(rewards_PG: jax.Array) -> jax.Array:
  """Baseline is the mean of the others (arxiv.org/abs/2402.14740)."""
  scored_P1 = jnp.sum(~jnp.isnan(rewards_PG), axis=1, keepdims=True)
  return dr_grpo(rewards_PG) * scored_P1 / jnp.maximum(scored_P1 - 1, 1)
