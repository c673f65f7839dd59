"""KL estimates against verl's numbers, formulas, and exact expectations."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import control, kl

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'kl.npz')
RECORDS = json.loads(GOLDEN['records'].item())
VERL_CAPS = {'exponent_cap': 20.0, 'value_cap': 10.0}
# verl's name -> our function and its knobs.
OURS = {
  'kl': ('k1', {}),
  'k1': ('k1', {}),
  'abs': ('absolute', {}),
  'mse': ('k2', {}),
  'k2': ('k2', {}),
  'low_var_kl': ('k3', VERL_CAPS),
  'k3': ('k3', VERL_CAPS),
  'k1+': ('k1_plus', {}),
  'k2+': ('k2', {}),  # Straight-through to itself.
  'low_var_kl+': ('k3_plus', VERL_CAPS),
  'k3+': ('k3_plus', VERL_CAPS),
  'abs+': ('absolute_plus', {}),
}
PLAIN = ['k1', 'k2', 'k3', 'absolute', 'k1_plus', 'k3_plus', 'absolute_plus']
V = 7


def value_and_grads(name, dtype):
  """What verl recorded, computed by us."""
  function, knobs = OURS[name]
  logps, reference, upstream = (
    jnp.asarray(GOLDEN[f'in.{part}'], dtype)
    for part in ('logprob', 'ref_logprob', 'upstream')
  )

  def estimate(logps):
    return getattr(kl, function)(logps, reference, **knobs)

  return {
    'value': estimate(logps),
    'grad_sum': jax.grad(lambda x: jnp.sum(estimate(x)))(logps),
    'grad_upstream': jax.grad(lambda x: jnp.sum(estimate(x) * upstream))(logps),
  }


def test_every_estimate_that_verl_has_is_compared():
  assert {*RECORDS['kl']} == {*OURS}
  assert {function for function, _ in OURS.values()} == {*PLAIN}


@pytest.mark.parametrize('name', RECORDS['kl'])
def test_values_and_gradients_are_those_of_verl(name):
  with jax.enable_x64(True):
    found = value_and_grads(name, jnp.float64)
  for part, actual in found.items():
    expected = GOLDEN[f'verl.{name}.{part}']
    np.testing.assert_allclose(actual, expected, rtol=1e-6, err_msg=part)


@pytest.mark.parametrize('name', RECORDS['kl'])
def test_float32_is_as_close_as_verls_own_float32(name):
  for part, actual in value_and_grads(name, jnp.float32).items():
    exact = GOLDEN[f'verl.{name}.{part}']
    theirs = GOLDEN[f'verl.{name}.{part}.f32']
    assert actual.dtype == jnp.float32
    scale = np.where(exact == 0, 1.0, np.abs(exact))
    for size in (np.ones_like(scale), scale):  # Absolute, then relative.
      ours = np.max(np.abs(np.asarray(actual, float) - exact) / size)
      allowed = 2 * np.max(np.abs(theirs - exact) / size)
      floor = 1e-6 * np.max(np.abs(exact) / size)
      assert ours <= max(allowed, floor), part


def test_kl_in_the_reward_is_verls():
  with jax.enable_x64(True):
    estimate_BT = kl.k1(
      jnp.asarray(GOLDEN['in.logprob']), jnp.asarray(GOLDEN['in.ref_logprob'])
    )
    coef = RECORDS['compute_rewards']['kl_ratio']
    actual_BT = GOLDEN['in.token_level_scores'] - coef * estimate_BT
  expected_BT = GOLDEN['verl.compute_rewards.value']
  np.testing.assert_allclose(actual_BT, expected_BT, rtol=1e-12)


def test_the_adaptive_coefficient_is_verls():
  settings = RECORDS['adaptive']
  coef, found = settings['init_kl_coef'], [settings['init_kl_coef']]
  inputs = zip(
    GOLDEN['in.adaptive.current_kl'],
    GOLDEN['in.adaptive.n_steps'],
    strict=True,
  )
  with jax.enable_x64(True):
    for measured, samples in inputs:
      coef = control.kl(
        coef,
        measured,
        target=settings['target_kl'],
        horizon=settings['horizon'],
        samples=samples,
      )
      found.append(coef)
  found = np.array([float(x) for x in found])
  np.testing.assert_allclose(found, GOLDEN['verl.adaptive.value'], rtol=1e-12)
  assert {*np.sign(np.diff(found))} == {-1.0, 1.0}


def test_the_adaptive_coefficient_ignores_a_kl_that_is_not_a_number():
  knobs = {'target': 0.1, 'horizon': 100, 'samples': 10}
  assert control.kl(0.5, jnp.nan, **knobs) == 0.5
  np.testing.assert_allclose(control.kl(0.5, jnp.inf, **knobs), 0.51)
  np.testing.assert_allclose(control.kl(0.5, 0.0, **knobs), 0.49)


def policies():
  """Logits of the policy, and log-probs of reference and old policy, [V]."""
  rng = np.random.default_rng(0)
  logits, reference, old = rng.normal(size=(3, V))
  return jnp.asarray(logits), *(
    jnp.asarray(x - np.log(np.exp(x).sum())) for x in (reference, old)
  )


def expected_gradient(estimate, sampler=None):
  """Over all tokens, of the estimate as a loss, by the policy's logits."""

  def loss(logits_V):
    logps_V = jax.nn.log_softmax(logits_V)
    probs_V = jnp.exp(logps_V) if sampler is None else jnp.exp(sampler)
    return jnp.sum(jax.lax.stop_gradient(probs_V) * estimate(logps_V))

  return np.asarray(jax.grad(loss)(policies()[0]))


