"""What a run remembers of its problems, and how it draws by that.

  fresh(count, prior) -> History
  record(history, rows, right, decay=...) -> History
  draw(history, key, size=..., weigh=..., floor=...) -> rows

The history is a part of TrainState: what a step draws depends on seed, step and
state alone, and so a run goes on exactly. The weights are in curriculum.py.

Dimension key: N training problems, P prompts of a step, G completions each.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax.metrics import Metrics
from grpo_jax.types import History


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
