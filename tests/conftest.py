"""Every test sees 8 CPU devices, so that sharding needs no second process.

Compiled programs are kept in the temporary folder, where the processes that
tests start, and the next run of the tests, find them again.
"""

import gc
import os
import pathlib
import tempfile
import time

_CACHE = pathlib.Path(tempfile.gettempdir()) / f'grpo_jax_tests_{os.getuid()}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))

import jax  # noqa: E402
import pytest  # noqa: E402

from grpo_jax import process  # noqa: E402

process.keep_memory()
jax.config.update('jax_num_cpu_devices', 8)


_BEGUN = time.monotonic()


def pytest_runtest_setup(item):
  """Where time is short, slow tests run while they fit: SLOW_UNTIL seconds."""
  limit = float(os.environ.get('SLOW_UNTIL', 'inf'))
  if item.get_closest_marker('slow') and time.monotonic() - _BEGUN > limit:
    pytest.skip(f'slow, and SLOW_UNTIL={limit:.0f} seconds have passed')


def pytest_addoption(parser):
  parser.addoption(
    '--kills', type=int, default=5, help='how often test_resume kills a run'
  )


@pytest.fixture(scope='module', autouse=True)
def few_programs():
  """Forgets compiled programs before they are too many for the process.

  Each takes about 25 memory mappings, of which Linux gives a process 65,530;
  beyond that LLVM ends it while it loads the next one.
  """
  yield
  mappings = pathlib.Path('/proc/self/maps')
  if mappings.exists() and mappings.read_bytes().count(b'\n') > 15_000:
    jax.clear_caches()
    gc.collect()
