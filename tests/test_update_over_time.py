"""What an update carries to the next, and what it takes from elsewhere."""

import functools

import bigram
from bigram import G, P, T
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import advantages, types
from grpo_jax.losses import control, kl, policy
from grpo_jax.rollout import rollout as sample

ADAM = optax.adam(1e-2)
SLOW = optax.sgd(0.3)
STOP = 0


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def assert_same_tree(found, wanted):
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def assert_close(found, wanted):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11),
    found,
    wanted,
  )


def spoil_reward(rollout, rewards, p):
  rewards = jax.tree.map(np.copy, rewards)
  rewards.total_PG[p, 0] = np.inf
  return rollout, rewards


def spoil_logp(value, rollout, rewards, p):
  logps_PGT = rollout.logps_PGT.copy()
  logps_PGT[p][rollout.actions_PGT[p]] = value
  return rollout.replace(logps_PGT=logps_PGT), rewards


SPOILS = {
  'an infinite reward': spoil_reward,
  'a log-prob that is NaN': functools.partial(spoil_logp, np.nan),
  'an infinite log-prob': functools.partial(spoil_logp, np.inf),
}


@pytest.mark.parametrize('spoil', SPOILS.values(), ids=SPOILS)
def test_a_step_that_is_not_finite_is_left_out_and_counted(spoil):
  # A loss that bounds its ratio would not see an infinite one.
  knobs = dict(optimizer=ADAM, policy_loss=policy.dro)
  step = functools.partial(bigram.update, **knobs)
  good = bigram.roll(), bigram.score()
  bad = spoil(*good, p=2)
  state = start = jax.device_get(bigram.state(ADAM))
  for count in (1, 2, 3):
    state, metrics = step(state, *bad)
    assert_same_tree(state.params, start.params)
    assert_same_tree(state.opt_state, start.opt_state)
    assert state.skipped == metrics['update/skipped_in_a_row'] == count
    assert metrics['update/skipped'] == 1 and state.step == count
  state, metrics = step(state, *good)
  assert state.skipped == metrics['update/skipped'] == 0
  wanted, _ = step(start, *good)
  assert_same_tree(state.params, wanted.params)
  assert_same_tree(state.opt_state, wanted.opt_state)
  state, _ = step(state, *bad)
  assert state.skipped == 1


def test_of_several_minibatches_only_the_bad_one_is_left_out():
  bad = SPOILS['an infinite reward'](bigram.roll(), bigram.score(), p=6)
  found, metrics = bigram.update(
    bigram.state(ADAM), *bad, optimizer=ADAM, minibatches=4
  )
  wanted = bigram.state(ADAM)
  for i in (0, 1, 3):  # Groups 2, 6, 10 and 14 are the third.
    piece = jax.tree.map(lambda x, i=i: x[i::4], bad)
    wanted, _ = bigram.update(wanted, *piece, optimizer=ADAM)
  assert metrics['update/skipped'] == 1 and found.skipped == 0  # Good since.
  assert_close(found.params, wanted.params)
  assert_close(found.opt_state, wanted.opt_state)


def token_mean(x_PGT):
  return x_PGT[bigram.roll().actions_PGT].mean()


def kl_of(state):
  """The mean of k3 between a state and its reference, by hand."""
  rollout = bigram.roll()
  d_PGT = bigram.logps(state.params, rollout)
  d_PGT = d_PGT - bigram.logps(state.reference, rollout)
  return token_mean(np.exp(-d_PGT) + d_PGT - 1)


def entropy_of(state):
  """The mean entropy of the distributions that predict the tokens."""
  rollout, found_PGT = bigram.roll(), np.zeros((P, G, T))
  for token, t in np.ndindex(bigram.V, T):
    # Any token in this place, after those that are there.
    tokens_PGT = rollout.tokens_PGT.copy()
    tokens_PGT[..., t] = token
    other = rollout.replace(tokens_PGT=tokens_PGT)
    logps_PG = bigram.logps(state.params, other)[..., t]
    found_PGT[..., t] -= np.exp(logps_PG) * logps_PG
  return token_mean(found_PGT)


def keep(coef, measured):
  del measured
  return coef


