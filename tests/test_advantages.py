"""Estimators against loops, and against TRL's and verl's own numbers."""

import functools
import inspect
import json
import pathlib

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import numpy as np
import pytest

from grpo_jax import advantages
from grpo_jax.rewards import mix

GOLDEN = dict(
  np.load(pathlib.Path(__file__).parent / 'golden' / 'advantages.npz')
)
RECORDS = json.loads(str(GOLDEN['records']))
T = 5  # Tokens, where the numbers are ours.

# Estimator -> what holds for it: equal rewards give 'zero', a 'shift' of a
# group's rewards changes nothing, advantages of a group 'sum' to zero, and
# one group's do not depend on the 'others'. Where one is missing:
PROPERTIES = {
  'grpo': 'zero shift sum others',
  'dr_grpo': 'zero shift sum others',
  'rloo': 'zero shift sum others',
  'batch_scaled': 'zero sum',  # The deviation is of all rewards in the batch.
  'magistral': 'zero shift sum',  # Likewise, after centring.
  'max_rl': 'zero sum others',  # By the mean, which a shift changes.
  'opo': 'zero shift others',  # The sum weighted by length is zero instead.
  'gpg': 'zero sum',  # Counts rewards of 0 in the batch.
  'gdpo': 'zero shift sum',  # By a deviation over the batch.
  'passk': 'zero shift others',  # No completion has a negative one.
  'best_of_group': 'zero shift others',  # Likewise.
  'reinforce_pp_baseline': 'shift',  # The batch's mean is taken away last.
  'reinforce_pp': '',  # Knows no group.
  'remax': 'others',  # The baseline is a reward from outside the group.
  'optimal_token_baseline': 'others',  # The longest completion's tail.
}


def with_property(name):
  return [key for key, held in PROPERTIES.items() if name in held.split()]


@functools.cache
def compiled(name, **knobs):
  return jax.jit(functools.partial(getattr(advantages, name), **knobs))


def estimate(name, rewards_PG, inputs, **knobs):
  """Calls an estimator with those of the inputs that it asks for."""
  parameters = inspect.signature(getattr(advantages, name)).parameters
  taken = {
    key: inputs[key]
    for key, parameter in parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
    and parameter.default is parameter.empty
  }
  return np.asarray(compiled(name, **knobs)(rewards_PG, **taken))


def test_the_table_of_properties_names_every_estimator():
  public = [
    name
    for name, value in vars(advantages).items()
    if inspect.isfunction(value) and not name.startswith('_')
  ]
  assert sorted(public) == sorted(PROPERTIES)
  for name in public:
    assert f'\n  {name} ' in advantages.__doc__


# Golden numbers.


def groups_of(case, alone=False):
  """Puts the rows of a case into groups, [B] -> [P, G], and takes them back.

  Groups have one size and cases one number of them, for one compilation: what
  is lacking is filled with a value, which for rewards means unscored. `alone`
  makes a group of each row.
  """
  uid_B = GOLDEN[f'verl.{case}.uid']
  names_B = np.arange(len(uid_B)) if alone else uid_B
  rows = [np.flatnonzero(names_B == name) for name in np.unique(names_B)]
  shape = (49, 1) if alone else (8, 8)

  def pad(x_B, value):
    x_PG = np.full((*shape, *x_B.shape[1:]), value, x_B.dtype)
    for p, row in enumerate(rows):
      x_PG[p, : len(row)] = x_B[row]
    return x_PG

  def back(x_PG):
    x_B = np.zeros((len(uid_B), *x_PG.shape[2:]), x_PG.dtype)
    for p, row in enumerate(rows):
      x_B[row] = x_PG[p, : len(row)]
    return x_B

  return pad, back


