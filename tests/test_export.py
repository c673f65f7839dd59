"""Hugging Face folders written: the same bytes, any spelling, and refusals."""

import json

import buckets
import jax
import numpy as np
import published
import pytest
import safetensors_written as written

from grpo_jax import sharding, weights
from grpo_jax.weights import config_in, config_out, export

GOLDEN = published.FOLDER / 'models'


@pytest.fixture(params=published.NAMES)
def golden(request):
  return GOLDEN / request.param


def load(folder, where=None):
  params = written.params_of(written.read(folder))
  if where is None:
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return weights.load(folder, written.model_of(params), where)


def config_of(folder):
  return json.loads((folder / 'config.json').read_text())


def save(params, folder, origin, **options):
  name, sizes = weights.architecture(origin)
  options = {'dtype': 'float32', 'config': config_of(origin)} | options
  export.save(params, folder, name=name, sizes=sizes, **options)


def test_what_was_read_is_written_with_the_same_bytes(golden, tmp_path):
  save(load(golden), tmp_path / 'm', golden)
  assert written.raw(tmp_path / 'm') == written.raw(golden)
  assert config_of(tmp_path / 'm') == config_of(golden)


def test_bfloat16_comes_out_with_the_same_bytes(golden, tmp_path):
  config = config_of(golden) | {'dtype': 'bfloat16'}
  origin = written.write_folder(
    tmp_path / 'origin', config, written.read(golden), dtype='BF16'
  )
  save(load(origin), tmp_path / 'm', origin, dtype='bfloat16')
  assert written.raw(tmp_path / 'm') == written.raw(origin)
  assert config_of(tmp_path / 'm') == config


def test_a_model_on_eight_devices_comes_out_with_the_same_bytes(
  golden, tmp_path
):
  model = written.model_of(written.params_of(written.read(golden)))
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {'fsdp': 8})
  where = sharding.param_shardings(model, sharding.TRAIN, mesh)
  save(load(golden, where), tmp_path / 'm', golden)
  assert written.raw(tmp_path / 'm') == written.raw(golden)


@pytest.mark.parametrize('limit', [1, 60_000, 200_000])
def test_large_models_are_cut_into_files_with_an_index(limit, golden, tmp_path):
  folder = tmp_path / 'm'
  save(load(golden), folder, golden, shard_bytes=limit)
  assert written.raw(folder) == written.raw(golden)
  index = json.loads((folder / 'model.safetensors.index.json').read_text())
  files = sorted(path.name for path in folder.glob('*.safetensors'))
  assert files[-1] == f'model-{len(files):05}-of-{len(files):05}.safetensors'
  total = 0
  for file in files:
    rows, _ = written.header(folder / file)
    sizes = [
      end - first for first, end in (x['data_offsets'] for x in rows.values())
    ]
    assert sum(sizes) <= limit or len(sizes) == 1
    assert {index['weight_map'][name] for name in rows} == {file}
    total += sum(sizes)
  assert index['metadata']['total_size'] == total
  again = load(folder)
  jax.tree.map(np.testing.assert_array_equal, again, load(golden))


def test_the_format_is_named_in_the_file(tmp_path):
  origin = GOLDEN / 'qwen2'
  save(load(origin), tmp_path / 'm', origin)
  head = (tmp_path / 'm' / 'model.safetensors').read_bytes()[8:80]
  assert b'{"__metadata__":{"format":"pt"}' in head


def test_a_model_is_written_to_a_bucket(tmp_path, monkeypatch):
  buckets.put_at(tmp_path, monkeypatch)
  origin = GOLDEN / 'qwen2'
  save(load(origin), 'gs://bucket/m', origin, shard_bytes=100_000)
  assert written.raw(tmp_path / 'bucket' / 'm') == written.raw(origin)
  assert config_of(tmp_path / 'bucket' / 'm') == config_of(origin)


def test_other_users_may_read_all_files(tmp_path):
  save(load(GOLDEN / 'qwen2'), tmp_path / 'm', GOLDEN / 'qwen2')
  for path in (tmp_path / 'm').iterdir():
    assert path.stat().st_mode & 0o044


