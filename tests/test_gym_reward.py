"""The scorers of reasoning-gym, which see an entry as JSON gives it back."""

import json

import pytest
import reasoning_gym

from grpo_jax.datasets import gym as gym_data
from grpo_jax.rewards import host
from grpo_jax.rewards.host import gym

# rearc compares grids, knights_knaves words, countdown expressions.
TASKS = ['chain_sum', 'countdown', 'rearc', 'knights_knaves', 'sudoku']


def score(text, task, entry):
  return gym.gym(host.Completion(text, columns={'task': task, 'entry': entry}))


@pytest.mark.parametrize('task', TASKS)
def test_scores_are_those_of_the_task_although_the_entry_was_json(task):
  dataset = reasoning_gym.create_dataset(task, size=3, seed=3)
  for entry in dataset:
    for answer in (entry['answer'], 'x', '', '0'):
      expected = dataset.score_answer(answer, entry)
      text = f'<think>?</think><answer> {answer} </answer>'
      written = json.dumps(entry, default=str)
      assert score(text, task, written) == expected
      assert score(text, task, json.loads(written)) == expected
    assert dataset.score_answer(entry['answer'], entry) == 1


def test_a_scorer_that_looks_at_the_difficulty_is_told_it():
  config = {'min_word_length': 5, 'max_word_length': 5}
  example = next(gym_data.examples('word_ladder', 1, 0, config))
  right = host.Completion(
    f'<answer>{example.answer}</answer>', columns=example.columns
  )
  assert gym.gym(right) == 1
  with pytest.raises(KeyError):  # That of another difficulty has no such words.
    gym.gym(
      host.Completion(right.text, columns=example.columns | {'config': {}})
    )


def test_the_last_pair_of_tags_holds_the_answer():
  entry = reasoning_gym.create_dataset('chain_sum', size=1, seed=1)[0]
  right = entry['answer']
  cases = {
    f'<answer>{right}</answer>': True,
    f'<answer>0</answer> no: <answer>{right}</answer>': True,
    f'<answer>{right}</answer><answer>0</answer>': False,
    f'<answer><answer>{right}</answer>': True,
    f'<answer>{right}</answer> <answer>': True,
    f'</answer>{right}<answer>': False,
    f'<answer>{right}': False,
    right: False,
    '': False,
  }
  for text, good in cases.items():
    assert (score(text, 'chain_sum', entry) == 1) == good, text
  assert score(right, 'chain_sum', entry) == 0


def test_a_pool_scores_tasks_by_their_name():
  spec = host.Spec('gym', 'gym', seconds=20)
  entries = [
    (task, reasoning_gym.create_dataset(task, size=1, seed=2)[0])
    for task in TASKS
  ]
  given = [
    host.Completion(
      f'<answer>{entry["answer"]}</answer>',
      columns={'task': task, 'entry': json.dumps(entry, default=str)},
    )
    for task, entry in [*entries, ('no_such_task', entries[0][1])]
  ]
  with host.Pool([spec], 1) as pool:
    outcome = pool.submit(given).result(60)
  assert outcome.scores['gym'][:-1] == [1] * len(TASKS)
  assert [(f.index, f.kind) for f in outcome.failures] == [(5, 'raised')]
