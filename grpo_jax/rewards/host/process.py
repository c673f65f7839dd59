"""The pool's side of one worker process: start, ask, stop."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import time

from grpo_jax.rewards.host import worker as worker_lib
from grpo_jax.rewards.host.records import Spec

_SCRIPT = pathlib.Path(__file__).with_name('worker.py')
# Seconds that a worker may take to import, to read what it is sent and to end.
_START, _SEND, _STOP = 120, 10, 5


@dataclasses.dataclass
class Worker:
  """A worker process and the line to it."""

  process: subprocess.Popen  # The keeper; see worker.py.
  connection: socket.socket
  key: bytes  # Stands before every result, so that garbage is told apart.
  unread: bytearray


class Lost(Exception):
  """The process ended, or wrote something else than a result."""


def start(specs: Sequence[Spec], memory_gib: float) -> Worker:
  """Starts a process that has imported what it needs.

  Raises:
    ValueError: a function cannot be loaded; one line.
    Lost: the process did not start.
  """
  try:
    functions = pickle.dumps(list(specs))
  except Exception as error:
    raise ValueError(f'a knob cannot travel to a worker: {error}') from error
  ours, theirs = socket.socketpair()
  fd = theirs.fileno()
  with theirs:
    process = subprocess.Popen(
      [sys.executable, '-P', str(_SCRIPT), str(fd), str(os.getpid())],
      pass_fds=[fd],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
  worker = Worker(process, ours, secrets.token_bytes(8), bytearray())
  paths = [path or os.getcwd() for path in sys.path]
  how = (worker.key, int(memory_gib * 2**30), paths)
  try:
    send(worker, [pickle.dumps(how), functions])
    status, _, detail = receive(worker, 0, _START)
  except TimeoutError as error:
    stop(worker)
    raise Lost(f'a worker did not start in {_START} s') from error
  except BaseException:
    stop(worker)
    raise
  if status != worker_lib.SCORED:
    stop(worker)
    raise ValueError(f'a reward cannot be loaded: {detail}')
  return worker


def send(worker: Worker, messages: Sequence[bytes]) -> None:
  """Sends pickles. Raises Lost where nobody reads them."""
  worker.connection.settimeout(_SEND)
  try:
    worker.connection.sendall(b''.join(messages))
  except OSError as error:  # A timeout is one too.
    raise Lost('the worker does not read') from error


def receive(
  worker: Worker, count: int, seconds: float
) -> tuple[int, list[float], str]:
  """The next result: status, `count` scores, detail.

  Raises:
    TimeoutError: it did not come within the seconds.
    Lost: it will not come.
  """
  deadline = time.monotonic() + seconds
  while True:
    try:
      result = worker_lib.unpack(worker.key, count, worker.unread)
    except ValueError as error:
      raise Lost(str(error)) from error
    if result is not None:
      return result
    # What has come meanwhile is read even when this process was kept waiting.
    left = max(deadline - time.monotonic(), 1e-3)
    worker.connection.settimeout(left)
    try:
      data = worker.connection.recv(2**16)
    except TimeoutError as error:
      raise TimeoutError(f'no score within {seconds:g} s') from error
    except OSError:
      data = b''
    if not data:
      raise Lost(_ending(worker))
    worker.unread += data


def stop(worker: Worker) -> None:
  """Ends the process and all that it started; may be called twice."""
  worker.process.terminate()
  try:
    worker.process.wait(_STOP)
  except subprocess.TimeoutExpired:  # Somebody stopped the keeper.
    worker.process.kill()
    worker.process.wait()
  worker.connection.close()


def _ending(worker: Worker) -> str:
  try:
    code = worker.process.wait(_STOP)
  except subprocess.TimeoutExpired:
    return 'the worker closed its line'
  if code > 128:
    return f'the worker was ended by {signal.Signals(code - 128).name}'
  return f'the worker ended with status {code}'
