"""Folders of Hugging Face: config.json and one or many .safetensors files.

Files are mapped, so that a part of a tensor costs the pages that it lies on. A
file on gs:// is copied to the temporary folder first, whole.
"""

import functools
import json
import os

from etils import epath
import numpy as np
import safetensors

from grpo_jax.weights import config_in, families, paths
from grpo_jax.weights.source import Source, Tensor

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
_DTYPES = ('BF16', 'F16', 'F32', 'F64')
_PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.ckpt')


def is_published(folder: epath.Path) -> bool:
  """Whether it is such a folder, or was meant to be one."""
  if not folder.is_dir():
    return False
  config = folder / 'config.json'
  names = [x.name for x in folder.iterdir()]
  return (
    any(name == INDEX or name.endswith('.safetensors') for name in names)
    or any(name.endswith(_PICKLES) for name in names)
    or (config.exists() and 'model_type' in read_json(config))
  )


def open_source(path: str | os.PathLike) -> Source:
  """A folder whose headers are read; see Source.

  Raises:
    FileNotFoundError: there are no weights in it, or a part of them is missing.
    ValueError: they are damaged, cut short, or of another architecture.
  """
  folder = paths.resolve(path)
  config = read_config(path)
  config_in.read(config, f'{path}: config.json')
  files = _files(path, folder)
  stamps = tuple((x.stat().length, x.stat().mtime) for x in files)
  opened = _open_files(tuple(files), stamps)
  tensors, where = {}, {}
  for handle in opened:
    for name in handle.keys():
      part = handle.get_slice(name)
      dtype = part.get_dtype()
      tensors[name] = Tensor(tuple(part.get_shape()), dtype, dtype in _DTYPES)
      where[name] = handle
  for name, file in _index(folder).items():
    if name not in tensors:
      raise ValueError(
        f'{path}: no tensor {name!r} in {file}, where {INDEX} says that it is'
      )
  architecture = config['model_type']
  names = families.hugging_face(architecture, tensors)

  def read(name: str, at: tuple[slice, ...]) -> np.ndarray:
    return where[name].get_slice(name)[at]

  return Source(
    path=os.fspath(path),
    architecture=architecture,
    names=names.ours,
    ignored=names.ignored,
    tensors=tensors,
    read=read,
  )


def read_sizes(path: str | os.PathLike) -> tuple[str, dict]:
  """models/<name>.py and fields of its Sizes, from config.json alone."""
  return config_in.read(read_config(path), f'{path}: config.json')


def read_config(path: str | os.PathLike) -> dict:
  """The content of its config.json; raises in one line."""
  file = paths.resolve(path) / 'config.json'
  if not file.exists():
    raise FileNotFoundError(
      f'{path}: there is no config.json beside the weights'
    )
  return read_json(file)


def read_json(path: epath.Path) -> dict:
  try:
    content = json.loads(path.read_text())
    if isinstance(content, dict):
      return content
    reason = f'it holds a {type(content).__name__}'
  except ValueError as error:
    reason = paths.line(error)
  raise ValueError(f'{path} is no JSON object ({reason})')


def refuse_pickle(path: str | os.PathLike, names: list[str]) -> None:
  """Raises ValueError if one of the names is of a file that could run code."""
  if bad := [name for name in names if name.endswith(_PICKLES)]:
    raise ValueError(
      f'{path}: {min(bad)} is a pickle file, which can run any code when it is '
      'opened; only .safetensors and .gguf files are read'
    )


def _files(path, folder: epath.Path) -> list[epath.Path]:
  if (folder / SINGLE).exists():
    return [folder / SINGLE]
  names = sorted({*_index(folder).values()})
  if not names:
    refuse_pickle(path, [x.name for x in folder.iterdir()])
    raise FileNotFoundError(
      f'{path}: there is no {SINGLE} and no {INDEX} in it'
    )
  there = {x.name for x in folder.iterdir()}
  if missing := [name for name in names if name not in there]:
    raise FileNotFoundError(
      f'{path}: {missing[0]}, which {INDEX} names, is not there'
      + (f', nor are {len(missing) - 1} more' if missing[1:] else '')
    )
  return [folder / name for name in names]


def _index(folder: epath.Path) -> dict[str, str]:
  """Tensor -> file; empty where one file holds all."""
  if (folder / SINGLE).exists() or not (folder / INDEX).exists():
    return {}
  index = read_json(folder / INDEX).get('weight_map')
  if not isinstance(index, dict) or not index:
    raise ValueError(f'{folder / INDEX} has no weight_map from tensor to file')
  return index


@functools.lru_cache(maxsize=1)  # Copies of remote files are made once.
def _open_files(files: tuple[epath.Path, ...], stamps: tuple) -> list:
  opened = []
  for file, (size, _) in zip(files, stamps, strict=True):
    try:
      with paths.on_disk(file) as local:
        opened.append(safetensors.safe_open(local, 'numpy'))
    except safetensors.SafetensorError as error:
      raise ValueError(
        f'{file} is cut short or damaged: its {size} bytes do not hold what its'
        f' header announces ({paths.line(error)})'
      ) from error
  return opened
