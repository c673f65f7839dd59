import ctypes.util
import os
import platform
import signal
import subprocess
import sys

import command
import pytest

from grpo_jax import process


@pytest.fixture
def interruptible():
  """Python's own SIGINT, which test runners may have switched off."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_the_first_signal_asks_to_stop_and_the_second_is_not_held_off(
  interruptible,
):
  with process.stop_on_signal() as stop:
    assert not stop
    os.kill(os.getpid(), signal.SIGINT)
    assert stop
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_signal_the_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM)
  with process.stop_on_signal():
    assert signal.getsignal(signal.SIGTERM) is not before
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_in_a_stage_stops_its_recipe_too(interruptible):
  with process.stop_on_signal() as recipe:
    with process.stop_on_signal() as stage:
      os.kill(os.getpid(), signal.SIGINT)
    assert stage and recipe
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  with process.stop_on_signal() as recipe:
    with process.stop_on_signal() as stage:
      pass
    os.kill(os.getpid(), signal.SIGINT)
    assert recipe and not stage


def test_keeping_memory_may_be_asked_for_twice():
  process.keep_memory()
  process.keep_memory()


@pytest.mark.parametrize(
  'cores, asked, environment, found',
  [
    (8, 4, {}, 4),
    (3, 8, {}, 2),
    (1, 2, {}, 1),
    (8, 2, {'JAX_NUM_CPU_DEVICES': '5'}, 5),
  ],
)
def test_a_cpu_is_cut_into_no_more_than_its_cores(
  cores, asked, environment, found, tmp_path
):
  script = tmp_path / 'cut.py'
  script.write_text(f"""\
import os
os.sched_getaffinity = lambda _: range({cores})
from grpo_jax import process
process.cut_cpu({asked})
import jax
print(jax.local_device_count('cpu'))
""")
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('JAX_NUM_CPU_DEVICES', raising=False)
    for name, value in environment.items():
      patch.setenv(name, value)
    done = command.run(str(script))
  assert (done.stdout, done.stderr) == (f'{found}\n', '')


@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc' or sys.platform != 'linux',
  reason='other systems give memory back by themselves',
)
@pytest.mark.parametrize('preloaded', ['', 'tcmalloc_minimal'])
def test_kept_memory_is_given_back_when_asked_for(preloaded):
  """In a process of its own, whose memory nothing else uses."""
  library = ctypes.util.find_library(preloaded) if preloaded else ''
  if library is None:
    pytest.skip(f'needs {preloaded}')
  script = (
    'import ctypes, os\n'
    'from grpo_jax import process\n'
    'process.keep_memory()\n'
    'libc = ctypes.CDLL(None)\n'
    'libc.malloc.restype = ctypes.c_void_p\n'
    'def resident():\n'
    '  pages = int(open("/proc/self/statm").read().split()[1])\n'
    '  return pages * os.sysconf("SC_PAGE_SIZE") >> 20\n'
    'block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(2**28)))\n'
    'ctypes.memset(block, 1, 2**28)\n'
    'libc.free(block)\n'
    'kept = resident()\n'
    'process.give_back_memory()\n'
    'print(kept - resident())\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | {'LD_PRELOAD': library},
  )
  assert int(done.stdout) > 250  # MiB, of the 256.
