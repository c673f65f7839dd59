"""What decoders share: tokens through a stack of layers, with a cache or not.

A model file fills in a `Decoder` and its parameter table; `model` makes a
models.Model of them. Layers may be of several kinds, which differ in how far
they see and how they turn positions (`kinds`); `layer_kinds` says which is
which. Layers are scanned, and so is what differs between their kinds.

Projections are products of two-dimensional arrays, and attention is
heads-first: see _layer and attention.py for what that is worth on a CPU.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers
import jax.numpy as jnp
import numpy as np

from grpo_jax import models, sharding
from grpo_jax.models import Model, Param, attention, flash, layers
from grpo_jax.types import ModelInputs, ModelOutputs, Params

REMATS = ('none', 'full', 'dots', 'offload')
_INPUT = 'layer_input'


class Kind(NamedTuple):
  """A kind of layer."""

  frequencies_H: np.ndarray  # Of H / 2 rotary pairs, radians a position.
  window: int = 0  # Tokens that a query sees, itself counted; 0: all before it.


@dataclasses.dataclass(frozen=True)
class Decoder:
  """A stack of pre-norm layers.

  finish(x_XD, y_XD, weights) -> x_XD: what a layer does with its input x and
    the output y of its attention, X being all rows' tokens. Its products are
    `project`s, so that they may have adapters.
  """

  finish: Callable[[jax.Array, jax.Array, Params], jax.Array]
  heads: int
  kv_heads: int
  query_scale: float
  norm_eps: float
  kinds: tuple[Kind, ...]
  layer_kinds: tuple[int, ...]  # Of each layer, an index into `kinds`.
  norm_offset: float = 0.0  # Added to the scales of norms.
  embed_scale: float = 1.0
  unroll: bool = False
  remat: str = 'none'  # One of REMATS.
  attend: Callable[..., jax.Array] = attention.plain


def sizes(kind: type, variants: dict, variant: str, changes: dict):
  """The sizes of a variant with some replaced; '' is no variant, but all told.

  Raises ValueError, naming what is known.
  """
  fields = dataclasses.fields(kind)
  known = [field.name for field in fields]
  for name in changes:
    if name not in known:
      raise ValueError(f'model.sizes.{name} is not one of {", ".join(known)}')
  if not variant:
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in changes]:
      raise ValueError(f"model.variant='' needs model.sizes.{missing[0]}")
    return kind(**changes)
  if variant not in variants:
    raise ValueError(f'model.variant={variant!r} is not one of {[*variants]}')
  return dataclasses.replace(variants[variant], **changes)


def kernel(name: str) -> Callable[..., jax.Array]:
  """Of attention.py or flash.py; raises ValueError, naming what is known."""
  for module in (attention, flash):
    if name in module.KERNELS:
      return getattr(module, name)
  known = [*attention.KERNELS, *flash.KERNELS]
  raise ValueError(f'model.attention={name!r} is not one of {known}')


def model(d: Decoder, table: dict) -> Model:
  """The models.Model of a decoder with this parameter table."""
  if d.remat not in REMATS:
    raise ValueError(f'model.remat={d.remat!r} is not one of {[*REMATS]}')
  Y, _, queries = table['layers']['q'].shape
  return Model(
    table=table,
    vocab_size=table['embed'].shape[0],
    apply=functools.partial(_apply, d=d),
    init_cache=attention.init_cache,
    grow_cache=attention.grow_cache,
    head=_head,
    decode_params=functools.partial(_decode_params, d=d),
    products_per_pair=2 * Y * queries,
    adaptable=True,
  )


def table(
  s: Any,
  *,
  qkv_bias: bool = False,
  qk_norm: bool = False,
  norms: Iterable[str] = ('attn_norm', 'mlp_norm'),
  norm_init: models.Initializer = initializers.ones,
) -> dict:
  """The parameters of a decoder with a gated feed-forward part.

  `s` are the Sizes of a model file: layers, width, heads and so on.
  """
  Y, D, F, H = s.layers, s.width, s.feed_forward, s.head_size
  into = initializers.normal(D**-0.5)  # Fan-in of products that read the width.
  back = initializers.normal((2 * Y * D) ** -0.5)  # GPT-2: residual / depth.

  def stack(shape, axes, init):
    return Param((Y, *shape), ('layers', *axes), init)

  outs = {
    'q': (s.heads * H, 'heads'),
    'k': (s.kv_heads * H, 'kv_heads'),
    'v': (s.kv_heads * H, 'kv_heads'),
  }
  rows = {name: stack((D,), (None,), norm_init) for name in norms}
  for name, (size, axis) in outs.items():
    rows[name] = stack((D, size), ('embed', axis), into)
    if qkv_bias:
      rows[f'{name}_bias'] = stack((size,), (axis,), initializers.zeros)
  if qk_norm:
    rows |= {
      name: stack((H,), (None,), norm_init) for name in ('q_norm', 'k_norm')
    }
  rows |= {
    'o': stack((s.heads * H, D), ('heads', 'embed'), back),
    'gate': stack((D, F), ('embed', 'mlp'), into),
    'up': stack((D, F), ('embed', 'mlp'), into),
    'down': stack((F, D), ('mlp', 'embed'), back),
  }
  whole = {
    'embed': Param((s.vocab_size, D), ('vocab', 'embed'), into),
    'layers': rows,
    'final_norm': Param((D,), (None,), norm_init),
  }
  if not s.tied:
    whole['unembed'] = Param((D, s.vocab_size), ('embed', 'vocab'), into)
  return whole


def _head(params: Params) -> jax.Array:
  if 'unembed' in params:
    return params['unembed']
  return params['embed'].T


def _apply(
  params: Params,
  inputs: ModelInputs,
  cache: attention.Cache | None = None,
  *,
  d: Decoder,
) -> ModelOutputs:
  # A table cut along its width would have all rows' tokens sent to each cut.
  embed_VD = sharding.constrain(params['embed'], 'vocab', None)
  x_BTD = embed_VD[inputs.tokens_BT]
  if d.embed_scale != 1:
    x_BTD *= jnp.asarray(d.embed_scale, x_BTD.dtype)
  x_BTD = sharding.constrain(x_BTD, 'batch', None, None)
  angles = [
    layers.rope_tables(inputs.positions_BT, kind.frequencies_H)
    for kind in d.kinds
  ]
  windows = _windows(inputs, cache, d)
  if cache is not None and cache.own_k[0].shape[-1]:
    return _decode(params, x_BTD, cache, angles, windows, d)

  def body(x_BTD, scanned):
    weights, prompt_kv, kind = scanned
    x_BTD = checkpoint_name(x_BTD, _INPUT)
    prompt = None
    if cache is not None:
      prompt = (*prompt_kv, cache.prompt_lengths_P)
    kind = 0 if kind is None else kind
    reach = attention.Reach(inputs.segment_ids_BT, windows=windows, kind=kind)
    weights = _prepared(weights, d)
    turn = _of_kind(kind, angles)
    return _layer(x_BTD, weights, lambda k, v: (k, v), turn, reach, prompt, d)

  if d.remat != 'none':
    # Straight code must be told not to take it from the forward pass again.
    policy = _keeps(d.remat)
    body = jax.checkpoint(body, prevent_cse=d.unroll, policy=policy)
  prompt_kv = None
  if cache is not None:
    prompt_kv = (jnp.stack(cache.prompt_k), jnp.stack(cache.prompt_v))
  kinds_Y = None if len(d.kinds) == 1 else jnp.asarray(d.layer_kinds, jnp.int32)
  x_BTD, kv = jax.lax.scan(
    body,
    x_BTD,
    (params['layers'], prompt_kv, kinds_Y),
    unroll=len(d.layer_kinds) if d.unroll else 1,
  )
  return ModelOutputs(hidden_BTD=_last_norm(x_BTD, params, d), cache=kv)


def _keeps(remat: str) -> Callable:
  """What the backward pass finds of a layer, besides that layer's input."""
  policies = jax.checkpoint_policies
  match remat:
    case 'full':
      return policies.nothing_saveable
    case 'dots':  # But not attention's: they are batches of products.
      return policies.dots_with_no_batch_dims_saveable
    case 'offload':
      return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src='device',
        offload_dst=sharding.HOST,
      )
  raise ValueError(f'remat={remat!r} is not one of {REMATS}')