def reverse_gradient():
  """Of KL(policy || reference) by the policy's logits: p (d - KL)."""
  logits_V, reference_V, _ = map(np.asarray, policies())
  probs_V = np.exp(logits_V) / np.exp(logits_V).sum()
  difference_V = np.log(probs_V) - reference_V
  return probs_V * (difference_V - (probs_V * difference_V).sum())


@pytest.mark.parametrize('name', ['k2', 'k1_plus', 'k3_plus', 'absolute_plus'])
def test_the_expected_gradient_is_that_of_the_reverse_kl(name):
  with jax.enable_x64(True):
    _, reference_V, _ = policies()
    actual_V = expected_gradient(lambda x: getattr(kl, name)(x, reference_V))
    np.testing.assert_allclose(actual_V, reverse_gradient(), rtol=1e-10)


@pytest.mark.parametrize('sampler', ['policy', 'old'])
def test_weighted_k3_has_that_gradient_on_old_samples_too(sampler):
  with jax.enable_x64(True):
    logits_V, reference_V, old_V = policies()
    if sampler == 'policy':
      old_V = jax.nn.log_softmax(logits_V)

    def estimate(logps_V):
      return kl.k3_weighted(
        logps_V, reference_V, old_logps_PGT=old_V, mask_PGT=jnp.ones(V)
      )

    actual_V = expected_gradient(estimate, old_V)
    np.testing.assert_allclose(actual_V, reverse_gradient(), rtol=1e-10)


def test_k3_as_a_loss_descends_the_forward_kl_and_k1_nothing():
  with jax.enable_x64(True):
    logits_V, reference_V, _ = policies()
    forward_V = jax.nn.softmax(logits_V) - jnp.exp(reference_V)
    k3_V = expected_gradient(lambda x: kl.k3(x, reference_V))
    k1_V = expected_gradient(lambda x: kl.k1(x, reference_V))
  np.testing.assert_allclose(k3_V, forward_V, rtol=1e-10)
  np.testing.assert_allclose(k1_V, 0, atol=1e-15)


def test_values_are_unbiased_but_for_k2_and_the_absolute():
  with jax.enable_x64(True):
    logits_V, reference_V, _ = policies()
    logps_V = jax.nn.log_softmax(logits_V)
    exact = jnp.sum(jnp.exp(logps_V) * (logps_V - reference_V))
    for name in PLAIN:
      estimate_V = getattr(kl, name)(logps_V, reference_V)
      mean = jnp.sum(jnp.exp(logps_V) * estimate_V)
      unbiased = name in ('k1', 'k3', 'k1_plus', 'k3_plus')
      assert bool(jnp.isclose(mean, exact, rtol=1e-10)) == unbiased, name


