"""Runs a script as one of many processes, and saves the tests some time.

  python tests/one_of_many.py experiments/train.py --config ...

What it changes is how long processes wait and what they compile anew.
"""

import pathlib
import runpy
import sys

from jax._src import cache_key

from grpo_jax import process

process._HEARTBEAT = 20
# On CPU every process has a key of its own for what it compiles, and only the
# first one writes: the others would compile again in each test.
if hasattr(cache_key, '_hash_devices'):
  cache_key._hash_accelerator_config = cache_key._hash_devices

sys.argv = sys.argv[1:]
sys.path[0] = str(pathlib.Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name='__main__')
