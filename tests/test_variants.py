"""Which property holds for which variant, through whole updates.

TABLE has a row for every public function that an update can be made of, and
says of each property that it holds, or why it does not; then a test sees that
it really does not. One variant is changed at a time, in float64.
"""

import functools
import inspect

import bigram
from bigram import EQUAL, G, P, T
import jax
import numpy as np
import pytest

from grpo_jax import advantages, sharding, types
from grpo_jax.losses import aggregate, kl, off_policy, policy, select

ROOMS = {
  'advantage': advantages,
  'policy_loss': policy,
  'select': select,
  'off_policy': off_policy,
  'aggregate': aggregate,
  'kl': kl,
}

# Loss, gradient and metrics are the same when ...
BATCH = {
  'prompts': True,  # ... the prompts come in another order,
  'completions': True,  # ... the completions of each group do,
  'cut': True,  # ... there are 4 microbatches on 8 devices, and wider padding.
}
# Groups of equal rewards have exactly no gradient, whatever other groups have.
ADVANTAGE = BATCH | {'equal': True}
# The last three are tested in test_variants_losses.py.
LOSS = BATCH | {
  'first': True,  # At the old policy its gradient is the policy gradient.
  'clip': True,  # Tokens that moved far where they should are left alone.
  'even': True,  # Groups without advantage may be left out of the compute.
}

PULLS = 'it pulls to the old policy, whatever the advantage'
FADES = 'the gradient fades, and is nowhere cut'
WEIGHS = 'only the weight is bounded, no token loses its gradient'
FREE = 'it has no clip'

TABLE = {
  'advantage': {
    'grpo': ADVANTAGE,
    'dr_grpo': ADVANTAGE,
    'batch_scaled': ADVANTAGE,
    'magistral': ADVANTAGE,
    'max_rl': ADVANTAGE,
    'rloo': ADVANTAGE,
    'opo': ADVANTAGE,
    'gpg': ADVANTAGE,
    'gdpo': ADVANTAGE,
    'gdpo, over_tokens': ADVANTAGE
    | {'equal': 'the mean over tokens of all groups is taken away last'},
    'passk': ADVANTAGE,
    'best_of_group': ADVANTAGE,  # But for the order of two that are as good.
    'reinforce_pp_baseline': ADVANTAGE
    | {'equal': 'the mean over tokens of all groups is taken away last'},
    'reinforce_pp': ADVANTAGE | {'equal': 'the baseline is of the batch'},
    'remax': ADVANTAGE  # Equal to the reward of the greedy one, here.
    | {'completions': 'the last of a group is the greedy one'},
    'optimal_token_baseline': ADVANTAGE
    | {'equal': 'the longest is compared with none in its last tokens'},
    'optimal_token_baseline, zero_tail': ADVANTAGE,
  },
  'policy_loss': {
    'ppo_clip': LOSS,
    'dual_clip': LOSS,
    'two_sided': LOSS,
    'gspo': LOSS,
    'gspo_token': LOSS,
    'luspo': LOSS,
    'gmpo': LOSS,
    'cispo': LOSS | {'clip': WEIGHS},
    'cispo_cap': LOSS | {'clip': WEIGHS},
    'sapo': LOSS | {'clip': FADES},
    'vespo': LOSS | {'clip': FADES},
    'dppo_tv': LOSS,
    'dppo_kl': LOSS,
    'masked_pg': LOSS | {'even': PULLS, 'clip': PULLS},
    'masked_pg, tau': LOSS,
    'reinforce': LOSS | {'clip': FREE},
    'kl_cov': LOSS
    | {'even': PULLS, 'clip': FREE}
    | {'first': 'its pull is a sign, and that of a rounding is one too'},
    'dro': LOSS | {'even': PULLS, 'clip': FREE},
    'kimi': LOSS | {'even': PULLS, 'clip': FREE},
  },
  'select': {
    'all_tokens': BATCH,
    'high_entropy': BATCH,
    'clip_cov': BATCH
    | {'completions': 'the lot is drawn by the sample number'},
    'top_covariance': BATCH,
    'm2po': BATCH,
    'off_policy_sequences': BATCH,
  },
  'off_policy': {
    'none': BATCH,
    'recompute': BATCH,
    'truncate': BATCH,
    'truncate, level': BATCH,
    'mask': BATCH,
  },
  'aggregate': {
    'token_mean': BATCH,
    'sequence_mean': BATCH,
    'sequence_mean, empty': BATCH,
    'group_length': BATCH,
    'constant_length': BATCH
    | {'cut': 'unless it is told, the length is that of the padding'},
    'constant_length, length': BATCH,
    'sequence_sum': BATCH,
    'token_sum': BATCH,
  },
  'kl': {
    'k1': BATCH,
    'k2': BATCH,
    'k3': BATCH,
    'k3_weighted': BATCH,
    'k3_weighted, level': BATCH,
    'absolute': BATCH,
    'k1_plus': BATCH,
    'k3_plus': BATCH,
    'absolute_plus': BATCH,
  },
  # What is no function of one of these modules.
  'more': {
    'entropy': BATCH,
    'entropy of some': BATCH,
    'steps': BATCH | {'prompts': 'a minibatch is made of other groups'},
  },
}

