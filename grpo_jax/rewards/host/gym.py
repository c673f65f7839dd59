"""The scorers of reasoning-gym: each of its tasks judges its own answers."""

import functools
import json
from typing import Any

import reasoning_gym

from grpo_jax.datasets import gym as gym_data
from grpo_jax.rewards.host.records import Completion

_OPENING, _CLOSING = '<answer>', '</answer>'


def gym(completion: Completion) -> float:
  """The task's own score of what the last pair of <answer> tags holds.

  The columns are `task`, a name that reasoning-gym knows, its `config`, if it
  had any, and `entry`, the problem as the task made it, as JSON or as JSON
  gives it back. Without a pair of tags the score is 0.
  """
  end = completion.text.rfind(_CLOSING)
  start = completion.text.rfind(_OPENING, 0, max(end, 0))
  if start < 0:
    return 0.0
  answer = completion.text[start + len(_OPENING) : end].strip()
  columns = completion.columns
  if isinstance(columns['entry'], str):
    columns = columns | {'entry': json.loads(columns['entry'])}
  config = json.dumps(columns.get('config') or {}, sort_keys=True)
  dataset = _dataset(columns['task'], config)
  return dataset.score_answer(answer, gym_data.entry(columns))


@functools.cache
def _dataset(task: str, config: str) -> Any:
  # Some scorers look at the difficulty.
  return reasoning_gym.create_dataset(
    task, size=1, seed=0, **json.loads(config)
  )
