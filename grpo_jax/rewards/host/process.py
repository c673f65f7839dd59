"""The pool's side of worker processes: start, ask, stop."""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import pickle
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time

from grpo_jax.rewards.host import function, scorer
from grpo_jax.rewards.host.records import Spec

_SCRIPT = pathlib.Path(__file__).with_name('nursery.py')
# Seconds that a worker may take to import, to read what it is sent and to end.
_START, _SEND, _STOP = 120, 10, 5


@dataclasses.dataclass
class Nursery:
  """A process that makes workers; see nursery.py."""

  process: subprocess.Popen
  control: socket.socket


@dataclasses.dataclass
class Worker:
  """The two lines to a worker, its scorer's and its keeper's."""

  line: socket.socket
  leash: socket.socket
  key: bytes  # Stands before every result, so that garbage is told apart.
  unread: bytearray
  keeper: int = 0  # Its pid.


class Lost(Exception):
  """The process ended, or wrote something else than a result."""


def open_nursery(specs: Sequence[Spec]) -> Nursery:
  """Starts the nursery; it begins to import."""
  built_in = {s.function for s in specs if s.function in function.BUILT_IN}
  ours, theirs = socket.socketpair()
  with theirs:
    paths = json.dumps([path or os.getcwd() for path in sys.path])
    numbers = str(theirs.fileno()), str(os.getpid())
    process = subprocess.Popen(
      [sys.executable, '-P', str(_SCRIPT), paths]
      + [','.join(sorted(built_in)), *numbers],
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
  return Nursery(process, ours)


def close_nursery(nursery: Nursery) -> None:
  nursery.control.close()
  try:
    nursery.process.wait(_STOP)
  except subprocess.TimeoutExpired:
    nursery.process.kill()
    nursery.process.wait()


def start(nursery: Nursery, specs: Sequence[Spec], memory_gib: float) -> Worker:
  """Starts a worker that has imported what it needs.

  Raises:
    ValueError: a function cannot be loaded; one line.
    Lost: the process did not start.
  """
  try:
    functions = pickle.dumps(list(specs))
  except Exception as error:
    raise ValueError(f'a knob cannot travel to a worker: {error}') from error
  line, its_line = socket.socketpair()
  leash, its_leash = socket.socketpair()
  worker = Worker(line, leash, secrets.token_bytes(8), bytearray())
  how = pickle.dumps((worker.key, int(memory_gib * 2**30)))
  try:
    with its_line, its_leash:
      fds = [its_line.fileno(), its_leash.fileno()]
      socket.send_fds(nursery.control, [b'.'], fds)
    leash.settimeout(_START)
    (worker.keeper,) = struct.unpack('<i', leash.recv(4))
    send(worker, [how, functions])
    status, _, detail = receive(worker, 0, _START)
  except (OSError, struct.error) as error:  # A timeout is one too.
    stop(worker)
    raise Lost('a worker did not start') from error
  except BaseException:
    stop(worker)
    raise
  if status != scorer.SCORED:
    stop(worker)
    raise ValueError(f'a reward cannot be loaded: {detail}')
  return worker


def alive(worker: Worker) -> bool:
  """Whether the keeper has not told of an end."""
  return not select.select([worker.leash], [], [], 0)[0]


def send(worker: Worker, messages: Sequence[bytes]) -> None:
  """Sends pickles. Raises Lost where nobody reads them."""
  worker.line.settimeout(_SEND)
  try:
    worker.line.sendall(b''.join(messages))
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
      result = scorer.unpack(worker.key, count, worker.unread)
    except ValueError as error:
      raise Lost(str(error)) from error
    if result is not None:
      return result
    # What has come meanwhile is read even when this process was kept waiting.
    left = max(deadline - time.monotonic(), 1e-3)
    worker.line.settimeout(left)
    try:
      data = worker.line.recv(2**16)
    except TimeoutError as error:
      raise TimeoutError(f'no score within {seconds:g} s') from error
    except OSError:
      data = b''
    if not data:
      raise Lost(_ending(worker))
    worker.unread += data


def let_go(worker: Worker) -> None:
  """Asks the keeper to end the scorer and all that it started."""
  try:
    worker.leash.shutdown(socket.SHUT_WR)
  except OSError:
    pass  # It has ended.


def stop(worker: Worker) -> None:
  """Ends the worker, and waits until nothing of it is left."""
  let_go(worker)
  try:
    _status(worker)
  except TimeoutError:
    if worker.keeper:  # Somebody stopped it.
      os.kill(worker.keeper, signal.SIGKILL)
  worker.line.close()
  worker.leash.close()


def _status(worker: Worker) -> int | None:
  """What the keeper tells at the end; None if it could not tell."""
  worker.leash.settimeout(_STOP)
  try:
    found = worker.leash.recv(1)
  except ConnectionError:
    return None
  return found[0] if found else None


def _ending(worker: Worker) -> str:
  try:
    code = _status(worker)
  except TimeoutError:
    return 'the worker closed its line'
  if code is None:
    return 'the worker and its keeper were ended'
  if code > 128:
    return f'the worker was ended by {signal.Signals(code - 128).name}'
  return f'the worker ended with status {code}'
