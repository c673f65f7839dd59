"""Token selection against loops; TRL's and verl's are in test_losses.py."""

import inspect
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import policy, select

P, G, T = 2, 3, 8
NAMES = [
  name
  for name, _ in inspect.getmembers(select, inspect.isfunction)
  if not name.startswith('_')
]
SEEDS = st.integers(0, 2**32 - 1)


def batch(seed):
  """Random inputs in float64, ragged, some completions empty."""
  rng = np.random.default_rng(seed)
  old_PGT = -rng.exponential(1.0, (P, G, T))
  return {
    'logps_PGT': old_PGT + rng.normal(0, 0.3, (P, G, T)),
    'old_PGT': old_PGT,
    'advantages_PGT': rng.normal(size=(P, G, T)),
    'mask_PGT': np.arange(T) < rng.integers(0, T + 1, (P, G, 1)),
    'entropies_PGT': rng.exponential(1.0, (P, G, T)),
    'noise_PGT': rng.random((P, G, T)),
  }


def run(name, x, **knobs):
  function = getattr(select, name)
  arrays = (
    x[k] for k in ('logps_PGT', 'old_PGT', 'advantages_PGT', 'mask_PGT')
  )
  asked = inspect.signature(function).parameters
  given = {k: x[k] for k in ('entropies_PGT', 'noise_PGT') if k in asked}
  with jax.enable_x64(True):
    arrays, given = jax.tree.map(jnp.asarray, (tuple(arrays), given))
    selected_PGT = np.asarray(function(*arrays, **given, **knobs))
  assert selected_PGT.dtype == bool and selected_PGT.shape == (P, G, T)
  return selected_PGT


def counted(x):
  """Indices of the counted tokens, in order."""
  return [i for i in np.ndindex(P, G, T) if x['mask_PGT'][i]]


def as_set(selected_PGT):
  return set(map(tuple, np.argwhere(selected_PGT).tolist()))


def covariances(x):
  """{place: (A - mean A) (log p - mean log p)} of the counted tokens."""
  places = counted(x)
  mean_a = sum(x['advantages_PGT'][i] for i in places) / max(len(places), 1)
  mean_l = sum(x['logps_PGT'][i] for i in places) / max(len(places), 1)
  return {
    i: (x['advantages_PGT'][i] - mean_a) * (x['logps_PGT'][i] - mean_l)
    for i in places
  }


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.2, 0.5, 0.93, 1.0]))
def test_high_entropy_keeps_what_is_at_or_above_the_quantile(seed, share):
  x = batch(seed)
  entropies = [x['entropies_PGT'][i] for i in counted(x)]
  bound = np.quantile(entropies, 1 - share) if entropies else 0.0
  expected = {i for i in counted(x) if x['entropies_PGT'][i] >= bound - 1e-12}
  assert as_set(run('high_entropy', x, share=share)) == expected


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([1e-4, 0.1, 0.34, 1.0]))
def test_top_covariance_keeps_the_greatest_and_one_at_the_least(seed, share):
  x = batch(seed)
  places = covariances(x)
  number = max(int(share * len(places)), 1)
  expected = sorted(places, key=places.get, reverse=True)[:number]
  assert as_set(run('top_covariance', x, share=share)) == set(expected)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([1e-4, 0.1, 0.34, 1.0]))
def test_clip_cov_drops_candidates_with_the_least_noise(seed, share):
  x = batch(seed)
  candidates = []
  for i, covariance in covariances(x).items():
    ratio = math.exp(x['logps_PGT'][i] - x['old_PGT'][i])
    good = x['advantages_PGT'][i] > 0
    cut = ratio > 1.28 if good else ratio < 0.8
    if 0.1 < covariance < 1.0 and not cut:
      candidates.append(i)
  number = max(int(share * len(counted(x))), 1)
  dropped = sorted(candidates, key=lambda i: x['noise_PGT'][i])[:number]
  knobs = {'share': share, 'low': 0.1, 'high': 1.0, 'clip_high': 0.28}
  expected = set(counted(x)) - set(dropped)
  assert as_set(run('clip_cov', x, **knobs)) == expected


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([1e-9, 0.01, 0.04, 0.08, 10.0]))
def test_m2po_drops_the_farthest_until_the_mean_square_is_low(seed, threshold):
  x = batch(seed)
  squares = {i: (x['logps_PGT'][i] - x['old_PGT'][i]) ** 2 for i in counted(x)}
  kept = sorted(squares, key=squares.get)
  while len(kept) > 1 and np.mean([squares[i] for i in kept]) >= threshold:
    kept.pop()
  assert as_set(run('m2po', x, threshold=threshold)) == set(kept)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([-0.1, 0.0, 0.05, 0.5]))
