"""Gemma 3, text only (arxiv.org/abs/2503.19786).

`build(variant, **sizes)` gives the Model; see models/__init__.py for the
contract and decoder.py for what is shared with others. Five layers that see a
window are followed by one that sees everything, each with rotary waves of its
own; queries and keys are normed, and what a part gives back is normed again
before it is added. Scales of norms are kept as Gemma's files have them: 1 is
added in use.
"""

import dataclasses

import jax
from jax.nn import initializers

from grpo_jax.models import Model, decoder, layers


@dataclasses.dataclass(frozen=True)
class Sizes:
  layers: int
  width: int
  heads: int
  kv_heads: int
  head_size: int
  feed_forward: int
  vocab_size: int
  query_scale: float = 256.0  # Queries are divided by its square root.
  window: int = 512  # Tokens that a query of a local layer sees.
  global_every: int = 6  # Each such layer, from the first on, sees all.
  rope_theta: float = 1e6  # Of the global layers,
  rope_linear: float = 1.0  # theirs too; see layers.frequencies.
  local_rope_theta: float = 1e4
  norm_eps: float = 1e-6
  tied: bool = True  # The head is the embedding, transposed.
  unroll: bool = False  # Layers as straight code: faster on CPU, slow to build.
  remat: str = 'none'  # Or another of decoder.REMATS: less memory.
  attention: str = 'plain'  # A kernel of attention.py.


VARIANTS = {
  'tiny': Sizes(6, 32, 2, 1, 16, 64, 512, query_scale=16.0, window=8),
  '270m': Sizes(18, 640, 4, 1, 256, 2048, 262_144),
  '1b': Sizes(26, 1152, 4, 1, 256, 6912, 262_144),
}


def build(variant: str, **sizes) -> Model:
  """A Gemma 3; `sizes` replace fields of the variant. Raises ValueError."""
  s = decoder.sizes(Sizes, VARIANTS, variant, sizes)
  far = layers.frequencies(s.head_size, s.rope_theta, s.rope_linear)
  near = layers.frequencies(s.head_size, s.local_rope_theta)
  return decoder.model(
    decoder.Decoder(
      finish=lambda x_XD, y_XD, weights: _finish(x_XD, y_XD, weights, s),
      heads=s.heads,
      kv_heads=s.kv_heads,
      query_scale=s.query_scale**-0.5,
      norm_eps=s.norm_eps,
      kinds=(decoder.Kind(far), decoder.Kind(near, s.window)),
      layer_kinds=tuple(
        int((y + 1) % s.global_every > 0) for y in range(s.layers)
      ),
      norm_offset=1.0,
      embed_scale=s.width**0.5,
      unroll=s.unroll,
      remat=s.remat,
      attend=decoder.kernel(s.attention),
    ),
    decoder.table(
      s,
      qk_norm=True,
      norms=('attn_norm', 'attn_post_norm', 'mlp_norm', 'mlp_post_norm'),
      norm_init=initializers.zeros,
    ),
  )


def _finish(x_XD, y_XD, weights, s: Sizes):
  x_XD += layers.rms_norm(y_XD, weights['attn_post_norm'], s.norm_eps)
  y_XD = layers.rms_norm(x_XD, weights['mlp_norm'], s.norm_eps)
  gate_XF, up_XF = (decoder.project(y_XD, weights, n) for n in ('gate', 'up'))
  gated_XF = jax.nn.gelu(gate_XF, approximate=True) * up_XF
  y_XD = decoder.project(gated_XF, weights, 'down')
  return x_XD + layers.rms_norm(y_XD, weights['mlp_post_norm'], s.norm_eps)
