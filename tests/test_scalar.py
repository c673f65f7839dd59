"""A scalar head: the table that it makes, and the number that it says."""

import functools

import jax
from jax.nn import initializers
import numpy as np
import pytest

from grpo_jax import models, types
from grpo_jax.models import lora, scalar

V, T = 24, 9
LENGTHS_B = np.array([9, 1, 4], np.int32)
TOKENS_BT = np.random.default_rng(0).integers(V, size=(3, T)).astype(np.int32)


@functools.cache
def policy(family='llama', tied=True):
  how = {'tied': tied} if family == 'llama' else {}
  return models.build(family, 'tiny', vocab_size=V, layers=2, **how)


def init(model, seed=0):
  return jax.jit(lambda key: models.init_params(model, key))(
    jax.random.key(seed)
  )


def score(params, tokens_BT, model):
  run = jax.jit(functools.partial(scalar.score, model=model))
  return run(params, tokens_BT, LENGTHS_B)


@pytest.mark.parametrize('family', ['llama', 'gemma3'])
def test_the_score_is_the_heads_product_with_the_last_hidden_state(family):
  model = scalar.with_scalar_head(policy(family))
  params = init(model)
  score_B = score(params, TOKENS_BT, model)
  positions_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (3, T))
  inputs = types.ModelInputs(TOKENS_BT, positions_BT)
  hidden_BTD = np.asarray(jax.jit(model.apply)(params, inputs).hidden_BTD)
  assert score_B.shape == (3,) and score_B.dtype == np.float32
  for b, length in enumerate(LENGTHS_B):
    last_D, head_D = hidden_BTD[b, length - 1], np.asarray(params['score'])
    expected = sum(
      float(x) * float(w) for x, w in zip(last_D, head_D, strict=True)
    )
    assert score_B[b] == pytest.approx(expected, abs=1e-5)


def test_what_stands_behind_a_text_does_not_matter():
  model = scalar.with_scalar_head(policy())
  params = init(model)
  other_BT = np.where(np.arange(T) < LENGTHS_B[:, None], TOKENS_BT, 5)
  assert (other_BT != TOKENS_BT).any()
  np.testing.assert_array_equal(
    score(params, TOKENS_BT, model),
    score(params, other_BT, model),
  )


def test_bfloat16_weights_are_summed_up_in_float32():
  wide = scalar.with_scalar_head(policy())
  narrow = scalar.with_scalar_head(models.in_dtype(policy(), 'bfloat16'))
  params = init(wide)
  found_B, expected_B = (
    score(params, TOKENS_BT, model) for model in (narrow, wide)
  )
  assert found_B.dtype == np.float32
  np.testing.assert_allclose(found_B, expected_B, atol=0.1)


@pytest.mark.parametrize('tied', [True, False])
def test_the_head_for_the_vocabulary_goes_and_all_else_stays(tied):
  base = policy(tied=tied)
  model = scalar.with_scalar_head(base)
  assert model.table.keys() == base.table.keys() - {'unembed'} | {'score'}
  params = init(base)
  found = scalar.from_policy(params, model, jax.random.key(1))
  assert found.keys() == model.table.keys()
  for name in params.keys() & found.keys():
    jax.tree.map(np.testing.assert_array_equal, found[name], params[name])
  width = base.table['embed'].shape[1]
  assert found['score'].shape == (width,)
  assert 0 < np.std(found['score']) < 3 * width**-0.5


def test_of_an_adapted_model_adapters_and_head_are_trained():
  model = scalar.with_scalar_head(lora.adapt(policy(tied=False), rank=2))
  trained, frozen = models.partition(model, init(model))
  assert trained.keys() == {'layers', 'score'}
  assert all(name[-2:] in ('_a', '_b') for name in trained['layers'])
  assert frozen.keys() == {'embed', 'final_norm', 'layers'}


def test_a_model_of_unknown_width_is_refused():
  row = models.Param((V, 4), ('vocab', 'embed'), initializers.zeros)
  model = models.Model({'words': row}, V, None, None, None)
  with pytest.raises(ValueError, match='needs a model with .*`embed`'):
    scalar.with_scalar_head(model)
