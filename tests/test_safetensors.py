"""Hugging Face folders: what is read, by whom, and every way to be broken."""

import json
import pathlib
import re
import struct
import sys
import types

import buckets
import command
from etils.epath import backend
import jax
import numpy as np
import published
import pytest
import safetensors
import safetensors_written as written

from grpo_jax import sharding, weights
from grpo_jax.weights import paths, safetensors_files, source

GOLDEN = published.FOLDER / 'models'


@pytest.fixture(params=published.NAMES)
def golden(request):
  return GOLDEN / request.param


def one_device():
  return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def load(path, model=None):
  if model is None:
    model = written.model_of(expected(path))
  return weights.load(path, model, one_device())


def expected(folder):
  return written.params_of(written.read(folder))


def assert_same(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert x.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(x), y)


def small(folder, **options):
  """A llama of 3 layers, config and tensors to be broken."""
  rng = np.random.default_rng(0)
  config = json.loads((GOLDEN / 'llama_untied' / 'config.json').read_text())
  config |= {'num_hidden_layers': 3, 'vocab_size': 40, 'hidden_size': 16}
  config |= {'head_dim': 4, 'intermediate_size': 24}
  shapes = {'model.embed_tokens.weight': (40, 16)}
  for y in range(3):
    layer = f'model.layers.{y}.'
    shapes |= {
      layer + 'input_layernorm.weight': (16,),
      layer + 'self_attn.q_proj.weight': (16, 16),
      layer + 'self_attn.k_proj.weight': (8, 16),
      layer + 'self_attn.v_proj.weight': (8, 16),
      layer + 'self_attn.o_proj.weight': (16, 16),
      layer + 'post_attention_layernorm.weight': (16,),
      layer + 'mlp.gate_proj.weight': (24, 16),
      layer + 'mlp.up_proj.weight': (24, 16),
      layer + 'mlp.down_proj.weight': (16, 24),
    }
  shapes |= {'model.norm.weight': (16,), 'lm_head.weight': (40, 16)}
  tensors = {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  change = options.pop('change', lambda config, tensors: None)
  model = written.model_of(written.params_of(tensors))
  change(config, tensors)
  written.write_folder(folder, config, tensors, **options)
  return model


def test_tensors_of_each_family_come_back_as_the_file_has_them(golden):
  assert_same(load(golden), expected(golden))


@pytest.mark.parametrize('dtype', ['BF16', 'F16', 'F32', 'F64'])
@pytest.mark.parametrize('files', [1, 4])
def test_each_format_and_any_number_of_files(dtype, files, tmp_path):
  model = small(tmp_path / 'm', dtype=dtype, files=files)
  wanted = expected(tmp_path / 'm')
  assert_same(load(tmp_path / 'm', model), wanted)
  assert np.std(wanted['layers']['q']) > 0.5


def test_a_model_on_eight_devices_is_the_one_on_one_device(golden):
  model = written.model_of(expected(golden))
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {'fsdp': 8})
  where = sharding.param_shardings(model, sharding.TRAIN, mesh)
  found = weights.load(golden, model, where)
  assert_same(found, expected(golden))
  jax.tree.map(
    lambda x, at: x.sharding.is_equivalent_to(at, x.ndim), found, where
  )
  embed = found['embed']
  assert embed.addressable_shards[0].data.size * 8 == embed.size


class Counted:
  """A slice of a file that adds up what is asked of it."""

  def __init__(self, handle, asked):
    self.handle, self.asked = handle, asked

  def keys(self):
    return self.handle.keys()

  def get_slice(self, name):
    part, asked = self.handle.get_slice(name), self.asked

    class Part:
      get_shape, get_dtype = part.get_shape, part.get_dtype

      def __getitem__(self, at):
        values = part[at]
        asked.append((name, values.nbytes))
        return values

    return Part()


