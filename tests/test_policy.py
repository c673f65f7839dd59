"""Properties of the policy losses; their numbers are in test_losses.py."""

import functools
import inspect
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import policy

P, G, T = 2, 3, 5
NAMES = [
  name
  for name, _ in inspect.getmembers(policy, inspect.isfunction)
  if not name.startswith('_')
]
LEVELS = [{'name': 'ppo_clip', 'level': level} for level in ('mean', 'sum')]
VARIANTS = [{'name': name} for name in NAMES] + LEVELS
WIDE = {'clip_low': 0.2, 'clip_high': 0.2}

# A completion of one token, of old probability 0.19. Its slope by log p for
# (advantage, ratio): a good token that became likely or rare, and a bad one
# that became rare, likely, or five times as likely.
POINTS = [(1, 2.0), (1, 0.5), (-1, 0.5), (-1, 2.0), (-1, 5.0)]
OLD = 0.19


def sapo_slope(advantage, ratio):
  tau = 1.0 if advantage > 0 else 1.05
  gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
  return -advantage * 4 * gate * (1 - gate) * ratio


def vespo_slope(advantage, ratio):
  k, rate = (2, 3) if advantage > 0 else (3, 2)
  return -advantage * ratio**k * math.exp(rate * (1 - ratio))


def each(slope):
  return [slope(*point) for point in POINTS]


SLOPES = [
  # A clip stops a step away from the old policy, and never one back to it.
  ({'name': 'ppo_clip'}, [0, -0.5, 0, 2, 5]),
  ({'name': 'ppo_clip', 'level': 'mean'}, [0, -0.5, 0, 2, 5]),
  ({'name': 'ppo_clip', 'level': 'sum'}, [0, -0.5, 0, 2, 5]),
  ({'name': 'ppo_clip', 'clip_high': 1.5}, [-2, -0.5, 0, 2, 5]),
  ({'name': 'ppo_clip', 'clip_low': 0.6}, [0, -0.5, 0.5, 2, 5]),
  ({'name': 'gspo'} | WIDE, [0, -0.5, 0, 2, 5]),
  ({'name': 'gspo_token'} | WIDE, [0, -0.5, 0, 2, 5]),
  ({'name': 'luspo'} | WIDE, [0, -0.5, 0, 2, 5]),
  ({'name': 'gmpo'}, [0, -0.5, 0, 2, 5]),
  # Two bounds also stop a bad token on its way back, once it is far away.
  ({'name': 'dual_clip'}, [0, -0.5, 0, 2, 0]),
  ({'name': 'two_sided'}, [0, -0.5, 0, 2, 0]),
  # Clipped weights leave every token a gradient.
  ({'name': 'cispo'}, [-1.2, -0.8, 0.8, 1.2, 1.2]),
  ({'name': 'cispo', 'clip_low': 1.0}, [-1.2, -0.5, 0.5, 1.2, 1.2]),
  ({'name': 'cispo_cap', 'cap': 3.0}, [-2, -0.5, 0.5, 2, 3]),
  ({'name': 'sapo'}, each(sapo_slope)),
  ({'name': 'vespo'}, each(vespo_slope)),
  # Bounds of the probability: 0.19 becomes 0.38, 0.095, 0.38 and 0.95.
  ({'name': 'dppo_tv'}, [0, -0.5, 0.5, 2, 5]),
  ({'name': 'dppo_tv', 'clip_low': 0.09, 'cap': 3.0}, [0, -0.5, 0, 2, 3]),
  # Bounds of the KL: it is 0.089 nats at 0.38, and 0.036 at 0.095.
  ({'name': 'dppo_kl'}, [0, -0.5, 0.5, 2, 5]),
  ({'name': 'dppo_kl', 'clip_low': 0.03}, [0, -0.5, 0, 2, 5]),
  ({'name': 'dppo_kl', 'clip_high': 0.1}, [-2, -0.5, 0.5, 2, 5]),
  ({'name': 'masked_pg', 'clip_high': 0.15, 'tau': 0.0}, [0, -0.5, 0.5, 2, 5]),
  (
    {'name': 'masked_pg', 'clip_high': 0.15, 'tau': 0.1},
    each(
      lambda a, r: 0.2 * math.log(r) - (0 if (a, r) == POINTS[0] else a * r)
    ),
  ),
  ({'name': 'reinforce'}, [-1, -1, 1, 1, 1]),
  # These have a pull to the old policy beside the policy gradient.
  ({'name': 'kl_cov'}, [-1.9, -0.6, 0.4, 2.1, 5.1]),
  ({'name': 'dro'}, each(lambda a, r: -a + 0.05 * math.log(r))),
  ({'name': 'kimi'}, each(lambda a, r: -a + 0.1 * math.log(r))),
]

# At ratio 1 the gradient of the sum over a completion's tokens is -A, or:
AT_ONE = {
  'gspo': 'mean',  # The completion's ratio takes the mean of its advantages.
  'luspo': 'mean',
  'gmpo': 'mean',
  'mean': 'mean',
  'sum': 'sum',  # The product of ratios has a slope of 1 by each of them.
}
# What pulls to the old policy even where the advantage is zero.
PULLED = ('masked_pg', 'kl_cov', 'dro', 'kimi')


