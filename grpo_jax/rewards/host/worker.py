"""The worker's side: a nursery, and for each worker a keeper and a scorer.

Run by its path, so that the packages above, and JAX with them, are never
imported: `python -P worker.py <built-in rewards> <socket> <pid of the pool>`.
This is the nursery: it imports what takes long and is safe to fork, and makes a
worker of every pair of sockets that the pool hands it, in milliseconds.

The first socket is the scorer's line. In come pickles, at first how to begin
(`_work`), then (part, completions); out goes one `pack`ed result for each.
Nothing that a scorer writes is ever unpickled. The second one is the keeper's
leash: it tells the keeper's pid, then the scorer's status when all is over; the
pool lets go of it to end the worker.

The keeper stays outside of what it keeps. Where the kernel allows, the scorer
lives in a process namespace of its own: it cannot see or signal the run, and
all that it started ends with it. Elsewhere the keeper adopts orphans and kills
what is left, one by one.
"""

from collections.abc import Callable
import ctypes
import importlib
import importlib.util
import math
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys

SCORED, RAISED = 0, 1
_HEADER = struct.Struct('<8sBHH')  # Key, status, scores, bytes of detail.
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_NEWNS, _NEWUSER, _NEWPID = 0x20000, 0x10000000, 0x20000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_LOOK = 1.0  # Seconds from one look whether the parent is still there.
_PACKAGE = 'grpo_jax.rewards.host'


def main() -> None:
  """The nursery; ends when the pool does."""
  built_in, fd, parent = sys.argv[1].split(','), *map(int, sys.argv[2:])
  _load_package()
  for name in filter(None, built_in):
    try:
      module = importlib.import_module(f'{_PACKAGE}.{name}')
      getattr(module, 'prepare', bool)()
    except Exception:
      pass  # The scorer meets it again, and can tell.
  alone = _can_be_alone()
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Keepers need no farewell.
  with socket.socket(fileno=fd) as control:
    while True:
      ready = select.select([control], [], [], _LOOK)[0]
      if os.getppid() != parent:
        return
      if ready:
        data, fds, _, _ = socket.recv_fds(control, 1, 2)
        if not data:
          return
        if os.fork() == 0:
          control.close()
          _keep(*fds, alone)
        for each in fds:
          os.close(each)


def pack(key: bytes, status: int, scores: list[float], detail: str) -> bytes:
  """One result; inf is a number that is not finite, NaN is None."""
  text = ' '.join(detail.split()).encode('utf-8', 'replace')[:500]
  header = _HEADER.pack(key, status, len(scores), len(text))
  return header + struct.pack(f'<{len(scores)}d', *scores) + text


def unpack(
  key: bytes, count: int, data: bytearray
) -> tuple[int, list[float], str] | None:
  """Takes one result of `count` scores off the front; None while it is cut.

  Raises:
    ValueError: something else than a result is there.
  """
  if len(data) < _HEADER.size:
    return None
  found, status, scores, size = _HEADER.unpack_from(data)
  if found != key or status > RAISED or scores != count or size > 500:
    raise ValueError('the worker wrote something else than a score')
  middle = _HEADER.size + 8 * scores
  if len(data) < middle + size:
    return None
  values = list(struct.unpack_from(f'<{scores}d', data, _HEADER.size))
  detail = data[middle : middle + size].decode('utf-8', 'replace')
  del data[: middle + size]
  return status, values, detail


def _keep(line: int, leash: int, alone: bool) -> None:
  """Keeps one scorer until it ends, or the pool lets go, or is gone."""
  nursery = os.getppid()
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  alone = alone and _unshare()
  _prctl(_SET_CHILD_SUBREAPER, 1)
  child = os.fork()
  if child == 0:
    os.close(leash)
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if alone:
      _mount_proc()
    worker = os.fork() if alone else 0
    if worker:
      os.close(line)
      _reap(worker)
    _work(line)
  os.close(line)
  os.write(leash, struct.pack('<i', os.getpid()))
  events = [leash, os.pidfd_open(child)]
  while not select.select(events, [], [], _LOOK)[0]:
    if os.getppid() != nursery:
      break
  os.kill(child, signal.SIGKILL)
  status = _code(os.waitpid(child, 0)[1])
  _kill_children()
  try:
    os.write(leash, bytes([status]))
  finally:
    os._exit(0)


