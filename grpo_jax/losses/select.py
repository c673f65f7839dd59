"""Token selection: which tokens of a minibatch have a policy gradient.

  fn(logps_PGT, old_logps_PGT, advantages_PGT, mask_PGT, *, <inputs>, <knobs>)
      -> selected_PGT, bool

It runs once for a minibatch, whole and without gradients, before that is cut
into microbatches: a quantile of a piece is not that of the batch. The surrogate
of a token that is not selected is multiplied by zero; the token stays in every
denominator, and its KL and entropy terms stay. A policy loss that asks for
selected_PGT itself (kl_cov, gmpo) decides alone what it means.

  name                   paper       keeps
  all_tokens                         everything
  high_entropy           2506.01939  the share of tokens with most entropy
  clip_cov               2505.22617  all but a few of high covariance, by lot
  top_covariance         2505.22617  the share with most covariance
  m2po                   2510.01161  those closest to the old policy
  off_policy_sequences   2512.02556  all but bad completions now unlikely

A function may ask, as a keyword without default, for entropies_PGT (nats) and
noise_PGT (uniform in [0, 1), keyed by prompt, sample and position). To add one,
add a function: `config.select.name` finds it by its name. Masked positions may
hold any finite number, and are not selected unless all are.

Dimension key: P prompts, G completions each, T completion length.
"""

import jax
import jax.numpy as jnp


def all_tokens(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
) -> jax.Array:
  """No selection."""
  del old_logps_PGT, advantages_PGT, mask_PGT
  return jnp.ones(logps_PGT.shape, bool)


def high_entropy(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  entropies_PGT: jax.Array,
  share: float = 0.2,
) -> jax.Array:
  """Only forking tokens learn: the 80/20 rule (arxiv.org/abs/2506.01939).

  A token is kept when its entropy is at least the quantile 1 - share over the
  minibatch, interpolated between neighbours as TRL's top_entropy_quantile is.
  """
  del logps_PGT, old_logps_PGT, advantages_PGT
  mask_PGT = mask_PGT != 0
  ascending_N = jnp.sort(jnp.where(mask_PGT, entropies_PGT, jnp.inf), axis=None)
  place = (1.0 - share) * jnp.maximum(jnp.sum(mask_PGT) - 1, 0)
  below, above = jnp.floor(place), jnp.ceil(place)
  low, high = ascending_N[below.astype(int)], ascending_N[above.astype(int)]
  # Where both are one token the difference is 0, or inf - inf without tokens.
  step = jnp.where(above > below, high - low, 0.0)
  return mask_PGT & (entropies_PGT >= low + (place - below) * step)


def clip_cov(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  noise_PGT: jax.Array,
  share: float = 2e-4,
  low: float = 1.0,
  high: float = 5.0,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
) -> jax.Array:
  """Tokens that would collapse the entropy, by lot (arxiv.org/abs/2505.22617).

  Those whose covariance of advantage and log-probability lies between low and
  high are candidates; of them, as many as `share` of all tokens, at least one,
  lose their gradient: those with the least noise. verl's `clip_cov`; there too
  a token that PPO's clip has cut is none. The bounds are to be the loss's,
  which is `ppo_clip`.
  """
  mask_PGT = mask_PGT != 0
  log_ratio_PGT = jnp.where(mask_PGT, logps_PGT - old_logps_PGT, 0.0)
  ratio_PGT = jnp.exp(log_ratio_PGT)
  bound_PGT = jnp.clip(ratio_PGT, 1.0 - clip_low, 1.0 + clip_high)
  cut_PGT = bound_PGT * advantages_PGT < ratio_PGT * advantages_PGT
  covariance_PGT = _covariance(logps_PGT, advantages_PGT, mask_PGT)
  candidates_PGT = mask_PGT & ~cut_PGT
  candidates_PGT &= (covariance_PGT > low) & (covariance_PGT < high)
  dropped_PGT = _least(noise_PGT, candidates_PGT, _number(mask_PGT, share))
  return mask_PGT & ~dropped_PGT


def top_covariance(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  share: float = 2e-4,
) -> jax.Array:
  """Tokens that raise their own probability most (arxiv.org/abs/2505.22617).

  The `share` of tokens, at least one, with the greatest covariance of advantage
  and log-probability: what `policy.kl_cov` holds back.
  """
  del old_logps_PGT
  mask_PGT = mask_PGT != 0
  covariance_PGT = _covariance(logps_PGT, advantages_PGT, mask_PGT)
  return _least(-covariance_PGT, mask_PGT, _number(mask_PGT, share))


def m2po(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  threshold: float = 0.04,
) -> jax.Array:
  """As many tokens as keep the mean squared log-ratio low (arxiv 2510.01161).

  Tokens leave, farthest from the old policy first, until the mean over the rest
  is below `threshold`, in squared nats; one always stays. As in AReaL, tokens
  of every advantage may leave. The paper has no clip besides: `ppo_clip` with
  bounds of 1 and a large number.
  """
  del advantages_PGT
  mask_PGT = mask_PGT != 0
  squares_PGT = jnp.where(mask_PGT, logps_PGT - old_logps_PGT, 0.0) ** 2
  ascending_N = jnp.sort(jnp.where(mask_PGT, squares_PGT, jnp.inf), axis=None)
  # The mean of the n least grows with n, so that the kept are a run.
  counts_N = jnp.arange(1, ascending_N.size + 1)
  low_N = jnp.cumsum(ascending_N) / counts_N < threshold
  return _least(squares_PGT, mask_PGT, jnp.maximum(jnp.sum(low_N), 1))


def off_policy_sequences(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  threshold: float = 0.5,
) -> jax.Array:
  """No bad completions that left the policy (DeepSeek-V3.2, arxiv 2512.02556).

  Tokens of negative advantage are dropped where their completion's mean of
  log p_old - log p is above `threshold`, in nats. TRL's
  off_policy_mask_threshold.
  """
  mask_PGT = mask_PGT != 0
  fallen_PGT = jnp.where(mask_PGT, old_logps_PGT - logps_PGT, 0.0)
  counts_PG1 = jnp.maximum(jnp.sum(mask_PGT, axis=-1, keepdims=True), 1)
  fall_PG1 = jnp.sum(fallen_PGT, axis=-1, keepdims=True) / counts_PG1
  return mask_PGT & ((advantages_PGT >= 0) | (fall_PG1 <= threshold))


def _covariance(logps_PGT, advantages_PGT, mask_PGT):
  """(A - mean A) (log p - mean log p), means over the counted tokens."""
  return _centred(advantages_PGT, mask_PGT) * _centred(logps_PGT, mask_PGT)


def _centred(x_PGT, mask_PGT):
  total = jnp.sum(jnp.where(mask_PGT, x_PGT, 0.0))
  return jnp.where(mask_PGT, x_PGT - total / _number(mask_PGT, 1.0), 0.0)


def _number(mask_PGT, share):
  """How many tokens a share of the counted ones is: one at the least."""
  return jnp.maximum(jnp.floor(share * jnp.sum(mask_PGT)), 1)


def _least(x_PGT, among_PGT, number):
  """The `number` least of the marked; of equals the first in the batch."""
  order_N = jnp.argsort(jnp.where(among_PGT, x_PGT, jnp.inf), axis=None)
  ranks_N = jnp.argsort(order_N)  # Its inverse: the place of each.
  return among_PGT & (ranks_N.reshape(among_PGT.shape) < number)
