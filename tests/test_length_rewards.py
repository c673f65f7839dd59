"""Rewards of length and repetition against plain Python and other projects."""

import json
import math
import pathlib

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import types
from grpo_jax.rewards import length_cosine, length_kimi, overlong, repetition

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden/length_rewards.json').read_text()
)


def of_tokens(tokens_PGT, lengths_PG):
  """A rollout of which only tokens and lengths matter."""
  return types.Rollout(
    prompts=None,
    tokens_PGT=jnp.asarray(tokens_PGT, jnp.int32),
    lengths_PG=jnp.asarray(lengths_PG, jnp.int32),
    ended_PG=None,
    logps_PGT=None,
    actions_PGT=None,
  )


def of_lengths(lengths_PG, T=None):
  lengths_PG = np.asarray(lengths_PG)
  T = T or lengths_PG.max()
  return of_tokens(np.zeros((*lengths_PG.shape, T)), lengths_PG)


def golden_tokens(G=226):
  """All completions of the golden file as one group, noise in the padding."""
  rng = np.random.default_rng(0)
  ids = GOLDEN['ids']
  tokens_BT = rng.integers(0, 49152, (226, max(map(len, ids)) + 3))
  for row_T, row in zip(tokens_BT, ids, strict=True):
    row_T[: len(row)] = row
  shape = 226 // G, G
  return of_tokens(
    tokens_BT.reshape(*shape, -1), np.reshape([*map(len, ids)], shape)
  )


def run(function, rollout, **knobs):
  return np.asarray(
    jax.jit(lambda r: function(r, None, None, **knobs))(rollout)
  )


@pytest.mark.parametrize(
  'name, knobs',
  {
    'cosine_max_len50': {'limit': 50},
    'cosine_max_len20_custom': {
      'limit': 20,
      'wrong': (-2.0, -0.1),
      'correct': (0.2, 3.0),
    },
  }.items(),
)
def test_the_cosine_is_that_of_trl(name, knobs):
  right_B = np.array(GOLDEN['trl']['right']) == 1
  score_PG = run(
    length_cosine.length_cosine,
    golden_tokens(),
    right_PG=right_B[None],
    **knobs,
  )
  expected_B = np.array(GOLDEN['trl'][name], float)
  # TRL's own grader cannot read the reference answer of these. Here it is the
  # part that `right` names which leaves a completion unscored.
  assert np.flatnonzero(np.isnan(expected_B)).tolist() == [45, 46, 94, 95]
  scored_B = ~np.isnan(expected_B)
  np.testing.assert_allclose(
    score_PG[0, scored_B], expected_B[scored_B], atol=1e-6
  )


def right_in_open_r1():
  """What its length rewards take for right; NaN where the gold is unreadable.

  Its accuracy reward reads in another way. It finds no answer in row 215,
  `\\boxed{x>3}`, and calls rows 47 and 96 right, whose gold has no dollars.
  """
  right_B = np.array(GOLDEN['open_r1']['right'], float)
  right_B[215] = 1
  right_B[[47, 96]] = np.nan
  return right_B


@pytest.mark.parametrize(
  'name, knobs, turned_back',
  [
    ('cosine_default', {'limit': 1000}, [144, 145]),
    (
      'cosine_short',
      {'limit': 200},
      [24, 25, 73, 74, 138, 139, 144, 145],
    ),
    (
      'cosine_script_defaults',
      {'limit': 1000, 'wrong': (0.0, -0.5)},
      [144, 145],
    ),
  ],
)
def test_the_cosine_is_that_of_open_r1_up_to_the_limit(
  name, knobs, turned_back
):
  """With characters for tokens, of which row 146 has five times the limit."""
  right_B = right_in_open_r1()
  score_PG = run(
    length_cosine.length_cosine,
    of_lengths([GOLDEN['characters']]),
    right_PG=right_B[None] == 1,
    **knobs,
  )
  expected_B = np.array(GOLDEN['open_r1'][name])
  unread_B = np.isnan(right_B)  # 1 without looking at the length.
  assert np.all(expected_B[unread_B] == 1)
  differs_B = (np.abs(score_PG[0] - expected_B) > 1e-6) & ~unread_B
  # Its cosine turns back after the limit, ours stays.
  assert np.flatnonzero(differs_B).tolist() == turned_back
  beyond_B = np.array(GOLDEN['characters']) > knobs['limit']
  assert np.all(beyond_B[differs_B])


