"""Llama-style decoders: pre-norm, rotary positions, grouped queries, SwiGLU.

`build(variant, **sizes)` gives the Model; see models/__init__.py for the
contract. Projections are products of two-dimensional arrays, and attention is
heads-first: see _layer and attention.py for what that is worth on a CPU.
"""

import dataclasses
import functools

import jax
from jax.nn import initializers
import jax.numpy as jnp

from grpo_jax import sharding
from grpo_jax.models import Model, Param, attention, layers
from grpo_jax.types import ModelInputs, ModelOutputs, Params


@dataclasses.dataclass(frozen=True)
class Sizes:
  layers: int
  width: int
  heads: int
  kv_heads: int
  head_size: int
  feed_forward: int
  vocab_size: int
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-5
  tied: bool = True  # The head is the embedding, transposed.
  unroll: bool = False  # Layers as straight code: faster on CPU, slow to build.
  remat: bool = False  # Recompute a layer in its backward pass: less memory.


VARIANTS = {
  'tiny': Sizes(2, 32, 2, 1, 16, 64, 512),
  'quickstart': Sizes(3, 128, 4, 2, 32, 384, 64),
  'smollm2_135m': Sizes(30, 576, 9, 3, 64, 1536, 49_152, rope_theta=100_000.0),
}


def build(variant: str, **sizes) -> Model:
  """A Llama; `sizes` replace fields of the variant. Raises ValueError."""
  if variant not in VARIANTS:
    raise ValueError(f'model.variant={variant!r} is not one of {[*VARIANTS]}')
  known = [field.name for field in dataclasses.fields(Sizes)]
  for name in sizes:
    if name not in known:
      raise ValueError(f'model.sizes.{name} is not one of {", ".join(known)}')
  s = dataclasses.replace(VARIANTS[variant], **sizes)
  return Model(
    table=_table(s),
    vocab_size=s.vocab_size,
    apply=functools.partial(_apply, s=s),
    init_cache=attention.init_cache,
    head=_head,
    decode_params=functools.partial(_decode_params, s=s),
    products_per_pair=2 * s.layers * s.heads * s.head_size,
  )


def _table(s: Sizes) -> dict:
  Y, D, F, H = s.layers, s.width, s.feed_forward, s.head_size
  ones = initializers.ones
  into = initializers.normal(D**-0.5)  # Fan-in of products that read the width.
  back = initializers.normal((2 * Y * D) ** -0.5)  # GPT-2: residual / depth.

  def matrix(n_in, n_out, axes, init):
    return Param((Y, n_in, n_out), ('layers', *axes), init)

  table = {
    'embed': Param((s.vocab_size, D), ('vocab', 'embed'), into),
    'layers': {
      'attn_norm': Param((Y, D), ('layers', None), ones),
      'q': matrix(D, s.heads * H, ('embed', 'heads'), into),
      'k': matrix(D, s.kv_heads * H, ('embed', 'kv_heads'), into),
      'v': matrix(D, s.kv_heads * H, ('embed', 'kv_heads'), into),
      'o': matrix(s.heads * H, D, ('heads', 'embed'), back),
      'mlp_norm': Param((Y, D), ('layers', None), ones),
      'gate': matrix(D, F, ('embed', 'mlp'), into),
      'up': matrix(D, F, ('embed', 'mlp'), into),
      'down': matrix(F, D, ('mlp', 'embed'), back),
    },
    'final_norm': Param((D,), (None,), ones),
  }
  if not s.tied:
    table['unembed'] = Param((D, s.vocab_size), ('embed', 'vocab'), into)
  return table


def _head(params: Params) -> jax.Array:
  if 'unembed' in params:
    return params['unembed']
  return params['embed'].T


def _apply(
  params: Params,
  inputs: ModelInputs,
  cache: attention.Cache | None = None,
  *,
  s: Sizes,
) -> ModelOutputs:
  # A table cut along its width would have all rows' tokens sent to each cut.
  embed_VD = sharding.constrain(params['embed'], 'vocab', None)
  x_BTD = embed_VD[inputs.tokens_BT]
  x_BTD = sharding.constrain(x_BTD, 'batch', None, None)
  angles = layers.rope_tables(inputs.positions_BT, s.head_size, s.rope_theta)
  layer = functools.partial(_layer, s=s, angles=angles)
  if cache is not None and cache.own_k[0].shape[-1]:
    return _decode(params, x_BTD, cache, layer, s)

  # Causal, and within a document: padding comes last, so nothing sees it.
  T = x_BTD.shape[1]
  mask = jnp.tril(jnp.ones((1, 1, 1, T, T), bool))
  if inputs.segment_ids_BT is not None:
    ids = inputs.segment_ids_BT
    mask &= (ids[:, :, None] == ids[:, None, :])[:, None, None]

  def body(x_BTD, scanned):
    weights, prompt_kv = scanned
    prompt = None
    if cache is not None:
      prompt = (*prompt_kv, cache.prompt_lengths_P)
    weights = _side_by_side(weights, s)
    return layer(x_BTD, weights, lambda k, v: (k, v), mask, prompt)

  if s.remat:
    body = jax.checkpoint(body, prevent_cse=False)
  prompt_kv = None
  if cache is not None:
    prompt_kv = (jnp.stack(cache.prompt_k), jnp.stack(cache.prompt_v))
  x_BTD, kv = jax.lax.scan(
    body,
    x_BTD,
    (params['layers'], prompt_kv),
    unroll=s.layers if s.unroll else 1,
  )
  x_BTD = layers.rms_norm(x_BTD, params['final_norm'], s.norm_eps)
  return ModelOutputs(hidden_BTD=x_BTD, cache=kv)


