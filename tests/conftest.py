"""Every test sees 8 CPU devices, so that sharding needs no second process.

Compiled programs are kept in the temporary folder, where the processes that
tests start, and the next run of the tests, find them again.
"""

import os
import pathlib
import tempfile

_CACHE = pathlib.Path(tempfile.gettempdir()) / f'grpo_jax_tests_{os.getuid()}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))

import jax  # noqa: E402

from grpo_jax import process  # noqa: E402

process.keep_memory()
jax.config.update('jax_num_cpu_devices', 8)


def pytest_addoption(parser):
  parser.addoption(
    '--kills', type=int, default=5, help='how often test_resume kills a run'
  )
