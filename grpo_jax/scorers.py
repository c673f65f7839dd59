"""The reward models of a run, loaded once.

  load(config, mesh, tokenizer) -> name of a part -> Scorer

They are what runs with c.preference.path have trained. Their weights lie on the
mesh as the policy's do, in model.dtype, and are arguments of the programs.
"""

import dataclasses
import functools

import jax
from ml_collections import ConfigDict

from grpo_jax import config as config_lib
from grpo_jax import initial, models, preference, sharding, tokenizers
from grpo_jax.models import Model, lora, scalar
from grpo_jax.rewards import mix
from grpo_jax.types import Scorer


def load(c: ConfigDict, mesh, tokenizer) -> dict[str, Scorer]:
  """Those of all parts of the reward that ask for one.

  For devices that are not there, to compile for, only shapes are made.

  Raises:
    ValueError, FileNotFoundError: naming the part, and what is no reward model
      for it.
  """
  return {
    part.name: _load(part.name, part.knobs.get('init', ''), c, mesh, tokenizer)
    for part in mix.parse(config_lib.reward_mix(c))
    if 'scorer' in part.takes
  }


def _load(name, path, c, mesh, tokenizer) -> Scorer:
  if not path or not initial.is_run(path):
    raise ValueError(
      f'reward.{name}.init={path!r} must be the workdir of a run that trained '
      'a reward model (preference.path)'
    )
  model = _model(path, c)
  initial.check(path, model)
  theirs = tokenizers.load(initial.tokenizer(path))
  if [*theirs.token_bytes] != [*tokenizer.token_bytes]:
    raise ValueError(
      f'reward.{name}.init={path!r} reads the tokens of '
      f"{initial.tokenizer(path)!r}, which are not the policy's: "
      f'tokenizer.path={c.tokenizer.path!r}'
    )
  layout = sharding.param_shardings(model, sharding.TRAIN, mesh)
  if {*mesh.devices.flat} <= {*jax.devices()}:
    params = initial.load(path, model, layout)
  else:
    params = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      models.abstract_params(model),
      layout,
    )
  return Scorer(
    params, functools.partial(preference.score_rollout, model=model)
  )


def _model(path: str, c: ConfigDict) -> Model:
  """What the run trained, to be used as the policy is."""
  name, sizes = initial.architecture(path)
  how = {'unroll': c.model.unroll, 'attention': c.model.attention}
  model = models.build(name, '', **sizes | how | {'remat': 'none'})
  model = models.in_dtype(model, c.model.dtype)
  adapters = initial.config(path)['lora']
  if adapters['rank']:
    model = lora.adapt(model, **adapters)
  table = models.map_table(lambda row: row._replace(dtype=c.model.dtype), model)
  return scalar.with_scalar_head(dataclasses.replace(model, table=table))
