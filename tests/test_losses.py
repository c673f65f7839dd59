"""Losses against loops over tokens, and against TRL's and verl's numbers."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import aggregate, kl, policy

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'losses.npz')
RECORDS = json.loads(GOLDEN['records'].item())
P, G, T = 3, 4, 6
CLIPS = [{}, {'clip_low': 0.1, 'clip_high': 0.4}]


def batch(seed=0):
  """logps, old_logps, advantages and mask; one empty, one full completion."""
  rng = np.random.default_rng(seed)
  logps_PGT = rng.normal(-2, 1, (P, G, T))
  old_logps_PGT = logps_PGT - rng.normal(0, 0.4, (P, G, T))
  advantages_PG1 = rng.normal(size=(P, G, 1))
  lengths_PG = rng.integers(1, T + 1, (P, G))
  lengths_PG[0, :2] = 0, T
  mask_PGT = (np.arange(T) < lengths_PG[..., None]).astype(float)
  return logps_PGT, old_logps_PGT, advantages_PG1, mask_PGT


def grpo_loop(logp, old, advantage, clip_low=0.2, clip_high=0.2):
  """Loss of one token, its derivative by logp, and whether it was clipped."""
  ratio = math.exp(logp - old)
  if advantage >= 0 and ratio > 1 + clip_high:
    return -(1 + clip_high) * advantage, 0.0, advantage > 0
  if advantage < 0 and ratio < 1 - clip_low:
    return -(1 - clip_low) * advantage, 0.0, True
  return -ratio * advantage, -ratio * advantage, False


def reinforce_loop(logp, old, advantage):
  del old
  return -advantage * logp, -advantage, False


def weight_loop(name, mask_PGT, p, g, t, length=T):
  """What a token weighs, by the definition."""
  if not mask_PGT[p, g, t]:
    return 0.0
  if name == 'token_mean':
    return 1 / mask_PGT.sum()
  if name == 'sequence_mean':
    return 1 / (P * G) / mask_PGT[p, g].sum()
  return 1 / (P * G) / length


def knobs_of(section):
  return {name: value for name, value in section.items() if name != 'name'}


def value_and_grad(logps, old, advantages, mask, loss, mean, kl_of=None):
  """The loss of a batch and its gradient by the log-probabilities."""

  def total(logps):
    function, knobs = getattr(policy, loss['name']), knobs_of(loss)
    losses_PGT, _ = function(logps, old, advantages, mask, **knobs)
    if kl_of is not None:
      losses_PGT += kl_of(logps)
    weights_PGT = getattr(aggregate, mean['name'])(mask, **knobs_of(mean))
    return jnp.sum(weights_PGT * losses_PGT)

  return jax.value_and_grad(total)(logps)


@pytest.mark.parametrize('mean', ['token_mean', 'sequence_mean', 'dr', 'dr9'])
@pytest.mark.parametrize(
  'loss', [{'name': 'ppo_clip'} | c for c in CLIPS] + [{'name': 'reinforce'}]
)
def test_loss_and_gradient_equal_a_loop_over_tokens(loss, mean):
  mean = {
    'dr': {'name': 'constant_length'},
    'dr9': {'name': 'constant_length', 'length': 9},
  }.get(mean, {'name': mean})
  arrays = batch()
  with jax.enable_x64(True):
    value, grad_PGT = value_and_grad(*map(jnp.asarray, arrays), loss, mean)

  logps_PGT, old_PGT, advantages_PG1, mask_PGT = arrays
  one = grpo_loop if loss['name'] == 'ppo_clip' else reinforce_loop
  expected, expected_grad_PGT = 0.0, np.zeros((P, G, T))
  for p, g, t in np.ndindex(P, G, T):
    weight = weight_loop(mean['name'], mask_PGT, p, g, t, mean.get('length', T))
    token_loss, slope, _ = one(
      logps_PGT[p, g, t],
      old_PGT[p, g, t],
      advantages_PG1[p, g, 0],
      **knobs_of(loss),
    )
    expected += weight * token_loss
    expected_grad_PGT[p, g, t] = weight * slope
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  np.testing.assert_allclose(grad_PGT, expected_grad_PGT, rtol=1e-12)


@pytest.mark.parametrize('knobs', CLIPS)
def test_the_clip_fraction_marks_the_tokens_whose_gradient_is_cut(knobs):
  arrays = batch()
  with jax.enable_x64(True):
    _, stats = policy.ppo_clip(*map(jnp.asarray, arrays), **knobs)
  logps_PGT, old_PGT, advantages_PG1, _ = arrays
  expected_PGT = [
    grpo_loop(logps_PGT[i], old_PGT[i], advantages_PG1[*i[:2], 0], **knobs)[2]
    for i in np.ndindex(P, G, T)
  ]
  actual = np.ravel(stats['clip_fraction'])
  np.testing.assert_array_equal(actual, np.array(expected_PGT, float))
  assert 0 < actual.mean() < 1


@pytest.mark.parametrize(
  'advantage,ratio,slope',
  [
    (1.0, 1.5, 0.0),  # Good and likelier than before by enough: left alone.
    (1.0, 0.5, -0.5),  # Good and rarer: made likelier.
    (-1.0, 0.5, 0.0),  # Bad and rarer by enough: left alone.
    (-1.0, 1.5, 1.5),  # Bad and likelier: made rarer, with nothing cut.
  ],
)
def test_a_clip_never_stops_a_step_back_towards_the_old_policy(
  advantage, ratio, slope
):
  def loss(logp):
    one_111 = jnp.ones((1, 1, 1))
    losses_111, _ = policy.ppo_clip(
      logp, 0 * one_111, advantage * one_111, one_111
    )
    return losses_111[0, 0, 0]

  grad = jax.grad(loss)(jnp.full((1, 1, 1), math.log(ratio)))
  np.testing.assert_allclose(grad[0, 0, 0], slope, rtol=1e-6)


def test_at_the_old_policy_the_clipped_gradient_is_the_policy_gradient():
  logps_PGT, _, advantages_PG1, mask_PGT = map(jnp.asarray, batch())
  arrays = logps_PGT, logps_PGT, advantages_PG1, mask_PGT
  mean = {'name': 'token_mean'}
  _, clipped_PGT = value_and_grad(*arrays, {'name': 'ppo_clip'}, mean)
  _, plain_PGT = value_and_grad(*arrays, {'name': 'reinforce'}, mean)
  np.testing.assert_allclose(clipped_PGT, plain_PGT, rtol=1e-6)
  assert np.any(np.asarray(plain_PGT))


@pytest.mark.parametrize(
  'mean', [aggregate.token_mean, aggregate.sequence_mean]
)
def test_weights_sum_to_one_where_every_completion_has_tokens(mean):
  _, _, _, mask_PGT = batch()
  mask_PGT[0, 0, 0] = 1
  np.testing.assert_allclose(jnp.sum(mean(mask_PGT)), 1, rtol=1e-6)


@pytest.mark.parametrize(
  'mean',
  [aggregate.token_mean, aggregate.sequence_mean, aggregate.constant_length],
)
def test_empty_completions_weigh_zero_and_stay_finite(mean):
  _, _, _, mask_PGT = batch()
  assert not np.any(np.asarray(mean(mask_PGT))[0, 0])
  np.testing.assert_array_equal(mean(0 * mask_PGT), np.zeros((P, G, T)))


@pytest.mark.parametrize(
  'name,value,slope',
  [
    ('k2', lambda d: d * d / 2, lambda d: d),
    ('k3', lambda d: math.expm1(-d) + d, lambda d: -math.expm1(-d)),
  ],
)
def test_kl_estimates_and_their_slopes_equal_their_formulas(name, value, slope):
  logps_PGT, reference_PGT, _, _ = batch(1)
  with jax.enable_x64(True):
    arrays = jnp.asarray(logps_PGT), jnp.asarray(reference_PGT)
    actual_PGT = getattr(kl, name)(*arrays)
    grad_PGT = jax.grad(lambda *x: getattr(kl, name)(*x).sum())(*arrays)
  for i in np.ndindex(P, G, T):
    d = logps_PGT[i] - reference_PGT[i]
    np.testing.assert_allclose(actual_PGT[i], value(d), rtol=1e-10)
    np.testing.assert_allclose(grad_PGT[i], slope(d), rtol=1e-10)


@pytest.mark.parametrize('name', ['k2', 'k3'])
def test_kl_of_nearly_equal_policies_is_not_lost_in_rounding(name):
  small = jnp.full((1, 1, 1), 1e-4, jnp.float32)
  actual = getattr(kl, name)(small, jnp.zeros_like(small))
  np.testing.assert_allclose(actual, 0.5e-8, rtol=1e-2)


def test_every_kind_of_golden_record_is_there():
  kinds = {
    (r['id'].split('.')[0], r['loss']['name'], r['aggregate']['name'])
    for r in RECORDS
  }
  means = ('token_mean', 'sequence_mean', 'constant_length')
  wanted = {('trl', 'ppo_clip', mean) for mean in means}
  wanted |= {
    ('verl', loss, mean) for loss in ('ppo_clip', 'reinforce') for mean in means
  }
  assert kinds == wanted
  assert any(r['kl_coef'] for r in RECORDS)
  clips = {r['loss'].get('clip_high') for r in RECORDS}
  assert len(clips) > 2


@pytest.mark.parametrize('record', RECORDS, ids=lambda r: r['id'])
def test_losses_and_gradients_are_those_of_trl_and_verl(record):
  case = {
    key.removeprefix(f'{record["case"]}.'): GOLDEN[key]
    for key in GOLDEN.files
    if key.startswith(f'{record["case"]}.')
  }
  counted_B = np.ones(len(case['log_prob']), bool)
  if record['rows'] == 'with tokens':
    counted_B = case['response_mask'].any(axis=1)
  x = {name: array_BT[None, counted_B] for name, array_BT in case.items()}
  with jax.enable_x64(True):
    x = {name: jnp.asarray(array_PGT) for name, array_PGT in x.items()}
    value, grad_PGT = value_and_grad(
      x['log_prob'],
      x[record['old']],
      x['advantages'],
      x['response_mask'],
      record['loss'],
      record['aggregate'],
      lambda logps: record['kl_coef'] * kl.k3(logps, x['ref_log_prob']),
    )
  np.testing.assert_allclose(value, GOLDEN[f'{record["id"]}.loss'], rtol=1e-6)

  expected_BT = GOLDEN[f'{record["id"]}.grad']
  assert not expected_BT[~counted_B].any()
  compared_BT = np.ones_like(expected_BT, bool)
  if record['id'].startswith('verl.extreme.vanilla'):
    # verl clamps log-ratios to 20, and so gives such tokens no gradient.
    compared_BT = np.abs(case['log_prob'] - case['old_log_prob']) <= 20
    assert not expected_BT[~compared_BT].any()
  compared_BT = compared_BT[counted_B]
  np.testing.assert_allclose(
    np.asarray(grad_PGT[0])[compared_BT],
    expected_BT[counted_B][compared_BT],
    rtol=1e-6,
  )


@pytest.mark.parametrize('name', ['k2', 'k3'])
def test_kl_values_and_gradients_are_those_of_verl(name):
  logps_PGT, reference_PGT = GOLDEN['kl.logprob'], GOLDEN['kl.ref_logprob']
  with jax.enable_x64(True):
    arrays = jnp.asarray(logps_PGT), jnp.asarray(reference_PGT)
    value_PGT = getattr(kl, name)(*arrays)
    grad_PGT = jax.grad(lambda *x: getattr(kl, name)(*x).sum())(*arrays)
  # verl clamps k3 to 10 (and then its gradient is zero); k2 it leaves alone.
  compared = np.asarray(value_PGT) < (10 if name == 'k3' else np.inf)
  assert compared.mean() > 0.8
  for actual, part in ((value_PGT, 'value'), (grad_PGT, 'grad_sum')):
    expected = GOLDEN[f'kl.{name}.{part}']
    assert (expected[~compared] == (10 if part == 'value' else 0)).all()
    np.testing.assert_allclose(
      np.asarray(actual)[compared], expected[compared], rtol=1e-6
    )