def of_verl(record, dtype):
  """What our estimator gives for a record of verl, [B, T]."""
  name, case = record['name'], record['case']
  array = {
    part: GOLDEN[f'verl.{case}.{part}'].astype(dtype)
    for part in (
      'token_level_rewards response_mask old_log_probs sum_pi_squared '
      'rollout_is_weights reward_baselines comp_a comp_b'
    ).split()
  }
  # In these numbers each row has a greedy completion of its own.
  pad, back = groups_of(case, alone=name == 'remax')
  rewards_BT = array['token_level_rewards']
  mask_BT = array['response_mask']
  knobs = {
    key: value
    for key, value in record.items()
    if key in inspect.signature(getattr(advantages, name)).parameters
    and key != 'part_weights'
  }
  correction_BT = array['rollout_is_weights']
  if not record.get('corrected'):
    correction_BT = np.ones_like(correction_BT)
  inputs = {
    'mask_PGT': pad(mask_BT, 0),
    'token_rewards_PGT': pad(rewards_BT, np.nan),
    'logps_PGT': pad(array['old_log_probs'], np.nan),
    'squares_PGT': pad(array['sum_pi_squared'], np.nan),
    'correction_PGT': pad(correction_BT, np.nan),
    'greedy_P': pad(array['reward_baselines'], np.nan)[:, 0],
    'parts': {key: pad(array[key], np.nan) for key in ('comp_a', 'comp_b')},
    'part_weights': record.get('part_weights'),
  }
  # The reward of a row without tokens lies on one that does not count.
  actual = estimate(name, pad(rewards_BT.sum(1), np.nan), inputs, **knobs)
  if actual.ndim == 2:
    actual = actual[..., None]
  return back(actual) * mask_BT


def of_trl(record, dtype):
  """What our estimator gives for a record of TRL, [N]."""
  name, case = record['name'], record['case']
  rewards_PGR = GOLDEN[f'trl.{case}.rewards'].astype(dtype)
  parts = {str(r): x for r, x in enumerate(np.moveaxis(rewards_PGR, -1, 0))}
  weights = dict(
    zip(parts, GOLDEN[f'trl.{case}.weights'].tolist(), strict=True)
  )
  weighted = [mix.Part(*item) for item in weights.items()]
  rewards_PG = np.asarray(mix.total(parts, weighted))
  if record.get('clip'):
    rewards_PG = np.clip(rewards_PG, *record['clip'])
  if record.get('kl_coef'):
    logps_NT = GOLDEN['trl.rloo_kl.old_per_token_logps'].astype(dtype)
    reference_NT = GOLDEN['trl.rloo_kl.ref_per_token_logps'].astype(dtype)
    kl_N = (logps_NT - reference_NT).sum(1)
    rewards_PG = rewards_PG - record['kl_coef'] * kl_N.reshape(rewards_PG.shape)
  inputs = {
    'parts': parts,
    'part_weights': weights,
    'mask_PGT': np.ones((*rewards_PG.shape, 1)),
  }
  knobs = {'normalize': record['normalize']} if name == 'rloo' else {}
  return estimate(name, rewards_PG, inputs, **knobs).reshape(-1)


RUN = [r for r in RECORDS if 'raises' not in r and r['name'] != 'gae']
# Records that are not run, and why.
NOT_RUN = {
  'gae_gamma0.97_lam0.9': 'needs the values of a critic',
  'grpo_passk_std1': 'verl refuses a group of one; here it gets zero',
  'grpo_passk_std0': 'likewise',
}
# Records in which verl gives groups of equal rewards something else than zero,
# by more than rounding in float64. Ours is exactly zero there.
NOT_ZERO = {
  'verl.equal_nonrepresentable.grpo_vectorized_std1': 'float32 inside',
}
for tag in ('', 'tir_'):
  for corrected in '01':
    tag_of = f'{tag}optimal_token_baseline_zt0_is{corrected}'
    NOT_ZERO[f'verl.equal_nonrepresentable.{tag_of}'] = (
      'eps makes the baseline less than the reward of 1000.1'
    )


def equal_rows(case):
  """Rows of verl's case whose group has one reward only."""
  uid_B = GOLDEN[f'verl.{case}.uid']
  rewards_B = GOLDEN[f'verl.{case}.token_level_rewards'].sum(1)
  return np.array([np.ptp(rewards_B[uid_B == uid]) == 0 for uid in uid_B])


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
@pytest.mark.parametrize('name', sorted({r['name'] for r in RUN}))
def test_estimators_give_the_numbers_of_trl_and_verl(name, dtype):
  for record in [r for r in RUN if r['name'] == name]:
    key = record['id']
    expected = GOLDEN[key].copy()
    with jax.enable_x64(dtype is np.float64):
      if key.startswith('verl'):
        actual = of_verl(record, dtype)
        # On places that do not count, verl's remax leaves the reward to go.
        expected *= GOLDEN[f'verl.{record["case"]}.response_mask']
      else:
        actual = of_trl(record, dtype)
    assert actual.dtype == dtype, key
    limit = 1e-6 * np.abs(expected).max()
    if dtype is np.float32:
      limit = max(limit, 4 * record['off'])
    if key in NOT_ZERO:
      equal_B = equal_rows(record['case'])
      assert np.abs(expected[equal_B]).max() > limit or dtype is np.float32, key
      np.testing.assert_array_equal(actual[equal_B], 0.0, key)
      expected[equal_B] = 0.0
    np.testing.assert_allclose(actual, expected, 1e-6, limit, err_msg=key)


