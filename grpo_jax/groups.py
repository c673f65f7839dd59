"""Groups that teach, and completions that were cut: which of them count.

  fill(sample, merge, ...)           dynamic sampling: on until enough differ
  merge(kept, new) -> kept, count    the groups that differ first
  order(advantages) -> indices, n    the groups with an advantage first
  drop_truncated(rollout)            no token of a cut completion in the loss

A group of equal rewards has no advantage, whatever the estimator that compares
within it: the policy is not moved by it. Early in training all its completions
may be wrong, late all right, and a batch is then worth fewer prompts than it
cost. Sampling on (c.dynamic.batches) buys them back with more rollouts.

Dimension key: P prompts, G completions each, T completion length.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.metrics import Metrics, masked_mean
from grpo_jax.types import Rewards, Rollout

Scored = tuple[Rollout, Rewards]

_SPENT = ('time/', 'host/')


def fill(
  sample: Callable[[int], tuple[Any, int]],
  merge: Callable[[Any, Any], tuple[Any, int]],
  *,
  wanted: int,
  batches: int,
) -> tuple[Any, int]:
  """Dynamic sampling (DAPO, arxiv.org/abs/2503.14476): a loop on the host.

  If there are fewer groups that differ than wanted even so, others stay in the
  batch, which keeps its shape; DAPO's authors stop with an error.

  Args:
    sample: number of the batch, from 0 -> the batch, sampled and scored, and
      how many of its groups differ.
    merge: see below.
    wanted: groups that are to differ, P.
    batches: that are sampled at the most.

  Returns:
    the batch to learn from, and how many were sampled for it.
  """
  kept, count = sample(0)
  sampled = 1
  while int(count) < wanted and sampled < batches:
    new, _ = sample(sampled)
    kept, count = merge(kept, new)
    sampled += 1
  return kept, sampled


def merge(
  kept: Scored, new: Scored, *, group_size: int
) -> tuple[Scored, jax.Array]:
  """As many groups as before: those that differ, the kept ones first.

  What is left over is filled with groups that do not differ, in the same order.
  Only the first `group_size` of a group are looked at: a greedy completion
  comes after them. Returns the groups, and how many of them differ.
  """
  P = len(kept[1].total_PG)
  both = jax.tree.map(lambda *x: jnp.concatenate(x), kept, new)
  differ_P = differ(both[1].total_PG[:, :group_size])
  first_P = jnp.argsort(~differ_P, stable=True)[:P]
  count = jnp.minimum(jnp.sum(differ_P), P)
  return jax.tree.map(lambda x: x[first_P], both), count


def look(rewards: Rewards) -> tuple[jax.Array, Metrics]:
  """How many groups of a batch differ, and its mean reward.

  That of the batch to learn from is another: groups were chosen for it.
  """
  total_PG = rewards.total_PG
  mean = masked_mean(total_PG, ~jnp.isnan(total_PG))
  return jnp.sum(differ(total_PG)), {'groups/reward_sampled': mean}


def differ(rewards_PG: jax.Array) -> jax.Array:
  """Whether a group has two different rewards; NaN (unscored) is left out."""
  unscored_PG = jnp.isnan(rewards_PG)
  low_P = jnp.min(jnp.where(unscored_PG, jnp.inf, rewards_PG), axis=1)
  high_P = jnp.max(jnp.where(unscored_PG, -jnp.inf, rewards_PG), axis=1)
  return low_P < high_P


def total(numbers: Sequence[Metrics]) -> Metrics:
  """Of all batches of a step: what is spent or counted in sum, or the mean."""
  found = {}
  for name in numbers[0]:
    values = [float(batch[name]) for batch in numbers]
    summed = name.startswith(_SPENT) and name != 'host/hidden'
    found[name] = sum(values) if summed else sum(values) / len(values)
  return found


def order(advantages_PGT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """indices_P with the groups first that have any advantage, and their number.

  Both kinds stay in the order in which they were. What is not a number counts
  as an advantage, so that it is not overlooked.
  """
  learnable_P = jnp.any(advantages_PGT != 0, axis=(1, 2))
  return jnp.argsort(~learnable_P, stable=True), jnp.sum(learnable_P)


def drop_truncated(rollout: Rollout) -> Rollout:
  """Takes completions without a stop token out of the loss, token by token.

  Their rewards still count in their groups, as with TRL's
  `mask_truncated_completions` (DAPO's overlong filtering).
  """
  ended_PG1 = rollout.ended_PG[..., None]
  return rollout.replace(actions_PGT=rollout.actions_PGT & ended_PG1)
