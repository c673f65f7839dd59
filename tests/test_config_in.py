"""Sizes out of config.json, in both spellings, as their authors published."""

import pytest

from grpo_jax.weights import config_in

# The relevant part of published files. Llama 3.2 1B:
LLAMA32 = {
  'model_type': 'llama',
  'attention_bias': False,
  'mlp_bias': False,
  'head_dim': 64,
  'hidden_act': 'silu',
  'hidden_size': 2048,
  'intermediate_size': 8192,
  'num_attention_heads': 32,
  'num_hidden_layers': 16,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-05,
  'rope_scaling': {
    'factor': 32.0,
    'high_freq_factor': 4.0,
    'low_freq_factor': 1.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  },
  'rope_theta': 500000.0,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'vocab_size': 128256,
}
LLAMA2 = {
  'model_type': 'llama',
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'intermediate_size': 11008,
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 32,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_scaling': None,
  'tie_word_embeddings': False,
  'vocab_size': 32000,
}
MISTRAL = {
  'model_type': 'mistral',
  'head_dim': None,
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'intermediate_size': 14336,
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-05,
  'rope_theta': 10000.0,
  'sliding_window': 4096,
  'tie_word_embeddings': False,
  'vocab_size': 32000,
}
QWEN25 = {
  'model_type': 'qwen2',
  'hidden_act': 'silu',
  'hidden_size': 1536,
  'intermediate_size': 8960,
  'max_window_layers': 21,
  'num_attention_heads': 12,
  'num_hidden_layers': 28,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-06,
  'rope_theta': 1000000.0,
  'sliding_window': 32768,
  'tie_word_embeddings': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}
QWEN3 = {
  'model_type': 'qwen3',
  'attention_bias': False,
  'head_dim': 128,
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'intermediate_size': 12288,
  'max_window_layers': 36,
  'num_attention_heads': 32,
  'num_hidden_layers': 36,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-06,
  'rope_scaling': None,
  'rope_theta': 1000000,
  'sliding_window': None,
  'tie_word_embeddings': False,
  'use_sliding_window': False,
  'vocab_size': 151936,
}
GEMMA3_1B = {
  'model_type': 'gemma3_text',
  'attention_bias': False,
  'attn_logit_softcapping': None,
  'final_logit_softcapping': None,
  'head_dim': 256,
  'hidden_activation': 'gelu_pytorch_tanh',
  'hidden_size': 1152,
  'intermediate_size': 6912,
  'num_attention_heads': 4,
  'num_hidden_layers': 26,
  'num_key_value_heads': 1,
  'query_pre_attn_scalar': 256,
  'rms_norm_eps': 1e-06,
  'rope_local_base_freq': 10000,
  'rope_scaling': None,
  'rope_theta': 1000000,
  'sliding_window': 512,
  'sliding_window_pattern': 6,
  'vocab_size': 262144,
}
# What the file of the 4B model says of its text part; the rest is default.
GEMMA3_4B = {
  'model_type': 'gemma3',
  'architectures': ['Gemma3ForConditionalGeneration'],
  'text_config': {
    'hidden_size': 2560,
    'intermediate_size': 10240,
    'model_type': 'gemma3_text',
    'num_hidden_layers': 34,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 1024,
  },
  'vision_config': {'hidden_size': 1152, 'attention_bias': True},
}


def llama(
  layers, width, heads, kv_heads, head_size, feed_forward, vocab, **more
):
  plain = {
    'layers': layers,
    'width': width,
    'heads': heads,
    'kv_heads': kv_heads,
    'head_size': head_size,
    'feed_forward': feed_forward,
    'vocab_size': vocab,
    'norm_eps': 1e-5,
    'tied': False,
    'qkv_bias': False,
    'qk_norm': False,
    'window': 0,
    'rope_theta': 1e4,
    'rope_linear': 1.0,
    'rope_llama3': (),
  }
  return 'llama', plain | more


