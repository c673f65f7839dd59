"""How good a policy is on problems that it never trained on.

Completions come from the same `rollout` and are scored by the same `reward` as
in training. The noise depends on the problem, so that two checkpoints are
compared on the same problems with the same dice.

Dimension key: N problems, G completions of each.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
from typing import Any

from etils import epath
import numpy as np

from grpo_jax import metrics, process, sharding
from grpo_jax.datasets import Example
from grpo_jax.types import Params, Prompts, Rewards, Rollout


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One row a problem, one column a completion."""

  correct_NG: np.ndarray  # Score of the part that tells what is right.
  reasoned_NG: np.ndarray  # Of the part that tells what reasons.
  reward_NG: np.ndarray  # The weighted sum that training maximises.
  lengths_NG: np.ndarray  # Tokens.
  ended_NG: np.ndarray
  texts: list[str]  # The first completion of each problem.


def evaluate(
  sample: Callable[..., tuple[Rollout, Rewards]],
  params: Params,
  batches: Sequence[tuple[Prompts, Sequence[Example]]],
  seed: int,
  decode: Callable[[Sequence[int]], str],
  right: str = 'answer',
  reasoned: str = 'format',
) -> Evaluation:
  """Samples and scores.

  Args:
    sample: (params, prompts, seed, examples) -> (rollout, rewards), compiled.
    params: the policy's parameters.
    batches: prompts, and the examples that count: further rows are padding.
    seed: of the noise.
    decode: token ids to text.
    right: the part of the reward that tells whether an answer is right.
    reasoned: the part that tells whether there is a reasoning.
  """
  columns, texts = [], []
  for prompts, examples in batches:
    count = len(examples)
    rollout, rewards = sharding.to_host(sample(params, prompts, seed, examples))
    columns.append(
      [
        x[:count]
        for x in (
          rewards.parts[right],
          rewards.parts[reasoned],
          rewards.total_PG,
          rollout.lengths_PG,
          rollout.ended_PG,
        )
      ]
    )
    for tokens_T, length in zip(
      rollout.tokens_PGT[:count, 0], rollout.lengths_PG[:count, 0], strict=True
    ):
      texts.append(decode(tokens_T[:length].tolist()))
  return Evaluation(
    *(np.concatenate(x) for x in zip(*columns, strict=True)), texts
  )


def summarize(e: Evaluation) -> dict[str, Any]:
  """Shares over all completions; the interval is over problems (bootstrap)."""
  right, reasoned = e.correct_NG == 1, e.reasoned_NG == 1
  reward_N = _scored_mean(e.reward_NG)

  def share(of, where):
    return float(of[where].mean()) if where.any() else None

  return {
    'accuracy': float(right.mean()),
    'accuracy_interval': metrics.bootstrap(right.mean(axis=1)),
    'accuracy_reasoned': share(right, reasoned),
    'accuracy_direct': share(right, ~reasoned),
    'reasoning': float(reasoned.mean()),
    'length': float(e.lengths_NG.mean()),
    'reward': _mean(reward_N),
    'reward_interval': metrics.bootstrap(reward_N),
    'truncated': float(1 - e.ended_NG.mean()),
  }


def gain(before: Evaluation, after: Evaluation) -> dict[str, Any]:
  """What training changed, paired by problem (95% bootstrap intervals)."""
  right = (after.correct_NG == 1).mean(axis=1)
  right -= (before.correct_NG == 1).mean(axis=1)
  reward = _scored_mean(after.reward_NG, before.reward_NG)
  reward -= _scored_mean(before.reward_NG, after.reward_NG)
  return {
    'accuracy_gain': float(right.mean()),
    'accuracy_gain_interval': metrics.bootstrap(right),
    'reward_gain': _mean(reward),
    'reward_gain_interval': metrics.bootstrap(reward),
  }


def _scored_mean(reward_NG: np.ndarray, *others_NG: np.ndarray) -> np.ndarray:
  """Each problem's mean, without those that have no score here or there."""
  known_N = np.all(
    [(~np.isnan(x)).any(axis=1) for x in (reward_NG, *others_NG)], axis=0
  )
  return np.nanmean(reward_NG[known_N], axis=1)


def _mean(values_N: np.ndarray) -> float | None:
  return float(values_N.mean()) if len(values_N) else None


def save(e: Evaluation, path: epath.Path) -> None:
  """As JSON, so that a run that goes on need not sample it again."""
  fields = dataclasses.asdict(e)
  fields = {
    name: value if name == 'texts' else value.tolist()
    for name, value in fields.items()
  }
  process.write(path, json.dumps(fields))


def load(path: epath.Path) -> Evaluation:
  fields = json.loads(path.read_text())
  texts = fields.pop('texts')
  return Evaluation(
    **{name: np.array(value) for name, value in fields.items()}, texts=texts
  )
