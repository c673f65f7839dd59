"""Off-policy weights against TRL's and verl's own code, and loops."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import metrics
from grpo_jax.losses import off_policy

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'off_policy.npz')
RECORDS = json.loads(GOLDEN['records'].item())
LEVELS = ['token', 'sum', 'mean']
BOTH = [off_policy.truncate, off_policy.mask]


def ours(record):
  """Our function and knobs for what TRL or verl was told."""
  if record['source'] == 'trl':
    level, kind = record['mode'].split('_')
    low, high = record['clip_min'] or 0.0, record['clip_max']
  else:
    level, bounds = record['level'], record['threshold']
    kind = 'mask' if isinstance(bounds, str) else 'truncate'
    low, high = 0.0, bounds
    if kind == 'mask':
      low, high = map(float, bounds.split('_'))
  level = level.replace('sequence', 'sum')
  if kind == 'truncate':
    return off_policy.truncate, {'cap': high, 'floor': low, 'level': level}
  return off_policy.mask, {'low': low, 'high': high, 'level': level}


def drift():
  """Log-ratios [1, B, T] and their mask, of the golden file."""
  log_ratio_BT = GOLDEN['trainer'] - GOLDEN['sampler']
  return log_ratio_BT[None], GOLDEN['mask'][None]


def test_every_mode_of_both_is_there():
  kinds = {
    (r['source'], ours(r)[0].__name__, ours(r)[1]['level']) for r in RECORDS
  }
  assert kinds == {
    (source, kind, level)
    for source in ('trl', 'verl')
    for kind in ('truncate', 'mask')
    for level in ('token', 'sum')
  }


@pytest.mark.parametrize('record', RECORDS, ids=lambda r: r['id'])
@pytest.mark.parametrize('wide', [True, False])
def test_weights_are_those_of_trl_and_verl(record, wide):
  function, knobs = ours(record)
  log_ratio_PGT, mask_PGT = drift()
  counted_BT = mask_PGT[0] > 0  # In padding theirs are 0 or the ratio's.
  with jax.enable_x64(wide):
    dtype = jnp.float64 if wide else jnp.float32
    actual_PGT = np.asarray(
      function(jnp.asarray(log_ratio_PGT, dtype), mask_PGT, **knobs)
    )
  assert actual_PGT.dtype == dtype
  # The exponential of a float32 sum of ten nats has six digits.
  np.testing.assert_allclose(
    actual_PGT[0][counted_BT],
    GOLDEN[record['id']][counted_BT],
    rtol=1e-7 if wide else 1e-5,
  )


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('function', BOTH)
def test_weights_equal_a_loop(function, level):
  log_ratio_PGT, mask_PGT = drift()
  low, high = 0.7, 1.2
  knobs = {'low': low, 'high': high}
  if function is off_policy.truncate:
    knobs = {'floor': low, 'cap': high}
  with jax.enable_x64(True):
    actual_PGT = np.asarray(
      function(jnp.asarray(log_ratio_PGT), mask_PGT, level=level, **knobs)
    )
  for p, g, t in np.argwhere(mask_PGT):
    counted = [t] if level == 'token' else np.flatnonzero(mask_PGT[p, g])
    total = sum(log_ratio_PGT[p, g, i] for i in counted)
    ratio = math.exp(total / len(counted) if level == 'mean' else total)
    if function is off_policy.truncate:
      expected = min(max(ratio, low), high)
    else:
      expected = ratio if low <= ratio <= high else 0.0
    np.testing.assert_allclose(actual_PGT[p, g, t], expected, rtol=1e-12)


@pytest.mark.parametrize('function', [off_policy.none, off_policy.recompute])
def test_without_a_correction_every_weight_is_one(function):
  log_ratio_PGT, mask_PGT = drift()
  weights_PGT = function(jnp.asarray(log_ratio_PGT), mask_PGT)
  np.testing.assert_array_equal(weights_PGT, np.ones_like(log_ratio_PGT))


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('function', BOTH)
def test_on_policy_weights_are_exactly_one(function, level):
  _, mask_PGT = drift()
  weights_PGT = function(jnp.zeros(mask_PGT.shape), mask_PGT, level=level)
  np.testing.assert_array_equal(weights_PGT, 1)


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('function', BOTH)
def test_extremes_give_bounded_constants_and_padding_nothing(function, level):
  mask_PGT = jnp.float32([[[1, 1, 0], [1, 1, 0], [0, 0, 0]]])

  def run(filler):
    log_ratio_PGT = jnp.float32([[[90, 30, 0], [-90, -30, 0], [0, 0, 0]]])
    log_ratio_PGT = jnp.where(mask_PGT > 0, log_ratio_PGT, filler)
    weights_PGT = function(log_ratio_PGT, mask_PGT, level=level)
    grad = jax.grad(lambda x: jnp.sum(function(x, mask_PGT, level=level)))
    assert not jnp.any(grad(log_ratio_PGT))
    numbers = metrics.off_policy(log_ratio_PGT, mask_PGT)
    assert all(jnp.isfinite(x) for x in numbers.values())
    return weights_PGT, numbers

  (weights_PGT, numbers), (others_PGT, other_numbers) = run(0.0), run(1e4)
  np.testing.assert_array_equal(weights_PGT, others_PGT)
  assert numbers == other_numbers
  high = 2.0 if function is off_policy.truncate else 0.0
  np.testing.assert_array_equal(weights_PGT[0, 0, :2], high)
  np.testing.assert_allclose(weights_PGT[0, 1, :2], 0, atol=1e-12)


@pytest.mark.parametrize('function', BOTH)
def test_an_unknown_level_is_refused_with_the_known_ones(function):
  log_ratio_PGT, mask_PGT = drift()
  with pytest.raises(ValueError, match="'all' is not 'token', 'sum' or"):
    function(jnp.asarray(log_ratio_PGT), mask_PGT, level='all')


def test_the_numbers_of_the_drift_equal_loops_and_verls():
  log_ratio_PGT, mask_PGT = drift()
  with jax.enable_x64(True):
    numbers = metrics.off_policy(jnp.asarray(log_ratio_PGT), mask_PGT)
    numbers = {name: float(x) for name, x in numbers.items()}
  counted = log_ratio_PGT[mask_PGT > 0]
  completions = [
    sum(log_ratio_PGT[0, g, t] for t in np.flatnonzero(mask_PGT[0, g]))
    for g in range(mask_PGT.shape[1])
    if mask_PGT[0, g].any()
  ]
  for name, log_ratios in (
    ('effective_tokens', counted),
    ('effective_sequences', completions),
  ):
    weights = [math.exp(x) for x in log_ratios]
    share = sum(weights) ** 2 / len(weights) / sum(w * w for w in weights)
    np.testing.assert_allclose(numbers[name], share, rtol=1e-12)
    assert 0 < share < 1
  np.testing.assert_allclose(numbers['drift_mean'], np.abs(counted).mean())
  np.testing.assert_allclose(numbers['drift_max'], np.abs(counted).max())
  theirs = json.loads(GOLDEN['metrics'].item())
  # verl adds 1e-8 to the number of tokens and to the mean.
  np.testing.assert_allclose(numbers['chi2'], theirs['chi2_token'], rtol=1e-6)
  np.testing.assert_allclose(
    numbers['effective_tokens'], theirs['eff_sample_size'], rtol=1e-6
  )


def test_without_drift_or_tokens_the_whole_sample_is_effective():
  zeros_PGT = jnp.zeros((2, 3, 4))
  for mask_PGT in (jnp.ones_like(zeros_PGT), zeros_PGT):
    assert metrics.off_policy(zeros_PGT, mask_PGT) == {
      'effective_tokens': 1,
      'effective_sequences': 1,
      'drift_mean': 0,
      'drift_max': 0,
      'chi2': 0,
    }
