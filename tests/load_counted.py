"""Loads a folder as one of two processes and counts what it reads of it.

Run by tests/one_of_many.py with the folder, the coordinator's address and the
number of the process. Fails if the parameters of both processes together are
not those of the files; prints, as JSON, the bytes that were asked of the files
and those that they hold.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import safetensors_written as written

from grpo_jax import process, sharding, weights
from grpo_jax.weights import safetensors_files


def main(folder, where, number):
  process.join(where, 2, number)
  expected = written.params_of(written.read(folder))
  asked, open_source = [], safetensors_files.open_source

  def counted(path):
    opened = open_source(path)

    def read(name, at):
      part = opened.read(name, at)
      asked.append(part.nbytes)
      return part

    return opened._replace(read=read)

  safetensors_files.open_source = counted
  model = written.model_of(expected)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {'fsdp': 8})
  layout = sharding.param_shardings(model, sharding.TRAIN, mesh)
  params = weights.load(folder, model, layout)
  own = [len(x.addressable_shards) for x in jax.tree.leaves(params)]
  assert {*own} == {4} and jax.device_count() == 8
  jax.tree.map(
    np.testing.assert_array_equal, sharding.to_host(params), expected
  )
  held = sum(len(data) for *_, data in written.raw(folder).values())
  print(json.dumps({'asked': sum(asked), 'held': held}))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
