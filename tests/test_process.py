import os
import signal

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
