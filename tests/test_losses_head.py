"""The head in chunks against all logits at one time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import head

B, T, D, V = 3, 7, 8, 30


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


def test_bfloat16_products_are_summed_in_float32(arrays):
  hidden_BTD, head_DV, tokens_BT = arrays
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in (hidden_BTD, head_DV)]
  actual_BT = head.token_logps(*rounded, tokens_BT, chunk=4)
  wide = [np.asarray(x, np.float32) for x in rounded]
  assert actual_BT.dtype == jnp.float32
  expected_BT = loop(*wide, tokens_BT, 1.0)
  np.testing.assert_allclose(actual_BT, expected_BT, atol=1e-5, rtol=0)