def _decode_params(params: Params, *, d: Decoder) -> Params:
  """The layers one by one: cut in the loop, each token would copy them all.

  (28 of 395 ms of a rollout of 64 completions of 128 tokens by 1M parameters.)
  Their matrices are turned for layers.thin_product.
  """
  layers_Y = []
  for y in range(len(d.layer_kinds)):
    w = _prepared(jax.tree.map(lambda w, y=y: w[y], params['layers']), d)
    w['qkv_KCHD'] = w.pop('qkv_DKCH').transpose(1, 2, 3, 0)
    w |= {f'{name}_OI': w.pop(name).T for name in ('o', 'gate', 'up', 'down')}
    layers_Y.append(w)
  return params | {'layers': layers_Y}


def _decode(params, x_BTD, cache, angles, windows, d) -> ModelOutputs:
  """One token a row; the caches are written in place inside a loop."""
  own_k, own_v = [], []
  for y, weights in enumerate(params['layers']):
    prompt = (cache.prompt_k[y], cache.prompt_v[y], cache.prompt_lengths_P)
    kind = d.layer_kinds[y]
    reach = attention.Reach(used=cache.used, windows=windows, kind=kind)

    def write(k_BKH1, v_BKH1, y=y):
      zero = jnp.zeros_like(cache.used)
      at = (zero, zero, zero, cache.used)
      put = jax.lax.dynamic_update_slice
      return put(cache.own_k[y], k_BKH1, at), put(cache.own_v[y], v_BKH1, at)

    x_BTD, (k_BKHS, v_BKHS) = _layer(
      x_BTD, weights, write, angles[kind], reach, prompt, d
    )
    own_k.append(k_BKHS)
    own_v.append(v_BKHS)
  cache = cache.replace(
    own_k=tuple(own_k), own_v=tuple(own_v), used=cache.used + 1
  )
  return ModelOutputs(hidden_BTD=_last_norm(x_BTD, params, d), cache=cache)