@functools.cache
def compiled(*words):
  """(loss, gradient) of a variant, summed over the counted tokens."""
  words = dict(words)
  function = getattr(policy, words.pop('name'))
  asked = inspect.signature(function).parameters

  def total(logps_PGT, x):
    given = {k: x[k] for k in ('selected_PGT', 'correction_PGT') if k in asked}
    arrays = logps_PGT, x['old_PGT'], x['advantages_PGT'], x['mask_PGT']
    losses_PGT, stats = function(*arrays, **given, **words)
    for array_PGT in (losses_PGT, *stats.values()):
      assert array_PGT.shape == logps_PGT.shape
    return jnp.sum(x['mask_PGT'] * losses_PGT)

  return jax.jit(jax.value_and_grad(total))


def run(words, logps_PGT, x):
  value, grad_PGT = compiled(*words.items())(logps_PGT, x)
  return np.asarray(value), np.asarray(grad_PGT)


def batch(seed, spread=0.5, shape=(P, G, T)):
  """Random log-probs and inputs, in float32, ragged, some completions empty."""
  rng = np.random.default_rng(seed)
  lengths_PG1 = rng.integers(0, shape[-1] + 1, (*shape[:-1], 1))
  old_PGT = -rng.exponential(1.0, shape)
  x = {
    'old_PGT': old_PGT,
    'advantages_PGT': rng.normal(size=shape),
    'mask_PGT': np.arange(shape[-1]) < lengths_PG1,
    'selected_PGT': rng.random(shape) < 0.7,
    'correction_PGT': rng.uniform(0.5, 2.0, shape),
  }
  x = {k: v.astype(np.float32) for k, v in x.items()}
  logps_PGT = old_PGT + rng.normal(0, spread, shape)
  return logps_PGT.astype(np.float32), x


@pytest.mark.parametrize('words,slopes', SLOPES, ids=lambda x: str(x)[:60])
def test_the_slope_of_a_token_is_what_its_variant_says(words, slopes):
  advantages_PGT, ratios_PGT = np.array(POINTS).T[:, None, :, None]
  ones_PGT = np.ones_like(ratios_PGT)
  x = {
    'old_PGT': math.log(OLD) * ones_PGT,
    'advantages_PGT': advantages_PGT,
    'mask_PGT': ones_PGT,
    'selected_PGT': ones_PGT,
    'correction_PGT': ones_PGT,
  }
  with jax.enable_x64(True):
    _, grad_PGT = run(words, np.log(OLD * ratios_PGT), x)
  np.testing.assert_allclose(grad_PGT.ravel(), slopes, 1e-9, atol=1e-12)


def test_every_variant_has_its_slopes_in_the_table():
  assert {words['name'] for words, _ in SLOPES} == set(NAMES)


@pytest.mark.parametrize('words', VARIANTS, ids=lambda w: '-'.join(w.values()))
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_at_the_old_policy_the_gradient_is_the_policy_gradient(words, seed):
  logps_PGT, x = batch(seed)
  advantages_PGT, mask_PGT = x['advantages_PGT'], x['mask_PGT']
  # Corrections and selections are no part of it where a loss asks for them.
  ones_PGT = np.ones_like(logps_PGT)
  x |= {'old_PGT': logps_PGT, 'selected_PGT': ones_PGT}
  x['correction_PGT'] = ones_PGT
  _, grad_PGT = run(words, logps_PGT, x)
  rule = AT_ONE.get(words.get('level', words['name']))
  if rule is not None:
    advantages_PGT = np.sum(advantages_PGT * mask_PGT, -1, keepdims=True)
  if rule == 'mean':
    advantages_PGT /= np.maximum(np.sum(mask_PGT, -1, keepdims=True), 1)
  expected_PGT = -advantages_PGT * mask_PGT
  np.testing.assert_allclose(grad_PGT, expected_PGT, 1e-5, atol=1e-6)


@pytest.mark.parametrize('words', VARIANTS, ids=lambda w: '-'.join(w.values()))
@settings(max_examples=30, deadline=None)
@given(
  st.integers(0, 2**32 - 1),
  st.sampled_from([50.0, -50.0, 1e4, -1e4]),
  st.data(),
)
def test_loss_and_gradient_stay_finite_far_from_the_old_policy(
  words, seed, far, data
):
  logps_PGT, x = batch(seed)
  for place in data.draw(st.sets(st.integers(0, P * G * T - 1))):
    x['old_PGT'].ravel()[place] = logps_PGT.ravel()[place] - far
  if data.draw(st.booleans()):
    x['mask_PGT'][data.draw(st.integers(0, P - 1))] = 0
  if data.draw(st.booleans()):
    x['correction_PGT'][0] = 0
  value, grad_PGT = run(words, logps_PGT, x)
  assert np.isfinite(value) and np.all(np.isfinite(grad_PGT))
  assert not np.any(grad_PGT[x['mask_PGT'] == 0])


