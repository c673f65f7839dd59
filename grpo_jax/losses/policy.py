"""Policy losses: per-token surrogates whose gradient moves the policy.

Each maps log-probabilities and advantages to loss_PGT, to be minimised, and a
dict of per-token statistics that are averaged into the metrics. It sees no
model, reward or device, so a new idea is one new function here:

  config.loss = dict(name='<function>', <its keyword arguments>)

How tokens are averaged is aggregate.py's business, and masked positions weigh
nothing there; they may hold any finite number here.

Dimension key: P prompts, G completions each, T completion length.
"""

import jax
import jax.numpy as jnp

Stats = dict[str, jax.Array]


def ppo_clip(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
) -> tuple[jax.Array, Stats]:
  """The clipped surrogate of PPO (arxiv.org/abs/1707.06347) as in GRPO.

  Separate bounds are DAPO's clip-higher (arxiv.org/abs/2503.14476): the ratio
  counts up to 1 + clip_high for good tokens and down to 1 - clip_low for bad.
  """
  del mask_PGT  # Every token stands alone; sequence-level losses need it.
  ratio_PGT = jnp.exp(logps_PGT - old_logps_PGT)
  clipped_PGT = jnp.clip(ratio_PGT, 1.0 - clip_low, 1.0 + clip_high)
  free_PGT = ratio_PGT * advantages_PGT
  bound_PGT = clipped_PGT * advantages_PGT
  stats = {'clip_fraction': (bound_PGT < free_PGT).astype(jnp.float32)}
  return -jnp.minimum(free_PGT, bound_PGT), stats


def reinforce(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
) -> tuple[jax.Array, Stats]:
  """The plain policy gradient, -A log p (Williams, 1992); for on-policy use."""
  del old_logps_PGT, mask_PGT
  return -advantages_PGT * logps_PGT, {}


REGULARISED = ()
