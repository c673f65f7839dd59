"""The operating system's side of a run: memory, signals, and other processes.

A run may be many processes, one for each host. All of them run the same code;
the first one, the lead, also writes what only one of them should.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import itertools
import os
import platform
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from etils import epath
import jax
from orbax.checkpoint import multihost

# Seconds that processes wait for each other: at the start, for a sign of life,
# and at the end.
_JOIN, _HEARTBEAT, _SHUTDOWN = 300, 50, 50
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOST = (
  'another process of this run ended or cannot be reached; the same command, '
  'started on all hosts, goes on from the last checkpoint'
)


def keep_memory() -> None:
  """Makes glibc keep freed memory; to be called before JAX allocates.

  By default it gives XLA's large buffers back after every call and maps them
  afresh for the next, and the page faults cost more than the products: the
  gradient of the quickstart's model on 4,096 tokens took 159 ms without this
  and 94 ms with it (2 CPU cores). Linux with glibc only; elsewhere it does
  nothing.

  Threads keep arenas of their own. One for all is torn by what compilation
  leaves in it, and each operation searches it: with MALLOC_ARENA_MAX=1 a step
  of shape S2 in experiments/benchmark.py took 1.05 s instead of 0.79, and 0.74
  with tcmalloc preloaded. Only for buffers above 64 MiB, which glibc maps
  afresh from such an arena, is one faster (S3 24 instead of 27 s).
  """
  libc = _glibc()
  if libc is None:
    return
  libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own.
  # M_TRIM_THRESHOLD: never give back what is freed. (Above 2 GiB, the largest
  # number that fits, a step of SmolLM2-135M took 20.1 s instead of 15.7.)
  libc.mallopt(-1, -1)
  libc.mallopt(-2, 2**28)  # M_TOP_PAD: grow by 256 MiB.


def give_back_memory() -> None:
  """Gives back once what `keep_memory` keeps, for another process to have.

  Also what a preloaded tcmalloc keeps.
  """
  libc = _glibc()
  if libc is not None:
    libc.malloc_trim(0)
    # Where tcmalloc is preloaded its symbols stand beside those of glibc.
    if hasattr(libc, 'MallocExtension_ReleaseFreeMemory'):
      libc.MallocExtension_ReleaseFreeMemory()


def _glibc() -> ctypes.CDLL | None:
  if sys.platform == 'linux' and platform.libc_ver()[0] == 'glibc':
    return ctypes.CDLL(None)
  return None


def cut_cpu(devices: int) -> None:
  """Makes this host's CPU count as so many devices; before JAX uses it.

  Halved until no core is two of them. Small models gain: their operations are
  over before two cores have agreed on how to share one, while devices share
  only the batch (a rollout of shape S1 in experiments/benchmark.py went from
  0.43 to 0.19 s on 2 cores; the quickstart gained nothing on the whole). Large
  ones lose, because each device reads all weights. JAX_NUM_CPU_DEVICES in the
  environment comes first.
  """
  if hasattr(os, 'sched_getaffinity'):  # Linux: what this process may use.
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count() or 1
  while devices > cores:
    devices //= 2
  if 'JAX_NUM_CPU_DEVICES' not in os.environ:
    jax.config.update('jax_num_cpu_devices', devices)


def join(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> None:
  """Joins the other processes of a run; before anything asks JAX for devices.

  Cloud TPU, GKE, Slurm and Open MPI say by themselves who the others are;
  elsewhere the arguments do, or there are no others.

  Args:
    coordinator: host:port on which process 0 listens.
    processes: how many there are; 1 looks for no others.
    process: the number of this one, from 0.

  Raises:
    ValueError: in one line; the arguments do not fit together, or what they or
      the cluster say is not there.
  """
  if processes == 1:
    return
  _check(coordinator, processes, process)
  # SIGTERM is ours: see Stop.
  jax.config.update('jax_enable_preemption_service', False)
  where = coordinator or 'the cluster'
  before = _on_abort(f'{where}: not all processes came within {_JOIN} seconds')
  try:
    with _muted():
      jax.distributed.initialize(
        coordinator,
        processes,
        process,
        cluster_detection_method='deactivate' if coordinator else None,
        initialization_timeout=_JOIN,
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
      )
  except Exception as e:  # Each cluster has its own.
    _libc().signal(signal.SIGABRT, before)
    if not coordinator and 'coordinator_address should be defined' in str(e):
      return  # There is no cluster.
    hint = '' if coordinator else ' (processes=1 looks for no others)'
    raise ValueError(f'{where}: {e}{hint}') from e
  if jax.process_count() == 1:
    _libc().signal(signal.SIGABRT, before)
    return
  _on_abort(_LOST)
  _keep_stdout()


def _check(coordinator, processes, process) -> None:
  given = [coordinator, processes, process]
  if all(x is None for x in given):
    return
  if any(x is None for x in given):
    raise ValueError(
      f'coordinator={coordinator} processes={processes} process={process}: '
      'give all three, or none where the cluster says them'
    )
  host, _, port = coordinator.rpartition(':')
  if not (host and port.isdigit() and int(port) < 2**16):
    raise ValueError(f'coordinator={coordinator!r} is not host:port')
  if not 0 <= process < processes:
    raise ValueError(f'process={process} is not one of 0 to {processes - 1}')
  if process == 0:
    try:  # JAX, if it cannot, says nothing of use, and at times crashes.
      socket.create_server(('', int(port))).close()
    except OSError as e:
      raise ValueError(f'cannot listen on {coordinator}: {e.strerror}') from e


def _libc() -> ctypes.CDLL:
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  libc.signal.restype = ctypes.c_void_p
  return libc


def _on_abort(line: str) -> int | None:
  """Says what a process says last if it aborts; returns the handler before.

  JAX aborts a process that has lost the others from a thread of its own, where
  Python cannot catch it, and leaves a stack that tells nobody what to do.
  """
  stderr = os.dup(2)

  def end(number):
    del number
    os.write(stderr, f'error: {line}\n'.encode())
    os._exit(1)

  _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(end))
  address = ctypes.cast(_handlers[-1], ctypes.c_void_p)
  return _libc().signal(signal.SIGABRT, address)


_handlers: list[Any] = []  # C does not keep them alive.


@contextlib.contextmanager
def _muted() -> Iterator[None]:
  """Python's errors are seen, C++'s are not."""
  with os.fdopen(os.dup(2), 'w', buffering=1) as stderr:
    _to_null(2)
    try:
      with contextlib.redirect_stderr(stderr):
        yield
    finally:
      os.dup2(stderr.fileno(), 2)


def _keep_stdout() -> None:
  """Leaves it to Python: Gloo tells of every connection there."""
  if sys.stdout is sys.__stdout__ and sys.stdout:
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), 'w', 1, sys.stdout.encoding)
    _to_null(1)


def _to_null(descriptor: int) -> None:
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, descriptor)
  os.close(null)


def leave(error: BaseException) -> NoReturn:
  """Ends one of many processes for an error, at once and alone.

  At exit JAX would wait for the others, who may be waiting for this one.
  Checkpoints that are being written are not finished.
  """
  lost = isinstance(error, jax.errors.JaxRuntimeError)
  if lost and 'RESOURCE_EXHAUSTED' not in str(error):
    print(' '.join(str(error).split()), file=sys.stderr)
    print(f'error: {_LOST}', file=sys.stderr)
  else:
    traceback.print_exception(error)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)


def is_lead() -> bool:
  """Whether this process writes the logs; there is one such process."""
  return jax.process_index() == 0


@contextlib.contextmanager
def lead_first():
  """The lead carries out the block, then the others: they find its files.

  If the lead fails the others go on, to fail in the same way.
  """
  if not is_lead():
    wait('lead')
  try:
    yield
  finally:
    if is_lead():
      wait('lead')


def wait(name: str, minutes: int = 60) -> None:
  """Returns when every process has come here; they all must, in one order."""
  everyone = set(range(jax.process_count()))
  key = f'grpo_jax.{name}.{next(_waits)}'
  multihost.sync_global_processes(key, timeout=60 * minutes, processes=everyone)


_waits = itertools.count()  # A barrier's name serves once.


def write(path: epath.Path, text: str) -> None:
  """Writes a file that is whole or not there, whenever the process ends."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text)
  partial.replace(path)


class Stop:
  """Becomes true when the process is asked to end; a handler of signals."""

  def __init__(self):
    self.asked = False
    self.reason = ''  # Unless it is a signal.
    self.before = {x: signal.getsignal(x) for x in _SIGNALS}

  def __bool__(self) -> bool:
    return self.asked

  def __call__(self, number, frame) -> None:
    self.asked = True
    self.give_back()
    outer = self.before[number]
    if isinstance(outer, Stop):  # Of the recipe that this is a stage of.
      outer(number, frame)

  def give_back(self) -> None:
    """Others handle the signals, as before."""
    for number, handler in self.before.items():
      with contextlib.suppress(ValueError):
        signal.signal(number, handler)


@contextlib.contextmanager
def stop_on_signal():
  """Yields a Stop for SIGINT and SIGTERM; the second signal is not held off.

  Of two such contexts, one in the other, a signal asks both.
  """
  stop = Stop()
  try:
    for number in _SIGNALS:
      signal.signal(number, stop)
  except ValueError:  # Not the main thread, as in some notebooks.
    pass
  try:
    yield stop
  finally:
    if not stop:
      stop.give_back()
