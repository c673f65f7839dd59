"""A batch before the first optimizer step: what the loss is computed from.

  prepare(state, rollout, rewards, ...) -> (Batch, metrics)

Old and reference log-probabilities, off-policy weights, the KL in the reward
and the advantages are all constants of the update: here they are found, once.
Below is how a batch is cut into the pieces that go through the model.

Dimension key: P prompts, G completions each, T completion length.
"""

from collections.abc import Callable, Sequence

from flax import struct
import jax
import jax.numpy as jnp

from grpo_jax import metrics as metrics_lib
from grpo_jax.inputs import asks, fill
from grpo_jax.metrics import Metrics
from grpo_jax.types import Rewards, Rollout, TrainState


class Batch(struct.PyTreeNode):
  """What the loss is computed from; every leaf has the groups first."""

  rollout: Rollout
  advantages_PGT: jax.Array  # Or PG1: the same for all tokens.
  old_logps_PGT: jax.Array  # Under the policy that the ratio starts from.
  correction_PGT: jax.Array | None  # Old policy against the sampler.
  reference_logps_PGT: jax.Array | None
  selected_PGT: jax.Array | None = None  # bool: its surrogate counts.
  weights_PGT: jax.Array | None = None  # Of a token in the loss.
  share_PGT: jax.Array | None = None  # Of a token in a plain token mean.
  bonus_PGT: jax.Array | None = None  # Of a token in the mean entropy.


def prepare(
  state: TrainState,
  rollout: Rollout,
  rewards: Rewards,
  *,
  advantage: Callable,
  off_policy: Callable | None,
  reference_kl: Callable | None,
  penalty: float | jax.Array | None,
  survey: Callable,
  refer: Callable,
) -> tuple[Batch, Metrics]:
  """All that is known before the first step, and what to say of it."""
  wants = asks(advantage)
  metrics: Metrics = {}
  rollout, rewards, more = part_greedy(wants, rollout, rewards)
  mask_PGT, behaviour_PGT = rollout.actions_PGT, rollout.logps_PGT
  old_logps_PGT, correction_PGT = behaviour_PGT, None
  if off_policy is not None or 'squares_PGT' in wants:
    own = survey(state.params, rollout, squares='squares_PGT' in wants)
    more['squares_PGT'] = own.squares_PGT
  if off_policy is not None:
    old_logps_PGT = own.logps_PGT
    log_ratio_PGT = jnp.where(mask_PGT, old_logps_PGT - behaviour_PGT, 0.0)
    correction_PGT = off_policy(log_ratio_PGT, mask_PGT)
    found = metrics_lib.off_policy(log_ratio_PGT, mask_PGT)
    found['weight'] = metrics_lib.masked_mean(correction_PGT, mask_PGT)
    metrics |= {f'off_policy/{name}': x for name, x in found.items()}
  reference_logps_PGT = None
  if reference_kl is not None:
    reference_logps_PGT = refer(rollout).logps_PGT
  more['logps_PGT'] = old_logps_PGT
  if correction_PGT is not None:
    more['correction_PGT'] = correction_PGT
  scored = rewards
  if reference_kl is not None and penalty is not None:
    found = fill(reference_kl, old_logps_PGT=old_logps_PGT, mask_PGT=mask_PGT)
    kl_PGT = jnp.where(mask_PGT, found(old_logps_PGT, reference_logps_PGT), 0.0)
    metrics['kl/reference'] = metrics_lib.masked_mean(kl_PGT, mask_PGT)
    more['token_rewards_PGT'] = (
      token_rewards(rewards.total_PG, mask_PGT) - penalty * kl_PGT
    )
    total_PG = rewards.total_PG - penalty * jnp.sum(kl_PGT, axis=-1)
    scored = rewards.replace(total_PG=total_PG)
  metrics |= metrics_lib.describe(rollout, rewards)
  lengths_P = rollout.prompts.lengths_P.astype(jnp.float32)
  metrics['rollout/prompt_length'] = jnp.mean(lengths_P)
  batch = Batch(
    rollout=rollout,
    advantages_PGT=compare(advantage, rollout, scored, **more),
    old_logps_PGT=old_logps_PGT,
    correction_PGT=correction_PGT,
    reference_logps_PGT=reference_logps_PGT,
  )
  return batch, metrics


def compare(
  advantage: Callable, rollout: Rollout, rewards: Rewards, **more
) -> jax.Array:
  """Advantages of completions, advantages_PGT or PG1.

  `more` are inputs that rollout and rewards do not have in them.
  """
  mask_PGT = rollout.actions_PGT
  given = {
    'mask_PGT': mask_PGT,
    'token_rewards_PGT': token_rewards(rewards.total_PG, mask_PGT),
    'parts': rewards.shaped or rewards.parts,
    'correction_PGT': jnp.ones(mask_PGT.shape),
  } | more
  found = fill(advantage, **given)(rewards.total_PG)
  return found if found.ndim == 3 else found[..., None]


def part_greedy(
  wants: Sequence[str], rollout: Rollout, rewards: Rewards
) -> tuple[Rollout, Rewards, dict[str, jax.Array]]:
  """Takes the greedy completion out of each group, if there is one."""
  if 'greedy_P' not in wants:
    return rollout, rewards, {}
  groups = rollout.replace(prompts=None), rewards
  groups, rest = jax.tree.map(lambda x: x[:, :-1], groups)
  greedy_P = rewards.total_PG[:, -1]
  return groups.replace(prompts=rollout.prompts), rest, {'greedy_P': greedy_P}


def token_rewards(rewards_PG: jax.Array, mask_PGT: jax.Array) -> jax.Array:
  """The reward on the last token that counts, and 0 on the others."""
  T = mask_PGT.shape[-1]
  last_PG = T - 1 - jnp.argmax(mask_PGT[..., ::-1], axis=-1)
  is_last_PGT = mask_PGT & (jnp.arange(T) == last_PG[..., None])
  return jnp.where(is_last_PGT, rewards_PG[..., None], 0.0)


def split(tree, pieces: int):
  """Leaves [P, ...] -> [pieces, P / pieces, ...], each piece on every device.

  Piece i takes the groups i, i + pieces, ...: a device that holds a run of
  groups has some of each piece, so nothing moves.
  """

  def split(x):
    P, *rest = x.shape
    return x.reshape(P // pieces, pieces, *rest).swapaxes(0, 1)

  return jax.tree.map(split, tree)


def join(tree):
  """The inverse of split."""

  def join(x):
    pieces, size, *rest = x.shape
    return x.swapaxes(0, 1).reshape(pieces * size, *rest)

  return jax.tree.map(join, tree)
