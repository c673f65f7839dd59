"""Every dense family against what the reference library computed.

Rows are padded on the left there and on the right here: positions start at the
first token on both sides, so that tokens can be compared one by one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from published import NAMES, published
import pytest

from grpo_jax import likelihood, models, rollout, types
from grpo_jax.models import gemma3, layers

EACH = pytest.mark.parametrize('name', NAMES)
T = 24


def positions(B, length, start=0):
  return np.broadcast_to(np.arange(length, dtype=np.int32) + start, (B, length))


def padded(rows, length=T):
  tokens_BT = np.full((len(rows), length), 7, np.int32)  # Any token.
  for tokens_T, ids in zip(tokens_BT, rows, strict=True):
    tokens_T[: len(ids)] = ids
  return tokens_BT


def logits(p, params, rows):
  """Of every token, row by row."""
  tokens_BT = padded(rows)
  inputs = types.ModelInputs(tokens_BT, positions(*tokens_BT.shape))
  hidden_BTD = p.model.apply(params, inputs).hidden_BTD
  logits_BTV = hidden_BTD @ p.model.head(params)
  return [x[: len(ids)] for x, ids in zip(logits_BTV, rows, strict=True)]


@EACH
def test_logits_equal_the_reference(name):
  p = published(name)
  expected = p.golden['logits'][p.golden['mask']]
  actual = np.concatenate(logits(p, p.params, p.rows))
  np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


@EACH
def test_loss_and_gradient_norms_equal_the_reference(name):
  p = published(name)
  targets = [
    labels[mask][1:]
    for labels, mask in zip(p.golden['labels'], p.golden['mask'], strict=True)
  ]

  def nll(params):
    total = 0.0
    for row, labels in zip(logits(p, params, p.rows), targets, strict=True):
      logps_TV = jax.nn.log_softmax(row[:-1])
      picked_T = logps_TV[np.arange(len(labels)), np.maximum(labels, 0)]
      total -= jnp.sum(jnp.where(labels >= 0, picked_T, 0.0))
    return total

  value, grads = jax.jit(jax.value_and_grad(nll))(p.params)
  assert value == pytest.approx(p.told['nll_sum'], rel=1e-5)
  actual = norms(grads)
  expected = dict(zip(p.told['tensors'], p.golden['grads'], strict=True))
  assert actual.keys() == expected.keys()
  for tensor, norm in expected.items():
    assert actual[tensor] == pytest.approx(norm, rel=1e-4, abs=1e-5), tensor


TENSORS = {
  'attn_norm': 'input_layernorm.weight',
  'q': 'self_attn.q_proj.weight',
  'k': 'self_attn.k_proj.weight',
  'v': 'self_attn.v_proj.weight',
  'o': 'self_attn.o_proj.weight',
  'q_bias': 'self_attn.q_proj.bias',
  'k_bias': 'self_attn.k_proj.bias',
  'v_bias': 'self_attn.v_proj.bias',
  'q_norm': 'self_attn.q_norm.weight',
  'k_norm': 'self_attn.k_norm.weight',
  'mlp_norm': 'post_attention_layernorm.weight',
  'gate': 'mlp.gate_proj.weight',
  'up': 'mlp.up_proj.weight',
  'down': 'mlp.down_proj.weight',
}
TENSORS_OF_GEMMA = TENSORS | {
  'attn_post_norm': 'post_attention_layernorm.weight',
  'mlp_norm': 'pre_feedforward_layernorm.weight',
  'mlp_post_norm': 'post_feedforward_layernorm.weight',
}


def norms(grads):
  """Of each tensor by the reference's name."""
  names = TENSORS_OF_GEMMA if 'mlp_post_norm' in grads['layers'] else TENSORS
  norms = {
    'model.embed_tokens.weight': np.linalg.norm(grads['embed']),
    'model.norm.weight': np.linalg.norm(grads['final_norm']),
  }
  if 'unembed' in grads:
    norms['lm_head.weight'] = np.linalg.norm(grads['unembed'])
  for name, stack in grads['layers'].items():
    for y, grad in enumerate(stack):
      norms[f'model.layers.{y}.{names[name]}'] = np.linalg.norm(grad)
  return norms


