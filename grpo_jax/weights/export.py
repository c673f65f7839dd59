"""Parameters out: a Hugging Face folder that transformers and vLLM load.

`save` is the inverse of weights.load: what was loaded from a float32 or
bfloat16 folder and not trained comes out with the same bytes in each tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
import tempfile
from typing import Any, NamedTuple

from etils import epath
from flax import traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from grpo_jax.types import Params
from grpo_jax.weights import config_in, config_out, families, safetensors_files

DTYPES = ('float32', 'bfloat16', 'float16')


def save(
  params: Params,
  folder: str | os.PathLike,
  *,
  name: str,
  sizes: Mapping[str, Any],
  dtype: str,
  config: Mapping[str, Any] | None = None,
  generation: Mapping[str, Any] | None = None,
  shard_bytes: float = 5e9,
) -> None:
  """Writes config.json, .safetensors files and generation_config.json.

  Host memory holds one file's tensors at a time. config.json comes last:
  without it nobody takes a folder for a model, so that half of one is none.

  Args:
    params: on devices of this process, or NumPy arrays.
    folder: made if it is not there.
    name: the model's file in models/.
    sizes: fields of its Sizes; those that have a default may be left out.
    dtype: one of DTYPES, for all tensors.
    config: config.json of the checkpoint that training started from, which is
      written as it is (but for the dtype, if that is another). Without it one
      is made of the sizes. Of a model with images the text part is written.
    generation: the content of generation_config.json, if there is to be one.
    shard_bytes: a file is no larger, if no tensor is.

  Raises:
    ValueError: the config is of another model, or none can be written.
  """
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r} is not one of {[*DTYPES]}')
  config = _config(name, sizes, dtype, config, generation)
  names = families.hugging_face(config['model_type']).ours
  flat = traverse_util.flatten_dict(params, sep='/')
  if unknown := [name for name in flat if name not in names]:
    raise ValueError(
      f'{config["model_type"]!r} files have no parameter {unknown[0]!r}'
    )
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  files = _cut([*_pieces(flat, names, dtype)], shard_bytes)
  index: dict[str, str] = {}
  for i, pieces in enumerate(files, 1):
    file = safetensors_files.SINGLE
    if files[1:]:
      file = f'model-{i:05}-of-{len(files):05}.safetensors'
    index |= dict.fromkeys((piece.tensor for piece in pieces), file)
    _write(
      {piece.tensor: _read(flat, piece) for piece in pieces}, folder / file
    )
  if files[1:]:
    total = sum(piece.bytes for pieces in files for piece in pieces)
    content = {'metadata': {'total_size': total}, 'weight_map': index}
    _write_json(content, folder / safetensors_files.INDEX)
  if generation is not None:
    _write_json(generation, folder / 'generation_config.json')
  _write_json(config, folder / 'config.json')


def save_adapters(
  params: Params,
  folder: str | os.PathLike,
  *,
  architecture: str,
  rank: int,
  alpha: float,
  targets: Sequence[str],
  base: str,
) -> None:
  """Writes low-rank adapters alone, as PEFT has them.

  Args:
    params: with adapters (models/lora.py).
    folder: made if it is not there.
    architecture: `model_type` of the model that they belong to.
    rank: of the adapters.
    alpha: they count alpha / rank times.
    targets: names in the table's `layers`.
    base: where the model is that they belong to, a folder or a name on the Hub.
  """
  names = families.hugging_face(architecture).ours
  modules = {
    target: names[f'layers/{target}'].removesuffix('.weight')
    for target in targets
  }
  tensors = {}
  for target, module in modules.items():
    for factor in 'ab':
      stack = np.asarray(params['layers'][f'{target}_{factor}'], np.float32)
      for y, matrix in enumerate(stack):
        key = (
          f'base_model.model.{module.format(y)}.lora_{factor.upper()}.weight'
        )
        tensors[key] = np.ascontiguousarray(matrix.T)
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  _write(tensors, folder / 'adapter_model.safetensors')
  config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': rank,
    'lora_alpha': alpha,
    'target_modules': [name.rpartition('.')[2] for name in modules.values()],
    'lora_dropout': 0.0,
    'bias': 'none',
    'inference_mode': True,
  }
  _write_json(config, folder / 'adapter_config.json')


class _Piece(NamedTuple):
  """A tensor that is to be written."""

  tensor: str
  name: str  # The parameter that it comes from,
  layer: int | None  # and the layer of it, if it is stacked.
  dtype: np.dtype
  bytes: int


def _config(name, sizes, dtype, config, generation) -> dict:
  if config is None:
    config = config_out.write(name, sizes)
    for key in ('bos_token_id', 'eos_token_id'):
      if generation and key in generation:
        config[key] = generation[key]
  elif 'text_config' in config:
    config = config_in.text_part(config)
  there = config_in.read(config, 'config.json')
  if there[0] != name:
    raise ValueError(f'config.json is of models/{there[0]}.py, not {name}.py')
  for key, value in there[1].items():
    if key in sizes and sizes[key] != value:
      raise ValueError(
        f'config.json says {key}={value!r}, the parameters have {sizes[key]!r}'
      )
  # The newer spelling is dtype; transformers of both kinds read the older one.
  keys = [key for key in ('dtype', 'torch_dtype') if key in config]
  return {**config, **dict.fromkeys(keys or ['torch_dtype'], dtype)}


def _pieces(flat: Params, names: dict, dtype: str) -> Iterator[_Piece]:
  """In the order of a pass through the model."""
  wide = jnp.dtype(dtype)  # NumPy alone knows no bfloat16.

  def piece(name, layer):
    shape = flat[name].shape[layer is not None :]
    size = int(np.prod(shape)) * wide.itemsize
    return _Piece(names[name].format(layer), name, layer, wide, size)

  stacked = [name for name in flat if name.startswith('layers/')]
  yield piece('embed', None)
  for layer in range(flat[stacked[0]].shape[0]):
    for name in stacked:
      yield piece(name, layer)
  for name in flat:
    if name != 'embed' and name not in stacked:
      yield piece(name, None)


def _cut(pieces: list[_Piece], limit: float) -> list[list[_Piece]]:
  """The pieces of each file."""
  files: list[list[_Piece]] = []
  used = 0
  for piece in pieces:
    if not files or used + piece.bytes > limit:
      files.append([])
      used = 0
    files[-1].append(piece)
    used += piece.bytes
  return files


def _read(flat: Params, piece: _Piece) -> np.ndarray:
  """The tensor as files have it: of one layer, matrices output-first."""
  array = flat[piece.name]
  array = np.asarray(array if piece.layer is None else array[piece.layer])
  if array.ndim == 2 and piece.name != 'embed':
    array = array.T
  return np.ascontiguousarray(array.astype(piece.dtype))


def _write(tensors: dict[str, np.ndarray], path: epath.Path) -> None:
  # Older versions of transformers refuse a file that does not name its format.
  metadata = {'format': 'pt'}
  if '://' not in str(path):
    safetensors.numpy.save_file(tensors, os.fspath(path), metadata)
    # The library lets only this user read it; a server may be another one.
    os.chmod(path, 0o644)
    return
  with tempfile.NamedTemporaryFile() as local:
    safetensors.numpy.save_file(tensors, local.name, metadata)
    epath.Path(local.name).copy(path, overwrite=True)


def _write_json(content: Mapping, path: epath.Path) -> None:
  path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n')