def gemma3(layers, width, heads, kv_heads, feed_forward, vocab, **more):
  plain = {
    'layers': layers,
    'width': width,
    'heads': heads,
    'kv_heads': kv_heads,
    'head_size': 256,
    'feed_forward': feed_forward,
    'vocab_size': vocab,
    'query_scale': 256.0,
    'window': 512,
    'global_every': 6,
    'rope_theta': 1e6,
    'rope_linear': 1.0,
    'local_rope_theta': 1e4,
    'norm_eps': 1e-6,
    'tied': True,
  }
  return 'gemma3', plain | more


PUBLISHED = [
  (
    LLAMA32,
    llama(
      *(16, 2048, 32, 8, 64, 8192, 128256),
      tied=True,
      rope_theta=5e5,
      rope_llama3=(32.0, 1.0, 4.0, 8192.0),
    ),
  ),
  (LLAMA2, llama(32, 4096, 32, 32, 128, 11008, 32000)),
  (MISTRAL, llama(32, 4096, 32, 8, 128, 14336, 32000, window=4096)),
  (
    QWEN25,
    llama(
      *(28, 1536, 12, 2, 128, 8960, 151936),
      tied=True,
      qkv_bias=True,
      rope_theta=1e6,
      norm_eps=1e-6,
    ),
  ),
  (
    QWEN3,
    llama(
      *(36, 4096, 32, 8, 128, 12288, 151936),
      qk_norm=True,
      rope_theta=1e6,
      norm_eps=1e-6,
    ),
  ),
  (GEMMA3_1B, gemma3(26, 1152, 4, 1, 6912, 262144)),
  (
    GEMMA3_4B,
    gemma3(34, 2560, 8, 4, 10240, 262208, window=1024, rope_linear=8.0),
  ),
]


@pytest.mark.parametrize('config,wanted', PUBLISHED)
def test_the_sizes_of_published_models(config, wanted):
  assert config_in.read(config, 'x') == wanted


def newer(config):
  """The same in the spelling of transformers 5."""
  config = dict(config)
  if 'text_config' in config:
    return config | {'text_config': newer(config['text_config'])}
  rope = config.pop('rope_scaling', None) or {'rope_type': 'default'}
  theta = config.pop('rope_theta', None)
  if 'torch_dtype' in config:
    config['dtype'] = config.pop('torch_dtype')
  if config['model_type'] != 'gemma3_text':
    return config | {'rope_parameters': {'rope_theta': theta or 1e4, **rope}}
  config.pop('sliding_window_pattern', None)
  local = {'rope_type': 'default'}
  local['rope_theta'] = config.pop('rope_local_base_freq', 1e4)
  return config | {
    'layer_types': [
      'full_attention' if y % 6 == 5 else 'sliding_attention'
      for y in range(config['num_hidden_layers'])
    ],
    'rope_parameters': {
      'full_attention': {'rope_theta': theta or 1e6, **rope},
      'sliding_attention': local,
    },
  }


@pytest.mark.parametrize('config,wanted', PUBLISHED)
def test_the_newer_spelling_says_the_same(config, wanted):
  assert config_in.read(newer(config), 'x') == wanted


@pytest.mark.parametrize('key', ['type', 'rope_type'])
def test_the_kind_of_scaled_positions_has_two_names(key):
  config = LLAMA2 | {'rope_scaling': {key: 'linear', 'factor': 2}}
  assert config_in.read(config, 'x')[1]['rope_linear'] == 2.0
  both = newer(LLAMA2) | {'rope_scaling': {key: 'linear', 'factor': 2}}
  assert config_in.read(both, 'x')[1]['rope_linear'] == 2.0


@pytest.mark.parametrize(
  'changes,window',
  [
    ({'use_sliding_window': True, 'max_window_layers': 28}, 0),
    ({'use_sliding_window': True, 'max_window_layers': 0}, 32768),
    ({'use_sliding_window': True, 'layer_types': ['full_attention'] * 28}, 0),
    ({'use_sliding_window': True, 'sliding_window': None}, 0),
  ],
)
def test_a_qwen_has_a_window_in_all_layers_or_in_none(changes, window):
  assert config_in.read(QWEN25 | changes, 'x')[1]['window'] == window


