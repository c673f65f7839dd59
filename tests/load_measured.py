"""Loads a folder onto 8 devices and prints what memory that took, as JSON.

Of the process's own memory (RssAnon): mapped pages of the files, which the
system takes back as it likes, are not counted.
"""

import json
import pathlib
import sys
import threading

import jax

from grpo_jax import models, sharding, weights

jax.config.update('jax_num_cpu_devices', 8)


def own_memory():
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('RssAnon:'):
      return int(line.split()[1]) * 1024


def main(folder, sizes):
  model = models.build('llama', 'tiny', **json.loads(sizes))
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {'fsdp': 8})
  where = sharding.param_shardings(model, sharding.TRAIN, mesh)
  jax.block_until_ready(jax.device_put(jax.numpy.zeros(8)))

  before, peak, done = own_memory(), 0, threading.Event()

  def watch():
    nonlocal peak
    while not done.wait(0.002):
      peak = max(peak, own_memory())

  watcher = threading.Thread(target=watch)
  watcher.start()
  params = jax.block_until_ready(weights.load(folder, model, where))
  after = own_memory()
  done.set()
  watcher.join()
  numbers = {
    'peak': max(peak, after) - before,
    'after': after - before,
    'layer': sum(x[0].nbytes for x in params['layers'].values()),
    'parameters': models.param_count(model),
  }
  print(json.dumps(numbers))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), sys.argv[2])
