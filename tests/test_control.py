"""The entropy controller against TRL's lines, and at its bounds."""

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import control


def trl(entropies, coef, target, step, low, high):
  """Yields (coefficient that the loss is given, kept coefficient) of steps.

  What TRL 1.16.0 does in _compute_loss where every window is one batch.
  """
  last = float('inf')
  for measured in entropies:
    applied = coef if last <= target else 0.0
    if measured <= target:
      coef = min(coef + step, high)
    else:
      coef = max(coef - step, low)
    last = measured
    yield applied, coef


@pytest.mark.parametrize('start', [0.0, 0.01, 0.02])
def test_the_coefficient_and_its_gate_are_trls(start):
  knobs = {'target': 0.5, 'step': 0.003, 'low': 0.001, 'high': 0.016}
  rng = np.random.default_rng(0)
  entropies = np.concatenate(
    [
      rng.uniform(0, 1, 20),
      np.full(8, 0.1),
      np.full(8, 0.9),
      [0.5, 0.5],
    ]
  ).astype(np.float32)
  coef, last, found = start, jnp.inf, []
  for measured in entropies:
    applied = control.gate(coef, last, target=0.5)
    coef, last = control.entropy(coef, measured, **knobs), measured
    found.append((float(applied), float(coef)))
  expected = [*trl(entropies.tolist(), start, **knobs)]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
  applied = np.array(expected)[:, 0]
  assert applied[0] == 0 and (applied > 0).any() and (applied[1:] == 0).any()


def test_defaults_are_trls():
  np.testing.assert_allclose(control.entropy(0.3, 0.2), 0.305, rtol=1e-6)
  np.testing.assert_allclose(control.entropy(0.3, 0.21), 0.295, rtol=1e-6)
  assert control.entropy(0.999, 0.0) == 1 and control.entropy(0.001, 9.0) == 0
  assert control.gate(0.3, 0.21) == 0
  np.testing.assert_allclose(control.gate(0.3, 0.2), 0.3, rtol=1e-6)


def test_an_entropy_that_is_not_a_number_changes_nothing():
  np.testing.assert_allclose(control.entropy(0.3, jnp.nan), 0.3, rtol=1e-6)
  assert control.gate(0.3, jnp.nan) == 0