@pytest.fixture
def asked(monkeypatch):
  """(tensor, bytes) of all that is read from files."""
  found, opened = [], safetensors.safe_open
  monkeypatch.setattr(
    safetensors, 'safe_open', lambda *args: Counted(opened(*args), found)
  )
  safetensors_files._open_files.cache_clear()
  yield found
  safetensors_files._open_files.cache_clear()


@pytest.mark.parametrize('axis', ['fsdp', 'tensor', 'data'])
def test_every_number_is_read_once_for_any_number_of_devices(
  axis, asked, tmp_path
):
  model = small(tmp_path / 'm')
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {axis: 8})
  where = sharding.param_shardings(model, sharding.TRAIN, mesh)
  weights.load(tmp_path / 'm', model, where)
  wanted = expected(tmp_path / 'm')
  assert sum(size for _, size in asked) == sum(
    x.nbytes for x in jax.tree.leaves(wanted)
  )


def test_a_device_s_part_costs_no_more_than_its_bytes(asked, tmp_path):
  small(tmp_path / 'm')
  opened = safetensors_files.open_source(tmp_path / 'm')
  tensors = [f'model.layers.{y}.mlp.gate_proj.weight' for y in range(3)]
  part = ((1, 3), (4, 6), (0, 24))
  found = source.read_parts(opened, 'layers/gate', tensors, {part})
  assert asked == [(tensors[1], 4 * 2 * 24), (tensors[2], 4 * 2 * 24)]
  whole = expected(tmp_path / 'm')['layers']['gate']
  np.testing.assert_array_equal(found[part], whole[1:3, 4:6])


def test_the_check_reads_no_numbers(asked, golden):
  weights.check(golden, written.model_of(expected(golden)))
  assert not asked


@pytest.mark.parametrize(
  'prefix,head,images',
  [
    ('language_model.model.', 'language_model.lm_head.weight', ''),
    ('model.language_model.', 'lm_head.weight', 'model.'),
  ],
)
def test_of_a_model_with_images_the_text_part_is_read(
  prefix, head, images, tmp_path
):
  text = json.loads((GOLDEN / 'gemma3' / 'config.json').read_text())
  config = {'model_type': 'gemma3', 'text_config': text, 'vision_config': {}}
  tensors = {
    name.replace('model.', prefix, 1): array
    for name, array in written.read(GOLDEN / 'gemma3').items()
  }
  tensors[f'{images}vision_tower.vision_model.post.weight'] = np.ones(3)
  tensors[f'{images}multi_modal_projector.norm.weight'] = np.ones(3)
  written.write_folder(tmp_path / 'm', config, tensors)
  wanted = expected(GOLDEN / 'gemma3')
  assert_same(load(tmp_path / 'm', written.model_of(wanted)), wanted)
  found = weights.architecture(tmp_path / 'm')
  assert found == weights.architecture(GOLDEN / 'gemma3')

  untied = tensors | {head: np.zeros((300, 64))}
  config['tie_word_embeddings'] = False
  written.write_folder(tmp_path / 'n', config, untied)
  wanted['unembed'] = np.zeros((64, 300), np.float32)
  assert_same(load(tmp_path / 'n', written.model_of(wanted)), wanted)


def refused(path, model, *words, error=ValueError):
  """Both functions raise one line that has the path and these words."""
  for function in [
    weights.check,
    lambda path, model: weights.load(path, model, one_device()),
  ]:
    with pytest.raises(error) as e:
      function(path, model)
    message = str(e.value)
    assert '\n' not in message
    assert str(path) in message
    for word in words:
      assert word in message


QUERY = 'model.layers.1.self_attn.q_proj.weight'


def missing(config, tensors):
  del tensors[QUERY]


def too_wide(config, tensors):
  tensors[QUERY] = np.zeros((16, 17))


def turned(config, tensors):
  tensors['model.layers.2.mlp.up_proj.weight'] = np.zeros((16, 24))


def biased(config, tensors):
  tensors['model.layers.0.self_attn.o_proj.bias'] = np.zeros(16)


