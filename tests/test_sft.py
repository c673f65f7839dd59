"""Next-token training: which tokens count, and that packing changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import models, sft, types
from grpo_jax.datasets import packing

V = 11
MODEL = models.build(
  'llama',
  'tiny',
  layers=1,
  width=16,
  heads=2,
  kv_heads=1,
  head_size=8,
  feed_forward=24,
  vocab_size=V,
)
DOCUMENTS = [[1, 2, 3, 4, 5], [6, 7], [8], [9, 10, 1, 1], [2, 6, 2]]


def params():
  found = models.init_params(MODEL, jax.random.key(0))
  return jax.tree.map(lambda w: 2 * w, found)


def packed(width=12, documents=DOCUMENTS):
  rows = packing.pack(documents, width)
  return types.ModelInputs(
    rows.tokens_BT, rows.positions_BT, rows.segment_ids_BT
  )


@functools.partial(jax.jit, static_argnums=2)
def loss(weights, documents, head_chunk=1000):
  return sft.next_token_loss(weights, documents, MODEL, head_chunk)


def one_by_one(weights, documents=DOCUMENTS):
  """Mean surprise at every token but the first, each document in a row."""
  tokens_NT = np.zeros((len(documents), 6), np.int32)
  predicted = []
  for n, document in enumerate(documents):
    tokens_NT[n, : len(document)] = document
    predicted += [(n, t, document[t]) for t in range(1, len(document))]
  rows, places, tokens = np.transpose(predicted)
  return _separate(weights, tokens_NT, rows, places, tokens)


@jax.jit
def _separate(weights, tokens_NT, rows, places, tokens):
  positions_NT = jnp.broadcast_to(jnp.arange(6), tokens_NT.shape)
  inputs = types.ModelInputs(tokens_NT, positions_NT)
  hidden_NTD = MODEL.apply(weights, inputs).hidden_BTD
  logps_NTV = jax.nn.log_softmax(hidden_NTD @ MODEL.head(weights))
  return -jnp.mean(logps_NTV[rows, places - 1, tokens])


@pytest.mark.parametrize('width', [5, 12])
def test_packed_documents_have_the_loss_of_separate_ones(width):
  actual = loss(params(), packed(width))
  np.testing.assert_allclose(actual, one_by_one(params()), rtol=1e-5)


def test_packed_documents_have_the_gradient_of_separate_ones():
  actual = jax.jit(jax.grad(lambda w: loss(w, packed())))(params())
  expected = jax.jit(jax.grad(one_by_one))(params())
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), actual, expected
  )


def test_the_head_in_chunks_gives_the_same_loss():
  whole = loss(params(), packed())
  np.testing.assert_allclose(loss(params(), packed(), 5), whole, rtol=1e-6)


def test_padding_does_not_count_whatever_it_holds():
  rows = packed()
  empty_BT = rows.segment_ids_BT == 0
  assert empty_BT.any()
  other = rows.replace(tokens_BT=np.where(empty_BT, 7, rows.tokens_BT))
  assert loss(params(), other) == loss(params(), rows)


def test_a_document_that_follows_does_not_matter_to_the_one_before():
  """Nor the one before to it: attention ends at the borders."""
  alone = loss(params(), packed(5, [[1, 2, 3]]))
  np.testing.assert_allclose(
    alone, one_by_one(params(), [[1, 2, 3]]), rtol=1e-5
  )
  # [4] and [9] have no token to predict; all that they could do is leak.
  between = loss(params(), packed(5, [[1, 2, 3], [4], [9]]))
  np.testing.assert_allclose(between, alone, rtol=1e-6)


def test_a_step_follows_the_gradient_and_counts_rows():
  optimizer, weights, rows = optax.sgd(0.05), params(), packed()
  B = len(rows.tokens_BT)
  state = types.TrainState(
    jnp.int32(6), jnp.int32(10), weights, optimizer.init(weights)
  )
  run = functools.partial(sft.sft_update, model=MODEL, optimizer=optimizer)
  after, metrics = jax.jit(run)(state, rows)
  value, grads = jax.jit(jax.value_and_grad(loss))(weights, rows)
  np.testing.assert_allclose(metrics['loss'], value, rtol=1e-6)
  np.testing.assert_allclose(
    metrics['grad_norm'], optax.tree.norm(grads), rtol=1e-5
  )
  expected = jax.tree.map(lambda w, g: w - 0.05 * g, weights, grads)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
    after.params,
    expected,
  )
  assert after.step == 7 and after.cursor == 10 + B
  assert loss(after.params, rows) < value


def test_rows_without_anything_to_predict_give_a_finite_loss():
  assert np.isfinite(loss(params(), packed(3, [[1], [2]])))
