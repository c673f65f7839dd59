"""What a token weighs: loss = sum(weights * loss_per_token).

Each function turns the mask of a whole minibatch into weights, before it is cut
into microbatches or spread over devices, so that losses and gradients do not
depend on either. Chosen by `config.aggregate.name`.

Dimension key: P prompts, G completions each, T completion length.
"""

import jax
import jax.numpy as jnp


def token_mean(mask_PGT: jax.Array) -> jax.Array:
  """Every token weighs the same (DAPO, arxiv.org/abs/2503.14476)."""
  return mask_PGT / jnp.maximum(jnp.sum(mask_PGT), 1)


def sequence_mean(mask_PGT: jax.Array) -> jax.Array:
  """Mean over completions of their token means (arxiv.org/abs/2402.03300).

  A token of a long completion weighs less. A completion without tokens counts
  as one whose loss is zero, as in TRL.
  """
  P, G, _ = mask_PGT.shape
  lengths_PG1 = jnp.sum(mask_PGT, axis=-1, keepdims=True)
  return mask_PGT / jnp.maximum(lengths_PG1, 1) / (P * G)


def constant_length(
  mask_PGT: jax.Array, *, length: float | None = None
) -> jax.Array:
  """Sum over tokens by a constant (Dr. GRPO, arxiv.org/abs/2503.20783).

  `length` in tokens is by default the longest completion that is allowed, T.
  """
  P, G, T = mask_PGT.shape
  return mask_PGT / (P * G * (length or T))