def deeper(config, tensors):
  for name in [x for x in tensors if '.2.' in x]:
    tensors[name.replace('.2.', '.3.')] = tensors[name]


def unknown(config, tensors):
  config['model_type'] = 'mamba'


def yarn(config, tensors):
  config['rope_scaling'] = {'type': 'yarn', 'factor': 4.0}


@pytest.mark.parametrize(
  'change,words',
  [
    (missing, [f'no tensor {QUERY!r}', '[16, 16] expected']),
    (too_wide, [f'{QUERY!r} is [16, 17]', '[16, 16] expected']),
    (turned, ["up_proj.weight' is [16, 24]", '[24, 16] expected']),
    (biased, ["no place for tensor 'model.layers.0.self_attn.o_proj.bias'"]),
    (deeper, ["tensor 'model.layers.3.input_layernorm.weight' and 8 more"]),
    (unknown, ["model_type='mamba' is not one of ['llama', "]),
    (yarn, ["rope_type='yarn' is not supported", "'llama3'"]),
  ],
)
@pytest.mark.parametrize('files', [1, 3])
def test_what_does_not_fit_is_named(change, words, files, tmp_path):
  model = small(tmp_path / 'm', change=change, files=files)
  refused(tmp_path / 'm', model, *words)


@pytest.mark.parametrize('dtype', ['F8_E4M3', 'I8'])
def test_a_format_that_cannot_be_read_is_named(dtype, tmp_path):
  def kinds(config, tensors):
    tensors.update({QUERY: tensors[QUERY]})

  model = small(tmp_path / 'm', change=kinds)
  tensors = written.read(tmp_path / 'm')
  mixed = dict.fromkeys(tensors, 'F32') | {QUERY: dtype}
  written.write(tmp_path / 'm' / 'model.safetensors', tensors, mixed)
  refused(tmp_path / 'm', model, f'{QUERY!r} is {dtype}', 'float32')


@pytest.mark.parametrize('same', [True, False])
def test_a_head_beside_a_tied_embedding_has_to_be_the_same(same, tmp_path):
  def tied(config, tensors):
    config['tie_word_embeddings'] = True
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'] + (
      not same
    )

  small(tmp_path / 'm', change=tied)
  wanted = expected(tmp_path / 'm')
  del wanted['unembed']
  model = written.model_of(wanted)
  if same:
    assert_same(load(tmp_path / 'm', model), wanted)
  else:
    refused(tmp_path / 'm', model, "'lm_head.weight' is another matrix")


def test_old_files_may_hold_the_frequencies_of_their_positions(tmp_path):
  def old(config, tensors):
    name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    tensors[name] = np.ones(2)

  model = small(tmp_path / 'm', change=old)
  weights.check(tmp_path / 'm', model)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
  model = small(tmp_path / 'm')
  file = tmp_path / 'm' / 'model.safetensors'
  whole = file.read_bytes()
  for size in [*range(0, len(whole), 2999), len(whole) - 1]:
    file.write_bytes(whole[:size])
    refused(tmp_path / 'm', model, 'cut short or damaged', f'its {size} bytes')


@pytest.mark.parametrize(
  'head', [b'{{{{{{{{', b'\xff' * 8, b'{"a": 1}', b'[]      ']
)
def test_a_corrupt_header_is_refused(head, tmp_path):
  model = small(tmp_path / 'm')
  file = tmp_path / 'm' / 'model.safetensors'
  file.write_bytes(struct.pack('<Q', len(head)) + head + bytes(64))
  refused(tmp_path / 'm', model, 'cut short or damaged')


def test_a_missing_part_is_named(tmp_path):
  model = small(tmp_path / 'm', files=3)
  name = 'model-00002-of-00003.safetensors'
  (tmp_path / 'm' / name).unlink()
  refused(tmp_path / 'm', model, f'{name}, which', error=FileNotFoundError)


