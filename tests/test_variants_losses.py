"""Which properties of a policy loss hold for which, through whole updates.

What is said to hold, and why where it does not, is in test_variants.TABLE.
"""

import functools

import bigram
from bigram import G, P
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_variants import NAMES, TABLE, assert_says, variant

from grpo_jax import types
from grpo_jax.losses import kl, policy

LOSSES = TABLE['policy_loss']
# Log-ratios do not reach the others.
REACHED = [row for row in NAMES if row[0] not in ('advantage', 'aggregate')]


def steps_are_close(found, wanted):
  return all(
    np.allclose(found.params[name], x, rtol=1e-9, atol=1e-11)
    for name, x in wanted.params.items()
  )


def is_unmoved(state):
  return all(
    np.array_equal(state.params[name], x) for name, x in bigram.params().items()
  )


@pytest.mark.parametrize('name', LOSSES)
def test_at_the_old_policy_the_gradient_is_the_policy_gradient(name):
  with jax.enable_x64(True):
    rows = bigram.state(), bigram.roll(log_ratio_PGT=0.0), bigram.score()
    # As it is, without a selection of tokens.
    loss = variant('policy_loss', name)['policy_loss']
    found, metrics = bigram.update(*rows, policy_loss=loss)
    plain = variant('policy_loss', 'reinforce')
    wanted, _ = bigram.update(*rows, **plain)
  assert metrics['grad_norm'] > 0.01
  assert_says(LOSSES[name]['first'], steps_are_close(found, wanted))


def lone(advantage, ratio):
  """The first completion of each group alone has tokens, at this ratio."""
  rollout, rewards = bigram.roll(np.log(ratio)), bigram.score()
  # Likely enough to be cut by their change in probability, and not too much.
  probs_PGT = np.exp(bigram.logps(bigram.params(), rollout))
  alone_PGT = rollout.actions_PGT & (probs_PGT > 0.05) & (probs_PGT < 0.45)
  alone_PGT &= np.arange(G)[:, None] == 0
  assert alone_PGT.sum() > P / 2
  rewards_PG = np.zeros((P, G))
  rewards_PG[:, 0] = advantage
  rewards = rewards.replace(total_PG=rewards_PG)
  return bigram.state(), rollout.replace(actions_PGT=alone_PGT), rewards


@pytest.mark.parametrize('name', LOSSES)
def test_a_clip_leaves_alone_what_moved_far_where_it_should(name):
  """And never stops a step back towards the old policy."""
  cut = {}
  with jax.enable_x64(True):
    for side in np.ndindex(2, 2):
      advantage, ratio = (-1.0, 1.0)[side[0]], (1 / 1.5, 1.5)[side[1]]
      rows = lone(advantage, ratio)
      after, _ = bigram.update(*rows, **variant('policy_loss', name))
      cut[advantage > 0, ratio > 1] = is_unmoved(after)
  assert not cut[False, True] and not cut[True, False]
  assert cut[False, False] == cut[True, True]
  assert_says(LOSSES[name]['clip'], cut[True, True])


@pytest.mark.parametrize('name', LOSSES)
def test_groups_without_advantage_may_be_left_out(name):
  knobs = variant('policy_loss', name)
  with jax.enable_x64(True):
    rows = bigram.state(), bigram.roll(), bigram.score()
    wanted, numbers = bigram.update(*rows, **knobs)
    found, metrics = bigram.update(
      *rows, skip_even=True, microbatches=4, **knobs
    )
  same = steps_are_close(found, wanted)
  assert same == np.isclose(metrics['loss'], numbers['loss'], rtol=1e-9)
  assert_says(LOSSES[name]['even'], same)


def test_groups_without_advantage_fill_microbatches_that_do_not_run():
  # Every other group is equal, and all of those go into two of four pieces. A
  # statistic of the loss counts the tokens of the pieces that run.
  def counted(logps_PGT, old_logps_PGT, advantages_PGT, mask_PGT):
    losses_PGT, _ = policy.reinforce(
      logps_PGT, old_logps_PGT, advantages_PGT, mask_PGT
    )
    return losses_PGT, {'seen': jnp.ones_like(logps_PGT)}

  total_PG = np.random.default_rng(3).random((P, G), np.float32)
  total_PG[::2] = 0.5
  rollout = bigram.roll()
  _, metrics = bigram.update(
    bigram.state(),
    rollout,
    types.Rewards(total_PG, {}),
    policy_loss=counted,
    skip_even=True,
    microbatches=4,
  )
  tokens_P = np.asarray(rollout.actions_PGT).sum((1, 2))
  expected = tokens_P[1::2].sum() / tokens_P.sum()
  assert metrics['policy/seen'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('room,name', REACHED)
def test_far_from_the_old_policy_the_step_is_finite(room, name):
  """In float32; with huge numbers where nothing counts."""
  rng = np.random.default_rng(6)
  signs_PGT = rng.choice([-50.0, 50.0], size=(P, G, bigram.T))
  signs_PGT[:2, 0], signs_PGT[:2, 1] = 50.0, -50.0  # Whole completions.
  rollout, rewards = bigram.roll(signs_PGT), bigram.score()
  huge_PGT = np.where(signs_PGT > 0, 1e30, -1e30)
  logps_PGT = np.where(rollout.actions_PGT, rollout.logps_PGT, huge_PGT)
  rollout = rollout.replace(logps_PGT=logps_PGT.astype(np.float32))
  rewards.total_PG[7] = np.nan
  before = bigram.state(reference=bigram.params(1))
  after, metrics = bigram.update(
    before, rollout, rewards, **variant(room, name)
  )
  assert np.isfinite(metrics.pop('grad_norm'))
  assert metrics['update/skipped'] == 0
  assert np.isfinite([*metrics.values()]).all(), metrics
  assert all(np.isfinite(x).all() for x in after.params.values())


@pytest.mark.parametrize(
  'knobs,skipped',
  [({}, True), (dict(exponent_cap=20.0, value_cap=10.0), False)],
  ids=['without bounds', 'with those of verl'],
)
def test_k3_far_below_the_reference_needs_its_bounds(knobs, skipped):
  """A gradient of exp(50) has no norm in float32, and the step is left out."""
  params = jax.tree.map(lambda x: np.float32(3 * x), bigram.params())
  rollout, reference = bigram.roll(), bigram.params(1)
  d_PGT = bigram.logps(params, rollout) - bigram.logps(reference, rollout)
  assert d_PGT[rollout.actions_PGT].min() < -50
  before = bigram.state(reference=reference).replace(params=params)
  k3 = functools.partial(kl.k3, **knobs)
  after, metrics = bigram.update(
    before, rollout, bigram.score(), kl=k3, kl_coef=0.01
  )
  assert metrics['update/skipped'] == skipped
  assert all(np.isfinite(x).all() for x in after.params.values())
  unmoved = [
    np.array_equal(after.params[name], params[name]) for name in params
  ]
  assert unmoved == 2 * [skipped]
