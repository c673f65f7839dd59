"""Checks that the newest checkpoint comes back, bit for bit, onto a mesh.

  python tests/restored.py WORKDIR fsdp=8 COORDINATOR PROCESSES PROCESS

is one of many processes that do.
"""

import json
import sys

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from grpo_jax import build, checkpoint, process


def load(workdir, mesh=None, devices=None):
  """The newest state twice: on a mesh, and whole in NumPy, where there is none.

  `mesh` are the sizes that differ from those of the run.
  """
  folder = epath.Path(workdir)
  c = ConfigDict(json.loads((folder / 'config.json').read_text()))
  c.mesh.update(mesh or {})
  with jax.enable_x64(True):  # The run may compute in float64.
    run = build.build(c, workdir, devices)
  template = build.templates(run)[1]
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
  manager = checkpoint.open_manager(folder / 'checkpoints', keep=2)
  step = manager.latest_step()
  states = [checkpoint.restore(manager, step, x) for x in (template, zeros)]
  manager.close()
  return states


def check(workdir, mesh, devices=None) -> int:
  """Every shard that this process holds; returns how many there are."""
  state, whole = load(workdir, mesh, devices)
  count = 0
  found, expected = jax.tree.leaves(state), jax.tree.leaves(whole)
  for array, host in zip(found, expected, strict=True):
    assert (array.shape, array.dtype) == (host.shape, host.dtype)
    for shard in array.addressable_shards:
      part = np.asarray(host)[shard.index]
      assert np.asarray(shard.data).tobytes() == part.tobytes()
      count += 1
  return count


if __name__ == '__main__':
  workdir, sizes, coordinator, processes, number = sys.argv[1:]
  process.join(coordinator, int(processes), int(number))
  mesh = {k: int(n) for k, n in (x.split('=') for x in sizes.split(','))}
  assert check(workdir, mesh)