def test_a_part_without_its_tensor_is_named(tmp_path):
  model = small(tmp_path / 'm', files=3)
  index = tmp_path / 'm' / 'model.safetensors.index.json'
  content = json.loads(index.read_text())
  content['weight_map']['lost'] = 'model-00002-of-00003.safetensors'
  index.write_text(json.dumps(content))
  refused(tmp_path / 'm', model, "no tensor 'lost' in model-00002-of-00003")


@pytest.mark.parametrize(
  'text', ['', '{"weight_map": {}}', '[]', '{"weight_map": ']
)
def test_an_index_that_tells_nothing_is_refused(text, tmp_path):
  model = small(tmp_path / 'm', files=3)
  (tmp_path / 'm' / 'model.safetensors.index.json').write_text(text)
  refused(tmp_path / 'm', model, 'model.safetensors.index.json')


@pytest.mark.parametrize('text', ['', '{', '[1]', 'null'])
def test_a_config_that_is_no_json_is_refused(text, tmp_path):
  model = small(tmp_path / 'm')
  (tmp_path / 'm' / 'config.json').write_text(text)
  refused(tmp_path / 'm', model, 'config.json is no JSON object')


def test_a_missing_config_is_named(tmp_path):
  model = small(tmp_path / 'm')
  (tmp_path / 'm' / 'config.json').unlink()
  refused(tmp_path / 'm', model, 'no config.json', error=FileNotFoundError)


def test_a_folder_without_weights_is_refused(tmp_path):
  model = small(tmp_path / 'm')
  (tmp_path / 'm' / 'model.safetensors').unlink()
  refused(
    tmp_path / 'm', model, 'no model.safetensors', error=FileNotFoundError
  )


def test_pickles_are_refused_with_the_reason(tmp_path):
  model = small(tmp_path / 'm')
  (tmp_path / 'm' / 'model.safetensors').rename(
    tmp_path / 'm' / 'pytorch_model.bin'
  )
  words = ['pytorch_model.bin is a pickle file', 'can run any code']
  refused(tmp_path / 'm', model, *words)
  refused(tmp_path / 'm' / 'pytorch_model.bin', model, *words)


def test_a_file_alone_is_refused_because_its_config_is_needed(tmp_path):
  model = small(tmp_path / 'm')
  refused(tmp_path / 'm' / 'model.safetensors', model, 'give the folder')


def test_a_folder_that_is_replaced_is_read_again(tmp_path):
  for seed in range(2):

    def change(config, tensors, seed=seed):
      tensors['model.norm.weight'] = np.full(16, seed)

    model = small(tmp_path / 'm', change=change)
    assert load(tmp_path / 'm', model)['final_norm'][0] == seed


def test_a_folder_of_a_bucket_is_copied_and_read(tmp_path, monkeypatch):
  buckets.put_at(tmp_path, monkeypatch)
  model = small(tmp_path / 'bucket' / 'm', files=3)
  wanted = expected(tmp_path / 'bucket' / 'm')
  assert_same(load('gs://bucket/m', model), wanted)
  with pytest.raises(FileNotFoundError, match='gs://bucket/n: there is no'):
    weights.check('gs://bucket/n', model)


def test_a_bucket_that_cannot_be_reached_is_one_sentence(monkeypatch):
  def fail(name):
    raise ImportError('Please install gcsfs\nto access Google Storage')

  monkeypatch.setattr(backend.fsspec_backend, '_get_filesystem', fail)
  with pytest.raises(FileNotFoundError) as e:
    weights.architecture('gs://bucket/m')
  assert re.fullmatch(r'gs://bucket/m: cannot be reached .*', str(e.value))
  assert 'gcsfs' in str(e.value) and 'credentials' in str(e.value)


