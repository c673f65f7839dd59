"""Estimates of KL(policy || reference), per token, from sampled tokens.

With d = log p - log p_ref (John Schulman, joschu.net/blog/kl-approx.html):

  name  estimate         gradient as a loss, on tokens from the policy
  k2    d^2 / 2          that of the reverse KL
  k3    exp(-d) + d - 1  that of the forward KL; what GRPO uses

k1 = d is missing on purpose: as a loss its expected gradient is zero.
Chosen by `config.kl.name`.
"""

import jax
import jax.numpy as jnp


def k2(logps_PGT: jax.Array, reference_logps_PGT: jax.Array) -> jax.Array:
  """Half the squared log-ratio: low variance, biased value."""
  return 0.5 * (logps_PGT - reference_logps_PGT) ** 2


def k3(logps_PGT: jax.Array, reference_logps_PGT: jax.Array) -> jax.Array:
  """Never negative and unbiased in value (arxiv.org/abs/2402.03300, eq. 4)."""
  difference_PGT = logps_PGT - reference_logps_PGT
  return jnp.expm1(-difference_PGT) + difference_PGT
