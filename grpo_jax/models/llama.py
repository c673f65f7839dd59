"""Llama-style decoders: pre-norm, rotary positions, grouped queries, SwiGLU.

`build(variant, **sizes)` gives the Model; see models/__init__.py for the
contract and decoder.py for what is shared with others. By its sizes it is
Llama 2 and 3, SmolLM2, Mistral (`window`), Qwen 2 and 2.5 (`qkv_bias`) and
Qwen 3 (`qk_norm`).
"""

import dataclasses

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
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-5
  tied: bool = True  # The head is the embedding, transposed.
  unroll: bool = False  # Layers as straight code: faster on CPU, slow to build.
  remat: str = 'none'  # Or another of decoder.REMATS: less memory.
  attention: str = 'plain'  # A kernel of attention.py.
  qkv_bias: bool = False
  qk_norm: bool = False  # Of each head, before it is turned.
  window: int = 0  # Tokens that a query sees, itself counted; 0: all before it.
  rope_linear: float = 1.0  # As layers.frequencies takes them.
  rope_llama3: tuple[float, ...] = ()


VARIANTS = {
  'tiny': Sizes(2, 32, 2, 1, 16, 64, 512),
  'quickstart': Sizes(3, 128, 4, 2, 32, 384, 64),
  'smollm2_135m': Sizes(30, 576, 9, 3, 64, 1536, 49_152, rope_theta=100_000.0),
  'qwen25_1p5b': Sizes(
    *(28, 1536, 12, 2, 128, 8960, 151_936),
    rope_theta=1e6,
    norm_eps=1e-6,
    qkv_bias=True,
  ),
  'qwen3_8b': Sizes(
    *(36, 4096, 32, 8, 128, 12_288, 151_936),
    rope_theta=1e6,
    norm_eps=1e-6,
    tied=False,
    qk_norm=True,
  ),
}


def build(variant: str, **sizes) -> Model:
  """A Llama; `sizes` replace fields of the variant. Raises ValueError."""
  s = decoder.sizes(Sizes, VARIANTS, variant, sizes)
  frequencies_H = layers.frequencies(
    s.head_size, s.rope_theta, s.rope_linear, s.rope_llama3
  )
  return decoder.model(
    decoder.Decoder(
      finish=lambda x_XD, y_XD, weights: _finish(x_XD, y_XD, weights, s),
      heads=s.heads,
      kv_heads=s.kv_heads,
      query_scale=s.head_size**-0.5,
      norm_eps=s.norm_eps,
      kinds=(decoder.Kind(frequencies_H, s.window),),
      layer_kinds=(0,) * s.layers,
      unroll=s.unroll,
      remat=s.remat,
      attend=decoder.kernel(s.attention),
    ),
    decoder.table(
      s,
      qkv_bias=s.qkv_bias,
      qk_norm=s.qk_norm,
    ),
  )


def _finish(x_XD, y_XD, weights, s: Sizes):
  x_XD += y_XD
  y_XD = layers.rms_norm(x_XD, weights['mlp_norm'], s.norm_eps)
  gate_XF, up_XF = (decoder.project(y_XD, weights, n) for n in ('gate', 'up'))
  return x_XD + decoder.project(layers.swiglu(gate_XF, up_XF), weights, 'down')
