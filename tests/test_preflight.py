"""The preflight: what it measures, what it says, and that it leaves nothing."""

import command
import numpy as np
import pytest

from grpo_jax import preflight

P, G = 16, 8


def findings(**changes):
  """A batch that has nothing wrong with it, but for what is changed."""
  rng = np.random.default_rng(0)
  total_PG = rng.integers(0, 2, (P, G)).astype(float)
  total_PG[:, 0], total_PG[:, 1] = 0, 1
  good = dict(
    step=100,
    untrained=False,
    pretrain_steps=0,
    prompt_lengths_P=np.full(P, 20),
    max_prompt=24,
    lengths_PG=rng.integers(10, 60, (P, G)),
    ended_PG=np.ones((P, G), bool),
    max_tokens=256,
    repeats_PG=np.zeros((P, G), bool),
    parts={'answer': total_PG},
    weights={'answer': 1.0},
    total_PG=total_PG,
    failures={},
  )
  return preflight.Findings(**good | changes)


def test_a_good_batch_is_not_warned_of():
  assert preflight.warnings(findings()) == []


def cut(share):
  return np.arange(P * G).reshape(P, G) >= round(share * P * G)


def unscored(count):
  total_PG = findings().total_PG.copy()
  total_PG[:count] = np.nan
  return total_PG


@pytest.mark.parametrize(
  'change,words',
  [
    ({'ended_PG': cut(0.97)}, '97% of completions are cut at 256 tokens: what'),
    ({'ended_PG': cut(0.2)}, '20% of completions are cut at 256 tokens (roll'),
    ({'total_PG': np.zeros((P, G))}, 'No group has two different rewards'),
    (
      {'total_PG': np.where(np.arange(P)[:, None] < 12, 1.0, np.arange(G) % 2)},
      '75% of groups have equal rewards and teach nothing',
    ),
    ({'total_PG': unscored(4)}, '25% of completions have no reward at all'),
    ({'parts': {'answer': unscored(2)}}, "'answer' leaves 12% unscored"),
    ({'parts': {'answer': np.ones((P, G))}}, "'answer' is 1 for every"),
    ({'repeats_PG': ~cut(0.6)}, '60% of completions repeat another one'),
    ({'failures': {'code hung': 3}}, 'code hung on 3 completions'),
    ({'untrained': True}, 'it has nothing that RL could select'),
    ({'untrained': True, 'pretrain_steps': 9}, '9 steps of pre-training come'),
    ({'max_prompt': 99}, 'longest of these prompts has 20 tokens and room for'),
  ],
)
def test_each_fault_is_said_in_words(change, words):
  found = preflight.warnings(findings(**change))
  assert any(words in line for line in found), found


def test_a_part_without_weight_may_say_nothing():
  silent = findings(
    parts={'answer': np.zeros((P, G)), 'format': findings().total_PG},
    weights={'answer': 0.0, 'format': 1.0},
  )
  assert preflight.warnings(silent) == []


def test_the_command_shows_the_first_batch_and_leaves_nothing(tmp_path):
  arguments = command.train('quickstart.py:smoke', tmp_path / 'run')
  done = command.run(*arguments, '--preflight')
  assert done.returncode == 0, done.stderr
  for words in (
    '2 prompts, 8 completions of each',
    'groups without spread',
    'tokens of completions: ',
    'completions cut at the limit: ',
    '[best of its group; answer ',
    '[worst of its group; answer ',
    'prompt: Start at ',
    '4 steps of pre-training come first',
  ):
    assert words in done.stdout
  assert not (tmp_path / 'run').exists()


def test_a_run_that_has_begun_is_looked_at_as_it_is(tmp_path):
  arguments = command.train('quickstart.py:smoke', tmp_path / 'run')
  assert command.run(*arguments).returncode == 0
  before = sorted(path for path in tmp_path.rglob('*'))
  done = command.run(*arguments, '--preflight')
  assert done.returncode == 0, done.stderr
  assert 'pre-training come first' not in done.stdout
  assert sorted(path for path in tmp_path.rglob('*')) == before


def test_a_workdir_is_needed_for_all_but_a_preflight(tmp_path):
  done = command.run(
    'experiments/train.py', '--config', 'configs/quickstart.py:smoke'
  )
  assert done.returncode == 1
  assert '--workdir must have a value' in done.stderr