def test_the_cosine_falls_for_right_and_climbs_for_wrong_completions():
  rollout = of_lengths([[0, 5, 10, 20, 10]], T=10)
  right_PG = jnp.array([[True, True, True, True, False]])
  score_PG = run(length_cosine.length_cosine, rollout, right_PG=right_PG)
  np.testing.assert_allclose(score_PG, [[1.0, 0.75, 0.5, 0.5, -0.5]], atol=1e-6)
  score_PG = run(length_cosine.length_cosine, rollout, right_PG=~right_PG)
  np.testing.assert_allclose(
    score_PG, [[-1.0, -0.75, -0.5, -0.5, 0.5]], atol=1e-6
  )


def kimi_oracle(lengths, right):
  low, high = min(lengths), max(lengths)
  if low == high:
    return [0.0] * len(lengths)
  scores = [0.5 - (length - low) / (high - low) for length in lengths]
  return [
    score if good else min(0.0, score)
    for score, good in zip(scores, right, strict=True)
  ]


@pytest.mark.parametrize(
  'name, groups',
  [
    ('len_whole_list', [(0, 226, 226)]),
    ('len_batches', [(0, 224, 8), (224, 226, 2)]),
  ],
)
def test_kimis_length_is_that_of_open_r1_for_groups_in_characters(name, groups):
  """Its batch is our group; an unreadable gold counts as right there."""
  expected_B = np.array(GOLDEN['open_r1'][name], float)
  lengths_B = np.array(GOLDEN['characters'])
  right_B = right_in_open_r1() != 0
  for start, end, G in groups:
    expected_PG, lengths_PG, right_PG = (
      x[start:end].reshape(-1, G) for x in (expected_B, lengths_B, right_B)
    )
    score_PG = run(
      length_kimi.length_kimi, of_lengths(lengths_PG), right_PG=right_PG
    )
    scored_PG = ~np.isnan(expected_PG)  # Or None; it still sets the bounds.
    np.testing.assert_allclose(
      score_PG[scored_PG], expected_PG[scored_PG], atol=1e-6
    )


def test_the_length_of_kimi_compares_within_the_group_of_a_prompt():
  rng = np.random.default_rng(0)
  lengths_PG = rng.integers(1, 60, (400, 6))
  lengths_PG[::5] = lengths_PG[::5, :1]  # All alike.
  right_PG = rng.random((400, 6)) < 0.5
  score_PG = run(
    length_kimi.length_kimi, of_lengths(lengths_PG), right_PG=right_PG
  )
  expected_PG = [
    kimi_oracle(*pair)
    for pair in zip(lengths_PG.tolist(), right_PG.tolist(), strict=True)
  ]
  np.testing.assert_allclose(score_PG, expected_PG, atol=1e-6)
  assert np.all(score_PG[::5] == 0) and np.all(score_PG[~right_PG] <= 0)


@pytest.mark.parametrize(
  'limit, cache', [(60, 20), (40, 40), (30, 0), (100, 7)]
)
def test_the_overlong_penalty_is_that_of_trl(limit, cache):
  score_PG = run(overlong.overlong, golden_tokens(), limit=limit, cache=cache)
  expected_B = GOLDEN['trl'][f'soft_overlong_max{limit}_cache{cache}']
  np.testing.assert_allclose(score_PG[0], expected_B, atol=1e-6)


def test_the_overlong_penalty_takes_its_limit_from_the_rollout():
  score_PG = run(overlong.overlong, of_lengths([[0, 15, 16, 18, 20]], T=20))
  np.testing.assert_allclose(
    score_PG, [[0.0, 0.0, -0.2, -0.6, -1.0]], atol=1e-6
  )


def repetition_oracle(tokens, n, max_penalty):
  grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
  if not grams:
    return 0.0
  return max_penalty * (1 - len(set(grams)) / len(grams))


