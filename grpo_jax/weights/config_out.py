"""Hugging Face's config.json made of a model's sizes; config_in.py reads one.

In the spelling of transformers before version 5, which the newer ones and vLLM
read as well.
"""

from collections.abc import Mapping


def write(name: str, sizes: Mapping) -> dict:
  """A config.json of the plainest architecture that computes the same.

  `sizes` are fields of the Sizes of models/<name>.py; what has a default there
  may be left out. Raises ValueError if no published architecture has them all.
  """
  common = {
    'hidden_size': sizes['width'],
    'intermediate_size': sizes['feed_forward'],
    'num_hidden_layers': sizes['layers'],
    'num_attention_heads': sizes['heads'],
    'num_key_value_heads': sizes['kv_heads'],
    'head_dim': sizes['head_size'],
    'vocab_size': sizes['vocab_size'],
    'tie_word_embeddings': sizes.get('tied', True),
    'attention_bias': False,
  }
  if name == 'gemma3':
    return _gemma3(sizes) | common
  if name == 'llama':
    return _llama(sizes) | common
  raise ValueError(f'models/{name}.py has no architecture in config.json')


def _llama(sizes: Mapping) -> dict:
  bias, norm = sizes.get('qkv_bias', False), sizes.get('qk_norm', False)
  window = sizes.get('window', 0)
  if bias and norm:
    raise ValueError(
      'no architecture of config.json has both qkv_bias and qk_norm'
    )
  if bias or norm:
    name, kind = ('Qwen2', 'qwen2') if bias else ('Qwen3', 'qwen3')
  else:
    name, kind = ('Mistral', 'mistral') if window else ('Llama', 'llama')
  config = {
    'architectures': [f'{name}ForCausalLM'],
    'model_type': kind,
    'hidden_act': 'silu',
    'rms_norm_eps': sizes.get('norm_eps', 1e-5),
    'rope_theta': sizes.get('rope_theta', 10_000.0),
    'rope_scaling': _rope_scaling(sizes),
    'max_position_embeddings': _longest(sizes),
  }
  if kind != 'llama':
    config['sliding_window'] = window or None
  if bias or norm:  # Layers from max_window_layers on have a window.
    config |= {'use_sliding_window': bool(window), 'max_window_layers': 0}
  return config


def _gemma3(sizes: Mapping) -> dict:
  return {
    'architectures': ['Gemma3ForCausalLM'],
    'model_type': 'gemma3_text',
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': _whole(sizes['query_scale']),
    'rms_norm_eps': sizes.get('norm_eps', 1e-6),
    'sliding_window': sizes.get('window', 512),
    'sliding_window_pattern': sizes.get('global_every', 6),
    'rope_theta': sizes.get('rope_theta', 1e6),
    'rope_local_base_freq': sizes.get('local_rope_theta', 1e4),
    'rope_scaling': _rope_scaling(sizes),
    'max_position_embeddings': _longest(sizes),
  }


def _rope_scaling(sizes: Mapping) -> dict | None:
  linear, llama3 = sizes.get('rope_linear', 1.0), sizes.get('rope_llama3', ())
  if linear != 1 and llama3:
    raise ValueError(
      'no architecture of config.json has both rope_linear and rope_llama3'
    )
  if linear != 1:
    return {'rope_type': 'linear', 'factor': float(linear)}
  if llama3:
    factor, low, high, length = llama3
    return {
      'rope_type': 'llama3',
      'factor': float(factor),
      'low_freq_factor': float(low),
      'high_freq_factor': float(high),
      'original_max_position_embeddings': int(length),
    }
  return None


def _longest(sizes: Mapping) -> int:
  """Tokens that a server lets through; no weights depend on it."""
  if llama3 := sizes.get('rope_llama3', ()):
    factor, _, _, length = llama3
    return int(factor * length)
  return 32_768


def _whole(value: float) -> int | float:
  """Newer transformers want an integer where one is usual."""
  return int(value) if value == int(value) else value
