"""Llama against NumPy; packing, caches and gradients; a model from flax.nnx."""

import functools

from flax import nnx
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import numpy_llama
import pytest

from grpo_jax import grpo, likelihood, models, optim, rollout, sharding, types
from grpo_jax.models import decoder, layers, llama

V = 24
GROUPED = dict(heads=4, kv_heads=2)  # Two query heads read one key-value head.


@functools.cache
def tiny(**sizes):
  return models.build('llama', 'tiny', vocab_size=V, **GROUPED, **sizes)


@pytest.fixture(scope='module')
def params():
  params = models.init_params(tiny(), jax.random.key(0))
  rng = np.random.default_rng(0)
  # Norms of ones would hide where they are applied.
  return jax.tree.map(
    lambda w: w * rng.uniform(0.5, 1.5, w.shape).astype(np.float32), params
  )


def tokens(*shape, seed=0):
  return np.random.default_rng(seed).integers(V, size=shape).astype(np.int32)


def positions(B, T, start=0):
  return np.broadcast_to(np.arange(T, dtype=np.int32) + start, (B, T))


def assert_close(actual, expected, atol=2e-5):
  np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


def oracle(params, ids):
  return numpy_llama.hidden(params, ids, **GROUPED)


def test_hidden_states_equal_numpy(params):
  tokens_BT = tokens(3, 9)
  inputs = types.ModelInputs(tokens_BT, positions(3, 9))
  hidden_BTD = tiny().apply(params, inputs).hidden_BTD
  for b in range(3):
    assert_close(hidden_BTD[b], oracle(params, tokens_BT[b]))


def test_packed_documents_do_not_see_each_other(params):
  documents = [tokens(n, seed=n) for n in (4, 1, 5)]
  packed = np.concatenate([*documents, np.zeros(2, np.int32)])
  places = np.concatenate([np.arange(n) for n in (4, 1, 5, 2)])
  segments = np.repeat([1, 2, 3, 0], (4, 1, 5, 2))
  inputs = types.ModelInputs(packed[None], places[None], segments[None])
  hidden_TD = tiny().apply(params, inputs).hidden_BTD[0]
  expected = [oracle(params, ids) for ids in documents]
  assert_close(hidden_TD[:10], np.concatenate(expected))


