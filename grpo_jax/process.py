"""The operating system's side of a run: memory, and being asked to stop."""

import contextlib
import ctypes
import platform
import signal
import sys


def keep_memory() -> None:
  """Makes glibc keep freed memory; to be called before JAX allocates.

  By default it gives XLA's large buffers back after every call and maps them
  afresh for the next, and the page faults cost more than the products: the
  gradient of the quickstart's model on 4,096 tokens took 159 ms without this
  and 94 ms with it (2 CPU cores). Linux with glibc only; elsewhere it does
  nothing.
  """
  if sys.platform != 'linux' or platform.libc_ver()[0] != 'glibc':
    return
  libc = ctypes.CDLL(None)
  libc.mallopt(-8, 1)  # M_ARENA_MAX: one arena, so that memory is found again.
  libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own.
  libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep what is freed.
  libc.mallopt(-2, 2**28)  # M_TOP_PAD: grow by 256 MiB.


class Stop:
  """Becomes true when the process is asked to end."""

  def __init__(self):
    self.asked = False

  def __bool__(self) -> bool:
    return self.asked


@contextlib.contextmanager
def stop_on_signal():
  """Yields a Stop for SIGINT and SIGTERM; the second signal is not held off."""
  stop = Stop()
  names = (signal.SIGINT, signal.SIGTERM)
  before = {name: signal.getsignal(name) for name in names}

  def ask(number, frame):
    del number, frame
    stop.asked = True
    for name, handler in before.items():
      signal.signal(name, handler)

  try:
    for name in names:
      signal.signal(name, ask)
  except ValueError:  # Not the main thread, as in some notebooks.
    pass
  try:
    yield stop
  finally:
    if not stop:
      for name, handler in before.items():
        with contextlib.suppress(ValueError):
          signal.signal(name, handler)