def _unshare() -> bool:
  """Asks for a new process namespace for the children to come."""
  libc = ctypes.CDLL(None)
  if libc.unshare(_NEWPID) == 0:  # Root may.
    return True
  uid, gid = os.getuid(), os.getgid()
  if libc.unshare(_NEWUSER | _NEWPID) != 0:
    return False
  for name, line in (
    ('setgroups', 'deny'),
    ('uid_map', f'{uid} {uid} 1'),
    ('gid_map', f'{gid} {gid} 1'),
  ):
    with open(f'/proc/self/{name}', 'w') as f:
      f.write(line)
  return True


def _mount_proc() -> bool:
  """Shows a new process namespace its own processes, as bubblewrap needs it."""
  libc = ctypes.CDLL(None)
  return (
    libc.unshare(_NEWNS) == 0
    and libc.mount(None, b'/', None, _MS_REC_PRIVATE, None) == 0
    and libc.mount(b'proc', b'/proc', b'proc', 0, None) == 0
  )


def _can_be_alone() -> bool:
  """Tries what a keeper does, so that no worker depends on half of it."""
  keeper = os.fork()
  if keeper == 0:
    if not _unshare():
      os._exit(1)
    first = os.fork()
    if first == 0:
      os._exit(not _mount_proc())
    os._exit(_code(os.waitpid(first, 0)[1]))
  return os.waitpid(keeper, 0)[1] == 0


def _prctl(option: int, value: int) -> None:
  ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _reap(worker: int) -> None:
  """What the first process of a namespace is for; all others end with it."""
  while True:
    pid, status = os.waitpid(-1, 0)
    if pid == worker:
      os._exit(_code(status))


def _code(status: int) -> int:
  code = os.waitstatus_to_exitcode(status)
  return code if code >= 0 else 128 - code


def _kill_children() -> None:
  """Kills and reaps until none is left; orphans become children here."""
  me = os.getpid()
  while True:
    for pid in filter(str.isdecimal, os.listdir('/proc')):
      try:
        with open(f'/proc/{pid}/stat') as f:
          # The name, in parentheses, may hold anything.
          parent = int(f.read().rpartition(')')[2].split()[1])
        if parent == me:
          os.kill(int(pid), signal.SIGKILL)
      except OSError:
        pass  # It has ended meanwhile.
    try:
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    except ChildProcessError:
      return


def _work(fd: int) -> None:
  """Scores until the pool goes away."""
  connection = socket.socket(fileno=fd)
  stream = connection.makefile('rb')
  key, memory, paths = pickle.load(stream)
  try:
    _limit(memory)
    sys.path[:] = paths
    load = importlib.import_module(f'{_PACKAGE}.function').load
    scorers = [load(spec) for spec in pickle.load(stream)]
    connection.sendall(pack(key, SCORED, [], ''))
    me = os.getpid()
    while True:
      part, completions = pickle.load(stream)
      result = pack(key, *_judge(scorers[part], completions))
      if os.getpid() != me:
        os._exit(0)  # A reward forked; there is one answer only.
      connection.sendall(result)
  except EOFError:
    os._exit(0)
  except BaseException as error:
    connection.sendall(pack(key, RAISED, [], _describe(error)))
    os._exit(1)


def _limit(memory: int) -> None:
  os.setsid()
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  with open('/proc/self/oom_score_adj', 'w') as f:
    f.write('1000')  # If memory runs out, this process goes, not the run.


def _load_package() -> None:
  """Makes this package known by its name without the packages above it."""
  folder = os.path.dirname(os.path.abspath(__file__))
  spec = importlib.util.spec_from_file_location(
    _PACKAGE, f'{folder}/__init__.py', submodule_search_locations=[folder]
  )
  sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(sys.modules[_PACKAGE])


def _judge(
  scorer: Callable[[list], list], completions: list
) -> tuple[int, list[float], str]:
  """Whatever the scorer does, short of ending the process, ends here."""
  try:
    scores = [_number(score) for score in scorer(completions)]
    if len(scores) != len(completions):
      raise ValueError(f'{len(scores)} scores for {len(completions)} texts')
    return SCORED, scores, ''
  except BaseException as error:
    return RAISED, [math.nan] * len(completions), _describe(error)


def _number(score) -> float:
  """NaN for None, inf for what is not finite, as `pack` has it."""
  if score is None:
    return math.nan
  # Not for text: float('1') would be taken.
  if not hasattr(score, '__float__') and not hasattr(score, '__index__'):
    raise TypeError(f'{score!r:.100} is not a number')
  value = float(score)
  return value if math.isfinite(value) else math.inf


def _describe(error: BaseException) -> str:
  try:
    return f'{type(error).__name__}: {error!s:.500}'
  except BaseException:  # Its __str__ raises.
    return type(error).__name__


if __name__ == '__main__':
  main()