@pytest.mark.parametrize('n, penalty', [(3, -1.0), (2, -0.5), (1, -1.0)])
def test_the_repetition_penalty_is_that_of_trl(n, penalty):
  score_PG = run(
    repetition.repetition, golden_tokens(), n=n, max_penalty=penalty
  )
  expected_B = GOLDEN['trl'][f'repetition_n{n}_p{penalty}']
  np.testing.assert_allclose(score_PG[0], expected_B, atol=1e-6)


def repetitive(rng, B, T):
  """Completions that say the same never, often, or from some point on."""
  kinds = rng.integers([2, 5, 300, 2**31 - 1], size=(B, T, 4))
  tokens_BT = np.take_along_axis(kinds, rng.integers(4, size=(B, 1, 1)), 2)
  tokens_BT = tokens_BT[..., 0]
  for row_T in tokens_BT[::3]:
    start, period = rng.integers(T), rng.integers(1, 9)
    row_T[start:] = np.resize(row_T[:period], T - start)
  lengths_B = rng.integers(0, T + 1, B)
  lengths_B[::4] = T
  return tokens_BT, lengths_B


def assert_repetition_is_exact(tokens_BT, lengths_B, n):
  score_PG = run(
    repetition.repetition,
    of_tokens(tokens_BT[:, None], lengths_B[:, None]),
    n=n,
  )
  expected_B = [
    repetition_oracle(row_T[:length].tolist(), n, -1.0)
    for row_T, length in zip(tokens_BT, lengths_B, strict=True)
  ]
  # The counts are below 2**24, so that float32 tells any two scores apart.
  np.testing.assert_allclose(score_PG[:, 0], expected_B, atol=1e-6)


@pytest.mark.parametrize(
  'n, B, T',
  [(1, 2000, 40), (2, 2000, 40), (3, 2000, 40), (8, 2000, 40), (3, 1000, 1024)],
)
def test_repetition_counts_n_grams_as_python_does(n, B, T):
  rng = np.random.default_rng([n, T])
  assert_repetition_is_exact(*repetitive(rng, B, T), n)


def test_repetition_counts_in_long_completions_too():
  rng = np.random.default_rng(0)
  assert_repetition_is_exact(*repetitive(rng, 40, 3000), 4)


@pytest.mark.parametrize('bits', [0, 1, 4])
def test_repetition_is_exact_when_n_grams_share_a_hash(monkeypatch, bits):
  """Only so many bits of the hash are left."""

  def sorted_(grams_nBT, total_B):
    T = grams_nBT[0].shape[1]
    hash_BT = sum((k + 1) * gram for k, gram in enumerate(grams_nBT)) % 2**bits
    at_BT = jnp.where(jnp.arange(T) < total_B[:, None], jnp.arange(T), T)
    return jax.lax.sort((hash_BT, at_BT), num_keys=2)

  monkeypatch.setattr(repetition, '_sorted', sorted_)
  rng = np.random.default_rng(bits)
  assert_repetition_is_exact(*repetitive(rng, 300, 40), 2)


ROWS, WIDTH = 128, 12


@settings(max_examples=25, deadline=None)
@given(
  st.lists(
    st.lists(st.integers(0, 3), max_size=WIDTH), min_size=1, max_size=ROWS
  )
)
def test_repetition_of_any_short_completions(rows):
  rows = rows + [[]] * (ROWS - len(rows))
  tokens_BT = np.array([row + [0] * (WIDTH - len(row)) for row in rows])
  assert_repetition_is_exact(tokens_BT, np.array([*map(len, rows)]), 2)


@pytest.mark.parametrize('n', [3, 4, 5])
def test_completions_shorter_than_an_n_gram_repeat_nothing(n):
  rollout = of_tokens([[[7, 7, 7, 7]] * 4], [[0, 1, 2, 4]])
  score_PG = run(repetition.repetition, rollout, n=n)
  expected = {3: -0.5, 4: 0.0, 5: 0.0}[n]
  np.testing.assert_array_equal(score_PG, [[0.0, 0.0, 0.0, expected]])


def test_a_cosine_is_half_way_at_half_of_the_limit():
  score_PG = run(
    length_cosine.length_cosine,
    of_lengths([[25]], T=100),
    right_PG=jnp.array([[True]]),
    limit=100,
  )
  expected = 0.5 + 0.25 * (1 + math.cos(math.pi / 4))
  np.testing.assert_allclose(score_PG, [[expected]], atol=1e-6)
