"""Draws against the distribution that they come from."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from numpy_llama import log_softmax
import pytest

from grpo_jax import sampling

sample = jax.jit(sampling.sample, static_argnames='temperature')
ALMOST_ONE = np.float32(1 - 2**-24)


def draw(logits_V, uniform_B, temperature=1.0):
  """Tokens and log-probs of one distribution at many places."""
  shape = (len(uniform_B), len(logits_V))
  logits_BV = np.broadcast_to(np.float32(logits_V), shape)
  drawn = sample(logits_BV, np.float32(uniform_B), temperature=temperature)
  return jax.device_get(drawn)


def random_logits(V, scale, seed=0):
  return np.random.default_rng(seed).normal(size=V) * scale


@pytest.mark.parametrize('temperature', [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
  'V,scale', [(5, 1), (128, 1), (129, 1), (300, 2), (1000, 1), (300, 40)]
)
def test_evenly_spaced_noise_gives_the_share_of_every_token(
  V, scale, temperature
):
  # Inversion turns N even steps into N * p draws, give or take one.
  logits_V, N = random_logits(V, scale), 10_000
  tokens_N, _ = draw(logits_V, (np.arange(N) + 0.5) / N, temperature)
  expected_V = N * np.exp(log_softmax(logits_V / temperature))
  counts_V = np.bincount(tokens_N, minlength=V)
  assert len(counts_V) == V
  assert np.abs(counts_V - expected_V).max() < 1.5


def test_the_noise_of_many_samples_gives_the_share_of_every_token():
  logits_V, N = random_logits(200, 1.5), 20_000
  (uniform_N,) = sampling.noise(
    jax.random.key(3), np.arange(N) // 100, np.arange(N) % 100, np.array([5])
  )
  tokens_N, _ = draw(logits_V, uniform_N)
  expected_V = N * np.exp(log_softmax(logits_V))
  counts_V = np.bincount(tokens_N, minlength=200)
  chi_squared = np.sum((counts_V - expected_V) ** 2 / expected_V)
  assert abs(chi_squared - 199) < 4 * np.sqrt(2 * 199)


@pytest.mark.parametrize('temperature', [0.3, 1.0, 2.0])
@pytest.mark.parametrize('V', [50, 128, 300])
def test_the_log_prob_is_of_the_distribution_that_was_sampled(V, temperature):
  logits_V = random_logits(V, 5)
  tokens_N, logps_N = draw(logits_V, np.linspace(0, 0.999, 200), temperature)
  expected_V = log_softmax(np.float32(logits_V).astype(float) / temperature)
  np.testing.assert_allclose(logps_N, expected_V[tokens_N], atol=1e-5, rtol=0)


def test_temperature_0_is_the_most_probable_token():
  rng = np.random.default_rng(0)
  logits_BV = rng.normal(size=(50, 300)).astype(np.float32)
  tokens_B, logps_B = sample(
    logits_BV, rng.random(50, np.float32), temperature=0.0
  )
  np.testing.assert_array_equal(tokens_B, logits_BV.argmax(axis=1))
  expected_B = log_softmax(logits_BV.astype(float)).max(axis=1)
  np.testing.assert_allclose(logps_B, expected_B, atol=1e-5, rtol=0)


@pytest.mark.parametrize('V', [1, 5, 127, 128, 129, 200, 300, 640])
def test_the_ends_of_the_noise_give_the_first_and_last_possible_token(V):
  for seed in range(10):
    logits_V = random_logits(V, 1, seed)
    masked_V = np.random.default_rng(seed).random(V) < 0.6
    masked_V[seed % V] = False
    logits_V[masked_V] = -np.inf
    (first, last), logps = draw(logits_V, [0.0, ALMOST_ONE])
    possible = np.flatnonzero(~masked_V)
    assert (first, last) == (possible[0], possible[-1])
    assert np.isfinite(logps).all()


def test_a_masked_token_is_never_drawn_where_two_blocks_meet():
  # Both sides of every border between blocks, as close as float32 comes.
  V, block = 2560, 128
  for seed in range(8):
    logits_V = random_logits(V, 3, seed)
    masked_V = np.random.default_rng(seed).random(V) < 0.5
    masked_V[::block] = True
    logits_V[masked_V] = -np.inf
    ends_V = np.cumsum(np.exp(log_softmax(logits_V)))
    near_N = np.add.outer(
      np.round(ends_V[block - 1 :: block] * 2**23), range(-5, 6)
    )
    uniform_N = near_N.ravel() / 2**23
    tokens_N, logps_N = draw(logits_V, uniform_N[uniform_N < 1])
    assert not masked_V[tokens_N].any()
    assert np.isfinite(logps_N).all()


def test_a_masked_token_is_never_drawn_where_sums_are_taken_as_a_tree(
  monkeypatch,
):
  # As on a GPU: adding nothing may then change a running sum by a rounding.
  def tree_sum(x, axis):
    return jax.lax.associative_scan(jnp.add, x, axis=axis)

  monkeypatch.setattr(sampling.jnp, 'cumsum', tree_sum)
  logits_V = random_logits(256, 3)
  masked_V = np.random.default_rng(0).random(256) < 0.5
  logits_V[masked_V] = -np.inf
  weights_BV = np.exp(logits_V - logits_V.max(), dtype=np.float32)[None, :128]
  ends_V = np.asarray(tree_sum(weights_BV, axis=-1))[0]
  targets_N1 = np.concatenate([ends_V, np.nextafter(ends_V, 0)])[:, None]
  bins_N, _ = sampling._invert(np.tile(weights_BV, (256, 1)), targets_N1)
  assert not masked_V[bins_N].any()


def test_a_certain_token_is_always_drawn():
  logits_V = np.full(300, -1e9)
  logits_V[217] = 1e9
  tokens_N, logps_N = draw(logits_V, [0, 1e-30, 0.3, 0.999, ALMOST_ONE])
  np.testing.assert_array_equal(tokens_N, 217)
  np.testing.assert_array_equal(logps_N, 0)


def test_noise_depends_on_key_prompt_sample_and_position_alone():
  prompts_B = np.array([7, 7, 2**31 + 5, 9], np.uint32)
  samples_B = np.array([0, 1, 0, 3])
  key = jax.random.key(1)
  t_T = np.array([4, 9])
  whole_TB = sampling.noise(key, prompts_B, samples_B, t_T)
  order = np.array([2, 0, 3, 1])
  mixed_TB = sampling.noise(key, prompts_B[order], samples_B[order], t_T)
  np.testing.assert_array_equal(mixed_TB, whole_TB[:, order])
  compiled = jax.jit(sampling.noise)
  for b in range(4):
    row = slice(b, b + 1)
    for i in range(2):
      at = slice(i, i + 1)
      alone = compiled(key, prompts_B[row], samples_B[row], t_T[at])
      np.testing.assert_array_equal(alone, whole_TB[at, row])


def test_noise_never_repeats():
  """Of three steps of two seeds, and where evaluations use a seed's own key."""
  rows = np.array(list(itertools.product(range(5), range(5)))).T
  seeds = [jax.random.key(seed) for seed in (0, 1)]
  steps = [
    jax.random.fold_in(seed, step) for seed in seeds for step in range(3)
  ]
  seen = [sampling.noise(key, *rows, np.arange(6)) for key in seeds + steps]
  assert len(np.unique(seen)) == len(seen) * 6 * 25 == 8 * 6 * 25