def fake_hub(monkeypatch, download):
  hub = types.SimpleNamespace(snapshot_download=download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  paths._download.cache_clear()


def test_a_repository_of_the_hub_is_downloaded_once(tmp_path, monkeypatch):
  asked = []

  def download(name, revision, allow_patterns):
    asked.append((name, revision))
    assert not any(x.endswith(('.bin', '.pt', '.gguf')) for x in allow_patterns)
    return str(tmp_path / 'm')

  fake_hub(monkeypatch, download)
  model = small(tmp_path / 'm')
  for _ in range(2):
    assert_same(load('hf://a/b@main', model), expected(tmp_path / 'm'))
  assert asked == [('a/b', 'main')]
  assert weights.is_published('hf://a/b')


def test_without_a_network_the_hub_is_one_sentence(monkeypatch):
  def download(name, revision, allow_patterns):
    raise OSError('cannot\nfind the host')

  fake_hub(monkeypatch, download)
  with pytest.raises(FileNotFoundError) as e:
    weights.architecture('hf://a/b')
  assert re.fullmatch(
    r'hf://a/b: .* cannot be downloaded \(cannot find the host\)', str(e.value)
  )


def test_without_the_hub_s_package_it_says_what_to_install(monkeypatch):
  fake_hub(monkeypatch, None)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(FileNotFoundError, match='pip install huggingface_hub'):
    weights.architecture('hf://a/b')


@pytest.mark.parametrize('path', ['hf://a', 'hf://', 'hf://a/b/c', 'hf://a/'])
def test_a_repository_needs_both_names(path):
  with pytest.raises(FileNotFoundError, match='hf://ORGANISATION/NAME'):
    weights.architecture(path)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['F32', 'BF16'])
def test_a_large_model_takes_its_shards_and_less_than_a_layer(dtype, tmp_path):
  """2 GB in 21 files onto 8 devices, in a process of its own."""
  sizes = {'layers': 20, 'width': 1536, 'heads': 12, 'kv_heads': 3}
  sizes |= {'head_size': 128, 'feed_forward': 4096, 'vocab_size': 8192}
  if dtype == 'BF16':  # As many numbers would be 4 GB.
    sizes['layers'] = 10
  config = json.loads((GOLDEN / 'llama_untied' / 'config.json').read_text())
  noise = np.random.default_rng(0).standard_normal(8192 * 1536, np.float32)
  shapes = {
    'input_layernorm': (1536,),
    'self_attn.q_proj': (1536, 1536),
    'self_attn.k_proj': (384, 1536),
    'self_attn.v_proj': (384, 1536),
    'self_attn.o_proj': (1536, 1536),
    'post_attention_layernorm': (1536,),
    'mlp.gate_proj': (4096, 1536),
    'mlp.up_proj': (4096, 1536),
    'mlp.down_proj': (1536, 4096),
  }
  parts = [
    {
      f'model.layers.{y}.{name}.weight': noise[: np.prod(shape)].reshape(shape)
      for name, shape in shapes.items()
    }
    for y in range(sizes['layers'])
  ]
  outer = {'model.embed_tokens.weight': noise.reshape(8192, 1536)}
  parts.append(outer | {'model.norm.weight': noise[:1536]})
  index = {}
  for i, part in enumerate(parts):
    name = f'model-{i + 1:05}-of-{len(parts):05}.safetensors'
    written.write(tmp_path / name, part, dtype)
    index |= dict.fromkeys(part, name)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  content = json.dumps({'weight_map': index})
  (tmp_path / 'model.safetensors.index.json').write_text(content)
  try:
    script = pathlib.Path(__file__).with_name('load_measured.py')
    done = command.run(str(script), str(tmp_path), json.dumps(sizes))
    assert done.returncode == 0, done.stderr
  finally:
    for path in tmp_path.glob('*.safetensors'):
      path.unlink()
  found = json.loads(done.stdout)
  print(found)  # For RESULTS.md.
  weights_bytes = 4 * found['parameters']
  assert weights_bytes > 1e9
  assert found['peak'] < weights_bytes + found['layer']
