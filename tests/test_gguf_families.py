"""GGUF files of each family: the same numbers and sizes as its folder has."""

import json
import pathlib

import gguf
import jax
import numpy as np
import pytest
import safetensors_written as written

from grpo_jax import weights

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'models'
NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}
AFTER = {
  'llama': {'post_attention_layernorm': 'ffn_norm'},
  'gemma3': {
    'post_attention_layernorm': 'post_attention_norm',
    'pre_feedforward_layernorm': 'ffn_norm',
    'post_feedforward_layernorm': 'post_ffw_norm',
  },
}


def convert(golden, folder, architecture, **changes):
  """What llama.cpp's converter makes of a folder."""
  c = json.loads((GOLDEN / golden / 'config.json').read_text())
  heads, kv_heads = c['num_attention_heads'], c['num_key_value_heads']
  head_size = c.get('head_dim') or c['hidden_size'] // heads
  rope = c['rope_parameters']
  rope = rope.get('full_attention', rope)
  values = {
    'block_count': c['num_hidden_layers'],
    'embedding_length': c['hidden_size'],
    'feed_forward_length': c['intermediate_size'],
    'attention.head_count': heads,
    'attention.head_count_kv': kv_heads,
    'attention.layer_norm_rms_epsilon': float(c['rms_norm_eps']),
    'attention.key_length': head_size,
    'attention.value_length': head_size,
    'rope.freq_base': float(rope['rope_theta']),
  }
  if architecture == 'gemma3':
    values['attention.sliding_window'] = c['sliding_window']
  if rope['rope_type'] == 'linear':
    values['rope.scaling.type'] = 'linear'
    values['rope.scaling.factor'] = float(rope['factor'])
  values |= changes
  path = folder / 'a.gguf'
  writer = gguf.GGUFWriter(path, architecture)
  for key, value in values.items():
    add = {int: writer.add_uint32, float: writer.add_float32}
    add[str] = writer.add_string
    if value is not None:
      add[type(value)](f'{architecture}.{key}', value)
  names = NAMES | AFTER['gemma3' if architecture == 'gemma3' else 'llama']
  for name, array in written.read(GOLDEN / golden).items():
    if architecture == 'gemma3' and 'norm' in name:
      array = array + 1
    if architecture == 'llama' and ('q_proj' in name or 'k_proj' in name):
      count = heads if 'q_proj' in name else kv_heads
      array = array.reshape(count, 2, head_size // 2, -1).swapaxes(1, 2)
      array = array.reshape(count * head_size, -1)
    stem, _, suffix = name.rpartition('.')
    if stem.startswith('model.layers.'):
      _, _, y, stem = stem.split('.', 3)
      stem = f'blk.{y}.{names[stem]}'
    else:
      stem = names[stem]
    writer.add_tensor(f'{stem}.{suffix}', np.ascontiguousarray(array))
  if rope['rope_type'] == 'llama3':
    writer.add_tensor('rope_freqs.weight', scales(head_size, rope))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def scales(head_size, rope):
  """By how much each of llama3's frequencies is divided, one by one."""
  found = []
  for i in range(0, head_size, 2):
    wave = 2 * np.pi * rope['rope_theta'] ** (i / head_size)
    old = rope['original_max_position_embeddings']
    low, high = rope['low_freq_factor'], rope['high_freq_factor']
    if wave < old / high:
      found.append(1.0)
    elif wave > old / low:
      found.append(rope['factor'])
    else:
      mix = (old / wave - low) / (high - low)
      found.append(1 / ((1 - mix) / rope['factor'] + mix))
  return np.array(found, np.float32)


def load(path, model):
  one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return weights.load(path, model, one_device)


SCALED = 'llama_tied_llama3rope'
CASES = [
  ('llama_untied', 'llama'),
  ('qwen2', 'qwen2'),
  ('qwen3', 'qwen3'),
  ('gemma3', 'gemma3'),
  ('gemma3_linear8', 'gemma3'),
]


@pytest.mark.parametrize('golden,architecture', CASES)
def test_the_numbers_are_those_of_the_folder(golden, architecture, tmp_path):
  wanted = written.params_of(written.read(GOLDEN / golden))
  path = convert(golden, tmp_path, architecture)
  found = load(path, written.model_of(wanted))
  # One is added to Gemma's norms, in float32, and taken off again.
  atol = 2e-7 if architecture == 'gemma3' else 0
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol),
    found,
    wanted,
  )


@pytest.mark.parametrize('golden,architecture', CASES)
def test_the_sizes_are_those_of_the_folder(golden, architecture, tmp_path):
  name, wanted = weights.architecture(GOLDEN / golden)
  if architecture == 'gemma3':
    # No key has it: llama.cpp takes the head size (of the largest another).
    wanted['query_scale'] = 16.0
  found = weights.architecture(convert(golden, tmp_path, architecture))
  assert found == (name, wanted)


@pytest.mark.parametrize('layers,scale', [(6, 128.0), (62, 64 / 4)])
def test_the_largest_gemma_scales_its_queries_otherwise(
  layers, scale, tmp_path
):
  changes = {'attention.key_length': 128, 'attention.value_length': 128}
  changes['block_count'] = layers
  path = convert('gemma3', tmp_path, 'gemma3', **changes)
  assert weights.architecture(path)[1]['query_scale'] == scale


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_the_scaled_positions_of_llama_3_are_known_again(factor, tmp_path):
  config = json.loads((GOLDEN / SCALED / 'config.json').read_text())
  config['rope_parameters'] |= {
    'factor': factor,
    'original_max_position_embeddings': 8192,
  }
  folder = tmp_path / 'm'
  written.write_folder(folder, config, written.read(GOLDEN / SCALED))
  path = convert(folder, tmp_path, 'llama')
  sizes = weights.architecture(path)[1]
  assert sizes['rope_llama3'] == (factor, 1.0, 4.0, 8192.0)
  wanted = written.params_of(written.read(GOLDEN / SCALED))
  weights.check(path, written.model_of(wanted))


def test_other_scales_of_positions_are_refused(tmp_path):
  path = convert(SCALED, tmp_path, 'llama')  # It is of 64 tokens, not of 8192.
  with pytest.raises(ValueError, match='rope_freqs.weight') as e:
    weights.architecture(path)
  assert str(path) in str(e.value)


@pytest.mark.parametrize(
  'changes,words',
  [
    ({'block_count': None}, 'no qwen3.block_count in the header'),
    ({'rope.scaling.type': 'yarn'}, "scaling.type='yarn' is not supported"),
    ({'expert_count': 8}, 'qwen3.expert_count=8 is not supported'),
    ({'rope.dimension_count': 12}, 'rope.dimension_count=12 is not supported'),
    ({'attention.value_length': 12}, 'value_length=12 is not supported'),
  ],
)
def test_sizes_that_no_model_here_has_are_refused(changes, words, tmp_path):
  path = convert('qwen3', tmp_path, 'qwen3', **changes)
  with pytest.raises(ValueError, match=words) as e:
    weights.architecture(path)
  assert str(path) in str(e.value) and '\n' not in str(e.value)
