"""What a reward model, which learnt from preferences, says of a completion."""

import math

import jax
import jax.numpy as jnp

from grpo_jax import batch
from grpo_jax.text import TokenText
from grpo_jax.types import Prompts, Rollout, Scorer


def reward_model(
  rollout: Rollout,
  prompts: Prompts,
  text: TokenText,
  *,
  scorer: Scorer,
  init: str = '',
  pieces: int = 1,
) -> jax.Array:
  """The score of the model that the run `init` trained (c.preference.path).

  It reads prompt and completion; its scale is its own, which `scale`, `shift`
  and `clip` of the mix can change (DeepSeek-R1, arxiv.org/abs/2501.12948,
  scores helpfulness so). A batch goes through it in so many `pieces`: memory,
  not numbers; of a number of prompts that they do not divide, fewer. NaN for a
  completion without tokens.
  """
  del prompts, text, init
  pieces = math.gcd(pieces, len(rollout.lengths_PG))

  def one(rollout: Rollout) -> jax.Array:
    return scorer.score(scorer.params, rollout)

  if pieces == 1:
    score_PG = one(rollout)
  else:
    score_PG = batch.join(jax.lax.map(one, batch.split(rollout, pieces)))
  return jnp.where(rollout.lengths_PG > 0, score_PG, jnp.nan)
