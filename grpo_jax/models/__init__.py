"""The contract of a model, and the tools that its parameter table buys.

A model file has one public function, `build(variant, **sizes) -> Model`. What
the rest of the code base knows of a model is the record below: how to apply
it, how to make room for decoding, where its head is, and one table that
names every parameter with its shape, logical axes and initialiser. From the
table follow random weights, abstract trees, shardings (`sharding.py`) and what
a weights file must hold (`weights/`).

To add a model, write `models/<name>.py` with `build`; choose it by
`c.model.name = '<name>'`. Nothing asks what is inside: a Linen or NNX module
may stand behind `apply` (README has the recipe).
"""

from collections.abc import Callable
import dataclasses
import importlib
from typing import Any, NamedTuple

from flax import traverse_util
import jax

from grpo_jax.types import ModelOutputs, Params

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


class Param(NamedTuple):
  """One row of a parameter table."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]  # Logical axes; sharding.py maps them to a mesh.
  init: Initializer  # (key, shape, dtype) -> array, as jax.nn.initializers.
  frozen: bool = False  # Not trained: neither gradient nor optimizer state.
  dtype: str = 'float32'  # As it is kept; in_dtype says what it is used in.


@dataclasses.dataclass(frozen=True)
class Model:
  """A decoder, as rollout, grpo and sft see it.

  apply(params, inputs: ModelInputs, cache=None) -> ModelOutputs:
    without a cache, a causal pass over whole documents; its `cache` output
    holds their keys and values. With one from `init_cache`, `inputs` goes on
    from the prompts in it, row b = p*G + g from prompt p.
  init_cache(prompt_cache, lengths_P, group_size, max_tokens) -> cache:
    makes room for `group_size` continuations of each of the P prompts whose
    pass gave `prompt_cache`. Prompts are padded on the right; only from
    `lengths_P` can continuations know where the padding begins. They are of
    `max_tokens` tokens, fed one at a time through a compiled loop: `apply`
    returns a cache of the same structure, shapes and dtypes. With max_tokens=0
    the continuation comes in one piece (teacher forcing) and the cache that
    `apply` returns is not used.
  grow_cache(cache, max_tokens) -> cache:
    makes room for more, and keeps what is there. None: it cannot grow.
  head(params) -> head_DV, float logits are hidden_D @ head_DV.
  decode_params(params) -> params for `apply` with a cache of max_tokens > 0:
    whatever is worth doing once before a loop over tokens.

  `params` is a nested dict laid out like `table`, whose initialisers make it.
  """

  table: dict[str, Any]  # Nested names -> Param.
  vocab_size: int
  apply: Callable[..., ModelOutputs]
  init_cache: Callable[..., Any]
  head: Callable[[Params], jax.Array]
  grow_cache: Callable[..., Any] | None = None
  decode_params: Callable[[Params], Params] = lambda params: params
  products_per_pair: int = 0  # Multiply-adds of a query and a key that it sees.
  adaptable: bool = False  # `apply` adds low-rank adapters, see lora.py.


def build(name: str, variant: str, **sizes) -> Model:
  """The model `models/<name>.py`; `sizes` replace numbers of the variant."""
  module = importlib.import_module(f'grpo_jax.models.{name}')
  return module.build(variant, **sizes)


def in_dtype(model: Model, dtype: str) -> Model:
  """The model with its weights in use cast to a dtype; the state keeps its own.

  Gradients flow through the cast, so that the optimizer sees float32.
  """

  def cast(params):
    return jax.tree.map(lambda w: w.astype(dtype), params)

  def apply(params, inputs, cache=None):
    return model.apply(cast(params), inputs, cache)

  return dataclasses.replace(
    model,
    apply=apply,
    head=lambda params: model.head(cast(params)),
    decode_params=lambda params: model.decode_params(cast(params)),
  )


def init_params(model: Model, key: jax.Array, dtype=None) -> Params:
  """Random parameters as the model's table says."""
  rows, tree = jax.tree.flatten(model.table, is_leaf=_is_param)
  keys = jax.random.split(key, len(rows))
  arrays = [
    row.init(k, row.shape, dtype or row.dtype)
    for row, k in zip(rows, keys, strict=True)
  ]
  return jax.tree.unflatten(tree, arrays)


def abstract_params(model: Model, dtype=None) -> Params:
  """Shapes and dtypes of the parameters, with nothing allocated."""
  return map_table(
    lambda row: jax.ShapeDtypeStruct(row.shape, dtype or row.dtype), model
  )


def logical_axes(model: Model) -> Params:
  """The logical axes of every parameter."""
  return map_table(lambda row: row.axes, model)


def param_count(model: Model) -> int:
  rows = jax.tree.leaves(abstract_params(model))
  return sum(row.size for row in rows)


def partition(model: Model, params: Params) -> tuple[Params, Params]:
  """Parameters that are trained, and those that are not (models.lora)."""
  frozen = traverse_util.flatten_dict(map_table(lambda row: row.frozen, model))
  if not any(frozen.values()):
    return params, {}
  flat = traverse_util.flatten_dict(params)
  trained, rest = (
    {path: x for path, x in flat.items() if frozen[path] == part}
    for part in (False, True)
  )
  return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(
    rest
  )


def join(trained: Params, frozen: Params) -> Params:
  """The inverse of partition."""
  if not frozen:
    return trained
  flat = traverse_util.flatten_dict(trained)
  return traverse_util.unflatten_dict(flat | traverse_util.flatten_dict(frozen))


def map_table(function: Callable[[Param], Any], model: Model) -> Params:
  return jax.tree.map(function, model.table, is_leaf=_is_param)


def _is_param(node) -> bool:
  return isinstance(node, Param)