def test_every_record_is_run_or_is_named_with_its_reason():
  assert len(RECORDS) == 248
  left_out = [r['id'] for r in RECORDS if r not in RUN]
  assert {key.split('.', 2)[2] for key in left_out} == set(NOT_RUN)
  assert len(left_out) == 10  # 8 of gae, and 2 that raise.
  assert NOT_ZERO.keys() <= {r['id'] for r in RUN}


@pytest.mark.parametrize('scaled', [True, False])
def test_passk_gives_zero_to_the_groups_of_one_that_verl_refuses(scaled):
  pad, _ = groups_of('with_singleton')
  rewards_B = GOLDEN['verl.with_singleton.token_level_rewards'].sum(1)
  rewards_PG = pad(rewards_B, np.nan)
  actual_PG = np.asarray(advantages.passk(rewards_PG, scaled=scaled))
  lone_P = np.isfinite(rewards_PG).sum(1) == 1
  assert lone_P.sum() == 2
  assert not actual_PG[lone_P].any()
  assert (actual_PG[~lone_P] > 0).sum() == 2


# Loops.


def loop(rewards_PG, name, lengths_PG, ddof=1):
  """Estimators that need no tokens, one number at a time."""
  out = np.zeros(rewards_PG.shape)
  groups = []  # Of rows: the scored ones, and their rewards' mean.
  for row in rewards_PG:
    scored = [g for g in range(len(row)) if not np.isnan(row[g])]
    groups.append((scored, np.mean([row[g] for g in scored] or [0.0])))
  everything = [rewards_PG[p, g] for p, (s, _) in enumerate(groups) for g in s]
  centred = [rewards_PG[p, g] - m for p, (s, m) in enumerate(groups) for g in s]
  for p, (scored, mean) in enumerate(groups):
    row = rewards_PG[p]
    if len({row[g] for g in scored}) < 2:
      continue
    squares = sum((row[g] - mean) ** 2 for g in scored)
    best = max(row[g] for g in scored)
    ties = [g for g in scored if row[g] == best]
    for g in scored:
      others = [row[h] for h in scored if h != g]
      if name == 'grpo':
        deviation = (squares / (len(scored) - ddof)) ** 0.5
        out[p, g] = (row[g] - mean) / (deviation + 1e-4)
      elif name == 'dr_grpo':
        out[p, g] = row[g] - mean
      elif name == 'rloo':
        out[p, g] = row[g] - sum(others) / len(others)
      elif name == 'batch_scaled':
        out[p, g] = (row[g] - mean) / (np.std(everything, ddof=1) + 1e-4)
      elif name == 'magistral':
        out[p, g] = (row[g] - mean) / (np.std(centred, ddof=1) + 1e-4)
      elif name == 'max_rl':
        out[p, g] = (row[g] - mean) / mean if mean > 0 else 0.0
      elif name == 'best_of_group':
        label = min(ties, key=lambda h, p=p: (lengths_PG[p, h], h))
        out[p, g] = float(g == label)
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
    ('batch_scaled', {}),
    ('magistral', {}),
    ('max_rl', {}),
    ('best_of_group', {}),
  ],
)
def test_every_estimator_equals_a_loop_over_scored_completions(name, knobs, G):
  rewards_PG = random_rewards(G, seed=G)
  inputs = some_inputs(rewards_PG, seed=G)
  lengths_PG = inputs['mask_PGT'].sum(-1)
  with jax.enable_x64(True):
    actual_PG = estimate(name, rewards_PG, inputs, **knobs)
  expected_PG = loop(rewards_PG, name, lengths_PG, **knobs)
  np.testing.assert_allclose(actual_PG, expected_PG, rtol=1e-12, atol=1e-13)