def _windows(inputs, cache, d: Decoder) -> tuple[int, ...]:
  """Of each kind; none where each of them holds every key."""
  keys = inputs.tokens_BT.shape[1]
  if cache is not None:
    keys = cache.prompt_k[0].shape[2] + max(keys, cache.own_k[0].shape[-1])
  if not any(0 < kind.window < keys for kind in d.kinds):
    return ()
  return tuple(kind.window or keys for kind in d.kinds)


def _of_kind(kind: jax.Array | int, trees: list):
  """One of them; in the scan it is not known before it runs which."""
  if isinstance(kind, int):
    return trees[kind]
  return jax.tree.map(lambda *of: jax.lax.select_n(kind, *of), *trees)


def _layer(x_BTD, weights, own_keys, angles, reach, prompt, d: Decoder):
  """One layer; `own_keys(k, v)` says which keys and values a row attends to.

  Tokens are one flat axis, X = B*T: with (B, T) kept apart, XLA's CPU compiler
  transposes the operands of every weight gradient (67 ms against 46 for the
  quickstart's pre-training gradient, 2048 tokens on 2 cores).
  """
  B, T, D = x_BTD.shape
  x_XD = x_BTD.reshape(B * T, D)

  y_XD = layers.rms_norm(x_XD, weights['attn_norm'], d.norm_eps)
  if 'qkv_KCHD' in weights:
    qkv_KCHD = weights['qkv_KCHD']
    qkv_XO = layers.thin_product(y_XD, qkv_KCHD.reshape(-1, D))
    qkv_XKCH = qkv_XO.reshape(-1, *qkv_KCHD.shape[:-1])
  else:
    qkv_XKCH = jnp.einsum('xd,dkch->xkch', y_XD, weights['qkv_DKCH'])
  if 'qkv_bias_KCH' in weights:
    qkv_XKCH += weights['qkv_bias_KCH']
  if 'qkv_a_DJ' in weights:
    y_XJ = y_XD @ weights['qkv_a_DJ']
    qkv_XKCH += jnp.einsum('xj,jkch->xkch', y_XJ, weights['qkv_b_JKCH'])
  qkv_BTKCH = qkv_XKCH.reshape(B, T, *qkv_XKCH.shape[1:])
  qkv_BKCTH = qkv_BTKCH.transpose(0, 2, 3, 1, 4)
  qk_BKCTH = qkv_BKCTH[:, :, :-1]
  if 'qk_norm_C1H' in weights:
    qk_BKCTH = layers.rms_norm(qk_BKCTH, weights['qk_norm_C1H'], d.norm_eps)
  qk_BKCTH = layers.rope(qk_BKCTH, *angles)
  k_BKHT = qk_BKCTH[:, :, -1].swapaxes(2, 3)
  v_BKHT = qkv_BKCTH[:, :, -1].swapaxes(2, 3)
  k_BKHS, v_BKHS = own_keys(k_BKHT, v_BKHT)
  y_BKRTH = d.attend(
    qk_BKCTH[:, :, :-1] * d.query_scale, k_BKHS, v_BKHS, reach, prompt
  )
  y_XD = y_BKRTH.transpose(0, 3, 1, 2, 4).reshape(B * T, -1)
  y_XD = project(y_XD.astype(x_XD.dtype), weights, 'o')

  x_XD = d.finish(x_XD, y_XD, weights)
  return x_XD.reshape(B, T, D), (k_BKHS, v_BKHS)


