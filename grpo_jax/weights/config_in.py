"""A model's sizes out of Hugging Face's config.json; config_out.py writes one.

`read` takes two spellings: that of transformers before version 5 (rope_theta,
rope_scaling, sliding_window_pattern) and the newer one (rope_parameters,
layer_types). What a model here would compute otherwise than the reference
library does is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from grpo_jax.weights import families

Sizes = dict[str, Any]

# What must have one of these values where it is there at all.
_ONLY = {
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'attn_logit_softcapping': (None,),
  'final_logit_softcapping': (None,),
  'use_bidirectional_attention': (False, None),
  'partial_rotary_factor': (None, 1),
  'num_experts': (None, 0),
  'num_local_experts': (None, 0),
  'quantization_config': (None,),
}


def read(config: Mapping, path: str) -> tuple[str, Sizes]:
  """The name of the model, and every size that its file has no default for.

  Raises:
    ValueError: naming the key of config.json, its value and what is supported.
  """
  architecture = config.get('model_type')
  if architecture not in families.HUGGING_FACE:
    raise ValueError(
      f'{path}: model_type={architecture!r} is not one of'
      f' {[*families.HUGGING_FACE]}'
    )
  module = families.HUGGING_FACE[architecture]
  if architecture == 'gemma3':
    config = text_part(config)
  for key, allowed in _ONLY.items():
    _check(key, config.get(key), allowed, path)
  read_family = _gemma3 if module == 'gemma3' else _llama
  return module, read_family(config, path)


def text_part(config: Mapping) -> dict:
  """Of a model that also sees images, the config of its text model alone.

  Where both say something the outer one counts: the ids that end a turn, above
  all, are often there only.
  """
  keys = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'torch_dtype')
  keys += ('dtype', 'tie_word_embeddings', 'transformers_version')
  outer = {key: config[key] for key in keys if config.get(key) is not None}
  return {
    **_dict(config, 'text_config'),
    **outer,
    'architectures': ['Gemma3ForCausalLM'],
    'model_type': 'gemma3_text',
  }


def _llama(config: Mapping, path: str) -> Sizes:
  architecture = config['model_type']
  _check('hidden_act', config.get('hidden_act', 'silu'), ('silu',), path)
  rope = _dict(config, 'rope_parameters') | _rope_scaling(config)
  if nested := [key for key, value in rope.items() if isinstance(value, dict)]:
    raise ValueError(
      f'{path}: rope_parameters has {nested[0]!r} apart, one dict for all'
      ' layers expected'
    )
  theta = rope.get('rope_theta', config.get('rope_theta', 10_000.0))
  return _common(config, path) | {
    'norm_eps': _real(config, 'rms_norm_eps', path, 1e-6),
    'tied': bool(config.get('tie_word_embeddings', False)),
    'qkv_bias': architecture == 'qwen2',
    'qk_norm': architecture == 'qwen3',
    'window': _window(config, path),
    'rope_theta': _real({'rope_theta': theta}, 'rope_theta', path),
    **_scaled_rope(rope, ('default', 'linear', 'llama3'), path),
  }


def _gemma3(config: Mapping, path: str) -> Sizes:
  activation = 'gelu_pytorch_tanh'
  found = config.get('hidden_activation', activation)
  _check('hidden_activation', found, (activation,), path)
  # What is left out of the text part of a published file has these defaults.
  defaults = {
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'head_dim': 256,
    'vocab_size': 262_208,
  }
  config = defaults | dict(config)
  by_kind = _dict(config, 'rope_parameters')
  if other := by_kind.keys() - {'full_attention', 'sliding_attention'}:
    raise ValueError(
      f'{path}: rope_parameters has {min(other)!r}, full_attention and'
      ' sliding_attention expected'
    )
  whole, local = (
    {'rope_theta': theta, **_dict(by_kind, kind)}
    for kind, theta in [
      ('full_attention', config.get('rope_theta', 1e6)),
      ('sliding_attention', config.get('rope_local_base_freq', 1e4)),
    ]
  )
  whole |= _rope_scaling(config)
  scaled = _scaled_rope(whole, ('default', 'linear'), path)
  _scaled_rope(local, ('default',), path)
  return _common(config, path) | {
    'query_scale': _real(config, 'query_pre_attn_scalar', path, 256.0),
    'norm_eps': _real(config, 'rms_norm_eps', path, 1e-6),
    'tied': bool(config.get('tie_word_embeddings', True)),
    'window': _count(config, 'sliding_window', path, 4096),
    'global_every': _global_every(config, path),
    'rope_theta': _real(whole, 'rope_theta', path),
    'rope_linear': scaled['rope_linear'],
    'local_rope_theta': _real(local, 'rope_theta', path),
  }


def _common(config: Mapping, path: str) -> Sizes:
  width = _count(config, 'hidden_size', path)
  heads = _count(config, 'num_attention_heads', path)
  head_size = width // heads if config.get('head_dim') is None else None
  return {
    'layers': _count(config, 'num_hidden_layers', path),
    'width': width,
    'heads': heads,
    'kv_heads': _count(config, 'num_key_value_heads', path, heads),
    'head_size': head_size or _count(config, 'head_dim', path),
    'feed_forward': _count(config, 'intermediate_size', path),
    'vocab_size': _count(config, 'vocab_size', path),
  }


def _rope_scaling(config: Mapping) -> dict:
  """The older key; what it says goes before rope_parameters."""
  rope = _dict(config, 'rope_scaling')
  return {'rope_type': rope['type'], **rope} if 'type' in rope else rope


def _scaled_rope(rope: Mapping, allowed: tuple, path: str) -> Sizes:
  kind = rope.get('rope_type', 'default')
  _check('rope_type', kind, allowed, path)
  _check(
    'partial_rotary_factor', rope.get('partial_rotary_factor', 1), (1,), path
  )
  sizes = {'rope_linear': 1.0, 'rope_llama3': ()}
  if kind == 'linear':
    sizes['rope_linear'] = _real(rope, 'factor', path)
  if kind == 'llama3':
    keys = ('factor', 'low_freq_factor', 'high_freq_factor')
    keys += ('original_max_position_embeddings',)
    sizes['rope_llama3'] = tuple(_real(rope, key, path) for key in keys)
  return sizes


def _window(config: Mapping, path: str) -> int:
  """Tokens that the layers of a llama see, 0 for all."""
  window = config.get('sliding_window')
  if config['model_type'] == 'mistral':
    window = config.get('sliding_window', 4096)  # Where it is left out.
  elif not config.get('use_sliding_window') or config['model_type'] == 'llama':
    window = None
  if window is None:
    return 0
  kinds = config.get('layer_types')
  if kinds is None and config['model_type'] != 'mistral':
    layers, whole = (
      config['num_hidden_layers'],
      config.get('max_window_layers', 28),
    )
    kinds = ['full_attention'] * min(whole, layers)
    kinds += ['sliding_attention'] * (layers - len(kinds))
  kinds = set(kinds or ['sliding_attention'])
  if kinds == {'full_attention'}:
    return 0
  if kinds != {'sliding_attention'}:
    raise ValueError(
      f'{path}: layer_types has {sorted(kinds)} in one model, which models/'
      'llama.py does not; either kind alone is supported'
    )
  return _count(config, 'sliding_window', path, 4096)


def _global_every(config: Mapping, path: str) -> int:
  """The n of which each n-th layer of a Gemma is global."""
  keys = ('sliding_window_pattern', '_sliding_window_pattern')
  found = [config[key] for key in keys if config.get(key) is not None]
  every, kinds = (found or [6])[0], config.get('layer_types')
  _count({'sliding_window_pattern': every}, 'sliding_window_pattern', path)
  if kinds is None:
    return every
  if 'full_attention' in kinds:
    every = kinds.index('full_attention') + 1
  elif every <= len(kinds):
    every = len(kinds) + 1
  regular = [
    'sliding_attention' if (y + 1) % every else 'full_attention'
    for y in range(config['num_hidden_layers'])
  ]
  if kinds != regular:
    raise ValueError(
      f'{path}: layer_types={kinds} is no regular pattern: every n-th layer'
      ' full_attention and the others sliding_attention is supported'
    )
  return every


def _dict(config: Mapping, key: str) -> dict:
  return config.get(key) or {}


def _check(key: str, value, allowed: tuple, path: str) -> None:
  if value not in allowed:
    raise ValueError(
      f'{path}: {key}={value!r} is not supported, only {allowed[0]!r}'
      + ''.join(f' or {other!r}' for other in allowed[1:])
    )


def _count(config: Mapping, key: str, path: str, default=None) -> int:
  value = config.get(key)
  value = default if value is None else value
  if not isinstance(value, int) or value < 1:
    raise ValueError(f'{path}: {key}={value!r}, a whole number expected')
  return value


def _real(config: Mapping, key: str, path: str, default=None) -> float:
  value = config.get(key)
  value = default if value is None else value
  if not isinstance(value, int | float) or value <= 0:
    raise ValueError(f'{path}: {key}={value!r}, a positive number expected')
  return float(value)
