"""The weights that a run starts from: a published file, or another run's.

  architecture(path)            what model it is
  check(path, model)            raises, in one line, what load would
  load(path, model, shardings)  parameters, each device its own part

`path` is config.model.init: published weights (see weights/), the workdir of a
run, which is its newest checkpoint, or one checkpoint of it, as in
runs/quickstart/checkpoints/1000. While a run is being trained on only the last
of them always means the same weights. Low-rank adapters that are not there are
made anew.
"""

import dataclasses
import functools
import importlib
import json

from etils import epath
from flax import traverse_util
import jax
import orbax.checkpoint as ocp

from grpo_jax import checkpoint, models, weights
from grpo_jax.models import Model, lora
from grpo_jax.types import Params
from grpo_jax.weights import paths


def is_run(path: str) -> bool:
  """Whether it is a folder, and not one of published weights."""
  return not weights.is_published(path)


def tokenizer(path: str) -> str:
  """What tokenizer.path has to be for the tokens of a run."""
  learnt = _workdir(path) / 'tokenizer.model'
  if not learnt.exists() and (_workdir(path) / 'config.json').exists():
    c = config(path)
    if c['tokenizer']['path'] or not c['model']['init']:
      return c['tokenizer']['path']
    init = c['model']['init']
    return tokenizer(init) if is_run(init) else init
  return str(learnt)


def architecture(path: str) -> tuple[str, dict]:
  """The file in models/, and all that differs from its Sizes' defaults."""
  if not is_run(path):
    return weights.architecture(path)
  c = config(path)['model']
  if c['variant']:
    name = c['name']
    module = importlib.import_module(f'grpo_jax.models.{name}')
    sizes = dataclasses.asdict(module.VARIANTS[c['variant']])
  else:
    name, sizes = architecture(c['init'])
  vocab_size, _ = shapes(path)['embed']  # Mostly the tokenizer's.
  return name, sizes | c['sizes'] | {'vocab_size': vocab_size}


def config(path: str) -> dict:
  """The config that made a run."""
  file = _workdir(path) / 'config.json'
  if not file.exists():
    raise FileNotFoundError(f'{path}: there is no {file}')
  return json.loads(file.read_text())


def shapes(path: str) -> dict[str, list[int]]:
  """Of a run's parameters, by names like 'layers/q'; reads no weights."""
  folder = _checkpoint(path)
  checkpoint.hide_orphans()
  try:
    tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree['params']
  except Exception as e:  # Whatever a damaged file makes Orbax raise.
    raise ValueError(
      f'{path}: {folder} cannot be read ({paths.line(e)})'
    ) from e
  return {name: list(x.shape) for name, x in _flat(tree).items()}


def check(path: str, model: Model) -> None:
  """Compares what is there with the model's table; reads no weights.

  Raises:
    FileNotFoundError: there is no such file or folder, or no checkpoint in it.
    ValueError: it is damaged, or other parameters or shapes are in it.
  """
  model = _held(path, model)
  if not is_run(path):
    weights.check(path, model)
    return
  found = shapes(path)
  wanted = {
    name: list(x.shape)
    for name, x in _flat(models.abstract_params(model)).items()
  }
  for name, shape in wanted.items():
    if found.get(name) != shape:
      there = f'is {found[name]}' if name in found else 'is not there'
      raise ValueError(f'{path}: {name!r} {there}, {shape} expected')
  if extra := found.keys() - wanted:
    raise ValueError(f'{path}: the model has no place for {min(extra)!r}')


def check_variant(path: str, name: str, variant: str, sizes: dict) -> None:
  """Compares what no shape tells, such as rotary positions and windows.

  Args:
    path: of published weights.
    name: the file in models/.
    variant: one of it; '' is the path's own.
    sizes: what is to be otherwise than in the variant, and is not compared.

  Raises:
    ValueError: the weights say that they are another model.
  """
  if not variant:
    return
  theirs_name, theirs = architecture(path)
  if name != theirs_name:
    raise ValueError(
      f'{path} is for model.name={theirs_name!r}, not for {name!r}'
    )
  module = importlib.import_module(f'grpo_jax.models.{name}')
  ours = dataclasses.asdict(module.VARIANTS[variant])
  for key, value in theirs.items():
    if key not in sizes and ours[key] != value:
      raise ValueError(
        f'{path} has {key}={value}, model.variant={variant!r} has {ours[key]}: '
        "model.variant='' takes what the weights say"
      )


def load(path: str, model: Model, shardings: Params, seed: int = 0) -> Params:
  """The parameters, in the shardings given; raises what check raises.

  `seed` is of adapters that the path does not have.
  """
  held = _held(path, model)
  if held is not model:
    new, there = models.partition(model, shardings)
    adapters = jax.jit(
      functools.partial(models.init_params, lora.adapters(model)),
      out_shardings=new,
    )(jax.random.key(seed))
    return models.join(adapters, load(path, held, there))
  if not is_run(path):
    return weights.load(path, model, shardings)
  check(path, model)
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
    raise ValueError(
      f'{path}: {folder} cannot be read ({paths.line(e)})'
    ) from e
  return state['params']


def _workdir(path: str) -> epath.Path:
  folder = paths.expand(path)
  return folder.parent.parent if folder.name.isdigit() else folder


def _held(path: str, model: Model) -> Model:
  """The model, or only what is frozen of it, where a path has no adapters."""
  if not lora.is_adapted(model):
    return model
  if is_run(path) and lora.names(model) & shapes(path).keys():
    return model
  return lora.base(model)


def _checkpoint(path: str) -> epath.Path:
  """The folder that Orbax wrote."""
  folder = paths.expand(path)
  if not folder.name.isdigit():
    steps = folder / 'checkpoints'
    names = [x.name for x in steps.iterdir()] if steps.exists() else []
    found = [int(name) for name in names if name.isdigit()]
    if not found:
      raise FileNotFoundError(
        f'{path}: this folder has no checkpoints/<step> in it; model.init '
        'takes the workdir of a run, one of its checkpoints, a .gguf file, or '
        'a Hugging Face folder with config.json and .safetensors files'
      )
    folder = steps / str(max(found))
  if not (folder / 'default').is_dir():
    raise FileNotFoundError(f'{path}: {folder} is no checkpoint of a run')
  return (folder / 'default').resolve()


def _flat(params: Params) -> dict:
  return traverse_util.flatten_dict(params, sep='/')