def project(x_XI: jax.Array, weights: Params, name: str) -> jax.Array:
  """x @ weights[name], and through its adapter, if it has one."""
  if f'{name}_OI' in weights:
    y_XO = layers.thin_product(x_XI, weights[f'{name}_OI'])
  else:
    y_XO = x_XI @ weights[name]
  if f'{name}_a' in weights:
    y_XO += (x_XI @ weights[f'{name}_a']) @ weights[f'{name}_b']
  return y_XO


def _prepared(weights: Params, d: Decoder) -> Params:
  """A layer's weights with q, k and v in one array, for one product.

  qkv_DKCH holds, for each key-value head, the queries that read it, its key
  and its value: a cut along `tensor` between heads stays one. The biases are
  joined likewise, and the norms of queries and keys.
  """
  w = {
    name: _norm_scale(x, d) if name.endswith('_norm') else x
    for name, x in weights.items()
  }
  D, K, N = w['q'].shape[0], d.kv_heads, d.heads
  parts = [w[name].reshape(D, K, -1, w['q'].shape[1] // N) for name in 'qkv']
  w['qkv_DKCH'] = jnp.concatenate(parts, axis=2)
  if 'q_bias' in w:
    biases = [
      w[f'{name}_bias'].reshape(K, -1, parts[0].shape[3]) for name in 'qkv'
    ]
    w['qkv_bias_KCH'] = jnp.concatenate(biases, axis=1)
  if 'q_norm' in w:
    norms_CH = jnp.stack([w['q_norm']] * (N // K) + [w['k_norm']])
    w['qk_norm_C1H'] = norms_CH[:, None]
  if adapted := [name for name in 'qkv' if f'{name}_a' in w]:
    w['qkv_a_DJ'] = jnp.concatenate([w[f'{n}_a'] for n in adapted], axis=1)
    w['qkv_b_JKCH'] = _beside_zeros(w, adapted, parts)
  return w


def _beside_zeros(w: Params, adapted: list[str], parts: list) -> jax.Array:
  """The adapters' second factors, each where its projection is in qkv_DKCH."""
  rows = []
  for name in adapted:
    b_JO = w[f'{name}_b']
    J = len(b_JO)
    blocks = [
      b_JO.reshape(J, *part.shape[1:])
      if name == other
      else jnp.zeros((J, *part.shape[1:]), b_JO.dtype)
      for other, part in zip('qkv', parts, strict=True)
    ]
    rows.append(jnp.concatenate(blocks, axis=2))
  return jnp.concatenate(rows)


def _last_norm(x_BTD, params, d: Decoder):
  scale_D = _norm_scale(params['final_norm'], d)
  return layers.rms_norm(x_BTD, scale_D, d.norm_eps)


def _norm_scale(scale, d: Decoder):
  if not d.norm_offset:
    return scale
  return d.norm_offset + scale.astype(layers.accumulator(scale))
