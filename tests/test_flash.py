"""Kernels of others, run on a CPU, against attention.plain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import likelihood, models, rollout, sharding, types
from grpo_jax.models import attention, flash

KERNELS = {
  'splash': functools.partial(flash.splash, interpret=True),
  'cudnn': functools.partial(flash.cudnn, implementation='xla'),
}


def arrays(P=2, G=2, K=2, R=2, T=13, L=7, H=8):
  """Queries, keys, values, prompts' keys and values; and prompts' lengths."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  B = P * G
  given = (
    draw(B, K, R, T, H) * np.float32(H**-0.5),
    draw(B, K, H, T),
    draw(B, K, H, T),
    draw(P, K, L, H),
    draw(P, K, H, L),
  )
  return given, np.resize(np.int32([L, L // 2, 1]), P)


def documents(B, T):
  """Of each row's tokens: two documents, and padding."""
  place_T, second_B1 = np.arange(T), 1 + np.arange(B)[:, None] % (T - 2)
  ids_BT = 1 + (place_T >= second_B1)
  return np.where(place_T < T - 1, ids_BT, 0).astype(np.int32)


def value_and_gradients(kernel, given, lengths, reach):
  """What a kernel gives, and the gradients of its sum, each number weighed.

  Where kinds are an array, of each of them in a scan.
  """
  weights = np.random.default_rng(1).normal(size=given[0].shape)

  def both(given, lengths, reach):
    def value(q, k, v, *prompt):
      prompt = None if lengths is None else (*prompt, lengths)
      y = kernel(q, k, v, reach, prompt)
      return jnp.sum(jnp.float32(weights) * y), y

    gradients, y = jax.grad(value, range(5), has_aux=True)(*given)
    return y, *gradients

  def each(given, lengths):
    if isinstance(reach.kind, int):
      return both(given, lengths, reach)
    return jax.lax.map(
      lambda kind: both(given, lengths, reach._replace(kind=kind)), reach.kind
    )

  return jax.device_get(compiled(each, given, lengths))


def compiled(function, *arguments):
  """Its result; compiled in a hurry, which halves the time of this file."""
  program = jax.jit(function).lower(*arguments)
  return program.compile({'xla_backend_optimization_level': 0})(*arguments)


def assert_equal(actual, expected):
  """To the rounding of float32, of each array's largest number."""
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * np.abs(e).max())


Reach = attention.Reach
KINDS = np.int32([0, 1])
OWN = {  # Sizes, and what a query sees.
  'more than a block': (dict(T=150, R=1), Reach()),
  'window': (dict(), Reach(windows=(5,))),
  'documents': (dict(), Reach(documents(4, 13), windows=(13, 3), kind=KINDS)),
}
BEHIND = {
  'heads of 64': (dict(H=64), Reach()),
  'more than a block': (dict(T=120, L=17, R=1), Reach(windows=(18,))),
  'scanned': (dict(), Reach(windows=(20, 6), kind=KINDS)),
}


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('case', OWN)
def test_own_keys_count_as_in_plain(kernel, case):
  sizes, reach = OWN[case]
  given, _ = arrays(**sizes)
  assert_equal(
    value_and_gradients(KERNELS[kernel], given, None, reach),
    value_and_gradients(attention.plain, given, None, reach),
  )


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('case', BEHIND)
def test_prompts_of_any_length_count_as_in_plain(kernel, case):
  sizes, reach = BEHIND[case]
  given, lengths = arrays(P=3, **sizes)
  assert set(lengths) > {1, given[3].shape[2]}
  assert_equal(
    value_and_gradients(KERNELS[kernel], given, lengths, reach),
    value_and_gradients(attention.plain, given, lengths, reach),
  )


MESHES = {  # Their axes, sizes, and what a query sees.
  'rows': (dict(data=4, fsdp=2), dict(P=8, G=1), Reach(documents(8, 13))),
  'rows and heads': (
    dict(data=2, fsdp=2, tensor=2),
    dict(P=4),
    Reach(windows=(20, 6), kind=KINDS),
  ),
  'a head that cannot be cut': (
    dict(data=2, fsdp=2, tensor=2),
    dict(P=4, K=1),
    Reach(windows=(6,)),
  ),
  'prompts that cannot be cut': (
    dict(data=4, tensor=2),
    dict(P=2, G=4),
    Reach(),
  ),
}


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('case', MESHES)
def test_a_mesh_changes_nothing(kernel, case):
  axes, sizes, reach = MESHES[case]
  given, lengths = arrays(**sizes)
  lengths = lengths if reach.segment_ids_BS is None else None
  expected = value_and_gradients(attention.plain, given, lengths, reach)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | axes)
  with jax.set_mesh(mesh):
    actual = value_and_gradients(
      KERNELS[kernel], jax.tree.map(put, given), lengths, reach
    )
  assert_equal(actual, expected)


def put(x):
  mesh = jax.sharding.get_mesh()
  axes = ('batch', 'kv_heads', None, None, None)[: x.ndim]
  where = sharding.spec(axes, x.shape, sharding.TRAIN, mesh)
  return jax.device_put(x, jax.sharding.NamedSharding(mesh, where))


@pytest.mark.parametrize('kernel', KERNELS)
def test_documents_behind_a_prompt_are_refused(kernel):
  given, lengths = arrays()
  reach = Reach(documents(4, 13))
  with pytest.raises(ValueError, match='segment_ids and a prompt'):
    KERNELS[kernel](*given[:3], reach, (*given[3:], lengths))


PROMPTS = types.Prompts(
  tokens_PL=np.random.default_rng(0).integers(24, size=(2, 6)),
  lengths_P=np.int32([6, 2]),
  ids_P=np.uint32([0, 1]),
  answers_PC=np.zeros((2, 1), np.uint8),
)


def tiny(family, kernel='plain'):
  sizes = dict(layers=2, vocab_size=24)
  if family == 'gemma3':
    sizes['global_every'] = 2  # A layer of each kind.
  return models.build(family, 'tiny', attention=kernel, **sizes)


def logps(model, params, rolled):
  judge = functools.partial(likelihood.likelihood, model=model)
  return compiled(judge, params, rolled).logps_PGT


@pytest.mark.parametrize('kernel', KERNELS)
def test_a_llama_with_it_is_the_same(kernel, monkeypatch):
  monkeypatch.setattr(flash, kernel, KERNELS[kernel])
  params = models.init_params(tiny('llama'), jax.random.key(0))
  tokens = np.random.default_rng(1).integers(24, size=(2, 3, 9))
  rolled = types.Rollout(PROMPTS, tokens, *[None] * 4)
  actual, expected = (
    logps(tiny('llama', name), params, rolled) for name in (kernel, 'plain')
  )
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('kernel', KERNELS)
def test_what_a_gemma_samples_behind_it_is_what_all_kernels_judge(
  kernel, monkeypatch
):
  monkeypatch.setattr(flash, kernel, KERNELS[kernel])
  model = tiny('gemma3', kernel)  # Prompt and completion exceed its window.
  params = models.init_params(model, jax.random.key(0))
  roll = functools.partial(
    rollout.rollout, model=model, group_size=3, max_tokens=9, stop_ids=(0,)
  )
  rolled = compiled(roll, params, PROMPTS, jax.random.key(1))
  assert rolled.lengths_PG.max() > 4
  for name in (kernel, 'plain'):
    judged = logps(tiny('gemma3', name), params, rolled)
    judged = jnp.where(rolled.actions_PGT, judged, 0.0)
    np.testing.assert_allclose(judged, rolled.logps_PGT, atol=1e-5)
