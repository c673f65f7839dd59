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
  x_BTD = params['embed'][inputs.tokens_BT]
  x_BTD = sharding.constrain(x_BTD, 'batch', None, None)
  angles = layers.rope_tables(inputs.positions_BT, s.head_size, s.rope_theta)
  layer = functools.partial(_layer, s=s, angles=angles)
  if cache is not None and cache.own_k[0].shape[2]:
    return _decode(params, x_BTD, cache, layer, s)

  # Causal, and within a document: padding comes last, so nothing sees it.
  T = x_BTD.shape[1]
  mask = jnp.tril(jnp.ones((1, 1, T, T), bool))
  if inputs.segment_ids_BT is not None:
    ids = inputs.segment_ids_BT
    mask &= (ids[:, :, None] == ids[:, None, :])[:, None]

  def body(x_BTD, scanned):
    weights, prompt_kv = scanned
    prompt = None
    if cache is not None:
      prompt = (*prompt_kv, cache.prompt_lengths_P)
    return layer(x_BTD, weights, lambda k, v: (k, v), mask, prompt)

  if s.remat:
    body = jax.checkpoint(body, prevent_cse=False)
  prompt_kv = None
  if cache is not None:
    prompt_kv = (cache.prompt_k_YPKLH, cache.prompt_v_YPKLH)
  x_BTD, kv = jax.lax.scan(
    body,
    x_BTD,
    (params['layers'], prompt_kv),
    unroll=s.layers if s.unroll else 1,
  )
  x_BTD = layers.rms_norm(x_BTD, params['final_norm'], s.norm_eps)
  return ModelOutputs(hidden_BTD=x_BTD, cache=kv)


def _decode(params, x_BTD, cache, layer, s) -> ModelOutputs:
  """One token a row; the caches are written in place inside a loop."""
  S = cache.own_k[0].shape[2]
  mask = (jnp.arange(S) <= cache.used)[None, None, None]
  own_k, own_v = [], []
  for y in range(s.layers):
    weights = jax.tree.map(lambda w, y=y: w[y], params['layers'])
    prompt = (
      cache.prompt_k_YPKLH[y],
      cache.prompt_v_YPKLH[y],
      cache.prompt_lengths_P,
    )

    def write(k_BK1H, v_BK1H, y=y):
      zero = jnp.zeros_like(cache.used)
      at = (zero, zero, cache.used, zero)
      return (
        jax.lax.dynamic_update_slice(cache.own_k[y], k_BK1H, at),
        jax.lax.dynamic_update_slice(cache.own_v[y], v_BK1H, at),
      )

    x_BTD, (k_BKSH, v_BKSH) = layer(x_BTD, weights, write, mask, prompt)
    own_k.append(k_BKSH)
    own_v.append(v_BKSH)
  x_BTD = layers.rms_norm(x_BTD, params['final_norm'], s.norm_eps)
  cache = cache.replace(
    own_k=tuple(own_k), own_v=tuple(own_v), used=cache.used + 1
  )
  return ModelOutputs(hidden_BTD=x_BTD, cache=cache)


def _layer(x_BTD, weights, own_keys, mask, prompt, *, s: Sizes, angles):
  """One block; `own_keys(k, v)` says which keys and values a row attends to.

  Tokens are one flat axis, X = B*T: with (B, T) kept apart, XLA's CPU compiler
  transposes the operands of every weight gradient (67 ms against 46 for the
  quickstart's pre-training gradient, 2048 tokens on 2 cores).
  """
  B, T, D = x_BTD.shape
  x_XD = x_BTD.reshape(B * T, D)

  def heads(y_XD, name, n):
    y_BTNH = (y_XD @ weights[name]).reshape(B, T, n, s.head_size)
    return y_BTNH.swapaxes(1, 2)

  y_XD = layers.rms_norm(x_XD, weights['attn_norm'], s.norm_eps)
  q_BNTH = layers.rope(heads(y_XD, 'q', s.heads), *angles)
  k_BKTH = layers.rope(heads(y_XD, 'k', s.kv_heads), *angles)
  v_BKTH = heads(y_XD, 'v', s.kv_heads)
  k_BKSH, v_BKSH = own_keys(k_BKTH, v_BKTH)
  y_BNTH = attention.attend(q_BNTH, k_BKSH, v_BKSH, mask, prompt)
  y_XD = y_BNTH.swapaxes(1, 2).reshape(B * T, s.heads * s.head_size)
  x_XD += y_XD.astype(x_XD.dtype) @ weights['o']

  y_XD = layers.rms_norm(x_XD, weights['mlp_norm'], s.norm_eps)
  gated_XF = jax.nn.silu(y_XD @ weights['gate']) * (y_XD @ weights['up'])
  x_XD += gated_XF @ weights['down']
  return x_XD.reshape(B, T, D), (k_BKSH, v_BKSH)