@pytest.fixture(scope='module')
def group(params):
  """Two prompts of 5 and 2 tokens, three continuations of 4 tokens each."""
  prompts = types.Prompts(
    tokens_PL=tokens(2, 6, seed=1),
    lengths_P=np.array([5, 2], np.int32),
    ids_P=np.array([0, 1], np.uint32),
    answers_PC=np.zeros((2, 1), np.uint8),
  )
  own_BT = tokens(6, 4, seed=2)
  rows = [
    [*prompts.tokens_PL[b // 3, : prompts.lengths_P[b // 3]], *own_BT[b]]
    for b in range(6)
  ]
  expected_BTD = np.stack([oracle(params, ids)[-4:] for ids in rows])
  return prompts, own_BT, expected_BTD


def test_a_shared_prompt_equals_each_row_on_its_own(params, group):
  prompts, own_BT, expected_BTD = group
  _, cache = rollout.prefill(params, prompts, tiny(), 3, 0)
  places_BT = np.repeat(prompts.lengths_P, 3)[:, None] + np.arange(4)
  inputs = types.ModelInputs(own_BT, places_BT)
  assert_close(tiny().apply(params, inputs, cache).hidden_BTD, expected_BTD)


def test_prefill_gives_the_state_of_the_last_token_of_each_prompt(
  params, group
):
  prompts, _, _ = group
  hidden_PD, _ = rollout.prefill(params, prompts, tiny(), 3, 0)
  for p, n in enumerate(prompts.lengths_P):
    assert_close(hidden_PD[p], oracle(params, prompts.tokens_PL[p, :n])[-1])


def test_one_token_at_a_time_equals_the_whole_pass(params, group):
  prompts, own_BT, expected_BTD = group
  _, cache = rollout.prefill(params, prompts, tiny(), 3, 4)
  lengths_B1 = np.repeat(prompts.lengths_P, 3)[:, None]
  apply, decode_params = jax.jit(tiny().apply), tiny().decode_params(params)
  for t in range(4):
    inputs = types.ModelInputs(own_BT[:, t : t + 1], lengths_B1 + t)
    out = apply(decode_params, inputs, cache)
    assert_close(out.hidden_BTD[:, 0], expected_BTD[:, t])
    cache = out.cache


def test_of_thin_products_the_weights_are_the_left_factor_on_a_cpu():
  rng = np.random.default_rng(0)
  x_XI = rng.normal(size=(6, 32)).astype(np.float32)
  w_OI = rng.normal(size=(64, 32)).astype(np.float32)
  function = jax.jit(layers.thin_product)
  assert_close(function(x_XI, w_OI), x_XI @ w_OI.T)
  text = function.lower(x_XI, w_OI).compile().as_text()
  assert hlo.products(text, 64, 16)  # Of 6 rows, filled up.
  assert not hlo.products(text, 16, 64) + hlo.products(text, 6, 64)
  many_XI = jnp.ones((40, 32))  # With AVX-512, 48 rows are summed otherwise.
  text = function.lower(many_XI, w_OI[:24]).compile().as_text()
  assert hlo.products(text, 24, 64)
  # Elsewhere nothing stands between a product and what is fused with it.
  elsewhere = jax.export.export(function, platforms=['tpu'])(x_XI, w_OI)
  text = elsewhere.mlir_module()
  assert 'dot_general %arg0, %arg1' in text
  assert 'optimization_barrier' not in text


def test_rows_of_a_thin_product_stay_on_their_devices():
  """3 on each of 8: filled up to 16 all together, most would have to move."""
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {'data': 8})
  x_XI = jax.device_put(jnp.ones((24, 32)), sharding.batch_sharding(mesh))
  with jax.set_mesh(mesh):
    function = jax.jit(layers.thin_product)
    compiled = function.lower(x_XI, jnp.ones((64, 32))).compile()
  assert not hlo.collectives(compiled.as_text(), mesh)


def test_a_decode_step_has_thin_products_only(params, group):
  prompts, own_BT, _ = group
  _, cache = rollout.prefill(params, prompts, tiny(), 3, 4)
  inputs = types.ModelInputs(own_BT[:, :1], positions(6, 1, 5))
  arguments = tiny().decode_params(params), inputs, cache
  text = jax.jit(tiny().apply).lower(*arguments).compile().as_text()
  F, D = params['layers']['down'].shape[1:]
  QKV = 2 * 2 * 16 + 4 * 16
  for width, per_layer in (F, 2), (D, 2), (QKV, 1):
    assert len(hlo.products(text, width, 16)) == 2 * per_layer  # 6 filled up.
    assert not hlo.products(text, 16, width) + hlo.products(text, 6, width)


def gradient(params, model, group):
  prompts, own_BT, _ = group
  r = types.Rollout(prompts, own_BT.reshape(2, 3, 4), *[None] * 4)
  weights_PGT = np.random.default_rng(3).normal(size=(2, 3, 4))

  def loss(params):
    return jnp.sum(
      weights_PGT * likelihood.likelihood(params, r, model=model).logps_PGT
    )

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope='module')
def usual(params, group):
  """Loss and gradient of the float32 model with its layers scanned."""
  return gradient(params, tiny(), group)


