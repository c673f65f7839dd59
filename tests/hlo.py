"""Compiles programs of a small run, and reads what the compiler made of them.

  build_run(sizes, workdir) -> run         on a mesh; its arrays are telling
  compile_program(run, name) -> compiled
  collectives(text, mesh) -> [Collective]  what devices send one another
  decode_loop(text, run) -> text           the rollout's loop, and no more
  products(text, *shape) -> [match]        of matrices, to such a shape

The sizes of all weights are powers of two. Numbers of prompts and completions
have a factor of three, and so has every array with rows of the batch.
"""

import dataclasses
import math
import pathlib
import re
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
import numpy as np

from grpo_jax import build, config, models, sharding, train

MESHES = {
  'data 8': dict(data=8),
  'fsdp 8': dict(fsdp=8),
  'data 2, fsdp 2, tensor 2': dict(data=2, fsdp=2, tensor=2),
}
P, G, T = 96, 3, 16


def build_run(
  sizes: dict[str, int],
  workdir: pathlib.Path,
  dtype: str = 'float32',
  devices: list[jax.Device] | None = None,
  reward: dict | None = None,
  attention: str = 'plain',
  duplicates: str = 'off',
) -> build.Run:
  """A small run with everything in it that cuts batches or holds weights.

  But for the alarm `duplicates`, which has a test of its own.
  """
  c = config.default()
  c.alarms.duplicates.action = duplicates
  c.reward = reward or c.reward
  c.mesh.update(dict.fromkeys(sharding.AXES, 1) | sizes)
  c.model.dtype = dtype
  c.data.update(prompts=P, knobs={'problems': 500})
  c.pretrain.update(steps=1, rows=24)
  c.rollout.update(group_size=G, max_tokens=T)
  c.kl.coef = 0.1
  # A microbatch is of 24 * G * T = 1152 tokens.
  c.updates.update(minibatches=2, microbatches=2, head_chunk=512)
  c.eval.update(problems=24, batch=24)
  run = build.build(c, str(workdir), devices)
  # Heads that every mesh can cut, and a vocabulary beside which a batch is
  # small; one that is learnt from sums has 64 pieces at the most.
  model = models.build(
    'llama',
    'tiny',
    width=128,
    heads=4,
    kv_heads=2,
    head_size=32,
    feed_forward=256,
    vocab_size=1024,
    attention=attention,
  )
  return dataclasses.replace(run, model=models.in_dtype(model, dtype))


def compile_program(run: build.Run, name: str) -> jax.stages.Compiled:
  """One of train.programs; on the CPU in a hurry, but with the same parts."""
  on_cpu = run.mesh.devices.flat[0].platform == 'cpu'
  options = {'xla_backend_optimization_level': 0} if on_cpu else None
  return lower(run, name).compile(options)


def lower(run: build.Run, name: str) -> jax.stages.Lowered:
  with jax.set_mesh(run.mesh):
    return train.programs(run)[name].lower()


def state_bytes(run: build.Run) -> int:
  """Of the state in RL, on all devices together if none held a part twice."""
  leaves = jax.tree.leaves(build.templates(run)[1])
  return sum(x.size * x.dtype.itemsize for x in leaves)


def rows_on_a_device(run: build.Run) -> int:
  return P * G // sharding.batch_divisor(run.mesh)


def gathered_sizes(run: build.Run) -> set[int]:
  """Elements of the weights that are cut along fsdp, once they are gathered.

  And of one layer of them. Along the tensor axis they stay cut.
  """
  found = set()
  for row in jax.tree.leaves(run.model.table, is_leaf=_is_param):
    cut, whole = (
      NamedSharding(
        run.mesh, sharding.spec(row.axes, row.shape, rules, run.mesh)
      ).shard_shape(row.shape)
      for rules in (sharding.TRAIN, sharding.TRAIN | {'embed': ()})
    )
    if cut != whole:
      layer = whole[1:] if row.axes[0] == 'layers' else whole
      found |= {math.prod(whole), math.prod(layer)}
  return found


def _is_param(node) -> bool:
  return isinstance(node, models.Param)


def stacks(run: build.Run) -> set[tuple[int, ...]]:
  """Shapes of the matrices of all layers, whole."""
  rows = jax.tree.leaves(run.model.table, is_leaf=_is_param)
  return {row.shape for row in rows if len(row.shape) == 3}


def rows_that_move(text: str, run: build.Run) -> list['Collective']:
  """What crosses the data axes, and is neither weights nor numbers.

  Weights that are cut along fsdp may be gathered; nothing else may. Gradients
  and numbers are summed up.
  """
  found = []
  for sent in collectives(text, run.mesh):
    if sent.axes & {'data', 'fsdp'}:
      weights = sent.sizes <= gathered_sizes(run)
      has_rows = any(size % 3 == 0 for size in sent.sizes)
      if has_rows or (sent.kind == 'all-gather' and not weights):
        found.append(sent)
  return found


def weights_that_move(text: str, run: build.Run) -> list['Collective']:
  """What is sent, and is neither rows nor single numbers."""
  return [
    sent
    for sent in collectives(text, run.mesh)
    if any(size % 3 and size > 1 for size in sent.sizes)
  ]


class Collective(NamedTuple):
  kind: str  # 'all-gather', 'all-reduce', ...
  shapes: tuple[tuple[int, ...], ...]  # Of what it makes, on one device.
  axes: frozenset[str]  # Mesh axes along which devices take part in it.

  @property
  def sizes(self) -> set[int]:
    return {math.prod(shape) for shape in self.shapes}


