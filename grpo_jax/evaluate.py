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
import jax
import numpy as np

from grpo_jax import metrics
from grpo_jax.types import Params, Prompts, Rewards, Rollout

PARTS = {'answer': 0.0, 'format': 0.0}  # Scored even if training does not.


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One row a problem, one column a completion."""

  correct_NG: np.ndarray  # Score of the answer reward.
  reasoned_NG: np.ndarray  # Score of the format reward: thought, then answer.
  reward_NG: np.ndarray  # The weighted sum that training maximises.
  lengths_NG: np.ndarray  # Tokens.
  ended_NG: np.ndarray
  texts: list[str]  # The first completion of each problem.


def evaluate(
  sample: Callable[..., tuple[Rollout, Rewards]],
  params: Params,
  batches: Sequence[tuple[Prompts, int]],
  key: jax.Array,
  decode: Callable[[Sequence[int]], str],
) -> Evaluation:
  """Samples and scores.

  Args:
    sample: (params, prompts, key) -> (rollout, rewards), compiled.
    params: the policy's parameters.
    batches: prompts, and how many of them count: the rest is padding.
    key: of the noise.
    decode: token ids to text.
  """
  columns, texts = [], []
  for prompts, count in batches:
    rollout, rewards = jax.device_get(sample(params, prompts, key))
    columns.append(
      [
        x[:count]
        for x in (
          rewards.parts['answer'],
          rewards.parts['format'],
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

  def share(of, where):
    return float(of[where].mean()) if where.any() else None

  return {
    'accuracy': float(right.mean()),
    'accuracy_interval': metrics.bootstrap(right.mean(axis=1)),
    'accuracy_reasoned': share(right, reasoned),
    'accuracy_direct': share(right, ~reasoned),
    'reasoning': float(reasoned.mean()),
    'length': float(e.lengths_NG.mean()),
    'reward': float(np.nanmean(e.reward_NG)),
    'reward_interval': metrics.bootstrap(np.nanmean(e.reward_NG, axis=1)),
    'truncated': float(1 - e.ended_NG.mean()),
  }


def gain(before: Evaluation, after: Evaluation) -> dict[str, Any]:
  """What training changed, paired by problem (95% bootstrap intervals)."""
  right = (after.correct_NG == 1).mean(axis=1)
  right -= (before.correct_NG == 1).mean(axis=1)
  reward = np.nanmean(after.reward_NG, axis=1)
  reward -= np.nanmean(before.reward_NG, axis=1)
  return {
    'accuracy_gain': float(right.mean()),
    'accuracy_gain_interval': metrics.bootstrap(right),
    'reward_gain': float(reward.mean()),
    'reward_gain_interval': metrics.bootstrap(reward),
  }


def save(e: Evaluation, path: epath.Path) -> None:
  """As JSON, so that a run that goes on need not sample it again."""
  fields = dataclasses.asdict(e)
  fields = {
    name: value if name == 'texts' else value.tolist()
    for name, value in fields.items()
  }
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(fields))
  partial.rename(path)


def load(path: epath.Path) -> Evaluation:
  fields = json.loads(path.read_text())
  texts = fields.pop('texts')
  return Evaluation(
    **{name: np.array(value) for name, value in fields.items()}, texts=texts
  )