def naive_gradient(params, group):
  """The same loss over whole rows: each has a prompt of its own."""
  prompts, own_BT, _ = group
  weights_BT = np.random.default_rng(3).normal(size=(6, 4))
  tokens_BS = np.zeros((6, 10), np.int32)
  for b, n in enumerate(np.repeat(prompts.lengths_P, 3)):
    tokens_BS[b, :n] = prompts.tokens_PL[b // 3, :n]
    tokens_BS[b, n : n + 4] = own_BT[b]
  at_BT = np.repeat(prompts.lengths_P, 3)[:, None] + np.arange(4) - 1

  def loss(params):
    inputs = types.ModelInputs(tokens_BS, positions(6, 10))
    hidden_BSD = tiny().apply(params, inputs).hidden_BTD
    logps_BSV = jax.nn.log_softmax(hidden_BSD @ tiny().head(params))
    return jnp.sum(weights_BT * logps_BSV[np.arange(6)[:, None], at_BT, own_BT])

  return jax.jit(jax.value_and_grad(loss))(params)


def assert_same_gradients(actual, expected, tolerance):
  """Each array to a share of its own norm."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  leaves = zip(
    jax.tree_util.tree_leaves_with_path(actual),
    jax.tree.leaves(expected),
    strict=True,
  )
  for (path, a), e in leaves:
    norm = np.linalg.norm(e)
    assert norm > 0, path
    assert np.linalg.norm(a - e) < tolerance * norm, path


def test_gradients_flow_back_through_the_shared_prompt(params, group, usual):
  value, actual = usual
  expected_value, expected = naive_gradient(params, group)
  assert value == pytest.approx(float(expected_value), rel=1e-5)
  assert_same_gradients(actual, expected, 1e-4)


@pytest.mark.parametrize('unroll', [False, True])
@pytest.mark.parametrize('remat', decoder.REMATS)
def test_unrolling_and_recomputing_change_nothing(
  params, group, usual, remat, unroll
):
  value, expected = usual
  model = tiny(remat=remat, unroll=unroll)
  other_value, actual = gradient(params, model, group)
  assert other_value == pytest.approx(float(value), rel=1e-6)
  assert_same_gradients(actual, expected, 1e-5)


@pytest.mark.parametrize('remat', [True, 'everything'])
def test_what_is_recomputed_has_a_name(remat):
  with pytest.raises(ValueError, match="remat=.*'none', 'full', 'dots', 'off"):
    tiny(remat=remat)


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not(params):
  np.testing.assert_array_equal(tiny().head(params), params['embed'].T)
  model = tiny(tied=False)
  untied = models.init_params(model, jax.random.key(1))
  assert model.head(untied).shape == tiny().head(params).shape
  np.testing.assert_array_equal(model.head(untied), untied['unembed'])
  assert 'unembed' not in params


def test_weights_in_use_are_cast_and_gradients_stay_float32(
  params, group, usual
):
  model = models.in_dtype(tiny(), 'bfloat16')
  inputs = types.ModelInputs(tokens(2, 5), positions(2, 5))
  assert model.apply(params, inputs).hidden_BTD.dtype == jnp.bfloat16
  assert model.head(params).dtype == jnp.bfloat16
  _, actual = gradient(params, model, group)
  assert {g.dtype for g in jax.tree.leaves(actual)} == {jnp.dtype('float32')}
  assert_same_gradients(actual, usual[1], 0.1)


def test_norms_and_rotations_of_bfloat16_are_computed_in_float32():
  rng = np.random.default_rng(0)
  x_BNTH = jnp.asarray(rng.normal(size=(2, 3, 5, 8)) * 50, jnp.bfloat16)
  wide = np.asarray(x_BNTH, np.float64)
  scale = rng.normal(size=8).astype(np.float32)
  actual = layers.rms_norm(x_BNTH, scale, 1e-5)
  expected = numpy_llama.norm(wide, scale, 1e-5)
  np.testing.assert_allclose(np.float64(actual), expected, rtol=2**-8)
  tables = layers.rope_tables(positions(2, 5), layers.frequencies(8, 100.0))
  turned = layers.rope(x_BNTH[:, :, None], *tables)[:, :, 0]
  assert actual.dtype == turned.dtype == jnp.bfloat16
  for b in range(2):
    expected = numpy_llama.rotate(wide[b].swapaxes(0, 1), 100.0).swapaxes(0, 1)
    np.testing.assert_allclose(
      np.float64(turned[b]), expected, rtol=2**-8, atol=1e-3
    )


@pytest.mark.parametrize('tied', [True, False])
def test_all_trees_follow_the_table(tied):
  model = tiny(tied=tied)
  params = models.init_params(model, jax.random.key(0), jnp.bfloat16)
  abstract = models.abstract_params(model, jnp.bfloat16)
  axes = jax.tree.leaves(
    models.logical_axes(model), is_leaf=lambda x: isinstance(x, tuple)
  )
  rows = zip(
    jax.tree.leaves(params), jax.tree.leaves(abstract), axes, strict=True
  )
  for w, row, names in rows:
    assert w.shape == row.shape and w.dtype == row.dtype == jnp.bfloat16
    assert len(names) == w.ndim
  count = sum(w.size for w in jax.tree.leaves(params))
  assert models.param_count(model) == count


def test_random_weights_are_scaled_by_what_they_read():
  model = models.build('llama', 'tiny', width=64, vocab_size=500)
  params = models.init_params(model, jax.random.key(0))
  assert np.std(params['embed']) == pytest.approx(1 / 8, rel=0.05)
  assert np.std(params['layers']['q']) == pytest.approx(1 / 8, rel=0.05)
  # Two layers with two ways back each.
  assert np.std(params['layers']['o']) == pytest.approx(1 / 16, rel=0.05)
  assert np.std(params['layers']['down']) == pytest.approx(1 / 16, rel=0.05)
  np.testing.assert_array_equal(params['layers']['attn_norm'], 1)
  # Arrays of one shape, from keys of their own.
  assert np.any(params['layers']['k'] != params['layers']['v'])


def test_smollm2_has_the_size_of_its_name():
  model = models.build('llama', 'smollm2_135m')
  assert models.param_count(model) == 134_515_008


def test_an_unknown_variant_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"'huge' is not one of \['tiny', 'qui"):
    llama.build('huge')


class Decoder(nnx.Module):
  """One block; a key is seen from its own position on, so padding has none."""

  def __init__(self, width, rngs):
    self.embed = nnx.Embed(V, width, rngs=rngs)
    self.places = nnx.Embed(32, width, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      num_heads=2, in_features=width, decode=False, rngs=rngs
    )
    self.up = nnx.Linear(width, 4 * width, rngs=rngs)
    self.down = nnx.Linear(4 * width, width, rngs=rngs)

  def __call__(self, tokens_BS, positions_BS):
    x_BSD = self.embed(tokens_BS) + self.places(positions_BS % 32)
    seen_BSS = positions_BS[:, None, :] <= positions_BS[:, :, None]
    x_BSD += self.attention(x_BSD, mask=seen_BSS[:, None])
    return x_BSD + self.down(jax.nn.gelu(self.up(x_BSD)))


NOWHERE = 2**20  # The position of tokens that nobody sees.


def nnx_model(width=16) -> models.Model:
  """A module behind the contract; its cache is the tokens so far."""
  graph, state = nnx.split(Decoder(width, nnx.Rngs(0)))
  init = jax.nn.initializers.normal(width**-0.5)
  table = jax.tree.map(
    lambda w: models.Param(w.shape, (None,) * w.ndim, init),
    nnx.to_pure_dict(state),
  )

  def apply(params, inputs, cache=None):
    rows, T = (inputs.tokens_BT, inputs.positions_BT), inputs.tokens_BT.shape[1]
    if cache is not None:
      prompt, own, used = cache
      if own[0].shape[1]:
        rows = own = [
          jax.lax.dynamic_update_slice(old, new, (0, used))
          for old, new in zip(own, rows, strict=True)
        ]
      rows = [jnp.concatenate(x, 1) for x in zip(prompt, rows, strict=True)]
    hidden_BSD = nnx.merge(graph, params)(*rows)
    if cache is None:
      return types.ModelOutputs(hidden_BSD, rows)
    L = prompt[0].shape[1]
    hidden_BTD = jax.lax.dynamic_slice_in_dim(hidden_BSD, L + used, T, 1)
    return types.ModelOutputs(hidden_BTD, (prompt, own, used + T))

  def init_cache(prompt_cache, lengths_P, group_size, max_tokens):
    tokens_PL, positions_PL = prompt_cache
    padding_PL = positions_PL >= lengths_P[:, None]
    positions_PL = jnp.where(padding_PL, NOWHERE, positions_PL)
    prompt = [jnp.repeat(x, group_size, 0) for x in (tokens_PL, positions_PL)]
    room = (len(tokens_PL) * group_size, max_tokens)
    own = [jnp.zeros(room, jnp.int32), jnp.full(room, NOWHERE)]
    return prompt, own, jnp.int32(0)

  def head(params):
    return params['embed']['embedding'].T

  return models.Model(table, V, apply, init_cache, head)


def test_an_nnx_module_behind_the_contract_learns():
  model, optimizer = nnx_model(), optim.make(lr=3e-2, steps=30)
  params = models.init_params(model, jax.random.key(0))
  state = types.TrainState(
    jnp.int32(0), jnp.int32(0), params, optimizer.init(params)
  )
  prompts = types.Prompts(
    tokens_PL=tokens(4, 5),
    lengths_P=np.array([5, 2, 3, 1], np.int32),
    ids_P=np.arange(4, dtype=np.uint32),
    answers_PC=np.zeros((4, 1), np.uint8),
  )

  @jax.jit
  def iterate(state):
    key = jax.random.fold_in(jax.random.key(1), state.step)
    r = rollout.rollout(
      state.params,
      prompts,
      key,
      model=model,
      group_size=8,
      max_tokens=6,
      stop_ids=(0,),
    )
    share_PG = jnp.sum((r.tokens_PGT == 5) & r.actions_PGT, -1) / r.lengths_PG
    rewards = types.Rewards(share_PG, {'share': share_PG})
    return grpo.grpo_update(state, r, rewards, model=model, optimizer=optimizer)

  history = []
  for _ in range(30):
    state, numbers = iterate(state)
    history.append(jax.device_get(numbers))
  assert max(x['rollout/logp_drift'] for x in history) < 1e-5
  assert history[0]['reward/mean'] < 0.2
  assert history[-1]['reward/mean'] > 0.8


def test_the_gradient_of_swiglu_is_that_of_its_definition():
  with jax.enable_x64(True):
    gate, up, dy = np.random.default_rng(0).normal(size=(3, 4, 5))
    found, backward = jax.vjp(layers.swiglu, gate, up)
    expected, reference = jax.vjp(lambda g, u: jax.nn.silu(g) * u, gate, up)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(backward(dy), reference(dy), rtol=1e-12)