@pytest.mark.parametrize('words', VARIANTS, ids=lambda w: '-'.join(w.values()))
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e2, 1e4, 1e8, 1e18]))
def test_what_stands_in_masked_positions_changes_nothing(words, seed, size):
  logps_PGT, x = batch(seed)
  expected = run(words, logps_PGT, x)
  rng = np.random.default_rng(seed + 1)
  masked_PGT = x['mask_PGT'] == 0
  garbage = {k: v.copy() for k, v in x.items()} | {'logps': logps_PGT.copy()}
  for name in ('logps', 'old_PGT', 'advantages_PGT'):
    noise = rng.normal(0, size, masked_PGT.sum())
    garbage[name][masked_PGT] = noise
  garbage['correction_PGT'][masked_PGT] = rng.exponential(
    size, masked_PGT.sum()
  )
  garbage['selected_PGT'][masked_PGT] = 1 - x['selected_PGT'][masked_PGT]
  actual = run(words, garbage.pop('logps'), garbage)
  # Finite losses of masked tokens are multiplied by zero: bit for bit the same.
  for expected_part, part in zip(expected, actual, strict=True):
    np.testing.assert_array_equal(part, expected_part)


@pytest.mark.parametrize('words', VARIANTS, ids=lambda w: '-'.join(w.values()))
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_and_the_padding_width_change_nothing(words, seed):
  logps_PGT, x = batch(seed)
  value, grad_PGT = run(words, logps_PGT, x)
  order = np.random.default_rng(seed).permutation(P * G)

  def shuffled(array_PGT):
    rows_BT = array_PGT.reshape(P * G, T)[order]
    return np.pad(rows_BT, [(0, 0), (0, 2)]).reshape(P, G, T + 2)

  moved = run(words, shuffled(logps_PGT), jax.tree.map(shuffled, x))
  np.testing.assert_allclose(moved[0], value, 1e-5, atol=1e-5)
  np.testing.assert_allclose(moved[1], shuffled(grad_PGT), 1e-5, atol=1e-6)


@pytest.mark.parametrize('words', VARIANTS, ids=lambda w: '-'.join(w.values()))
def test_without_advantage_nothing_is_learnt(words):
  logps_PGT, x = batch(0)
  x['advantages_PGT'] = np.zeros_like(x['advantages_PGT'])
  _, grad_PGT = run(words, logps_PGT, x)
  assert np.any(grad_PGT) == (words['name'] in PULLED)


def test_kimi_is_the_loss_and_the_gradient_of_the_paper():
  logps_PGT, x = batch(1)
  x['advantages_PGT'][:] = x['advantages_PGT'][..., :1]
  value, grad_PGT = run({'name': 'kimi', 'tau': 0.3}, logps_PGT, x)
  expected = 0.0
  for p, g in np.ndindex(P, G):
    n = int(x['mask_PGT'][p, g].sum())
    advantage = x['advantages_PGT'][p, g, 0]
    whole = sum(logps_PGT[p, g, :n] - x['old_PGT'][p, g, :n])
    expected += 0.15 * whole**2 - advantage * sum(logps_PGT[p, g, :n])
    slope = 0.3 * whole - advantage
    np.testing.assert_allclose(grad_PGT[p, g, :n], slope, rtol=1e-5)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_masked_pg_is_the_loss_of_prime_rl():
  logps_PGT, x = batch(3)
  expected = 0.0
  for i in np.argwhere(x['mask_PGT']):
    logp, old = logps_PGT[*i], x['old_PGT'][*i]
    advantage = x['advantages_PGT'][*i]
    moved = math.exp(logp) - math.exp(old)
    kept = moved <= 0.1 if advantage > 0 else moved >= -0.05
    expected += 0.2 * (logp - old) ** 2
    expected -= kept * advantage * math.exp(logp - old)
  words = {'name': 'masked_pg', 'clip_low': 0.05, 'clip_high': 0.1, 'tau': 0.2}
  value, _ = run(words, logps_PGT, x)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_clip_fraction_marks_the_tokens_whose_gradient_is_cut():
  logps_PGT, x = batch(2)
  arrays = x['old_PGT'], x['advantages_PGT'], x['mask_PGT']
  losses_PGT, stats = policy.ppo_clip(logps_PGT, *arrays)
  _, grad_PGT = run({'name': 'ppo_clip'}, logps_PGT, x)
  cut_PGT = (grad_PGT == 0) & (x['mask_PGT'] != 0)
  marked_PGT = np.asarray(stats['clip_fraction']) * x['mask_PGT']
  np.testing.assert_array_equal(marked_PGT, cut_PGT)
  assert 0 < cut_PGT.sum() < x['mask_PGT'].sum()
  assert losses_PGT.shape == (P, G, T)


@pytest.mark.parametrize('name', ['ppo_clip', 'luspo', 'cispo_cap', 'sapo'])
def test_an_unknown_level_is_refused_with_the_known_ones(name):
  logps_PGT, x = batch(0)
  with pytest.raises(ValueError, match="'batch' is not 'token', 'mean' or"):
    run({'name': name, 'level': 'batch'}, logps_PGT, x)
