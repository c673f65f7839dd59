"""Kernels of attention against one that writes every pair out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models, types
from grpo_jax.models import attention

P, G, K, R, H = 2, 3, 2, 2, 8
B = P * G


def arrays(T, S, L, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return (
    draw(B, K, R, T, H),
    draw(B, K, H, S),
    draw(B, K, H, S),
    (draw(P, K, L, H), draw(P, K, H, L), np.array([L, L // 2], np.int32)),
  )


def pair_by_pair(q, k, v, reach, prompt, b, r, t, n):
  """The output of one query of head n."""
  ids = reach.segment_ids_BS
  at = int(reach.used) + t
  window = 10**9 if reach.window is None else int(reach.window)
  keys, values = [], []
  if prompt is not None:
    prompt_k, prompt_v, lengths = prompt
    for l in range(lengths[b // G]):
      if lengths[b // G] + at - l < window:
        keys.append(prompt_k[b // G, n, l])
        values.append(prompt_v[b // G, n, :, l])
  for s in range(at + 1):
    if at - s < window and (ids is None or ids[b, s] == ids[b, at]):
      keys.append(k[b, n, :, s])
      values.append(v[b, n, :, s])
  logits = np.array(keys, np.float64) @ np.float64(q[b, n, r, t])
  share = np.exp(logits - logits.max())
  return share / share.sum() @ np.array(values, np.float64)


KERNELS = {
  'plain': attention.plain,
  'chunked': functools.partial(attention.chunked, chunk=4),
}
REACHES = {
  'all': attention.Reach(),
  'window': attention.Reach(windows=(5,)),
  'documents': attention.Reach(
    np.repeat([[1, 2, 3]], B, 0).repeat(5, 1)[:, :13]
  ),
  'both': attention.Reach(
    np.repeat([[1, 2, 3]], B, 0).repeat(5, 1)[:, :13],
    windows=(13, 3),
    kind=jnp.int32(1),
  ),
}


CASES = [(name, False) for name in REACHES] + [('all', True), ('window', True)]


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('name,prompted', CASES)
def test_a_kernel_equals_the_sum_over_pairs(kernel, name, prompted):
  reach = REACHES[name]
  q, k, v, prompt = arrays(T=13, S=13, L=7)
  prompt = prompt if prompted else None
  actual = KERNELS[kernel](q, k, v, reach, prompt)
  assert actual.shape == q.shape
  for b, n, r, t in [(0, 0, 0, 0), (1, 1, 1, 12), (5, 0, 1, 6), (4, 1, 0, 9)]:
    expected = pair_by_pair(q, k, v, reach, prompt, b, r, t, n)
    np.testing.assert_allclose(actual[b, n, r, t], expected, atol=1e-5)


@pytest.mark.parametrize('window', [None, 6])
def test_chunks_have_the_gradients_of_the_whole(window):
  q, k, v, prompt = arrays(T=13, S=13, L=7)
  reach = attention.Reach(windows=() if window is None else (window,))
  weights = np.random.default_rng(1).normal(size=q.shape)

  def value(kernel, q, k, v, prompt_k, prompt_v):
    y = kernel(q, k, v, reach, (prompt_k, prompt_v, prompt[2]))
    return jnp.sum(weights * y)

  arguments = q, k, v, *prompt[:2]
  actual, expected = (
    jax.grad(functools.partial(value, KERNELS[name]), range(5))(*arguments)
    for name in ('chunked', 'plain')
  )
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, atol=1e-5)


def test_queries_of_a_cache_stand_behind_its_keys():
  q, k, v, prompt = arrays(T=5, S=13, L=7)
  for name, kernel in KERNELS.items():
    reach = attention.Reach(used=jnp.int32(6), windows=(9,))
    actual = kernel(q, k, v, reach, prompt)
    expected = pair_by_pair(q, k, v, reach, prompt, b=4, r=1, t=4, n=0)
    np.testing.assert_allclose(actual[4, 0, 1, 4], expected, atol=1e-5), name


def test_the_memory_of_chunks_grows_with_the_length_only():
  model = models.build('llama', 'tiny', attention='chunked', remat='full')
  params = models.abstract_params(model)

  def bytes_of(T, model):
    tokens = jax.ShapeDtypeStruct((1, T), jnp.int32)

    def loss(params, tokens_BT, positions_BT):
      inputs = types.ModelInputs(tokens_BT, positions_BT)
      return jnp.sum(model.apply(params, inputs).hidden_BTD)

    compiled = jax.jit(jax.grad(loss)).lower(params, tokens, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  short, long = bytes_of(2048, model), bytes_of(8192, model)
  assert long < 4.5 * short
  plain = models.build('llama', 'tiny', remat='full')
  assert bytes_of(2048, plain) > 4 * short


def test_a_model_may_take_another_kernel():
  sizes = dict(vocab_size=24)
  plain = models.build('gemma3', 'tiny', **sizes)
  chunked = models.build('gemma3', 'tiny', attention='chunked', **sizes)
  params = models.init_params(plain, jax.random.key(0))
  T = 150  # More than a chunk.
  tokens = np.random.default_rng(0).integers(24, size=(2, T)).astype(np.int32)
  places = np.broadcast_to(np.arange(T, dtype=np.int32), (2, T))
  inputs = types.ModelInputs(tokens, places)
  np.testing.assert_allclose(
    chunked.apply(params, inputs).hidden_BTD,
    plain.apply(params, inputs).hidden_BTD,
    atol=2e-5,
  )
  with pytest.raises(ValueError, match="attention='flash' is not one of"):
    models.build('llama', 'tiny', attention='flash')
