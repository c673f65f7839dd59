"""Low-rank adapters (LoRA, arxiv.org/abs/2106.09685): few weights are trained.

  adapt(model, rank=16, alpha=32.0, targets=('q', 'v')) -> model

The parameter table is the model's own, frozen, with two thin matrices beside
each target: a projection W becomes W + alpha / rank * A B. B starts at zero, so
that the model starts as it was. Adapters stay apart from W in decoding too:
sampler and trainer compute the same, also where W is bfloat16 and would round
a small change away.

What follows is ordinary: `models.partition` tells what is trained from what is
not, and gradients, optimizer state and the reference of a KL term exist for
adapters only. With B at zero that reference is the frozen model itself.
"""

from collections.abc import Sequence
import dataclasses

from flax import traverse_util
import jax
import jax.numpy as jnp

from grpo_jax import models
from grpo_jax.models import Model, Param
from grpo_jax.types import Params

TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


def adapt(
  model: Model,
  *,
  rank: int = 16,
  alpha: float = 32.0,
  targets: Sequence[str] = TARGETS,
  dtype: str = 'float32',
) -> Model:
  """The model with all of its table frozen, and adapters to train.

  Args:
    model: one whose file builds on decoder.py.
    rank: columns of A and rows of B.
    alpha: adapters count alpha / rank times.
    targets: names of projections in the table's `layers`.
    dtype: in which the frozen parameters are kept.

  Raises:
    ValueError: naming what has no place for adapters, and what has.
  """
  if not model.adaptable:
    raise ValueError('lora: this model takes no adapters (models/decoder.py)')
  rows = dict(model.table['layers'])
  known = [name for name in TARGETS if name in rows]
  for name in targets:
    if name not in known:
      raise ValueError(
        f'lora.targets has {name!r}, which is not one of {known}'
      )
  adapters = {}
  for name in targets:
    (Y, I, O), (_, i, o) = rows[name].shape, rows[name].axes
    adapters[f'{name}_a'] = Param((Y, I, rank), ('layers', i, None), _uniform)
    adapters[f'{name}_b'] = Param(
      (Y, rank, O), ('layers', None, o), jax.nn.initializers.zeros
    )

  frozen = models.map_table(
    lambda row: row._replace(frozen=True, dtype=dtype), model
  )

  def scaled(params: Params) -> Params:
    layers = {
      name: w * (alpha / rank) if name in adapters and name[-2:] == '_b' else w
      for name, w in params['layers'].items()
    }
    return params | {'layers': layers}

  def apply(params, inputs, cache=None):
    # Of decode_params they are scaled already, and the layers are a list.
    if isinstance(params['layers'], dict):
      params = scaled(params)
    return model.apply(params, inputs, cache)

  return dataclasses.replace(
    model,
    table=frozen | {'layers': frozen['layers'] | adapters},
    apply=apply,
    decode_params=lambda params: model.decode_params(scaled(params)),
  )


def is_adapted(model: Model) -> bool:
  return any(jax.tree.leaves(models.map_table(lambda row: row.frozen, model)))


def names(model: Model) -> set[str]:
  """Of the adapters, as in 'layers/q_a'."""
  return {*traverse_util.flatten_dict(adapters(model).table, sep='/')}


def base(model: Model) -> Model:
  """The table without adapters, to load; `apply` is not for it."""
  _, rows = models.partition(model, model.table)
  bare = dataclasses.replace(model, table=rows)
  table = models.map_table(lambda row: row._replace(frozen=False), bare)
  return dataclasses.replace(model, table=table)


def adapters(model: Model) -> Model:
  """The table of adapters alone, to make them; `apply` is not for it."""
  return dataclasses.replace(
    model, table=models.partition(model, model.table)[0]
  )


def merge(params: Params, *, rank: int, alpha: float) -> Params:
  """W + alpha / rank * A B in the place of W: parameters without adapters."""
  layers = dict(params['layers'])
  for name in TARGETS:
    if f'{name}_a' in layers:
      a_YIJ, b_YJO = layers.pop(f'{name}_a'), layers.pop(f'{name}_b')
      change = jnp.einsum('yij,yjo->yio', a_YIJ, b_YJO) * (alpha / rank)
      layers[name] = (layers[name] + change).astype(layers[name].dtype)
  return params | {'layers': layers}


def _uniform(key, shape, dtype):
  """As PEFT starts A: of variance 1 / (3 inputs)."""
  bound = shape[-2] ** -0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)