@pytest.mark.parametrize('top_p', [0.05, 0.5, 0.95])
def test_the_nucleus_is_the_fewest_most_probable_tokens(top_p):
  rng = np.random.default_rng(1)
  weights_BV = np.exp(rng.normal(size=(20, 300)) * 3).astype(np.float32)
  weights_BV[:5] = np.round(weights_BV[:5])  # Some weigh the same, some 0.
  found_BV = np.asarray(sampling.nucleus(weights_BV, top_p))
  for weights_V, found_V in zip(weights_BV, found_BV, strict=True):
    kept, mass = set(), 0.0
    for v in sorted(range(300), key=lambda v: -weights_V[v]):
      if mass < top_p * weights_V.sum():
        kept.add(v)
        mass += weights_V[v]
    least = min(weights_V[v] for v in kept)
    expected_V = np.where(weights_V >= least, weights_V, 0)
    np.testing.assert_array_equal(found_V, expected_V)


def test_top_p_draws_from_the_nucleus_and_tells_its_log_probs():
  logits_V, N, top_p = random_logits(50, 2), 1000, 0.7
  logits_BV = np.broadcast_to(np.float32(logits_V), (N, 50))
  uniform_N = np.float32((np.arange(N) + 0.5) / N)
  token_N, logp_N = sampling.sample(logits_BV, uniform_N, 0.8, top_p=top_p)
  weights_V = sampling.nucleus(np.exp(np.float32(logits_V / 0.8))[None], top_p)
  p_V = np.asarray(weights_V[0] / weights_V.sum())
  counts_V = np.bincount(token_N, minlength=50)
  assert np.abs(counts_V - N * p_V).max() < 1.5
  np.testing.assert_allclose(logp_N, np.log(p_V[token_N]), atol=1e-5)