@pytest.mark.parametrize('where', ['loss', 'reward'])
def test_the_weight_of_the_kl_follows_the_kl(where):
  target, horizon = 0.4, 200
  follow = functools.partial(
    control.kl, target=target, horizon=horizon, samples=P * G
  )
  knobs = dict(optimizer=SLOW, kl_where=where, kl_coef=0.5)
  rows = bigram.roll(log_ratio_PGT=0.0), bigram.score()
  state = bigram.state(
    SLOW, reference=bigram.params(1), coefs={'kl': np.float64(0.5)}
  )
  coef, seen = 0.5, []
  for _ in range(4):
    measured = kl_of(state)
    fixed, _ = bigram.update(
      state.replace(coefs={'kl': np.float64(coef)}),
      *rows,
      kl_control=keep,
      **knobs,
    )
    state, metrics = bigram.update(state, *rows, kl_control=follow, **knobs)
    assert_close(state.params, fixed.params)
    assert metrics['kl/coef'] == pytest.approx(coef, rel=1e-9)
    if where == 'loss':
      assert metrics['kl/reference'] == pytest.approx(measured, rel=1e-6)
    error = min(max(metrics['kl/reference'] / target - 1, -0.2), 0.2)
    coef *= 1 + error * P * G / horizon
    assert state.coefs['kl'] == pytest.approx(coef, rel=1e-9)
    seen.append(coef)
  assert len(set(seen)) == 4


def test_a_fixed_weight_of_the_kl_is_that_of_a_state_that_keeps_it():
  state = bigram.state(reference=bigram.params(1))
  rows = bigram.roll(), bigram.score()
  fixed, _ = bigram.update(state, *rows, kl_coef=0.5)
  state = state.replace(coefs={'kl': np.float64(0.5)})
  kept, _ = bigram.update(state, *rows, kl_control=keep)
  assert_close(kept.params, fixed.params)


def test_the_weight_of_the_entropy_follows_the_entropy_behind_a_gate():
  start = entropy_of(bigram.state())
  target, step, low, high = start + 0.02, 0.4, 0.0, 1.0
  knobs = dict(
    entropy_control=functools.partial(
      control.entropy, target=target, step=step, low=low, high=high
    ),
    entropy_gate=functools.partial(control.gate, target=target),
    optimizer=SLOW,
  )
  rows = bigram.roll(), bigram.score()
  coef, before = 0.2, np.inf
  state = bigram.state(
    SLOW,
    coefs={'entropy': np.float64(coef), 'entropy_before': np.float64(before)},
  )
  bonuses = []
  for _ in range(9):
    bonus = coef if before <= target else 0.0
    bonuses.append(bonus)
    now = entropy_of(state)
    state, metrics = bigram.update(state, *rows, **knobs)
    assert metrics['entropy/coef'] == pytest.approx(bonus, abs=1e-12)
    assert metrics['policy/entropy'] == pytest.approx(now, rel=1e-6)
    coef = min(coef + step, high) if now <= target else max(coef - step, low)
    before = now
    assert state.coefs['entropy'] == pytest.approx(coef, abs=1e-12)
    assert state.coefs['entropy_before'] == pytest.approx(now, rel=1e-6)
  # Shut at first, open below the target, and shut again above it.
  assert bonuses[0] == 0 < bonuses[1] and 0 in bonuses[2:]


def test_the_bonus_is_the_gradient_of_the_entropy():
  """Of a batch without advantage, nothing else is learnt."""
  even = types.Rewards(np.ones((P, G)), {})
  state = bigram.state()
  moved, _ = bigram.update(state, bigram.roll(), even, entropy_coef=0.1)
  for name in ('embed', 'head'):
    for i in np.ndindex(2, 2):
      ends = []
      for sign in (-1, 1):
        weights = jax.tree.map(np.copy, bigram.params())
        weights[name][i] += sign * 1e-5
        ends.append(entropy_of(state.replace(params=weights)))
      slope = (ends[1] - ends[0]) / 2e-5
      step = moved.params[name][i] - bigram.params()[name][i]
      assert step == pytest.approx(0.1 * slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
  'every,rate,begin', [(2, 1.0, 0), (1, 0.3, 0), (2, 0.6, 1)]
)
def test_the_reference_moves_to_the_policy(every, rate, begin):
  refresh = functools.partial(
    control.reference, every=every, rate=rate, begin=begin
  )
  reference = bigram.params(1)
  state = bigram.state(SLOW, reference=reference)
  rows = bigram.roll(), bigram.score()
  for step in range(1, 5):
    kl_now = kl_of(state)
    state, metrics = bigram.update(
      state, *rows, kl_coef=0.1, refresh=refresh, optimizer=SLOW
    )
    assert metrics['kl/reference'] == pytest.approx(kl_now, rel=1e-6)
    if (step - begin) % every == 0:
      reference = {
        name: (1 - rate) * reference[name] + rate * state.params[name]
        for name in reference
      }
    assert_close(state.reference, reference)