@pytest.mark.parametrize('window,wanted', [(None, 0), (77, 77)])
def test_newer_mistrals_have_no_window(window, wanted):
  config = MISTRAL | {'sliding_window': window}
  assert config_in.read(config, 'x')[1]['window'] == wanted


@pytest.mark.parametrize('layers,every', [(3, 6), (6, 3), (4, 1), (2, 2)])
def test_the_pattern_of_layers_is_found(layers, every):
  kinds = [
    'sliding_attention' if (y + 1) % every else 'full_attention'
    for y in range(layers)
  ]
  config = GEMMA3_1B | {'num_hidden_layers': layers, 'layer_types': kinds}
  found = config_in.read(config, 'x')[1]['global_every']
  again = [
    'sliding_attention' if (y + 1) % found else 'full_attention'
    for y in range(layers)
  ]
  assert again == kinds


LOCAL, WHOLE = 'sliding_attention', 'full_attention'


@pytest.mark.parametrize(
  'config,words',
  [
    (LLAMA2 | {'model_type': 'mixtral'}, "model_type='mixtral' is not one of"),
    (LLAMA2 | {'model_type': None}, 'model_type=None is not one of'),
    (LLAMA2 | {'rope_scaling': {'type': 'dynamic'}}, "rope_type='dynamic'"),
    (QWEN25 | {'rope_scaling': {'rope_type': 'yarn'}}, "rope_type='yarn'"),
    (newer(LLAMA32) | {'rope_scaling': {'type': 'longrope'}}, "'longrope'"),
    (LLAMA2 | {'rope_scaling': {'type': 'linear'}}, 'factor=None'),
    (
      LLAMA2 | {'rope_scaling': {'rope_type': 'llama3', 'factor': 8}},
      'low_freq',
    ),
    (GEMMA3_1B | {'rope_scaling': {'rope_type': 'llama3'}}, "'llama3'"),
    (LLAMA2 | {'attention_bias': True}, 'attention_bias=True is not supported'),
    (LLAMA2 | {'mlp_bias': True}, 'mlp_bias=True'),
    (LLAMA2 | {'hidden_act': 'gelu'}, "hidden_act='gelu'"),
    (LLAMA2 | {'quantization_config': {'bits': 4}}, 'quantization_config='),
    (LLAMA2 | {'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    (QWEN3 | {'num_experts': 128}, 'num_experts=128'),
    (GEMMA3_1B | {'hidden_activation': 'gelu'}, "hidden_activation='gelu'"),
    (GEMMA3_1B | {'final_logit_softcapping': 30.0}, 'logit_softcapping=30.0'),
    (GEMMA3_1B | {'use_bidirectional_attention': True}, 'bidirectional'),
    (
      GEMMA3_1B
      | {'num_hidden_layers': 3, 'layer_types': [WHOLE, LOCAL, WHOLE]},
      'no regular pattern',
    ),
    (
      GEMMA3_1B | {'rope_parameters': {'rope_type': 'linear', 'factor': 8}},
      "rope_parameters has 'factor'",
    ),
    (
      LLAMA2 | {'rope_parameters': newer(GEMMA3_1B)['rope_parameters']},
      "rope_parameters has 'full_attention' apart",
    ),
    (
      QWEN25 | {'use_sliding_window': True, 'max_window_layers': 21},
      "['full_attention', 'sliding_attention'] in one model",
    ),
    (LLAMA2 | {'hidden_size': None}, 'hidden_size=None, a whole number'),
    (LLAMA2 | {'num_hidden_layers': 0}, 'num_hidden_layers=0'),
    (LLAMA2 | {'rms_norm_eps': '1e-5'}, "rms_norm_eps='1e-5'"),
  ],
)
def test_what_no_model_here_computes_is_refused(config, words):
  with pytest.raises(ValueError) as e:
    config_in.read(config, 'the/path')
  message = str(e.value)
  assert '\n' not in message and 'the/path: ' in message
  assert words in message
