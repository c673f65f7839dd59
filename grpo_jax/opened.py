"""A policy that is there already, opened to be asked or evaluated.

  configure(path) -> config              of a run, or around published weights
  change(config, values)                 {'rollout.max_tokens': 512}
  load(config, folder, dataset) -> run, params

`path` is spelt as config.model.init: the workdir of a run (its newest
checkpoint), one of its checkpoints, a Hugging Face folder, hf://org/name, a
.gguf file or package:NAME/FILE. Nothing of a run is changed.
"""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from grpo_jax import build, datasets, initial, prompts, sharding, tokenizers
from grpo_jax import config as config_lib
from grpo_jax.types import Params


def configure(path: str) -> ConfigDict:
  """The config that made the run, or the defaults; `path` is its model.init.

  Raises FileNotFoundError or ValueError for what is no policy.
  """
  c = config_lib.default()
  if initial.is_run(path):
    _fill(c, initial.config(path))
    c.tokenizer.path = initial.tokenizer(path)
    c.pretrain.steps = 0
  else:
    c.model.variant = ''
    c.data.template = ''
    if jax.default_backend() != 'cpu':
      c.model.dtype = 'bfloat16'
  c.model.init = path
  # What only training asks for, and may not fit what is asked for here.
  c.curriculum.name = 'none'
  c.dynamic.batches = 1
  c.updates.update(minibatches=1, microbatches=1)
  c.host.pieces = 1
  c.eval.every = 0
  c.mesh.update(data=-1, fsdp=1, expert=1, context=1, tensor=1)
  return c


def context(path: str) -> int:
  """Tokens of prompt and completion that a policy is used to.

  Of one that was trained from nothing, as many as it ever saw; published models
  take 4,096 and more.
  """
  if initial.is_run(path):
    c = initial.config(path)
    if not c['model']['init']:
      return c['data']['max_prompt'] + c['rollout']['max_tokens']
  return 4096


def change(c: ConfigDict, values: Mapping[str, Any]) -> None:
  """Sets knobs by their names; raises ValueError for one that is not there."""
  for name, value in values.items():
    *path, last = name.split('.')
    node = c
    for part in path:
      node = node.get(part) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or (
      last not in node and path[:1] not in (['reward'], ['data'])
    ):
      raise ValueError(f'{name}={value!r}: there is no such knob')
    try:
      if isinstance(value, Mapping):
        node[last] = ConfigDict(value)
      else:
        node[last] = value
    except TypeError as e:
      raise ValueError(f'{name}={value!r}: {e}') from None


def load(
  c: ConfigDict, folder: str, dataset: datasets.Dataset | None = None
) -> tuple[build.Run, Params]:
  """What the config's rollout and reward need, and the parameters.

  Args:
    c: from `configure`; the length of prompts is made to fit the dataset.
    folder: a scratch folder.
    dataset: the problems, if they are not those of the config.
  """
  if dataset is not None:
    c.data.max_prompt = _longest(c, dataset)
  run = build.build(c, folder, dataset=dataset)
  with jax.set_mesh(run.mesh):
    layout = sharding.param_shardings(run.model, sharding.TRAIN, run.mesh)
    return run, initial.load(c.model.init, run.model, layout)


def to_ids(c: ConfigDict, tokenizer, question: str) -> list[int]:
  """The prompt of a question, put as in training."""
  shots = [tuple(shot) for shot in c.data.shots]
  return prompts.to_ids(
    question, tokenizer, c.data.template, c.data.instruction, shots
  )


def _longest(c: ConfigDict, dataset: datasets.Dataset) -> int:
  """Tokens of the longest prompt, rounded up to a multiple of 8."""
  tokenizer = tokenizers.load(c.tokenizer.path or c.model.init)
  longest = max(
    len(to_ids(c, tokenizer, example.prompt))
    for example in dataset.all('heldout')
  )
  return -(-longest // 8) * 8


def _fill(c: ConfigDict, values: Mapping[str, Any]) -> None:
  """Takes over a run's config; what it did not know keeps its default."""
  for name, value in values.items():
    if name not in c:
      continue
    if name in ('reward', *config_lib.CHOICES):
      own = c[name].to_dict() if name in ('kl', 'curriculum') else {}
      c[name] = ConfigDict(own | value)
    elif isinstance(c[name], ConfigDict):
      if name == 'data':
        c.data.knobs = ConfigDict(value['knobs'])
      if name == 'model':
        c.model.sizes = ConfigDict(value['sizes'])
      _fill(c[name], value)
    elif isinstance(value, list):
      c[name] = tuple(value)
    else:
      c[name] = value
