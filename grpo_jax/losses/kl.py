"""Estimates of KL(policy || reference), per token, from sampled tokens.

Each maps log-probabilities of the sampled tokens to kl_PGT in nats, which is
weighed by `kl_coef` and added to the loss. With d = log p - log p_ref and
rho = p / p_old (John Schulman, joschu.net/blog/kl-approx.html):

  name         value                gradient as a loss, in expectation
  k1           d                    zero: for the reward only
  k2           d^2 / 2              that of KL(policy || reference)
  k3           exp(-d) + d - 1      that of KL(reference || policy)
  k3_weighted  rho * k3             that of KL(policy || reference)
  absolute     |d|                  of no divergence
  k1_plus      k1                   k2's: straight-through
  k3_plus      k3                   k2's: straight-through
  absolute_plus  |d|                k2's: straight-through

The expectation is over tokens of the policy itself; k3_weighted's also holds
for tokens of the old policy. A function may ask, as a keyword without default,
for old_logps_PGT (the policy before the update) and mask_PGT (what counts).
A clamp (`exponent_cap`, `value_cap`) also cuts the gradient; None is no clamp.

To add one, add a function: `config.kl.name` finds it by its name.

Dimension key: P prompts, G completions each, T completion length.
"""

import jax
import jax.numpy as jnp


def k1(logps_PGT: jax.Array, reference_logps_PGT: jax.Array) -> jax.Array:
  """The log-ratio: unbiased, of high variance, and useless as a loss.

  The expectation of grad log p is zero, so as a loss it is only noise. It is
  for the reward (arxiv.org/abs/1909.08593; why there: arxiv.org/abs/2512.21852)
  and for metrics.
  """
  return logps_PGT - reference_logps_PGT


def k2(logps_PGT: jax.Array, reference_logps_PGT: jax.Array) -> jax.Array:
  """Half the squared log-ratio: low variance, biased value, right gradient."""
  return 0.5 * (logps_PGT - reference_logps_PGT) ** 2


def k3(
  logps_PGT: jax.Array,
  reference_logps_PGT: jax.Array,
  *,
  exponent_cap: float | None = None,
  value_cap: float | None = None,
) -> jax.Array:
  """Never negative and unbiased in value (arxiv.org/abs/2402.03300, eq. 4).

  TRL clamps nothing; verl has exponent_cap=20 and value_cap=10, and then a
  token that lies 2.6 nats below the reference has no gradient.
  """
  difference_PGT = logps_PGT - reference_logps_PGT
  difference_PGT = _clamp(difference_PGT, exponent_cap)
  return _clamp(jnp.expm1(-difference_PGT) + difference_PGT, value_cap)


def k3_weighted(
  logps_PGT: jax.Array,
  reference_logps_PGT: jax.Array,
  *,
  old_logps_PGT: jax.Array,
  mask_PGT: jax.Array,
  level: str = 'token',
  exponent_cap: float | None = 40.0,
) -> jax.Array:
  """k3 times the ratio to the old policy (DeepSeek-V3.2, arxiv 2512.02556).

  The ratio has a gradient, which makes the sum's that of the reverse KL; on the
  policy's own tokens too, where the ratio is 1. It is TRL's default
  (use_bias_correction_kl).

  Args:
    logps_PGT: of the policy.
    reference_logps_PGT: of the reference.
    old_logps_PGT: of the policy before the update.
    mask_PGT: tokens that count; the others get 0.
    level: 'token' for each token's own ratio; 'mean' for the geometric mean
      over a completion, as TRL has it beside GSPO (biased).
    exponent_cap: bound of both log-ratios, in nats. The sources have none; a
      product of two exponentials of 45 overflows float32.

  Raises:
    ValueError: for an unknown level.
  """
  mask_PGT = mask_PGT != 0
  log_ratio_PGT = jnp.where(mask_PGT, logps_PGT - old_logps_PGT, 0.0)
  if level == 'mean':
    counts_PG1 = jnp.maximum(jnp.sum(mask_PGT, axis=-1, keepdims=True), 1)
    sums_PG1 = jnp.sum(log_ratio_PGT, axis=-1, keepdims=True)
    log_ratio_PGT = sums_PG1 / counts_PG1
  elif level != 'token':
    raise ValueError(f"kl.level={level!r} is not 'token' or 'mean'")
  ratio_PGT = jnp.exp(_clamp(log_ratio_PGT, exponent_cap))
  logps_PGT = jnp.where(mask_PGT, logps_PGT, reference_logps_PGT)
  return ratio_PGT * k3(
    logps_PGT, reference_logps_PGT, exponent_cap=exponent_cap
  )


def absolute(logps_PGT: jax.Array, reference_logps_PGT: jax.Array) -> jax.Array:
  """The size of the log-ratio, whose gradient is a sign (verl's `abs`)."""
  difference_PGT = logps_PGT - reference_logps_PGT
  # At 0, where every run starts, jnp.abs has a gradient of 1; this has none.
  return difference_PGT * jnp.sign(difference_PGT)


def k1_plus(logps_PGT: jax.Array, reference_logps_PGT: jax.Array) -> jax.Array:
  """Value of k1, gradient of k2 (verl's `k1+`)."""
  value_PGT = k1(logps_PGT, reference_logps_PGT)
  return _straight_through(value_PGT, logps_PGT, reference_logps_PGT)


def k3_plus(
  logps_PGT: jax.Array,
  reference_logps_PGT: jax.Array,
  *,
  exponent_cap: float | None = None,
  value_cap: float | None = None,
) -> jax.Array:
  """Value of k3, gradient of k2 (verl's `k3+`); the caps are k3's."""
  value_PGT = k3(
    logps_PGT,
    reference_logps_PGT,
    exponent_cap=exponent_cap,
    value_cap=value_cap,
  )
  return _straight_through(value_PGT, logps_PGT, reference_logps_PGT)


def absolute_plus(
  logps_PGT: jax.Array, reference_logps_PGT: jax.Array
) -> jax.Array:
  """Value of `absolute`, gradient of k2 (verl's `abs+`)."""
  value_PGT = absolute(logps_PGT, reference_logps_PGT)
  return _straight_through(value_PGT, logps_PGT, reference_logps_PGT)


def _straight_through(value_PGT, logps_PGT, reference_logps_PGT):
  """The value given, with the gradient of k2."""
  surrogate_PGT = k2(logps_PGT, reference_logps_PGT)
  # Not value + surrogate - surrogate: that rounds the value.
  none_PGT = surrogate_PGT - jax.lax.stop_gradient(surrogate_PGT)
  return none_PGT + jax.lax.stop_gradient(value_PGT)


def _clamp(x: jax.Array, bound: float | None) -> jax.Array:
  """x within +-bound, without a gradient beyond it; at it there is one."""
  if bound is None:
    return x
  ends = jnp.where(x > 0, bound, -bound)
  return jnp.where(jnp.abs(x) <= bound, x, ends)