def _decode_params(params: Params, *, s: Sizes) -> Params:
  """The layers one by one: cut in the loop, each token would copy them all.

  (28 of 395 ms of a rollout of 64 completions of 128 tokens by 1M parameters.)
  """
  one_by_one = [
    jax.tree.map(lambda w, y=y: w[y], params['layers']) for y in range(s.layers)
  ]
  return params | {'layers': [_side_by_side(w, s) for w in one_by_one]}


def _decode(params, x_BTD, cache, layer, s) -> ModelOutputs:
  """One token a row; the caches are written in place inside a loop."""
  S = cache.own_k[0].shape[-1]
  mask = jnp.arange(S) <= cache.used
  own_k, own_v = [], []
  for y, weights in enumerate(params['layers']):
    prompt = (cache.prompt_k[y], cache.prompt_v[y], cache.prompt_lengths_P)

    def write(k_BKH1, v_BKH1, y=y):
      zero = jnp.zeros_like(cache.used)
      at = (zero, zero, zero, cache.used)
      put = jax.lax.dynamic_update_slice
      return put(cache.own_k[y], k_BKH1, at), put(cache.own_v[y], v_BKH1, at)

    x_BTD, (k_BKHS, v_BKHS) = layer(x_BTD, weights, write, mask, prompt)
    own_k.append(k_BKHS)
    own_v.append(v_BKHS)
  x_BTD = layers.rms_norm(x_BTD, params['final_norm'], s.norm_eps)
  cache = cache.replace(
    own_k=tuple(own_k), own_v=tuple(own_v), used=cache.used + 1
  )
  return ModelOutputs(hidden_BTD=x_BTD, cache=cache)


def _side_by_side(weights: Params, s: Sizes) -> Params:
  """A layer's weights with q, k and v in one array, for one product.

  qkv_DKCH holds, for each key-value head, the queries that read it, its key
  and its value: a cut along `tensor` between heads stays one.
  """
  D, K, H = s.width, s.kv_heads, s.head_size
  q, k, v = (weights[name].reshape(D, K, -1, H) for name in ('q', 'k', 'v'))
  return weights | {'qkv_DKCH': jnp.concatenate([q, k, v], axis=2)}


def _layer(x_BTD, weights, own_keys, mask, prompt, *, s: Sizes, angles):
  """One block; `own_keys(k, v)` says which keys and values a row attends to.

  Tokens are one flat axis, X = B*T: with (B, T) kept apart, XLA's CPU compiler
  transposes the operands of every weight gradient (67 ms against 46 for the
  quickstart's pre-training gradient, 2048 tokens on 2 cores).
  """
  B, T, D = x_BTD.shape
  x_XD = x_BTD.reshape(B * T, D)

  y_XD = layers.rms_norm(x_XD, weights['attn_norm'], s.norm_eps)
  qkv_XKCH = jnp.einsum('xd,dkch->xkch', y_XD, weights['qkv_DKCH'])
  qkv_BTKCH = qkv_XKCH.reshape(B, T, *qkv_XKCH.shape[1:])
  qkv_BKCTH = qkv_BTKCH.transpose(0, 2, 3, 1, 4)
  qk_BKCTH = layers.rope(qkv_BKCTH[:, :, :-1], *angles)
  k_BKHT = qk_BKCTH[:, :, -1].swapaxes(2, 3)
  v_BKHT = qkv_BKCTH[:, :, -1].swapaxes(2, 3)
  k_BKHS, v_BKHS = own_keys(k_BKHT, v_BKHT)
  y_BKRTH = attention.attend(qk_BKCTH[:, :, :-1], k_BKHS, v_BKHS, mask, prompt)
  y_XD = y_BKRTH.transpose(0, 3, 1, 2, 4).reshape(B * T, -1)
  x_XD += y_XD.astype(x_XD.dtype) @ weights['o']

  y_XD = layers.rms_norm(x_XD, weights['mlp_norm'], s.norm_eps)
  gated_XF = layers.swiglu(y_XD @ weights['gate'], y_XD @ weights['up'])
  x_XD += gated_XF @ weights['down']
  return x_XD.reshape(B, T, D), (k_BKHS, v_BKHS)
