"""Estimators against loops, and against TRL's and verl's own numbers."""

import pathlib

import jax
import numpy as np
import pytest

from grpo_jax import advantages
from grpo_jax.rewards import mix

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'advantages.npz')


def loop(rewards_PG, name, ddof=1):
  """The estimators, one number at a time."""
  out = np.zeros(rewards_PG.shape)
  for p, row in enumerate(rewards_PG):
    scored = [g for g in range(len(row)) if not np.isnan(row[g])]
    if len({row[g] for g in scored}) < 2:
      continue
    mean = sum(row[g] for g in scored) / len(scored)
    squares = sum((row[g] - mean) ** 2 for g in scored)
    for g in scored:
      if name == 'grpo':
        deviation = (squares / (len(scored) - ddof)) ** 0.5
        out[p, g] = (row[g] - mean) / (deviation + 1e-4)
      elif name == 'dr_grpo':
        out[p, g] = row[g] - mean
      elif name == 'rloo':
        others = [row[h] for h in scored if h != g]
        out[p, g] = row[g] - sum(others) / len(others)
  return out


def random_rewards(G, seed):
  """Groups of binary and real rewards, some unscored, some all equal."""
  rng = np.random.default_rng(seed)
  rewards_PG = rng.normal(size=(60, G))
  rewards_PG[:20] = rewards_PG[:20] > 0
  rewards_PG[40:45] = rng.normal(size=(5, 1))
  rewards_PG[rng.random((60, G)) < 0.3] = np.nan
  rewards_PG[45] = np.nan
  return rewards_PG


@pytest.mark.parametrize('G', [1, 2, 3, 8])
@pytest.mark.parametrize(
  'name,knobs',
  [
    ('grpo', {}),
    ('grpo', {'ddof': 0}),
    ('dr_grpo', {}),
    ('rloo', {}),
  ],
)
def test_every_estimator_equals_a_loop_over_scored_completions(name, knobs, G):
  rewards_PG = random_rewards(G, seed=G)
  with jax.enable_x64(True):
    actual_PG = getattr(advantages, name)(rewards_PG, **knobs)
  expected_PG = loop(rewards_PG, name, **knobs)
  np.testing.assert_allclose(actual_PG, expected_PG, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
  'key', [key for key in GOLDEN if key.split('/')[-1][:4] in ('trl.', 'verl')]
)
def test_estimators_give_the_numbers_of_trl_and_verl(key):
  case, producer = key.split('/')
  codebase, name = producer.split('.')
  knobs = {'eps': 1e-6} if (codebase, name) == ('verl', 'grpo') else {}
  rewards_RPG = np.moveaxis(GOLDEN[f'{case}/rewards'], -1, 0)
  parts = {str(r): rewards_PG for r, rewards_PG in enumerate(rewards_RPG)}
  weights = zip(parts, GOLDEN[f'{case}/weights'].tolist(), strict=True)
  with jax.enable_x64(True):
    total_PG = mix.total(parts, [mix.Part(*item) for item in weights])
    actual_PG = getattr(advantages, name)(total_PG, **knobs)
  np.testing.assert_allclose(actual_PG, GOLDEN[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('name', ['grpo', 'dr_grpo', 'rloo'])
@pytest.mark.parametrize('value', [0.0, 0.1, 1 / 3, 0.95, 1000.1, np.nan])
def test_equal_or_unscored_groups_get_exactly_zero(name, value):
  rewards_PG = np.full((2, 7), value, np.float32)
  rewards_PG[0, 3] = np.nan
  actual_PG = jax.jit(getattr(advantages, name))(rewards_PG)
  np.testing.assert_array_equal(actual_PG, np.zeros((2, 7)))


def test_the_deviation_of_nearly_equal_rewards_does_not_explode():
  rewards_PG = np.array([[0.0] + [0.95] * 7], np.float32)
  actual_PG = advantages.grpo(rewards_PG)
  np.testing.assert_allclose(actual_PG, loop(rewards_PG, 'grpo'), rtol=1e-5)