def group(p, group_size):
  """The rows of the reference, each as the prompt of a group."""
  return types.Prompts(
    tokens_PL=padded(p.rows),
    lengths_P=np.array([len(ids) for ids in p.rows], np.int32),
    ids_P=np.arange(len(p.rows), dtype=np.uint32),
    answers_PC=np.zeros((len(p.rows), 1), np.uint8),
  )


@EACH
def test_greedy_completions_equal_the_reference(name):
  p = published(name)
  sampled = rollout.rollout(
    p.params,
    group(p, 2),
    jax.random.key(0),
    model=p.model,
    group_size=2,
    max_tokens=8,
    stop_ids=(-1,),  # None of the tokens.
    temperature=0.0,
  )
  for g in range(2):
    np.testing.assert_array_equal(sampled.tokens_PGT[:, g], p.golden['greedy'])


@EACH
def test_decoding_and_teacher_forcing_equal_the_whole_pass(name):
  # Prompts are longer than Gemma's window, and so are completions.
  p = published(name)
  own_BT = np.random.default_rng(1).integers(300, size=(6, 20)).astype(np.int32)
  rows = [np.concatenate([p.rows[b // 2], own_BT[b]]) for b in range(6)]
  tokens_BT = padded(rows, 44)
  inputs = types.ModelInputs(tokens_BT, positions(6, 44))
  whole_BTD = p.model.apply(p.params, inputs).hidden_BTD
  lengths_B = np.repeat([len(ids) for ids in p.rows], 2).astype(np.int32)
  expected = np.stack(
    [x[n : n + 20] for x, n in zip(whole_BTD, lengths_B, strict=True)]
  )

  _, cache = rollout.prefill(p.params, group(p, 2), p.model, 2, 0)
  places_BT = lengths_B[:, None] + np.arange(20, dtype=np.int32)
  forced = p.model.apply(p.params, types.ModelInputs(own_BT, places_BT), cache)
  np.testing.assert_allclose(forced.hidden_BTD, expected, atol=1e-4)

  _, cache = rollout.prefill(p.params, group(p, 2), p.model, 2, 20)
  decode_params, step = p.model.decode_params(p.params), jax.jit(p.model.apply)
  for t in range(20):
    inputs = types.ModelInputs(own_BT[:, t : t + 1], lengths_B[:, None] + t)
    out = step(decode_params, inputs, cache)
    np.testing.assert_allclose(out.hidden_BTD[:, 0], expected[:, t], atol=1e-4)
    cache = out.cache


def test_a_window_is_of_tokens_whatever_the_prompt_is_padded_with():
  # A Mistral: 4 tokens of window, seen by NumPy as a mask over the whole row.
  model = models.build('llama', 'tiny', vocab_size=24, layers=1, window=4)
  params = models.init_params(model, jax.random.key(0))
  ids = np.random.default_rng(0).integers(24, size=(1, 12)).astype(np.int32)

  def last(ids_1T):
    inputs = types.ModelInputs(ids_1T, positions(1, ids_1T.shape[1]))
    return np.asarray(model.apply(params, inputs).hidden_BTD)[0, -1]

  changed = ids.copy()
  changed[0, 8] = (ids[0, 8] + 1) % 24
  outside = ids.copy()
  outside[0, 7] = (ids[0, 7] + 1) % 24
  assert np.abs(last(changed) - last(ids)).max() > 1e-3
  np.testing.assert_array_equal(last(outside), last(ids))


def test_windows_bound_packed_documents_too():
  model = models.build('gemma3', 'tiny', vocab_size=24)
  params = models.init_params(model, jax.random.key(0))
  rng = np.random.default_rng(0)
  documents = [rng.integers(24, size=n).astype(np.int32) for n in (11, 13)]
  segments = np.repeat([1, 2], (11, 13))
  places = np.concatenate([np.arange(11), np.arange(13)]).astype(np.int32)
  packed = types.ModelInputs(
    np.concatenate(documents)[None], places[None], segments[None]
  )
  hidden_TD = model.apply(params, packed).hidden_BTD[0]
  for ids, actual in zip(documents, np.split(hidden_TD, [11]), strict=True):
    inputs = types.ModelInputs(ids[None], positions(1, len(ids)))
    expected = model.apply(params, inputs).hidden_BTD[0]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_gradients_through_a_window_are_those_of_whole_rows():
  p = published('gemma3')
  own_PGT = np.random.default_rng(1).integers(300, size=(3, 2, 12))
  r = types.Rollout(group(p, 2), own_PGT.astype(np.int32), *[None] * 4)

  def shared(params):
    return likelihood.likelihood(params, r, model=p.model).logps_PGT.sum()

  def separate(params):
    total = 0.0
    rows = [
      np.concatenate([p.rows[b // 2], own_PGT.reshape(6, 12)[b]])
      for b in range(6)
    ]
    tokens_BT = padded(rows, 40)
    inputs = types.ModelInputs(tokens_BT, positions(6, 40))
    hidden_BTD = p.model.apply(params, inputs).hidden_BTD
    logps_BTV = jax.nn.log_softmax(hidden_BTD @ p.model.head(params))
    for b, ids in enumerate(rows):
      at = np.arange(len(ids) - 12, len(ids))
      total += logps_BTV[b, at - 1, ids[at]].sum()
    return total

  value, grads = jax.jit(jax.value_and_grad(shared))(p.params)
  expected, expected_grads = jax.jit(jax.value_and_grad(separate))(p.params)
  assert value == pytest.approx(float(expected), rel=1e-5)
  for a, e in zip(
    jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True
  ):
    assert np.linalg.norm(a - e) < 1e-4 * np.linalg.norm(e)


@pytest.mark.parametrize('unroll,remat', [(False, 'full'), (True, 'dots')])
def test_unrolling_and_recomputing_gemma_change_nothing(unroll, remat):
  p = published('gemma3')
  sizes = dict(
    width=64, heads=4, feed_forward=96, vocab_size=300, query_scale=24.0
  )
  model = models.build('gemma3', 'tiny', unroll=unroll, remat=remat, **sizes)
  inputs = types.ModelInputs(padded(p.rows), positions(3, T))
  np.testing.assert_allclose(
    model.apply(p.params, inputs).hidden_BTD,
    p.model.apply(p.params, inputs).hidden_BTD,
    atol=2e-5,
  )


def test_wave_lengths_of_llama_3_are_stretched_only_where_they_are_long():
  plain = layers.frequencies(128, 500_000.0)
  stretched = layers.frequencies(128, 500_000.0, llama3=(8.0, 1.0, 4.0, 8192))
  waves = 2 * np.pi / plain
  np.testing.assert_array_equal(
    stretched[waves < 8192 / 4], plain[waves < 8192 / 4]
  )
  np.testing.assert_allclose(
    stretched[waves > 8192], plain[waves > 8192] / 8, rtol=1e-6
  )
  between = (waves > 8192 / 4) & (waves < 8192)
  assert between.any()
  assert (stretched[between] < plain[between]).all()
  assert (stretched[between] > plain[between] / 8).all()


@pytest.mark.parametrize('variant,millions', [('270m', 268.1), ('1b', 999.9)])
def test_gemma_has_the_size_of_its_name(variant, millions):
  count = models.param_count(gemma3.build(variant))
  assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_variant_without_name_needs_every_size():
  with pytest.raises(ValueError, match="variant='' needs model.sizes.width"):
    models.build('llama', '', layers=2)