KNOBS = {
  'gdpo': dict(part_weights={'answer': 1.0, 'format': 0.5}),
  'gdpo, over_tokens': dict(
    part_weights={'answer': 1.0, 'format': 0.5}, over_tokens=True
  ),
  'optimal_token_baseline, zero_tail': dict(zero_tail=False),
  # Bounds of a change in probability, which few tokens make at a ratio of 2.
  'dppo_tv': dict(clip_low=0.01, clip_high=0.01),
  'dppo_kl': dict(clip_low=1e-3, clip_high=1e-3),
  'masked_pg': dict(clip_low=0.01, clip_high=0.01, tau=0.1),
  'masked_pg, tau': dict(clip_low=0.01, clip_high=0.01, tau=0.0),
  'clip_cov': dict(share=0.1, low=0.02, high=5.0),
  'top_covariance': dict(share=0.1),
  'm2po': dict(threshold=0.1),
  'off_policy_sequences': dict(threshold=0.1),
  'truncate': dict(cap=1.2),
  'truncate, level': dict(cap=1.2, level='mean'),
  'mask': dict(low=0.5, high=1.5),
  'sequence_mean, empty': dict(empty='skip'),
  'constant_length, length': dict(length=T),
  'k3_weighted, level': dict(level='mean'),
}
TOP = functools.partial(select.top_covariance, share=0.6)
FORKS = functools.partial(select.high_entropy, share=0.5)
# What an update needs besides for a variant to show.
WITH = {
  'gmpo': dict(select=FORKS),
  'kl_cov': dict(select=TOP),
  'vespo': dict(off_policy=off_policy.truncate),
  'optimal_token_baseline': dict(off_policy=off_policy.truncate),
  'entropy': dict(entropy_coef=0.1),
  'entropy of some': dict(entropy_coef=0.1, select=FORKS),
  'steps': dict(passes=2, minibatches=2, policy_loss=policy.dual_clip),
}
NAMES = [(room, name) for room, rows in TABLE.items() for name in rows]
PLACES = [('', *row) for row in NAMES] + [
  ('reward', room, name) for room, name in NAMES if room == 'kl'
]


# Rows on four pairs of devices, weights cut in four.
CUBE = dict(data=2, fsdp=2, tensor=2)


@functools.cache
def variant(room, name, where=''):
  """The keywords of grpo_update; the same ones for the same variant."""
  known, _, _ = name.partition(', ')
  more = dict(WITH.get(name, {}))
  if room == 'more' or known == 'none':
    return more
  function = getattr(ROOMS[room], known)
  more[room] = functools.partial(function, **KNOBS.get(name, {}))
  if room == 'kl':
    more |= dict(kl_coef=0.1, kl_where=where or 'loss')
  return more


