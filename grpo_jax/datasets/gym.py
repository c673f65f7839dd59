"""Any task of reasoning-gym, 100 and more (arxiv.org/abs/2505.24760).

  pip install reasoning-gym
  c.data.name = 'gym'
  c.data.knobs = {'task': 'chain_sum', 'config': {'max_terms': 4}}

`config` holds the difficulty knobs of that task. The columns have what its own
scorer wants: the task made with that config, score_answer(answer,
entry(columns)). A few tasks accept many
answers and name none; then `answer` is ''. Five draw from Python's sets, whose
order differs between processes (isomorphic_strings, knight_swap,
polynomial_multiplication, ransom_note, word_ladder): what a run has stored
stays as it is, another run gets other problems.
"""

from collections.abc import Iterator
import difflib
from typing import Any

from grpo_jax.datasets import Example

VERSION = '1.0.0'

_TUPLES = ('arc_agi', 'rearc')  # Compare grids as tuples, which JSON lacks.


def examples(
  task: str = 'chain_sum',
  size: int = 10_000,
  seed: int = 0,
  config: dict[str, Any] | None = None,
) -> Iterator[Example]:
  """`size` problems; raises ValueError for a task or config that is not there.

  Of 'chain_sum', 10,000 take about 2 seconds; puzzles take longer.
  """
  for item in _dataset(task, size, seed, dict(config or {})):
    yield Example(
      prompt=item['question'],
      answer='' if item['answer'] is None else str(item['answer']),
      columns={'task': task, 'config': config or {}, 'entry': item},
    )


def key(prompt: str) -> str:
  """Prompts as they are: boards of the same signs are different problems."""
  return prompt


def entry(columns: dict[str, Any]) -> dict[str, Any]:
  """The entry of an Example's columns as it was before it became JSON."""
  found = columns['entry']
  if columns['task'] not in _TUPLES:
    return found
  grid = tuple(map(tuple, found['metadata']['output']))
  return found | {'metadata': found['metadata'] | {'output': grid}}


def _dataset(task: str, size: int, seed: int, config: dict[str, Any]):
  try:
    import reasoning_gym
    from reasoning_gym import factory
  except ImportError:
    raise ValueError('dataset gym needs: pip install reasoning-gym') from None
  if size < 1:
    raise ValueError(f'size={size} must be at least 1')
  if task not in factory.DATASETS:
    near = difflib.get_close_matches(task, factory.DATASETS, n=5, cutoff=0.5)
    raise ValueError(
      f'reasoning-gym has no task {task!r}; there are '
      f'{", ".join(near or factory.DATASETS)}'
    )
  if task == 'composite':
    raise ValueError("task 'composite': use data.name = 'mixture' of tasks")
  try:
    return reasoning_gym.create_dataset(task, size=size, seed=seed, **config)
  except (TypeError, ValueError, AssertionError) as error:
    raise ValueError(
      f'reasoning-gym task {task!r} with config={config}: {error}'
    ) from None
