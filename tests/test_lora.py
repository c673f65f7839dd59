"""Adapters: what they compute, what they leave alone, and what they cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import grpo, models, optim, rollout, sft, types
from grpo_jax.losses import kl
from grpo_jax.models import lora

V = 24
TOKENS_BT = np.random.default_rng(0).integers(V, size=(3, 9)).astype(np.int32)
INPUTS = types.ModelInputs(
  TOKENS_BT, np.broadcast_to(np.arange(9, dtype=np.int32), (3, 9))
)
FAMILIES = pytest.mark.parametrize('family', ['llama', 'gemma3'])


@functools.cache
def base(family='llama'):
  return models.build(family, 'tiny', vocab_size=V, layers=2, kv_heads=1)


def adapted(family='llama', **knobs):
  return lora.adapt(base(family), **{'rank': 4, 'alpha': 8.0} | knobs)


def moved(model, seed=0):
  """Parameters with the second factors away from zero."""
  params = models.init_params(model, jax.random.key(seed))
  rng = np.random.default_rng(seed)
  layers = {
    name: w + 0.1 * rng.normal(size=w.shape).astype(np.float32)
    if name.endswith('_b')
    else w
    for name, w in params['layers'].items()
  }
  return params | {'layers': layers}


@FAMILIES
def test_an_adapted_model_starts_as_the_model_itself(family):
  model = adapted(family)
  params = models.init_params(model, jax.random.key(0))
  _, frozen = models.partition(model, params)
  np.testing.assert_array_equal(
    model.apply(params, INPUTS).hidden_BTD,
    base(family).apply(frozen, INPUTS).hidden_BTD,
  )


@FAMILIES
@pytest.mark.parametrize('targets', [lora.TARGETS, ('q', 'v'), ('k', 'down')])
def test_adapters_are_a_change_of_the_weights(family, targets):
  model = adapted(family, targets=targets)
  params = moved(model)
  changed = dict(params['layers'])
  for name in lora.TARGETS:
    if name in targets:
      a, b = changed.pop(f'{name}_a'), changed.pop(f'{name}_b')
      change = np.stack([x @ y for x, y in zip(a, b, strict=True)])
      changed[name] = changed[name] + 2.0 * change  # alpha / rank.
  expected = base(family).apply(params | {'layers': changed}, INPUTS).hidden_BTD
  actual = model.apply(params, INPUTS).hidden_BTD
  np.testing.assert_allclose(actual, expected, atol=2e-5)
  plain = base(family).apply(params, INPUTS).hidden_BTD
  assert np.abs(actual - plain).max() > 0.05
  merged = lora.merge(params, rank=4, alpha=8.0)
  assert merged['layers'].keys() == base(family).table['layers'].keys()
  for name, w in merged['layers'].items():
    np.testing.assert_allclose(w, changed[name], atol=1e-6)


@FAMILIES
def test_the_sampler_of_an_adapted_model_is_its_trainer(family):
  model = adapted(family)
  params = moved(model)
  prompts = types.Prompts(
    tokens_PL=TOKENS_BT[:, :4],
    lengths_P=np.array([4, 2, 3], np.int32),
    ids_P=np.arange(3, dtype=np.uint32),
    answers_PC=np.zeros((3, 1), np.uint8),
  )
  rolled = rollout.rollout(
    params,
    prompts,
    jax.random.key(1),
    model=model,
    group_size=2,
    max_tokens=6,
    stop_ids=(V - 1,),
  )
  for p in range(3):
    n = prompts.lengths_P[p]
    for g in range(2):
      size = int(rolled.lengths_PG[p, g])
      ids = np.array([*prompts.tokens_PL[p, :n], *rolled.tokens_PGT[p, g]])
      inputs = types.ModelInputs(
        ids[None].astype(np.int32), np.arange(len(ids), dtype=np.int32)[None]
      )
      hidden_TD = model.apply(params, inputs).hidden_BTD[0]
      logps_TV = jax.nn.log_softmax(hidden_TD @ model.head(params))
      expected = logps_TV[np.arange(n - 1, n - 1 + size), ids[n : n + size]]
      np.testing.assert_allclose(
        rolled.logps_PGT[p, g, :size], expected, atol=1e-5
      )


def update(model, params, **knobs):
  """One step on made-up completions; the state after it, and metrics."""
  optimizer = optim.make(lr=0.01, steps=1)
  trained, _ = models.partition(model, params)
  zero = jnp.int32(0)
  state = types.TrainState(
    zero, zero, params, optimizer.init(trained), reference=trained
  )
  prompts = types.Prompts(
    TOKENS_BT[:2, :4],
    np.array([4, 3], np.int32),
    np.arange(2, dtype=np.uint32),
    np.zeros((2, 1), np.uint8),
  )
  rolled = rollout.rollout(
    params,
    prompts,
    jax.random.key(1),
    model=model,
    group_size=3,
    max_tokens=5,
    stop_ids=(V - 1,),
  )
  total_PG = jnp.asarray([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
  step = functools.partial(
    grpo.grpo_update, model=model, optimizer=optimizer, **knobs
  )
  return jax.jit(step)(state, rolled, types.Rewards(total_PG, {}))


def test_only_adapters_move_and_only_they_have_optimizer_state():
  model = adapted()
  params = moved(model)
  state, _ = update(model, params)
  names = {f'{target}_{factor}' for target in lora.TARGETS for factor in 'ab'}
  for name, w in state.params['layers'].items():
    same = np.array_equal(w, params['layers'][name])
    assert same == (name not in names), name
  np.testing.assert_array_equal(state.params['embed'], params['embed'])
  adam = jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, 'mu'))
  moments = next(x.mu for x in adam if hasattr(x, 'mu'))
  assert moments.keys() == {'layers'}
  assert moments['layers'].keys() == names


def test_the_gradient_of_adapters_is_that_of_the_changed_weights():
  # d/dA = s dW B^T and d/dB = s A^T dW, from the gradient of the merged model.
  model = adapted(targets=('o', 'q'))
  params = moved(model)
  documents = types.ModelInputs(
    TOKENS_BT, INPUTS.positions_BT, np.ones_like(TOKENS_BT)
  )
  trained, frozen = models.partition(model, params)

  def loss(trained):
    whole = models.join(trained, frozen)
    return sft.next_token_loss(whole, documents, model, 8)

  actual = jax.grad(loss)(trained)['layers']
  merged = lora.merge(params, rank=4, alpha=8.0)
  of_weights = jax.grad(sft.next_token_loss)(merged, documents, base(), 8)
  for name in ('o', 'q'):
    a, b = params['layers'][f'{name}_a'], params['layers'][f'{name}_b']
    dw = of_weights['layers'][name]
    np.testing.assert_allclose(
      actual[f'{name}_a'], 2 * np.einsum('yio,yjo->yij', dw, b), atol=1e-5
    )
    np.testing.assert_allclose(
      actual[f'{name}_b'], 2 * np.einsum('yij,yio->yjo', a, dw), atol=1e-5
    )


def test_the_reference_of_an_adapted_policy_is_the_frozen_model():
  model = adapted()
  params = models.init_params(model, jax.random.key(0))
  state, metrics = update(model, params, kl=kl.k3, kl_coef=0.1)
  # Two passes may round otherwise, in another version of JAX; k3 squares that.
  assert abs(float(metrics['kl/reference'])) < 1e-12
  assert state.reference.keys() == {'layers'}
  later = state.params
  optimizer = optim.make(lr=0.01, steps=1)
  again = types.TrainState(
    jnp.int32(0),
    jnp.int32(0),
    later,
    optimizer.init(models.partition(model, later)[0]),
    reference=state.reference,
  )
  assert jax.tree.structure(again.params) == jax.tree.structure(params)
  _, frozen = models.partition(model, later)
  reference = models.join(state.reference, frozen)
  np.testing.assert_array_equal(
    model.apply(reference, INPUTS).hidden_BTD,
    base().apply(frozen, INPUTS).hidden_BTD,
  )


def test_next_token_training_moves_adapters_only():
  model = adapted(targets=('v',))
  params = models.init_params(model, jax.random.key(0))
  optimizer = optim.make(lr=0.05, steps=20)
  trained, _ = models.partition(model, params)
  zero = jnp.int32(0)
  state = types.TrainState(zero, zero, params, optimizer.init(trained))
  documents = types.ModelInputs(
    TOKENS_BT, INPUTS.positions_BT, np.ones_like(TOKENS_BT)
  )
  step = jax.jit(
    functools.partial(sft.sft_update, model=model, optimizer=optimizer)
  )
  state, first = step(state, documents)
  for _ in range(20):
    state, last = step(state, documents)
  assert last['loss'] < first['loss'] - 0.05
  np.testing.assert_array_equal(
    state.params['layers']['v'], params['layers']['v']
  )


def test_what_takes_no_adapters_is_refused():
  with pytest.raises(ValueError, match="targets has 'embed', which is not one"):
    adapted(targets=('q', 'embed'))
  plain = models.Model({}, V, print, print, print)
  with pytest.raises(ValueError, match='takes no adapters'):
    lora.adapt(plain)
