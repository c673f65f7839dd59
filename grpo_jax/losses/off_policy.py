"""Weights that correct for who sampled: behaviour policy against trainer.

log_ratio_PGT is the trainer's log-probability before the update less the
sampler's, in nats. It is not zero where the sampler ran in another precision,
in another program, or some updates ago. Each function maps it to weights_PGT,
constants by which the surrogate of a token is multiplied:

  none       1: the sampler's log-probs are the old policy; no pass is run
  recompute  1: the trainer's log-probs are the old policy; no correction
  truncate   the ratio, at most `cap`
  mask       the ratio, and 0 outside of [low, high]

`level` says of what the ratio is taken:

  'token'  of the token itself: biased, little variance
  'sum'    of the completion, a product over its tokens: unbiased, and with
           0.012 nats a token a hundred tokens make it 3.3
  'mean'   of the completion, the geometric mean over its tokens

Tokens that do not count have no part in a ratio; their weight means nothing.
To add one, add a function: `config.off_policy.name` finds it by its name.

Dimension key: P prompts, G completions each, T completion length.
"""

import jax
import jax.numpy as jnp


def none(log_ratio_PGT: jax.Array, mask_PGT: jax.Array) -> jax.Array:
  """No correction: ratios of the loss are to the policy that sampled."""
  del mask_PGT
  return jnp.ones_like(log_ratio_PGT)


def recompute(log_ratio_PGT: jax.Array, mask_PGT: jax.Array) -> jax.Array:
  """No correction: ratios of the loss are to the trainer before the update."""
  del mask_PGT
  return jnp.ones_like(log_ratio_PGT)


def truncate(
  log_ratio_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  cap: float = 2.0,
  floor: float = 0.0,
  level: str = 'token',
) -> jax.Array:
  """Truncated importance sampling (fengyao.notion.site/off-policy-rl).

  verl's rollout_is with a threshold of 2, and TRL's token_truncate and
  sequence_truncate, where clip_max (3) is `cap` and clip_min is `floor`. verl
  also clamps log-ratios to 20 nats, which matters to no cap below exp(20).
  Raises ValueError for an unknown level.
  """
  return jnp.clip(_ratio(log_ratio_PGT, mask_PGT, level), floor, cap)


def mask(
  log_ratio_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  low: float = 0.0,
  high: float = 3.0,
  level: str = 'sum',
) -> jax.Array:
  """Masked importance sampling: ratios outside of [low, high] count nothing.

  With level='token' IcePop (arxiv.org/abs/2510.18855; verl's threshold
  'low_high'), with 'sum' TRL's default, sequence_mask. Masked tokens stay
  in the denominators. Raises ValueError for an unknown level.
  """
  ratio_PGT = _ratio(log_ratio_PGT, mask_PGT, level)
  inside_PGT = (ratio_PGT >= low) & (ratio_PGT <= high)
  return jnp.where(inside_PGT, ratio_PGT, 0.0)


def _ratio(log_ratio_PGT, mask_PGT, level):
  """Trainer's probability by sampler's, ratio_PGT; 1 where nothing counts."""
  counted_PGT = mask_PGT != 0
  log_ratio_PGT = jnp.where(counted_PGT, log_ratio_PGT, 0.0)
  sums_PG1 = jnp.sum(log_ratio_PGT, axis=-1, keepdims=True)
  match level:
    case 'token':
      found = log_ratio_PGT
    case 'sum':
      found = sums_PG1
    case 'mean':
      counts_PG1 = jnp.sum(counted_PGT, axis=-1, keepdims=True)
      found = sums_PG1 / jnp.maximum(counts_PG1, 1)
    case _:
      raise ValueError(
        f"off_policy.level={level!r} is not 'token', 'sum' or 'mean'"
      )
  found = jnp.broadcast_to(found, log_ratio_PGT.shape)
  return jnp.exp(jax.lax.stop_gradient(found))
