"""Weights of published checkpoints: files in, parameters as the table says out.

  resolve(path)                  the file or folder that a path names
  architecture(path)             the name of its model, and its sizes
  check(path, model)             raises, in one line, what load would
  load(path, model, shardings)   parameters, each device its own part
  export.save(params, folder)    a Hugging Face folder

A path is a .gguf file or a Hugging Face folder, in any form that `resolve`
takes. Nothing is read before all headers are checked, and `check` reads headers
alone, so that a run can refuse before anything is compiled.

To add a model family, see families.py; a format is a Source, see source.py.
"""

import os

import jax

from grpo_jax.models import Model
from grpo_jax.types import Params
from grpo_jax.weights import gguf_files, safetensors_files, source
from grpo_jax.weights.gguf_files import metadata, open_gguf
from grpo_jax.weights.paths import resolve

__all__ = [
  'architecture',
  'check',
  'is_published',
  'load',
  'metadata',
  'open_gguf',
  'resolve',
]


def is_published(path: str | os.PathLike) -> bool:
  """Whether published weights are meant, not a run of this library."""
  path = os.fspath(path)
  if path.startswith(('package:', 'hf://')):
    return True
  try:
    found = resolve(path)
  except FileNotFoundError:
    return True  # What is wrong with it `check` says.
  return not found.is_dir() or safetensors_files.is_published(found)


def architecture(path: str | os.PathLike) -> tuple[str, dict]:
  """The name of a file in models/ and fields of its Sizes; reads no weights.

  Raises:
    FileNotFoundError: there is no such file or folder.
    ValueError: it is damaged, or no model here computes what it says.
  """
  return _format(path).read_sizes(path)


def check(path: str | os.PathLike, model: Model) -> None:
  """Compares the headers of a checkpoint with the model's table.

  Raises:
    FileNotFoundError: there is no such file or folder, or a part is missing.
    ValueError: it is damaged or cut short, or holds other tensors or shapes
      than the model has.
  """
  source.check(_format(path).open_source(path), model)


def load(
  path: str | os.PathLike,
  model: Model,
  shardings: Params | jax.sharding.Sharding,
) -> Params:
  """All parameters, in the shardings; raises what check raises.

  `shardings` is one for all, or a tree of them.
  """
  opened = _format(path).open_source(path)
  source.check(opened, model)
  return source.load(opened, model, shardings)


def _format(path):
  """The module that reads it."""
  found = resolve(path)
  if found.is_dir():
    return safetensors_files
  safetensors_files.refuse_pickle(path, [found.name])
  if found.suffix == '.safetensors':
    raise ValueError(
      f'{path}: give the folder of this file, which has its config.json'
    )
  return gguf_files