def test_the_label_is_the_best_and_of_equals_the_shortest_and_first():
  nan = np.nan
  rewards_PG = np.array([[1, 0, 1, 1], [nan, 2, 3, nan], [5, 5, 5, nan]])
  lengths_PG = np.array([[4, 1, 3, 3], [1, 1, 5, 1], [1, 2, 3, 1]])
  mask_PGT = np.arange(T) < lengths_PG[..., None]
  actual_PG = advantages.best_of_group(rewards_PG, mask_PGT=mask_PGT)
  expected_PG = [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(actual_PG, expected_PG)


def test_remax_gives_zero_where_the_greedy_completion_is_unscored():
  rewards_PG = np.array([[1.0, 0.0], [1.0, 0.0]])
  inputs = some_inputs(rewards_PG, seed=0)
  inputs['greedy_P'] = np.array([np.nan, 0.25])
  actual_PGT = estimate('remax', rewards_PG, inputs)
  assert not actual_PGT[0].any()
  expected_PGT = (rewards_PG - 0.25)[..., None] * inputs['mask_PGT']
  np.testing.assert_allclose(actual_PGT[1], expected_PGT[1])


def test_the_deviation_of_nearly_equal_rewards_does_not_explode():
  rewards_PG = np.array([[0.0] + [0.95] * 7], np.float32)
  actual_PG = advantages.grpo(rewards_PG)
  expected_PG = loop(rewards_PG, 'grpo', None)
  np.testing.assert_allclose(actual_PG, expected_PG, rtol=1e-5)


def test_a_completion_without_energy_is_compared_with_its_equals():
  rewards_PG = np.full((1, 3), 0.95)
  inputs = some_inputs(rewards_PG, seed=0)
  inputs['mask_PGT'] = np.ones((1, 3, T), bool)
  inputs['token_rewards_PGT'] = np.zeros((1, 3, T))
  inputs['token_rewards_PGT'][..., -1] = rewards_PG
  inputs['logps_PGT'] = np.zeros((1, 3, T))
  inputs['squares_PGT'] = np.ones((1, 3, T))
  actual_PGT = estimate('optimal_token_baseline', rewards_PG, inputs)
  np.testing.assert_array_equal(actual_PGT, 0.0)


# Properties.


def some_inputs(rewards_PG, seed, empty=True):
  """Inputs of every estimator; what does not count is unrelated numbers."""
  rng = np.random.default_rng(seed)
  P, G = rewards_PG.shape
  lengths_PG = rng.integers(0 if empty else 1, T + 1, size=(P, G))
  mask_PGT = np.arange(T) < lengths_PG[..., None]
  last_PGT = np.arange(T) == lengths_PG[..., None] - 1
  kept_PGT = mask_PGT & (rng.random((P, G, T)) < 0.8)  # With holes.
  mask_PGT = kept_PGT | last_PGT
  token_rewards_PGT = np.where(last_PGT, rewards_PG[..., None], 0.0)
  noise_PGT = 1e3 * rng.normal(size=(P, G, T))
  return {
    'mask_PGT': mask_PGT,
    'token_rewards_PGT': np.where(mask_PGT, token_rewards_PGT, noise_PGT),
    'logps_PGT': np.where(mask_PGT, -rng.random((P, G, T)), noise_PGT),
    'squares_PGT': np.where(mask_PGT, rng.random((P, G, T)), noise_PGT),
    'correction_PGT': np.where(mask_PGT, rng.random((P, G, T)), noise_PGT),
    'greedy_P': rng.normal(size=P),
    'parts': {'first': rewards_PG, 'second': 3.0 - 0.5 * rewards_PG**2},
    'part_weights': {'first': 1.0, 'second': 0.5},
  }


def shifted(rewards_PG, inputs, shift_P1):
  """The same with each group's rewards moved by a number."""
  inputs = dict(inputs)
  mask_PGT = inputs['mask_PGT']
  last_PGT = np.cumsum(mask_PGT, -1) == mask_PGT.sum(-1, keepdims=True)
  moved_PGT = inputs['token_rewards_PGT'] + shift_P1[..., None]
  inputs['token_rewards_PGT'] = np.where(
    last_PGT & mask_PGT, moved_PGT, inputs['token_rewards_PGT']
  )
  inputs['parts'] = {k: x + shift_P1 for k, x in inputs['parts'].items()}
  return rewards_PG + shift_P1, inputs


def take(inputs, index):
  """The inputs of other completions, in another order."""
  out = {k: x[index] for k, x in inputs.items() if k.endswith('_PGT')}
  out['greedy_P'] = inputs['greedy_P']
  out['parts'] = {k: x[index] for k, x in inputs['parts'].items()}
  return out | {'part_weights': inputs['part_weights']}


P, G = 3, 4
NUMBERS = st.one_of(
  # Shifts and sums of these are exact, and many are equal.
  st.sampled_from([0.0, 1.0, -0.5, 0.25, np.nan]),
  st.floats(-8, 8, width=16),
)
REWARDS = hnp.arrays(np.float64, (P, G), elements=NUMBERS)
SEEDS = st.integers(0, 2**16)
examples = functools.partial(settings, max_examples=30, deadline=None)


@pytest.mark.parametrize('name', with_property('zero'))
@examples()
@given(
  rewards_PG=REWARDS,
  seed=SEEDS,
  value=st.sampled_from([0.0, 0.1, 1 / 3, 0.95, 1000.1, -7.3]),
  dtype=st.sampled_from([np.float32, np.float64]),
)
def test_equal_rewards_give_exactly_zero(name, rewards_PG, seed, value, dtype):
  rewards_PG[1] = np.where(np.isnan(rewards_PG[1]), np.nan, value)
  with jax.enable_x64(dtype is np.float64):
    rewards_PG = rewards_PG.astype(dtype)
    actual = estimate(name, rewards_PG, some_inputs(rewards_PG, seed))
  np.testing.assert_array_equal(actual[1], 0.0)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('value', [0.0, 0.1, 1 / 3, 1000.1])
@pytest.mark.parametrize(
  'name,knobs',
  [
    ('optimal_token_baseline', {'zero_tail': False}),
    ('optimal_token_baseline', {'zero_tail': False, 'close_holes': False}),
    ('reinforce_pp_baseline', {}),
    ('reinforce_pp', {}),
    ('gdpo', {'over_tokens': True}),
  ],
)
def test_a_batch_of_equal_rewards_gives_exactly_zero(name, knobs, value, dtype):
  with jax.enable_x64(dtype is np.float64):
    rewards_PG = np.full((P, G), value, dtype)
    rewards_PG[1, 2] = np.nan
    inputs = some_inputs(rewards_PG, seed=1)
    actual = estimate(name, rewards_PG, inputs, **knobs)
  np.testing.assert_array_equal(actual, 0.0)


@pytest.mark.parametrize('name', with_property('shift'))
@examples()
@given(
  rewards_PG=REWARDS,
  seed=SEEDS,
  shift_P=hnp.arrays(np.float64, P, elements=st.integers(-64, 64)),
)
def test_a_shift_of_the_groups_rewards_changes_nothing(
  name, rewards_PG, seed, shift_P
):
  inputs = some_inputs(rewards_PG, seed)
  with jax.enable_x64(True):
    before = estimate(name, rewards_PG, inputs)
    after = estimate(name, *shifted(rewards_PG, inputs, shift_P[:, None]))
  np.testing.assert_allclose(after, before, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('name', with_property('sum'))
@examples()
@given(rewards_PG=REWARDS, seed=SEEDS)
def test_the_advantages_of_a_group_add_up_to_zero(name, rewards_PG, seed):
  with jax.enable_x64(True):
    actual_PG = estimate(name, rewards_PG, some_inputs(rewards_PG, seed))
  limit = 1e-10 * (1 + np.abs(actual_PG).max())
  np.testing.assert_allclose(actual_PG.sum(1), 0.0, atol=limit)


@pytest.mark.parametrize('name', with_property('others'))
@examples()
@given(rewards_PG=REWARDS, other_PG=REWARDS, seed=SEEDS)
def test_a_groups_advantages_do_not_depend_on_the_others(
  name, rewards_PG, other_PG, seed
):
  other_PG[1] = rewards_PG[1]
  with jax.enable_x64(True):
    before = estimate(name, rewards_PG, some_inputs(rewards_PG, seed))
    after = estimate(name, other_PG, some_inputs(other_PG, seed))
  np.testing.assert_array_equal(after[1], before[1])


def test_what_the_table_denies_does_not_hold():
  rng = np.random.default_rng(0)
  rewards_PG = np.array(
    [[0.25] * G, [0.0, 1.0, 0.0, 0.0], [0.0, 2.0, 1.0, 2.0]]
  )
  inputs = some_inputs(rewards_PG, seed=3, empty=False)
  other_PG = rewards_PG.copy()
  other_PG[2] = rng.normal(size=G)
  others = some_inputs(other_PG, seed=3, empty=False)
  shift_P1 = np.array([[0.0], [3.0], [-1.0]])
  for name, held in PROPERTIES.items():
    with jax.enable_x64(True):
      x = estimate(name, rewards_PG, inputs)
      moved = estimate(name, *shifted(rewards_PG, inputs, shift_P1))
      other = estimate(name, other_PG, others)
    found = {
      'zero': not x[0].any(),
      'shift': np.allclose(moved, x),
      'sum': np.allclose(x.reshape(P, -1).sum(1), 0.0),
      'others': np.allclose(other[:2], x[:2]),
    }
    assert {key for key in found if found[key]} == set(held.split()), name


@pytest.mark.parametrize('name', PROPERTIES)
@examples()
@given(rewards_PG=REWARDS, seed=SEEDS, order_G=st.permutations(range(G)))
def test_the_order_of_completions_does_not_matter(
  name, rewards_PG, seed, order_G
):
  if name == 'best_of_group':  # It takes the first of equals.
    rewards_PG += 1e-3 * np.arange(G)
  inputs = some_inputs(rewards_PG, seed)
  index = (slice(None), np.array(order_G))
  with jax.enable_x64(True):
    straight = estimate(name, rewards_PG, inputs)
    mixed = estimate(name, rewards_PG[index], take(inputs, index))
  np.testing.assert_allclose(mixed, straight[index], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('name', PROPERTIES)
@examples()
@given(rewards_PG=REWARDS, seed=SEEDS)
def test_unscored_completions_get_zero_and_never_nan(name, rewards_PG, seed):
  inputs = some_inputs(rewards_PG, seed)
  for G_, mask_PGT in [
    (G, inputs['mask_PGT']),
    (G, np.zeros((P, G, T), bool)),
    (1, inputs['mask_PGT']),
  ]:
    index = (slice(None), slice(G_))
    few = take(inputs | {'mask_PGT': mask_PGT}, index)
    actual = estimate(name, rewards_PG[index], few)
    assert np.isfinite(actual).all()
    np.testing.assert_array_equal(actual[np.isnan(rewards_PG[index])], 0.0)


@pytest.mark.parametrize('name', PROPERTIES)
def test_an_unscored_completion_counts_as_if_it_were_not_there(name):
  rng = np.random.default_rng(5)
  rewards_PG = rng.normal(size=(6, 5))
  inputs = some_inputs(rewards_PG, seed=5)
  left = [0, 1, 3, 4]
  index = (slice(None), left)
  with jax.enable_x64(True):
    expected = estimate(name, rewards_PG[index], take(inputs, index))
    rewards_PG[:, 2] = np.nan
    inputs['token_rewards_PGT'][:, 2] = np.nan
    for part in inputs['parts'].values():
      part[:, 2] = np.nan
    actual = estimate(name, rewards_PG, inputs)
  np.testing.assert_allclose(actual[index], expected, rtol=1e-9, atol=1e-11)
  np.testing.assert_array_equal(actual[:, 2], 0.0)


@pytest.mark.parametrize('name', PROPERTIES)
def test_what_the_mask_leaves_out_is_not_looked_at(name):
  rewards_PG = random_rewards(G, seed=7)
  inputs = some_inputs(rewards_PG, seed=7)
  wide = dict(inputs)
  for key, value in [
    ('mask_PGT', False),
    ('token_rewards_PGT', 1e30),
    ('logps_PGT', 500.0),
    ('squares_PGT', -1e30),
    ('correction_PGT', 1e30),
  ]:
    x_PGT = np.where(inputs['mask_PGT'], inputs[key], value)
    pad = [(0, 0), (0, 0), (0, 3)]
    wide[key] = np.pad(x_PGT, pad, constant_values=value)
  with jax.enable_x64(True):
    expected = estimate(name, rewards_PG, inputs)
    actual = estimate(name, rewards_PG, wide)
  if actual.ndim == 3:
    assert not actual[..., T:].any()
    assert not expected[~inputs['mask_PGT']].any()
    actual = actual[..., :T]
  np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('name', PROPERTIES)
def test_eight_devices_give_the_numbers_of_one(name):
  rng = np.random.default_rng(11)
  rewards_PG = rng.normal(size=(16, G))
  rewards_PG[3, 1] = np.nan
  inputs = some_inputs(rewards_PG, seed=11)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  spread = jax.sharding.NamedSharding(mesh, jax.P('data'))

  with jax.enable_x64(True):
    expected = estimate(name, rewards_PG, inputs)
    rewards_PG = jax.device_put(rewards_PG, spread)
    inputs = jax.tree.map(
      lambda x: jax.device_put(x, spread) if np.ndim(x) else x, inputs
    )
    actual = estimate(name, rewards_PG, inputs)
  np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)
