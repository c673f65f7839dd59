"""The reward: a declared mix of parts, one file each.

A part is a pure function from token ids to scores, so that it compiles together
with the rollout; `text.py` has what it needs to read a completion. NaN is its
way to say 'I cannot score this one'. The config names parts and weights:

  c.reward = {'answer': 1.0, 'format': 0.1}

To add a part, write `rewards/<name>.py` with one public function of that name,

  def <name>(rollout: Rollout, prompts: Prompts, text: TokenText) -> score_PG

and give it a weight. With weight 0 it is a metric and no more.
"""

from collections.abc import Callable, Mapping
import importlib
import pkgutil

import jax
import jax.numpy as jnp

from grpo_jax.text import TokenText
from grpo_jax.types import Prompts, Rewards, Rollout


def reward(
  rollout: Rollout,
  prompts: Prompts,
  text: TokenText,
  mix: Mapping[str, float],
) -> Rewards:
  """Scores completions; `mix` is {module in grpo_jax/rewards: weight}.

  Raises:
    ValueError: the mix names a part that does not exist.
  """
  parts = {name: load(name)(rollout, prompts, text) for name in mix}
  return Rewards(total_PG=total(parts, mix), parts=parts)


def total(
  parts: Mapping[str, jax.Array], mix: Mapping[str, float]
) -> jax.Array:
  """The weighted sum of the parts, of whatever shape they are.

  A NaN leaves that part out for that completion. Where every part that has a
  weight is NaN, so is the total.
  """
  weighted = [parts[name] * mix[name] for name in mix if mix[name]]
  stacked = jnp.stack(weighted)
  unscored = jnp.all(jnp.isnan(stacked), axis=0)
  return jnp.where(unscored, jnp.nan, jnp.nansum(stacked, axis=0))


def load(name: str) -> Callable[[Rollout, Prompts, TokenText], jax.Array]:
  """The public function of `rewards/<name>.py`, which has the same name."""
  known = [module.name for module in pkgutil.iter_modules(__path__)]
  if name not in known:
    raise ValueError(f'no reward {name!r}; there are {", ".join(known)}')
  return getattr(importlib.import_module(f'{__name__}.{name}'), name)
