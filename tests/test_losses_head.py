"""The head in chunks against all logits at one time, and verl's numbers."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import head

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'kl.npz')
B, T, D, V = 3, 7, 8, 30
PARTS = ['logps_BT', 'entropies_BT', 'squares_BT']


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)
  hidden_BTD = rng.normal(size=(B, T, D)).astype(np.float32)
  head_DV = rng.normal(size=(D, V)).astype(np.float32)
  return hidden_BTD, head_DV, rng.integers(V, size=(B, T))


def loop(hidden_BTD, head_DV, tokens_BT, temperature):
  out_BT = np.zeros((B, T))
  for b in range(B):
    for t in range(T):
      logits_V = hidden_BTD[b, t].astype(float) @ head_DV / temperature
      top = logits_V.max()
      total = top + np.log(np.exp(logits_V - top).sum())
      out_BT[b, t] = logits_V[tokens_BT[b, t]] - total
  return out_BT


CHUNKS = [1, 4, 7, 20, 21, 100]  # 21 tokens: some divide, some do not.


@pytest.mark.parametrize('chunk', CHUNKS)
@pytest.mark.parametrize('temperature', [0.0, 0.5, 1.0])
def test_log_probs_equal_a_loop_whatever_the_chunk(arrays, chunk, temperature):
  actual_BT = head.token_logps(*arrays, temperature=temperature, chunk=chunk)
  expected_BT = loop(*arrays, temperature or 1.0)
  assert actual_BT.dtype == jnp.float32
  np.testing.assert_allclose(actual_BT, expected_BT, atol=1e-5, rtol=0)


@pytest.mark.parametrize('chunk', CHUNKS)
def test_gradients_equal_those_of_all_logits(arrays, chunk):
  hidden_BTD, head_DV, tokens_BT = arrays
  weights_BT = np.random.default_rng(1).normal(size=(B, T))

  def chunked(hidden_BTD, head_DV):
    logps_BT = head.token_logps(
      hidden_BTD, head_DV, tokens_BT, temperature=0.7, chunk=chunk
    )
    return jnp.sum(weights_BT * logps_BT)

  def whole(hidden_BTD, head_DV):
    logps_BTV = jax.nn.log_softmax(hidden_BTD @ head_DV / 0.7)
    chosen_BT1 = jnp.take_along_axis(logps_BTV, tokens_BT[..., None], axis=-1)
    return jnp.sum(weights_BT * chosen_BT1[..., 0])

  actual = jax.grad(chunked, (0, 1))(hidden_BTD, head_DV)
  expected = jax.grad(whole, (0, 1))(hidden_BTD, head_DV)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('chunk,products', [(21, 3), (20, 4)])
def test_logits_of_one_chunk_are_not_computed_again(arrays, chunk, products):
  hidden_BTD, head_DV, tokens_BT = arrays

  def total(hidden_BTD, head_DV):
    return head.token_logps(hidden_BTD, head_DV, tokens_BT, chunk=chunk).sum()

  found = jax.make_jaxpr(jax.grad(total, (0, 1)))(hidden_BTD, head_DV)
  assert str(found).count('dot_general') == products


def test_bfloat16_products_are_summed_in_float32(arrays):
  hidden_BTD, head_DV, tokens_BT = arrays
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in (hidden_BTD, head_DV)]
  actual_BT = head.token_logps(*rounded, tokens_BT, chunk=4)
  wide = [np.asarray(x, np.float32) for x in rounded]
  assert actual_BT.dtype == jnp.float32
  expected_BT = loop(*wide, tokens_BT, 1.0)
  np.testing.assert_allclose(actual_BT, expected_BT, atol=1e-5, rtol=0)


def all_logits(hidden_BTD, head_DV, tokens_BT, temperature):
  """What token_stats gives, by its definitions, from all logits."""
  logps_BTV = jax.nn.log_softmax(hidden_BTD @ head_DV / temperature)
  chosen_BT1 = jnp.take_along_axis(logps_BTV, tokens_BT[..., None], axis=-1)
  entropies_BT = -jnp.sum(jnp.exp(logps_BTV) * logps_BTV, axis=-1)
  squares_BT = jnp.sum(jnp.exp(2 * logps_BTV), axis=-1)
  return chosen_BT1[..., 0], entropies_BT, squares_BT


@pytest.mark.parametrize('chunk', CHUNKS)
@pytest.mark.parametrize('part', range(3), ids=PARTS)
def test_statistics_and_gradients_are_those_of_all_logits(arrays, chunk, part):
  hidden_BTD, head_DV, tokens_BT = arrays
  weights_BT = np.random.default_rng(1).normal(size=(B, T))
  with jax.enable_x64(True):
    wide = [jnp.asarray(x, jnp.float64) for x in (hidden_BTD, head_DV)]

    def chunked(hidden_BTD, head_DV):
      stats = head.token_stats(
        hidden_BTD,
        head_DV,
        tokens_BT,
        temperature=0.7,
        chunk=chunk,
        entropy=True,
        squares=True,
      )
      found_BT = getattr(stats, PARTS[part])
      return jnp.sum(weights_BT * found_BT), found_BT

    def whole(hidden_BTD, head_DV):
      found_BT = all_logits(hidden_BTD, head_DV, tokens_BT, 0.7)[part]
      return jnp.sum(weights_BT * found_BT), found_BT

    actual, found_BT = jax.grad(chunked, (0, 1), has_aux=True)(*wide)
    expected, wanted_BT = jax.grad(whole, (0, 1), has_aux=True)(*wide)
    actual, expected = map(jax.device_get, (actual, expected))
    np.testing.assert_allclose(found_BT, wanted_BT, rtol=1e-10)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('chunk', CHUNKS)
def test_what_else_is_asked_for_leaves_the_log_probs_as_they_are(arrays, chunk):
  plain_BT = head.token_logps(*arrays, chunk=chunk)
  bare = head.token_stats(*arrays, chunk=chunk)
  full = head.token_stats(*arrays, chunk=chunk, entropy=True, squares=True)
  np.testing.assert_array_equal(bare.logps_BT, plain_BT)
  np.testing.assert_array_equal(full.logps_BT, plain_BT)
  assert bare.entropies_BT is None and bare.squares_BT is None
  assert full.entropies_BT.dtype == full.squares_BT.dtype == jnp.float32


VERL = {
  'logps_BT': 'logprobs_from_logits',
  'entropies_BT': 'entropy_from_logits',
  'squares_BT': 'sum_pi_squared',
}


@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize('wide', [True, False])
def test_statistics_of_given_logits_are_those_of_verl(part, wide):
  upstream_BT, tokens_BT = GOLDEN['in.upstream'], GOLDEN['in.labels']
  with jax.enable_x64(wide):
    dtype = jnp.float64 if wide else jnp.float32
    logits_BTV = jnp.asarray(GOLDEN['in.logits'], dtype)
    # With this head the hidden states are the logits, to the bit.
    identity_VV = jnp.eye(logits_BTV.shape[-1], dtype=dtype)

    def run(logits_BTV):
      stats = head.token_stats(
        logits_BTV, identity_VV, tokens_BT, entropy=True, squares=True, chunk=13
      )
      found_BT = getattr(stats, part)
      return jnp.sum(jnp.asarray(upstream_BT, dtype) * found_BT), found_BT

    grad_BTV, value_BT = jax.grad(run, has_aux=True)(logits_BTV)
    grad_BTV, value_BT = np.asarray(grad_BTV), np.asarray(value_BT)
  assert value_BT.dtype == dtype
  tolerance = {'rtol': 1e-6, 'atol': 1e-12 if wide else 1e-6}
  expected_BT = GOLDEN[f'verl.{VERL[part]}.value']
  np.testing.assert_allclose(value_BT, expected_BT, **tolerance)
  if part != 'squares_BT':  # verl has no gradient of it.
    expected_BTV = GOLDEN[f'verl.{VERL[part]}.grad']
    np.testing.assert_allclose(grad_BTV, expected_BTV, **tolerance)


def test_the_entropy_of_large_logits_keeps_its_digits(arrays):
  hidden_BTD, head_DV, tokens_BT = arrays
  # All logits of a token moved alike: the distribution stays as it is.
  hidden_BTD = np.concatenate([hidden_BTD, np.ones((B, T, 1))], axis=-1)
  shifted_DV = np.concatenate([head_DV, np.full((1, V), 2048.0)])
  plain_DV = np.concatenate([head_DV, np.zeros((1, V))])
  entropies = [
    head.token_stats(
      hidden_BTD.astype(np.float32),
      head_DV.astype(np.float32),
      tokens_BT,
      entropy=True,
    ).entropies_BT
    for head_DV in (shifted_DV, plain_DV)
  ]
  # Such logits lie 1e-4 apart.
  np.testing.assert_allclose(*entropies, atol=5e-4)