def batch():
  """Arrays of an update; in float64, where that is the default."""
  before = bigram.state(reference=bigram.params(1))
  return before, bigram.roll(), bigram.score()


def reorder(order_PG, rollout, rewards):
  """Other places for the completions of each group."""

  def move(x):
    return np.take_along_axis(
      x, order_PG.reshape(P, G, *[1] * (x.ndim - 2)), axis=1
    )

  kept = jax.tree.map(move, rollout.replace(prompts=None))
  return kept.replace(prompts=rollout.prompts), jax.tree.map(move, rewards)


def widen(rollout):
  """Longer padding, with other numbers in all that do not count."""
  rng = np.random.default_rng(3)

  def pad(x, noise):
    wide = np.pad(x, [(0, 0), (0, 0), (0, 3)])
    past = np.arange(T + 3) >= rollout.lengths_PG[..., None]
    return np.where(past, noise, wide).astype(x.dtype)

  shape = P, G, T + 3
  wide = rollout.replace(
    tokens_PGT=pad(rollout.tokens_PGT, rng.integers(bigram.V, size=shape)),
    logps_PGT=pad(rollout.logps_PGT, rng.normal(scale=9, size=shape)),
    actions_PGT=pad(rollout.actions_PGT, False),
  )
  noise_PGT = rng.normal(scale=9, size=shape)
  logps_PGT = np.where(wide.actions_PGT, wide.logps_PGT, noise_PGT)
  return wide.replace(logps_PGT=logps_PGT)


def spread(before, rollout, rewards, **sizes):
  """The same arrays on a mesh of 8 devices."""
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | sizes)
  layout = sharding.param_shardings(bigram.MODEL, sharding.TRAIN, mesh)
  whole = sharding.replicated(mesh)
  placed = jax.device_put(before, whole)
  placed = placed.replace(params=jax.device_put(before.params, layout))
  if before.reference is not None:
    placed = placed.replace(reference=jax.device_put(before.reference, layout))
  rows = sharding.batch_sharding(mesh)
  return placed, jax.device_put(rollout, rows), jax.device_put(rewards, rows)


def is_same(found, wanted):
  """Whether parameters and metrics agree, to what rounding leaves."""
  (state, metrics), (wanted_state, wanted_metrics) = found, wanted
  assert metrics.keys() == wanted_metrics.keys()
  pairs = zip(
    jax.tree.leaves((state.params, metrics)),
    jax.tree.leaves((wanted_state.params, wanted_metrics)),
    strict=True,
  )
  # Some metrics are float32 sums.
  return all(
    np.allclose(x, y, rtol=1e-9 if np.ndim(x) else 1e-6, atol=1e-11)
    for x, y in pairs
  )


# Everything that looks at the whole batch, in one update.
ALL = dict(
  advantage=advantages.reinforce_pp,
  policy_loss=policy.dual_clip,
  select=FORKS,
  off_policy=functools.partial(off_policy.truncate, cap=1.2),
  aggregate=aggregate.group_length,
  kl=kl.k3_weighted,
  kl_coef=0.1,
  entropy_coef=0.1,
  passes=2,
  minibatches=2,
)


def assert_says(claim, holds):
  """That a property holds where the table says so, and else does not."""
  assert holds == (claim is True), claim


def test_the_table_has_every_public_function():
  for room, module in ROOMS.items():
    public = {
      name
      for name, function in inspect.getmembers(module, inspect.isfunction)
      if function.__module__ == module.__name__ and not name.startswith('_')
    }
    assert {name.partition(', ')[0] for name in TABLE[room]} == public
  for room, name in NAMES:
    wanted = {'advantage': ADVANTAGE, 'policy_loss': LOSS}.get(room, BATCH)
    claims = TABLE[room][name]
    assert claims.keys() == wanted.keys()
    assert all(claim is True or len(claim) > 9 for claim in claims.values())
  used = {name for _, name in NAMES}
  assert KNOBS.keys() <= used and WITH.keys() <= used


