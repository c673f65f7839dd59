"""What a run remembers of its problems, and how it draws by that.

  fresh(count, prior) -> History
  record(history, rows, right, decay=...) -> History
  draw(history, key, size=..., weigh=..., floor=...) -> rows
  repeats(openings, rollout) -> openings, metrics

The history is a part of TrainState: what a step draws depends on seed, step and
state alone, and so a run goes on exactly. The weights are in curriculum.py.

Dimension key: N training problems, P prompts of a step, G completions each, T
completion length.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax.metrics import Metrics, masked_mean
from grpo_jax.types import History, Rollout


def fresh(count: int, prior: float) -> History:
  """Of problems that nobody has tried; `prior` is believed of each."""
  return History(
    success_N=jnp.full(count, prior, jnp.float32),
    visits_N=jnp.zeros(count, jnp.int32),
  )


def record(
  history: History, rows_P: jax.Array, right_PG: jax.Array, *, decay: float
) -> History:
  """Notes how a batch went.

  Args:
    history: before it.
    rows_P: places of its problems in the training split, none of them twice;
      negative ones stand for no such problem.
    right_PG: 1 or more for a right completion. NaN is left out, and a problem
      without any score counts as not tried.
    decay: weight of what is remembered; of the new share 1 - decay.
  """
  scored_PG = ~jnp.isnan(right_PG)
  scored_P = jnp.sum(scored_PG, axis=1)
  right_P = jnp.sum(scored_PG & (right_PG >= 1), axis=1)
  success_P = right_P / jnp.maximum(scored_P, 1)
  before_P = history.success_N[rows_P]
  # Beyond the end, where it is dropped; -1 would be the last problem.
  beyond = len(history.success_N)
  rows_P = jnp.where((rows_P >= 0) & (scored_P > 0), rows_P, beyond)
  after_P = decay * before_P + (1 - decay) * success_P
  return History(
    success_N=history.success_N.at[rows_P].set(
      after_P.astype(jnp.float32), mode='drop'
    ),
    visits_N=history.visits_N.at[rows_P].add(1, mode='drop'),
  )


def draw(
  history: History,
  key: jax.Array,
  *,
  size: int,
  weigh: Callable[[jax.Array], jax.Array],
  floor: float,
) -> jax.Array:
  """Rows of `size` problems, none of them twice, int32.

  The largest of log(weight) + Gumbel noise are what one gets who takes one
  after the other, by the weights of those that are left
  (arxiv.org/abs/1903.06059).

  Args:
    history: what the weights are made from.
    key: one per seed and step.
    size: problems to draw, at most as many as there are.
    weigh: success_N -> weights, see curriculum.py.
    floor: least weight, above 0: nothing is given up for good.
  """
  weights_N = jnp.maximum(weigh(history.success_N), floor)
  noise_N = jax.random.gumbel(key, weights_N.shape, jnp.float32)
  _, rows = jax.lax.top_k(jnp.log(weights_N) + noise_N, size)
  return rows


def describe(history: History, rows_P: jax.Array) -> Metrics:
  """What was believed of the problems that were drawn, and of how many."""
  return {
    'curriculum/success': jnp.mean(history.success_N[rows_P]),
    'curriculum/visited': jnp.mean(history.visits_N > 0),
  }


def repeats(
  openings_N: jax.Array, rollout: Rollout
) -> tuple[jax.Array, Metrics]:
  """Whether problems are answered as they were when they last came.

  Two draws from one distribution begin alike with its collision probability,
  of which the probability of a draw is an unbiased estimate: what is left is
  about 0 for a sampler whose dice are new, however sure it is of its words, and
  one less that probability for one that throws the same again. Only the first
  completion of a problem is looked at, and of it the first 16 tokens: what
  comes after may differ because the policy has moved.

  Returns the openings of now, and `rollout/repeats`: the mean over the problems
  that came before, 0 if none did.
  """
  rows_P, T = rollout.prompts.rows_P, min(16, rollout.tokens_PGT.shape[-1])
  spoken_PT = jnp.arange(T) < rollout.lengths_PG[:, :1]
  words_PT = jnp.where(spoken_PT, rollout.tokens_PGT[:, 0, :T] + 1, 0)
  # A polynomial modulo 2^32; 0 is that of a problem that never came.
  powers_T = jnp.cumprod(jnp.full(T, 2_654_435_761, jnp.uint32))
  sums_P = jnp.sum(words_PT.astype(jnp.uint32) * powers_T, axis=1)
  now_P = jnp.maximum(sums_P.astype(jnp.uint32), 1)
  logps_P = jnp.sum(rollout.logps_PGT[:, 0, :T], axis=1)
  assert rows_P is not None
  # Beyond the end, where it is dropped; -1 would be the last problem.
  rows_P = jnp.where(rows_P >= 0, rows_P, len(openings_N))
  before_P = openings_N.at[rows_P].get(mode='fill', fill_value=0)
  excess_P = (now_P == before_P) - jnp.exp(logps_P)
  # A problem that stands twice in a batch leaves the greater: in any order.
  openings_N = openings_N.at[rows_P].set(0, mode='drop')
  openings_N = openings_N.at[rows_P].max(now_P, mode='drop')
  return openings_N, {'rollout/repeats': masked_mean(excess_P, before_P > 0)}