def test_off_policy_sequences_drops_bad_tokens_of_lost_completions(seed, bound):
  x = batch(seed)
  expected = set()
  for p, g, t in counted(x):
    n = x['mask_PGT'][p, g].sum()
    fall = np.mean(x['old_PGT'][p, g, :n] - x['logps_PGT'][p, g, :n])
    if x['advantages_PGT'][p, g, t] >= 0 or fall <= bound:
      expected.add((p, g, t))
  assert as_set(run('off_policy_sequences', x, threshold=bound)) == expected


def test_all_tokens_keeps_everything():
  assert run('all_tokens', batch(0)).all()


@pytest.mark.parametrize('name', NAMES)
def test_advantages_may_be_of_completions(name):
  x = batch(1)
  whole = x | {'advantages_PGT': x['advantages_PGT'][..., :1]}
  spread_PGT = np.broadcast_to(whole['advantages_PGT'], (P, G, T))
  expected_PGT = run(name, x | {'advantages_PGT': spread_PGT})
  np.testing.assert_array_equal(run(name, whole), expected_PGT)


@pytest.mark.parametrize('name', NAMES)
@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_what_stands_in_masked_positions_selects_nothing(name, seed):
  x = batch(seed)
  garbage = {k: v.copy() for k, v in x.items()}
  masked_PGT = ~x['mask_PGT']
  for k in set(x) - {'mask_PGT'}:
    noise = np.random.default_rng(seed).normal(0, 1e6, masked_PGT.sum())
    garbage[k][masked_PGT] = noise
  selected_PGT = run(name, garbage)
  np.testing.assert_array_equal(selected_PGT, run(name, x))
  assert name == 'all_tokens' or not selected_PGT[masked_PGT].any()


@pytest.mark.parametrize('name', NAMES)
def test_a_minibatch_without_tokens_selects_none(name):
  x = batch(0)
  x['mask_PGT'] = np.zeros_like(x['mask_PGT'])
  assert run(name, x).any() == (name == 'all_tokens')


@pytest.mark.parametrize('name', NAMES)
@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_order_of_rows_does_not_matter(name, seed):
  x = batch(seed)
  order = np.random.default_rng(seed).permutation(P * G)

  def shuffled(array_PGT):
    return array_PGT.reshape(P * G, T)[order].reshape(P, G, T)

  moved_PGT = run(name, {k: shuffled(v) for k, v in x.items()})
  np.testing.assert_array_equal(moved_PGT, shuffled(run(name, x)))


def test_of_equal_candidates_only_as_many_as_asked_for_are_dropped():
  x = batch(3)
  x['mask_PGT'] = np.ones_like(x['mask_PGT'])
  x['noise_PGT'] = np.zeros((P, G, T))
  wide = {'low': -1e9, 'high': 1e9, 'clip_low': 1.0, 'clip_high': 1e9}
  selected_PGT = run('clip_cov', x, share=0.25, **wide)
  assert (~selected_PGT).sum() == P * G * T // 4


def test_the_tokens_that_kl_cov_holds_back_have_a_pull_and_no_others():
  x = batch(4)
  with jax.enable_x64(True):
    selected_PGT = run('top_covariance', x, share=0.2)
    arrays = [x[k] for k in ('old_PGT', 'advantages_PGT', 'mask_PGT')]

    def losses(coef):
      return policy.kl_cov(
        x['logps_PGT'], *arrays, selected_PGT=selected_PGT, coef=coef
      )[0]

    pull_PGT = np.asarray(losses(1.0) - losses(0.0))
  distance_PGT = np.abs(x['logps_PGT'] - x['old_PGT'])
  expected_PGT = np.where(selected_PGT, distance_PGT, 0)
  np.testing.assert_allclose(pull_PGT, expected_PGT, atol=1e-12)