def kl_rewards(weight, name):
  """What the KL takes from the reward of each token, and tokens' rewards."""
  rollout, rewards = bigram.roll(), bigram.score()
  d_PGT = rollout.logps_PGT - bigram.logps(bigram.params(1), rollout)
  d_PGT = np.where(rollout.actions_PGT, d_PGT, 0.0)
  found_PGT = {'k1': d_PGT, 'k3': np.exp(-d_PGT) + d_PGT - 1}[name]
  lost_PGT = weight * found_PGT
  token_rewards_PGT = -lost_PGT
  for p, g in np.ndindex(P, G):
    places = np.flatnonzero(rollout.actions_PGT[p, g])
    if len(places):
      token_rewards_PGT[p, g, places[-1]] += rewards.total_PG[p, g]
  return lost_PGT, token_rewards_PGT


@pytest.mark.parametrize('name', ['k1', 'k3'])
@pytest.mark.parametrize('estimator', [advantages.grpo, advantages.rloo])
def test_the_kl_in_the_reward_is_a_lower_reward(estimator, name):
  rollout, rewards = bigram.roll(), bigram.score()
  state = bigram.state(reference=bigram.params(1))
  found, metrics = bigram.update(
    state,
    rollout,
    rewards,
    advantage=estimator,
    kl=getattr(kl, name),
    kl_coef=0.3,
    kl_where='reward',
  )
  lost_PGT, _ = kl_rewards(0.3, name)
  lower = rewards.replace(total_PG=rewards.total_PG - lost_PGT.sum(-1))
  wanted, _ = bigram.update(state, rollout, lower, advantage=estimator)
  assert_close(found.params, wanted.params)
  kl_mean = token_mean(lost_PGT) / 0.3
  assert metrics['kl/reference'] == pytest.approx(kl_mean, rel=1e-6)
  # What is said of the reward is said of what was earned.
  mean = np.nanmean(rewards.total_PG)
  assert metrics['reward/mean'] == pytest.approx(mean, rel=1e-6)


def test_the_kl_in_the_reward_is_seen_token_by_token():
  rollout, rewards = bigram.roll(), bigram.score()
  state = bigram.state(reference=bigram.params(1))
  found, _ = bigram.update(
    state,
    rollout,
    rewards,
    advantage=advantages.reinforce_pp,
    kl=kl.k1,
    kl_coef=0.3,
    kl_where='reward',
  )
  _, token_rewards_PGT = kl_rewards(0.3, 'k1')
  counted_PGT = rollout.actions_PGT & ~np.isnan(rewards.total_PG)[..., None]
  to_go_PGT = np.zeros((P, G, T))
  for p, g, t in np.argwhere(counted_PGT):
    later_T = counted_PGT[p, g] & (np.arange(T) >= t)
    to_go_PGT[p, g, t] = token_rewards_PGT[p, g][later_T].sum()
  returns = to_go_PGT[counted_PGT]
  white_PGT = np.zeros((P, G, T))
  white_PGT[counted_PGT] = (returns - returns.mean()) / np.std(returns, ddof=1)

  wanted, _ = bigram.update(
    state, rollout, rewards, advantage=lambda rewards_PG: jnp.asarray(white_PGT)
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8),
    found.params,
    wanted.params,
  )


def test_remax_compares_with_the_greedy_completion_of_the_rollout():
  state = bigram.state()

  @jax.jit
  def roll():
    return sample(
      state.params,
      bigram.roll().prompts,
      jax.random.key(0),
      model=bigram.MODEL,
      group_size=G,
      max_tokens=T,
      stop_ids=(STOP,),
      greedy=True,
    )

  rollout = jax.device_get(roll())
  assert rollout.tokens_PGT.shape == (P, G + 1, T)
  logits_VV = bigram.params()['embed'] @ bigram.params()['head']
  prompts = rollout.prompts
  for p in range(P):
    token = prompts.tokens_PL[p, prompts.lengths_P[p] - 1]
    for t in range(rollout.lengths_PG[p, -1]):
      token = np.argmax(logits_VV[token])
      assert rollout.tokens_PGT[p, -1, t] == token
    assert token == STOP or rollout.lengths_PG[p, -1] == T

  rng = np.random.default_rng(7)
  total_PG = rng.random((P, G + 1))
  total_PG[2, 1] = total_PG[3, -1] = np.nan
  found, _ = bigram.update(
    state,
    rollout,
    types.Rewards(total_PG, {}),
    advantage=advantages.remax,
  )
  against_PG = np.nan_to_num(total_PG[:, :-1] - total_PG[:, -1:])
  own = jax.tree.map(lambda x: x[:, :-1], rollout.replace(prompts=None))
  wanted, _ = bigram.update(
    state,
    own.replace(prompts=prompts),
    types.Rewards(total_PG[:, :-1], {}),
    advantage=lambda rewards_PG: jnp.asarray(against_PG),
  )
  assert_close(found.params, wanted.params)
  assert any((found.params[k] != state.params[k]).any() for k in found.params)