def test_another_dtype_is_told_in_the_config(golden, tmp_path):
  save(load(golden), tmp_path / 'm', golden, dtype='bfloat16')
  assert config_of(tmp_path / 'm') == config_of(golden) | {'dtype': 'bfloat16'}
  old = config_of(golden)
  old['torch_dtype'] = old.pop('dtype')
  save(load(golden), tmp_path / 'o', golden, dtype='float16', config=old)
  assert config_of(tmp_path / 'o') == old | {'torch_dtype': 'float16'}


def test_without_an_origin_a_config_is_made_that_says_the_same(
  golden, tmp_path
):
  generation = {'eos_token_id': [7, 9], 'bos_token_id': 3}
  save(load(golden), tmp_path / 'm', golden, config=None, generation=generation)
  assert written.raw(tmp_path / 'm') == written.raw(golden)
  assert weights.architecture(tmp_path / 'm') == weights.architecture(golden)
  made, theirs = config_of(tmp_path / 'm'), config_of(golden)
  for key in ('model_type', 'architectures', 'vocab_size', 'head_dim'):
    assert key not in theirs or made[key] == theirs[key]
  assert made['eos_token_id'] == [7, 9] and made['torch_dtype'] == 'float32'
  file = tmp_path / 'm' / 'generation_config.json'
  assert json.loads(file.read_text()) == generation


@pytest.mark.parametrize(
  'sizes,kind',
  [
    ({}, 'llama'),
    ({'window': 64}, 'mistral'),
    ({'qkv_bias': True}, 'qwen2'),
    ({'qkv_bias': True, 'window': 64}, 'qwen2'),
    ({'qk_norm': True, 'window': 64}, 'qwen3'),
    ({'rope_linear': 4.0}, 'llama'),
  ],
)
def test_the_architecture_follows_from_the_sizes(sizes, kind):
  plain = weights.architecture(GOLDEN / 'llama_untied')[1] | sizes
  config = config_out.write('llama', plain)
  assert config['model_type'] == kind
  assert config_in.read(config, 'x') == ('llama', plain)


@pytest.mark.parametrize(
  'name,sizes,words',
  [
    ('llama', {'qkv_bias': True, 'qk_norm': True}, 'both qkv_bias and qk_norm'),
    (
      'llama',
      {'rope_linear': 2.0, 'rope_llama3': (8, 1, 4, 64)},
      'both rope_linear and rope_llama3',
    ),
    ('mine', {}, 'models/mine.py has no architecture'),
  ],
)
def test_what_no_architecture_computes_is_refused(name, sizes, words):
  plain = weights.architecture(GOLDEN / 'llama_untied')[1] | sizes
  with pytest.raises(ValueError, match=words):
    config_out.write(name, plain)


def test_of_a_model_with_images_the_text_part_is_written(tmp_path):
  text = config_of(GOLDEN / 'gemma3')
  del text['model_type'], text['architectures']
  config = {
    'model_type': 'gemma3',
    'architectures': ['Gemma3ForConditionalGeneration'],
    'eos_token_id': [1, 106],
    'text_config': text,
    'vision_config': {'hidden_size': 8},
  }
  tensors = {
    name.replace('model.', 'language_model.model.', 1): array
    for name, array in written.read(GOLDEN / 'gemma3').items()
  }
  origin = written.write_folder(tmp_path / 'origin', config, tensors)
  params = written.params_of(tensors, 'language_model.model.')
  save(params, tmp_path / 'm', origin)
  assert written.raw(tmp_path / 'm') == written.raw(GOLDEN / 'gemma3')
  made = config_of(tmp_path / 'm')
  assert made['model_type'] == 'gemma3_text'
  assert made['architectures'] == ['Gemma3ForCausalLM']
  assert 'vision_config' not in made
  assert made['eos_token_id'] == [1, 106]


@pytest.mark.parametrize(
  'options,words',
  [
    ({'dtype': 'int8'}, "dtype='int8' is not one of"),
    ({'config': config_of(GOLDEN / 'gemma3')}, 'models/gemma3.py, not llama'),
    (
      {'config': config_of(GOLDEN / 'qwen2') | {'num_hidden_layers': 3}},
      'layers=3, the parameters have 2',
    ),
  ],
)
def test_what_does_not_go_together_is_refused(options, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    save({}, tmp_path / 'm', GOLDEN / 'qwen2', **options)
  assert not (tmp_path / 'm').exists()
