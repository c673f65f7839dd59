"""Tasks of reasoning-gym, and their scorers after a round trip through JSON."""

import json
import sys

import pytest

from grpo_jax import datasets
from grpo_jax.datasets import gym

# One of its packages leaves a file open.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def needs_gym():
  pytest.importorskip('reasoning_gym', reason='pip install reasoning-gym')


def score(task, answer, entry):
  import reasoning_gym

  return reasoning_gym.create_dataset(task, size=1).score_answer(answer, entry)


def test_a_task_is_stored_with_what_its_scorer_needs(tmp_path):
  needs_gym()
  loaded = datasets.load(
    'gym',
    str(tmp_path),
    task='chain_sum',
    size=200,
    config={'min_terms': 3, 'max_terms': 3},
  )
  examples = loaded.all('train') + loaded.all('heldout')
  assert len(examples) > 150 and loaded.size('heldout') > 3
  for example in examples:
    assert example.columns['task'] == 'chain_sum'
    entry = gym.entry(example.columns)
    assert entry['question'] == example.prompt
    assert entry['metadata']['num_terms'] == 3
    expression = entry['metadata']['expression']
    assert int(example.answer) == sum(
      map(int, expression.replace('- ', '-').replace('+ ', '').split())
    )
  assert score('chain_sum', example.answer, entry) == 1
  assert score('chain_sum', example.answer + '1', entry) < 1


SOME = [
  'basic_arithmetic',
  'countdown',
  'family_relationships',
  'game_of_life',
  'gcd',
  'graph_color',
  'mini_sudoku',
  'rearc',
  'rotate_matrix',
  'simple_equations',
  'spell_backward',
  'syllogism',
  'tower_of_hanoi',
]


@pytest.mark.parametrize('task', SOME)
def test_scorers_judge_an_entry_from_json_as_they_did_before(task):
  needs_gym()
  import reasoning_gym

  dataset = reasoning_gym.create_dataset(task, size=2, seed=1)
  for item, example in zip(dataset, gym.examples(task, 2, 1), strict=True):
    columns = json.loads(json.dumps(example.columns))
    entry = gym.entry(columns)
    answer = example.answer or json.dumps(item['metadata']['possible_answer'])
    assert score(task, answer, entry) == 1
    for other in ('definitely wrong', ''):
      assert score(task, other, entry) == score(task, other, item) < 1


@pytest.mark.slow
def test_all_tasks_score_their_own_answers_after_json():
  needs_gym()
  from reasoning_gym import factory

  silent = {'boxnet', 'graph_color', 'propositional_logic', 'rubiks_cube'}
  for task in set(factory.DATASETS) - {'composite'}:
    for example in gym.examples(task, size=2, seed=3):
      entry = gym.entry(json.loads(json.dumps(example.columns)))
      if example.answer:
        assert score(task, example.answer, entry) == 1, task
      else:
        assert task in silent | {'rush_hour'}


def test_boards_of_the_same_signs_are_different_problems():
  needs_gym()
  given = list(gym.examples('game_of_life', size=60))
  found = datasets.split(given, 0.3, datasets.key('gym'))
  assert 6 < len(found['heldout']) < 32
  assert len(found['train']) + len(found['heldout']) == 60
  assert datasets.key('gym')('0 1 1') != datasets.key('gym')('1 0 1')
  assert datasets.key('sums') is datasets.words


@pytest.mark.parametrize(
  'knobs,message',
  [
    ({'task': 'chain_summ'}, r"no task 'chain_summ'; there are chain_sum, dec"),
    ({'task': 'q'}, r"^reasoning-gym has no task 'q'; there are .*, chain_sum"),
    ({'task': 'composite'}, r"^task 'composite': use data.name = 'mixture'"),
    ({'size': 0}, r'^size=0 must be at least 1'),
    (
      {'config': {'max_termz': 3}},
      r"^reasoning-gym task 'chain_sum' with config={'max_termz': 3}: .*termz",
    ),
    ({'config': {'max_terms': 1}}, r'^reasoning-gym .*: max_terms must be >='),
  ],
)
def test_tasks_and_configs_that_are_not_there_are_refused(
  tmp_path, knobs, message
):
  needs_gym()
  with pytest.raises(ValueError, match=message) as error:
    datasets.load('gym', str(tmp_path), **knobs)
  assert '\n' not in str(error.value)


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  with pytest.raises(ValueError, match='needs: pip install reasoning-gym'):
    datasets.load('gym', str(tmp_path))