_COLLECTIVE = re.compile(
  r'= (.+?) ((?:ragged-)?all-to-all|all-gather|all-reduce|reduce-scatter'
  r'|collective-permute|collective-broadcast)(?:-start)?\('
)


def collectives(text: str, mesh: jax.sharding.Mesh) -> list[Collective]:
  """Everything that a program, or a part of it, sends between devices."""
  found = []
  for line in text.splitlines():
    if match := _COLLECTIVE.search(line):
      ids = _groups(line, mesh.size)
      places = np.stack(np.unravel_index(ids, mesh.devices.shape))
      differs = (places != places[..., :1]).any(axis=(1, 2))
      axes = [a for a, d in zip(mesh.axis_names, differs, strict=True) if d]
      found.append(
        Collective(match[2], tuple(shapes(match[1])), frozenset(axes))
      )
  return found


def decode_loop(text: str, run: build.Run) -> str:
  """The computations of the loops that write the completions, one a stage.

  They are known by what they carry: their tokens, and a flag for each row that
  has ended.
  """
  rows, parts = rows_on_a_device(run), _computations(text)
  starts = []
  for line in text.splitlines():
    shapes_carried = _carries(line)
    if (rows, T) in shapes_carried and (rows,) in shapes_carried:
      starts.append(re.findall(r'(?:body|condition)=%([\w.-]+)', line))
  stages = run.config.rollout.stages
  if len(starts) != stages:
    raise ValueError(f'{len(starts)} loops carry [{rows}, {T}], not {stages}')
  names = [name for start in starts for name in _reachable(parts, start)]
  return '\n'.join(parts[name] for name in names)


def carried(text: str) -> set[tuple[int, ...]]:
  """Shapes of all that goes round a loop, on one device."""
  return {shape for line in text.splitlines() for shape in _carries(line)}


def _carries(line: str) -> list[tuple[int, ...]]:
  match = re.search(r'= (.+?) while\(', line)
  return shapes(match[1]) if match else []


def products(text: str, *shape: int) -> list[str]:
  """The products of float32 matrices that have such a shape, on one device."""
  result = ','.join(map(str, shape))
  return re.findall(rf' = f32\[{result}\]\S* dot\(', text)


def shapes(types: str) -> list[tuple[int, ...]]:
  """'(f32[2,3]{1,0}, pred[])' -> [(2, 3), ()]."""
  return [_ints(found) for found in re.findall(r'\w\[([\d,]*)\]', types)]


def _computations(text: str) -> dict[str, str]:
  """Name -> the lines of each computation."""
  start = re.compile(r'^(?:ENTRY )?%([\w.-]+) .*\{$', re.MULTILINE)
  names = [match[1] for match in start.finditer(text)]
  return dict(zip(names, start.split(text)[2::2], strict=True))


def _reachable(parts: dict[str, str], names: list[str]) -> list[str]:
  """Computations and all that they call, through any number of calls."""
  found, waiting = [], list(names)
  while waiting:
    name = waiting.pop()
    if name in parts and name not in found:
      found.append(name)
      for called in re.findall(r'=\{?(%[\w.-]+(?:, %[\w.-]+)*)', parts[name]):
        waiting += called.replace('%', '').split(', ')
  return found


def _groups(line: str, devices: int) -> np.ndarray:
  """Numbers of the devices that exchange something, one row a group.

  XLA writes {{0,1},{2,3}}, or [2,2]<=[2,2]T(1,0): the numbers from 0 on,
  reshaped, transposed and cut into rows, or the axes of a mesh of its own.
  """
  if match := re.search(r'(?:groups|pairs)=\{(\{[\d,{}]+\})\}', line):
    rows = re.findall(r'\{([\d,]+)\}', match[1])
    return np.array([_ints(row) for row in rows])
  if match := re.search(r'groups=\[([\d,]+)\]<=(\S+?),? ', line):
    return _iota(match[2]).reshape(_ints(match[1]))
  if match := re.search(
    r'groups=mesh\[([^]]+)\](?:, device_ids=\(([^ ]+)\))? \{([^}]*)\}', line
  ):
    sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", match[1])}
    # 'data', or 'data':(4)2: of that axis, cut into (4, 2, rest), the middle.
    used = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[3])
    parts = {k: (int(a or 1), int(b or sizes[k])) for k, a, b in used}
    if len(used) == len(parts):
      shape = []
      for name, n in sizes.items():
        before, taken = parts.get(name, (n, 1))
        shape += [before, taken, n // before // taken]
      last = [3 * list(sizes).index(name) + 1 for name in parts]
      ids = _iota(match[2]) if match[2] else np.arange(devices)
      ids = np.moveaxis(ids.reshape(shape), last, range(-len(last), 0))
      return ids.reshape(-1, math.prod(shape[i] for i in last))
  raise ValueError(f'unknown device groups: {line.strip()}')


def _iota(written: str) -> np.ndarray:
  """'[2,4]T(1,0)' -> the numbers 0 to 7 as (2, 4), transposed."""
  shape, order = re.fullmatch(
    r'\[([\d,]+)\](?:T\(([\d,]+)\))?', written
  ).groups()
  ids = np.arange(math.prod(_ints(shape))).reshape(_ints(shape))
  return ids.transpose(_ints(order)) if order else ids


def _ints(written: str) -> tuple[int, ...]:
  return tuple(int(n) for n in written.split(',') if n)
