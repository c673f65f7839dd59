"""From an opened checkpoint to parameters: the part that all formats share.

A format gives a Source: what each parameter is called there, the headers of all
tensors, and how to read a part of one. `check` compares that with a model's
table, `load` reads each device's own part and no other, a layer at a time, so
that host memory holds those parts and at most one layer's tensor besides.
"""

from collections.abc import Callable, Sequence
import functools
import re
from typing import NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models import Model
from grpo_jax.types import Params

Bounds = tuple[tuple[int, int], ...]  # First and end of each dimension.


class Tensor(NamedTuple):
  """What a header tells of a tensor."""

  shape: tuple[int, ...]  # Of a matrix output-first, as files have them.
  dtype: str  # In the format's own spelling.
  readable: bool = True  # Whether it can be converted to float32.


class Source(NamedTuple):
  """A checkpoint whose headers are read."""

  path: str  # As the user wrote it, for errors.
  architecture: str  # As it calls itself.
  names: dict[str, str]  # Parameter -> tensor; {} is the layer.
  ignored: str  # Regular expression: tensors without which a model is whole.
  tensors: dict[str, Tensor]
  read: Callable[[str, tuple[slice, ...]], np.ndarray]  # Any float dtype.


def check(source: Source, model: Model) -> None:
  """Compares the headers with the model's table; reads no numbers.

  (But of a head beside a tied embedding, which must be the same.)

  Raises:
    ValueError: naming the tensor and what the model expects.
  """
  path, tensors, rows = source.path, source.tensors, _rows(model)
  if unknown := [name for name in rows if name not in source.names]:
    raise ValueError(
      f'{path}: {source.architecture!r} files have no parameter {unknown[0]!r}'
    )
  expected: dict[str, tuple[int, ...]] = {}  # Shapes of tensors.
  for name, row in rows.items():
    shape = row.shape[1:] if _is_stacked(name) else row.shape
    if _is_transposed(name, shape):
      shape = shape[::-1]
    expected |= dict.fromkeys(_tensors_of(name, row, source), shape)
  for name, shape in expected.items():
    if name not in tensors:
      raise ValueError(f'{path}: no tensor {name!r}, {[*shape]} expected')
    found = tensors[name]
    if found.shape != shape:
      raise ValueError(
        f'{path}: {name!r} is {[*found.shape]}, {[*shape]} expected'
      )
    if not found.readable:
      raise ValueError(
        f'{path}: {name!r} is {found.dtype}, which cannot be converted to '
        'float32 here'
      )
  extra = [
    name
    for name in tensors
    if name not in expected and not re.fullmatch(source.ignored, name)
  ]
  if 'unembed' not in rows and source.names['unembed'] in extra:
    _check_same(source, 'unembed', 'embed')
    extra.remove(source.names['unembed'])
  if extra:
    raise ValueError(
      f'{path}: the model has no place for tensor {extra[0]!r}'
      + (f' and {len(extra) - 1} more' if extra[1:] else '')
    )


def load(
  source: Source, model: Model, shardings: Params | jax.sharding.Sharding
) -> Params:
  """All parameters, as the table says, of a source that `check` has passed.

  `shardings` is one for all, or a tree of them.
  """
  rows = _rows(model)
  if isinstance(shardings, jax.sharding.Sharding):
    where = dict.fromkeys(rows, shardings)
  else:
    where = traverse_util.flatten_dict(shardings, sep='/')
  params = {}
  for name, row in rows.items():
    cuts = where[name].addressable_devices_indices_map(row.shape).values()
    wanted = {_bounds(cut, row.shape) for cut in cuts if cut is not None}
    tensors = _tensors_of(name, row, source)
    parts = read_parts(source, name, tensors, wanted, row.dtype)
    params[name] = jax.make_array_from_callback(
      row.shape,
      where[name],
      functools.partial(_part, parts, row.shape),
    )
  return traverse_util.unflatten_dict(params, sep='/')


def _part(parts, shape, cut) -> np.ndarray:
  return parts[_bounds(cut, shape)]


def read_parts(
  source: Source,
  name: str,
  tensors: Sequence[str],
  wanted: set[Bounds],
  dtype: str = 'float32',
) -> dict[Bounds, np.ndarray]:
  """Parts of a parameter, read from its tensors, one for each layer.

  Of a tensor only what lies in some part is asked for, and each part once,
  however many devices hold it.
  """
  parts = {
    bounds: _zeros([end - first for first, end in bounds], dtype)
    for bounds in wanted
  }
  for y, tensor in enumerate(tensors):
    for bounds, part in parts.items():
      if _is_stacked(name):
        (first, end), *bounds = bounds
        if not first <= y < end:
          continue
        part = part[y - first]
      at = tuple(slice(*ends) for ends in bounds)
      if _is_transposed(name, part.shape):
        part, at = part.T, at[::-1]
      part[...] = source.read(tensor, at)
  return parts


def _zeros(shape: Sequence[int], dtype: str) -> np.ndarray:
  """Zeros that begin where XLA's do.

  Then a CPU device takes the memory as it is; it would copy other arrays.
  """
  dtype, boundary = jnp.dtype(dtype), 64
  size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
  memory = np.zeros(size + boundary, np.uint8)
  first = -memory.ctypes.data % boundary
  return memory[first : first + size].view(dtype).reshape(shape)


def _check_same(source: Source, name: str, other: str) -> None:
  """Of two tensors; some files hold the head of a tied model too."""
  name, other = source.names[name], source.names[other]
  one, two = source.tensors[name], source.tensors[other]
  same = one == two
  count = one.shape[0] if same else 0
  for first in range(0, count, 4096):  # Not two whole tables at a time.
    rows = (slice(first, min(first + 4096, count)), slice(None))
    same &= np.array_equal(source.read(name, rows), source.read(other, rows))
  if not same:
    raise ValueError(
      f'{source.path}: the model is tied, but {name!r} is another matrix than '
      f'{other!r}'
    )


def _rows(model: Model) -> dict:
  return traverse_util.flatten_dict(model.table, sep='/')


def _tensors_of(name, row, source) -> list[str]:
  """The tensors that make up a parameter, one for each layer of a stack."""
  if _is_stacked(name):
    return [source.names[name].format(y) for y in range(row.shape[0])]
  return [source.names[name]]


def _is_stacked(name: str) -> bool:
  return name.startswith('layers/')


def _is_transposed(name: str, shape: Sequence[int]) -> bool:
  # Files hold matrices output-first, ours are input-first; an embedding is a
  # table of rows in both.
  return len(shape) == 2 and name != 'embed'


def _bounds(cut: tuple[slice, ...], shape: Sequence[int]) -> Bounds:
  return tuple(
    part.indices(size)[:2] for part, size in zip(cut, shape, strict=True)
  )
