"""The weights that a run starts from: a published file, or another run's.

  check(path, model)            raises, in one line, what load would
  load(path, model, shardings)  parameters, each device its own part

`path` is config.model.init: a GGUF file (see weights.py), the workdir of a run,
which is its newest checkpoint, or one checkpoint of it, as in
runs/quickstart/checkpoints/1000. While a run is being trained on only the last
of them always means the same weights.
"""

import json
import os

from etils import epath
from flax import traverse_util
import jax
import orbax.checkpoint as ocp

from grpo_jax import checkpoint, models, sharding, weights
from grpo_jax.models import Model
from grpo_jax.types import Params


def is_run(path: str) -> bool:
  """Whether it is a folder, so that no file of weights is meant."""
  return not path.startswith('package:') and _expand(path).is_dir()


def tokenizer(path: str) -> str:
  """What tokenizer.path has to be for the tokens of a run."""
  folder = _expand(path)
  if folder.name.isdigit():
    folder = folder.parent.parent
  learnt, config = folder / 'tokenizer.model', folder / 'config.json'
  if not learnt.exists() and config.exists():
    return json.loads(config.read_text())['tokenizer']['path']
  return str(learnt)


def check(path: str, model: Model) -> None:
  """Compares what is there with the model's table; reads no weights.

  Raises:
    FileNotFoundError: there is no such file or folder, or no checkpoint in it.
    ValueError: it is damaged, or other parameters or shapes are in it.
  """
  if not is_run(path):
    weights.check_gguf(path, model)
    return
  folder = _checkpoint(path)
  checkpoint.hide_orphans()
  try:
    tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree['params']
  except Exception as e:  # Whatever a damaged file makes Orbax raise.
    raise ValueError(f'{path}: {folder} cannot be read ({_line(e)})') from e
  found, wanted = (
    {name: list(x.shape) for name, x in _flat(params).items()}
    for params in (tree, models.abstract_params(model))
  )
  for name, shape in wanted.items():
    if found.get(name) != shape:
      there = f'is {found[name]}' if name in found else 'is not there'
      raise ValueError(f'{path}: {name!r} {there}, {shape} expected')
  if extra := found.keys() - wanted:
    raise ValueError(f'{path}: the model has no place for {min(extra)!r}')


def load(path: str, model: Model, shardings: Params) -> Params:
  """The parameters, in the shardings given; raises what check raises."""
  check(path, model)
  if not is_run(path):
    return sharding.put(weights.load_gguf(path, model), shardings)
  template = {
    'params': jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      models.abstract_params(model),
      shardings,
    )
  }
  folder = _checkpoint(path)
  try:
    # The rest of the state, the optimizer above all, is not read.
    state = ocp.PyTreeCheckpointHandler().restore(
      folder,
      args=ocp.args.PyTreeRestore(
        template,
        ocp.checkpoint_utils.construct_restore_args(template),
        partial_restore=True,
      ),
    )
  except Exception as e:
    raise ValueError(f'{path}: {folder} cannot be read ({_line(e)})') from e
  return state['params']


def _checkpoint(path: str) -> epath.Path:
  """The folder that Orbax wrote."""
  folder = _expand(path)
  if not folder.name.isdigit():
    steps = folder / 'checkpoints'
    names = [x.name for x in steps.iterdir()] if steps.exists() else []
    found = [int(name) for name in names if name.isdigit()]
    if not found:
      raise FileNotFoundError(
        f'{path}: this folder has no checkpoints/<step> in it; model.init '
        'takes the workdir of a run, one of its checkpoints, or a .gguf file'
      )
    folder = steps / str(max(found))
  if not (folder / 'default').is_dir():
    raise FileNotFoundError(f'{path}: {folder} is no checkpoint of a run')
  return (folder / 'default').resolve()


def _expand(path: str) -> epath.Path:
  return epath.Path(os.path.expandvars(path)).expanduser()


def _flat(params: Params) -> dict:
  return traverse_util.flatten_dict(params, sep='/')


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:120] or type(error).__name__
