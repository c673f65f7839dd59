import os
import signal

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
