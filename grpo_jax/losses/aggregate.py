"""What a token weighs: loss = sum(weights * loss_per_token).

Each function turns the mask of a whole minibatch into weights, before it is cut
into microbatches or spread over devices, so that losses and gradients do not
depend on either. Chosen by `config.aggregate.name`.

  name             a token weighs one by the number of
  token_mean       all tokens
  sequence_mean    its completion's tokens, times completions
  constant_length  allowed tokens, times completions
  group_length     its group's tokens, times groups
  sequence_sum     completions
  token_sum        nothing: it weighs one

`empty` says whether a completion without tokens is one of the completions:
'count' as in TRL, 'skip' as in verl.

Dimension key: P prompts, G completions each, T completion length.
"""

import jax
import jax.numpy as jnp


def token_mean(mask_PGT: jax.Array) -> jax.Array:
  """Every token weighs the same (DAPO, arxiv.org/abs/2503.14476)."""
  return mask_PGT / jnp.maximum(jnp.sum(mask_PGT), 1)


def sequence_mean(mask_PGT: jax.Array, *, empty: str = 'count') -> jax.Array:
  """Mean over completions of their token means (arxiv.org/abs/2402.03300).

  A token of a long completion weighs less.
  """
  lengths_PG1 = jnp.sum(mask_PGT, axis=-1, keepdims=True)
  completions = _completions(mask_PGT, empty)
  return mask_PGT / jnp.maximum(lengths_PG1, 1) / completions


def constant_length(
  mask_PGT: jax.Array, *, length: float | None = None, empty: str = 'count'
) -> jax.Array:
  """Sum over tokens by a constant (Dr. GRPO, arxiv.org/abs/2503.20783).

  `length` in tokens is by default the longest completion that is allowed, T.
  """
  T = mask_PGT.shape[-1]
  return mask_PGT / (_completions(mask_PGT, empty) * (length or T))


def group_length(mask_PGT: jax.Array) -> jax.Array:
  """Token mean of each group, mean over groups (Magistral, 2506.10910).

  A group without tokens counts as one whose loss is zero.
  """
  P = mask_PGT.shape[0]
  tokens_P11 = jnp.sum(mask_PGT, axis=(1, 2), keepdims=True)
  return mask_PGT / jnp.maximum(tokens_P11, 1) / P


def sequence_sum(mask_PGT: jax.Array, *, empty: str = 'count') -> jax.Array:
  """Mean over completions of their sums (LUSPO, arxiv.org/abs/2602.05261)."""
  return mask_PGT / _completions(mask_PGT, empty)


def token_sum(mask_PGT: jax.Array) -> jax.Array:
  """The plain sum over tokens (verl's token-sum): it grows with the batch."""
  return mask_PGT / 1


def _completions(mask_PGT: jax.Array, empty: str) -> jax.Array | int:
  P, G, _ = mask_PGT.shape
  match empty:
    case 'count':
      return P * G
    case 'skip':
      return jnp.maximum(jnp.sum(jnp.any(mask_PGT != 0, axis=-1)), 1)
  raise ValueError(f"aggregate.empty={empty!r} is not 'count' or 'skip'")