@pytest.mark.parametrize('level', ['token', 'mean'])
def test_weighted_k3_equals_a_loop(level):
  rng = np.random.default_rng(1)
  P, G, T = 2, 3, 5
  logps, reference, old = rng.normal(-2, 1, (3, P, G, T))
  lengths_PG1 = np.array([[0, 1, 2], [3, 4, 5]])[..., None]
  mask_PGT = np.arange(T) < lengths_PG1
  with jax.enable_x64(True):
    actual_PGT = kl.k3_weighted(
      jnp.asarray(logps),
      jnp.asarray(reference),
      old_logps_PGT=jnp.asarray(old),
      mask_PGT=jnp.asarray(mask_PGT),
      level=level,
    )
  actual_PGT = np.asarray(actual_PGT)
  for p, g, t in np.ndindex(P, G, T):
    if not mask_PGT[p, g, t]:
      assert actual_PGT[p, g, t] == 0
      continue
    length = lengths_PG1[p, g, 0]
    counted = [t] if level == 'token' else range(length)
    log_ratio = sum(logps[p, g, i] - old[p, g, i] for i in counted)
    d = logps[p, g, t] - reference[p, g, t]
    expected = math.exp(log_ratio / len(counted)) * (math.exp(-d) + d - 1)
    np.testing.assert_allclose(actual_PGT[p, g, t], expected, rtol=1e-10)


def test_an_unknown_level_is_refused_with_the_known_ones():
  one = jnp.ones((1, 1, 1))
  with pytest.raises(ValueError, match="'sum' is not 'token' or 'mean'"):
    kl.k3_weighted(one, one, old_logps_PGT=one, mask_PGT=one, level='sum')


@pytest.mark.parametrize('name', [*PLAIN, 'k3_weighted'])
def test_gradients_are_finite_at_log_ratios_of_50(name):
  ends = jnp.float32([-50.0, 50.0, 0.0])
  reference, old = (x.reshape(1, 1, -1) for x in jnp.meshgrid(ends, ends))
  inputs = {}
  if name == 'k3_weighted':
    inputs = {'old_logps_PGT': old, 'mask_PGT': jnp.ones_like(old)}

  def loss(logps):
    return jnp.sum(getattr(kl, name)(logps, reference, **inputs))

  value, grad = jax.value_and_grad(loss)(jnp.zeros_like(old))
  assert jnp.isfinite(value) and jnp.all(jnp.isfinite(grad))


@pytest.mark.parametrize('name', ['k1', 'k3', 'absolute'])
def test_straight_through_estimates_have_the_plain_value_to_the_bit(name):
  logps, reference = (
    jnp.float32(GOLDEN[f'in.{part}']) for part in ('logprob', 'ref_logprob')
  )
  actual = getattr(kl, f'{name}_plus')(logps, reference)
  expected = getattr(kl, name)(logps, reference)
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('level', ['token', 'mean'])
def test_what_stands_in_padding_does_not_reach_weighted_k3(level):
  mask_PGT = jnp.float32([[[1, 1, 0], [0, 0, 0]]])

  def run(filler):
    logps, reference, old = (
      jnp.where(mask_PGT > 0, -x, sign * filler)
      for x, sign in ((1.0, 1), (1.5, -1), (1.2, -1))
    )

    def loss(logps):
      estimate = kl.k3_weighted(
        logps, reference, old_logps_PGT=old, mask_PGT=mask_PGT, level=level
      )
      return jnp.sum(estimate)

    return jax.value_and_grad(loss)(logps)

  (value, grad), (other, other_grad) = run(0.0), run(3e4)
  assert value == other and value > 0
  np.testing.assert_array_equal(grad, other_grad)


@pytest.mark.parametrize('name', ['k2', 'k3', 'k3_plus'])
def test_kl_of_nearly_equal_policies_is_not_lost_in_rounding(name):
  small = jnp.full((1, 1, 1), 1e-4, jnp.float32)
  actual = getattr(kl, name)(small, jnp.zeros_like(small))
  np.testing.assert_allclose(actual, 0.5e-8, rtol=1e-2)
