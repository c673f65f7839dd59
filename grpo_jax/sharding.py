"""Where arrays lie on a mesh of devices: two rule tables and their use.

Model tables name logical axes ('embed', 'heads', ...); the rules below map them
to the mesh axes `data, fsdp, expert, context, tensor`. There are two layouts of
the same weights: TRAIN shards them over `fsdp` too; ROLLOUT does not, because
a decode loop would gather them again for every token. Changing parallelism
means changing a table here, or `c.mesh`; no model or algorithm knows of it.
"""

from collections.abc import Callable, Mapping, Sequence
import math

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

HOST = 'pinned_host'  # The memory of the host that devices reach.
AXES = ('data', 'fsdp', 'expert', 'context', 'tensor')

TRAIN = {
  'batch': ('data', 'fsdp'),
  'embed': ('fsdp',),
  'vocab': ('tensor',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'layers': (),
}
ROLLOUT = TRAIN | {'embed': ()}


def make_mesh(
  sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """A mesh over all devices; one size may be -1 and takes what is left.

  `devices` may be others than those of this machine, to compile for them.
  Raises ValueError if the sizes do not multiply to the number of devices.
  """
  have = jax.device_count() if devices is None else len(devices)
  known = max(math.prod(n for n in sizes.values() if n != -1), 1)
  free = [name for name, n in sizes.items() if n == -1]
  bad = {name: n for name, n in sizes.items() if n < 1 and n != -1}
  shape = {name: have // known if n == -1 else n for name, n in sizes.items()}
  if bad or len(free) > 1 or math.prod(shape.values()) != have:
    raise ValueError(
      f'mesh {dict(sizes)} does not fit {have} devices: the sizes must '
      'multiply to that number (one of them may be -1, the rest)'
    )
  return jax.make_mesh(
    tuple(shape[name] for name in AXES),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def batch_divisor(mesh: jax.sharding.Mesh) -> int:
  """Rows that go through the model at a time are a multiple of this."""
  return math.prod(mesh.shape[axis] for axis in TRAIN['batch'])


def spec(
  axes: tuple[str | None, ...],
  shape: tuple[int, ...],
  rules: Mapping[str, tuple[str, ...]],
  mesh,
) -> PartitionSpec:
  """Mesh axes for each dimension; a dimension that does not divide is whole."""
  parts = []
  for name, size in zip(axes, shape, strict=True):
    chosen = rules[name] if name else ()
    fits = size % math.prod(mesh.shape[axis] for axis in chosen) == 0
    parts.append(chosen if chosen and fits else None)
  return PartitionSpec(*parts)


def param_shardings(model, rules, mesh):
  """A NamedSharding for every parameter of a models.Model."""
  return jax.tree.map(
    lambda row: NamedSharding(mesh, spec(row.axes, row.shape, rules, mesh)),
    model.table,
    is_leaf=lambda node: isinstance(node, tuple),  # A models.Param.
  )


def like_params(state, params, mesh):
  """Shapes of a state with shardings: moments lie where their weights do.

  A leaf belongs to the parameter whose path its own path ends with.
  """
  rows = jax.tree_util.tree_leaves_with_path(params)
  where = {jax.tree_util.keystr(path): x.sharding for path, x in rows}

  def place(path, leaf):
    ends = (jax.tree_util.keystr(path[i:]) for i in range(len(path)))
    found = (where[end] for end in ends if end in where)
    sharding = next(found, replicated(mesh))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(place, state)


def on_host(tree):
  """The same shapes, to lie in host memory; single numbers stay where they are.

  What is computed with them has to be fetched by the program that does it.
  """

  def move(x):
    where = x.sharding.with_memory_kind(HOST)
    return x.update(sharding=where) if x.ndim else x

  return jax.tree.map(move, tree)


def fetch(tree):
  """What lies in host memory on the devices, cut as it was."""
  return jax.device_put(tree, jax.memory.Space.Device)


def reaches_host(mesh) -> bool:
  """Whether its devices have memory of their host to use."""
  ours = jax.process_index()
  device = next(d for d in mesh.devices.flat if d.process_index == ours)
  return any(memory.kind == HOST for memory in device.addressable_memories())


def replicated(mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh) -> NamedSharding:
  """The first dimension over the data axes."""
  return NamedSharding(mesh, PartitionSpec(TRAIN['batch']))


def own_rows(mesh, rows: int) -> slice:
  """Those of a batch that this process's devices hold, and none between them.

  The devices of a process are neighbours along the data axes; where they are
  not, there are rows of others in it.
  """
  held = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
  bounds = [index.indices(rows)[:2] for (index,) in filter(None, held)]
  first, last = zip(*bounds, strict=True)
  return slice(min(first), max(last))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Names the logical axes of an activation; does nothing without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, TRAIN, mesh))


def by_rows(function: Callable) -> Callable:
  """Each device calls function(rows, whole) for rows of its own.

  `rows` and what comes back are trees of arrays whose first dimension is cut
  over the data axes; `whole` is the same everywhere. For what is independent
  between rows: a loop that runs until all rows are done would else ask all
  devices at every turn. Without a mesh it is the function itself.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return function
  rows = PartitionSpec(TRAIN['batch'])
  return jax.shard_map(
    function,
    in_specs=(rows, PartitionSpec()),
    out_specs=rows,
    check_vma=False,  # It would want every carry of a loop to be told of.
  )


def by_rows_and_heads(function: Callable, rows: int, heads: int) -> Callable:
  """Each device calls function(by_head, by_row) for rows and heads of its own.

  `by_head` and what comes back are trees of arrays (rows, key-value heads, ..),
  `by_row` of (rows, ..); the rows of an array may be several times as many. For
  kernels, which XLA cannot cut. What does not divide is whole on each device.
  Without a mesh it is the function itself.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function
  by_head = spec(('batch', 'kv_heads'), (rows, heads), TRAIN, mesh)
  return jax.shard_map(
    function,
    in_specs=(by_head, PartitionSpec(by_head[0])),
    out_specs=by_head,
    check_vma=False,  # It would want to be told by the kernel, which cannot.
  )


def put(tree, shardings):
  """Host arrays, the same on every process, to their places on a mesh.

  `shardings` is one for all, or a tree of them. Each process copies only what
  its own devices hold, and what lies in its place stays there.
  """

  def place(x, where):
    if isinstance(x, jax.Array) and x.sharding == where:
      return x
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda at: x[at])

  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda x: place(x, shardings), tree)
  return jax.tree.map(place, tree, shardings)


def put_own(value, mesh: jax.sharding.Mesh) -> jax.Array:
  """One number a device, each process's own on its devices."""
  where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  one = np.array([value])
  return jax.make_array_from_callback((mesh.size,), where, lambda _: one)


def to_host(tree):
  """Whole arrays in host memory, on every process; all must call it."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