@pytest.mark.slow
@pytest.mark.parametrize('where,room,name', PLACES)
def test_how_a_batch_is_laid_out_does_not_matter(where, room, name):
  knobs, claims = variant(room, name, where), TABLE[room][name]
  rng = np.random.default_rng(4)
  with jax.enable_x64(True):
    before, rollout, rewards = batch()
    wanted = bigram.update(before, rollout, rewards, **knobs)
    assert wanted[1]['grad_norm'] > 0.01
    assert wanted[1]['update/skipped'] == 0

    order_P = rng.permutation(P)
    other = jax.tree.map(lambda x: x[order_P], (rollout, rewards))
    found = bigram.update(before, *other, **knobs)
    assert_says(claims['prompts'], is_same(found, wanted))

    order_PG = rng.permuted(np.tile(np.arange(G), (P, 1)), axis=1)
    other = reorder(order_PG, rollout, rewards)
    found = bigram.update(before, *other, **knobs)
    assert_says(claims['completions'], is_same(found, wanted))

    other = spread(before, widen(rollout), rewards, **CUBE)
    found = bigram.update(*other, microbatches=4, **knobs)
    assert_says(claims['cut'], is_same(found, wanted))


@pytest.fixture(scope='module')
def whole():
  with jax.enable_x64(True):
    return bigram.update(*batch(), **ALL)


@pytest.mark.parametrize('microbatches', [2, 4, 8])
def test_microbatches_change_nothing(whole, microbatches):
  with jax.enable_x64(True):
    found = bigram.update(*batch(), microbatches=microbatches, **ALL)
  assert is_same(found, whole)


@pytest.mark.parametrize('sizes', [dict(data=8), dict(fsdp=8)], ids=str)
def test_devices_change_nothing(whole, sizes):
  with jax.enable_x64(True):
    found = bigram.update(*spread(*batch(), **sizes), **ALL)
  assert is_same(found, whole)


def test_wider_padding_changes_nothing(whole):
  with jax.enable_x64(True):
    before, rollout, rewards = batch()
    found = bigram.update(before, widen(rollout), rewards, **ALL)
  assert is_same(found, whole)


@pytest.mark.parametrize('name', TABLE['advantage'])
def test_equal_rewards_give_exactly_no_gradient(name):
  """In float32, where the mean of seven numbers 1000.1 is another number."""
  group_size = 7
  rng = np.random.default_rng(5)
  rollout = bigram.roll(group_size=group_size)

  def only_equal(logps_PGT, old_logps_PGT, advantages_PGT, mask_PGT):
    is_equal_P = np.isin(np.arange(P), EQUAL)[:, None, None]
    return policy.reinforce(
      logps_PGT, old_logps_PGT, advantages_PGT * is_equal_P, mask_PGT
    )

  def step(others):
    """With groups of equal rewards, beside others."""
    part_PG = others.copy()
    part_PG[list(EQUAL)] = np.c_[[1000.1, 0.1, 1 / 3, -1000.1, 0.0]]
    parts = dict.fromkeys(('answer', 'format'), part_PG)
    before = bigram.state()
    rewards = types.Rewards(part_PG.astype(np.float32), parts, shaped=parts)
    return before, *bigram.update(before, rollout, rewards, **knobs)

  knobs = variant('advantage', name) | dict(policy_loss=only_equal)
  steps = [
    step(rng.random((P, group_size))),
    step(np.full((P, group_size), 0.7)),
  ]
  unmoved = [
    all(np.array_equal(after.params[k], before.params[k]) for k in after.params)
    for before, after, _ in steps
  ]
  assert_says(TABLE['advantage'][name]['equal'], all(unmoved))
