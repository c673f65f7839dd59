"""Where workers come from: a nursery, and for each worker a keeper.

Run by its path, so that the packages above, and JAX with them, are never
imported:

  python -P nursery.py <sys.path> <built-in rewards> <socket> <pid of the pool>

It imports what takes long and is safe to fork, and then makes a worker of every
pair of sockets that the pool hands it, in milliseconds.

The first socket is the scorer's line; see scorer.py. The second one is the
keeper's leash: it tells the keeper's pid, and the scorer's status when all is
over; the pool lets go of it to end the worker.

The keeper stays outside of what it keeps. Where the kernel allows, the scorer
lives in a process namespace of its own: it cannot see or signal the run, and
all that it started ends with it. Elsewhere the keeper adopts orphans and kills
what is left, one by one.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import struct
import sys

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_NEWNS, _NEWUSER, _NEWPID = 0x20000, 0x10000000, 0x20000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_LOOK = 1.0  # Seconds from one look whether the parent is still there.
_PACKAGE = 'grpo_jax.rewards.host'


def main() -> None:
  """The nursery; ends when the pool does."""
  sys.path[:] = json.loads(sys.argv[1])
  built_in, fd, parent = sys.argv[2].split(','), *map(int, sys.argv[3:])
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
          _keep(fds[0], fds[1], alone)
        for each in fds:
          os.close(each)


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
      worker = os.fork()
      if worker:
        os.close(line)
        _reap(worker)
    sys.modules[f'{_PACKAGE}.scorer'].work(line)
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


def _load_package() -> None:
  """Makes this package known by its name without the packages above it."""
  folder = os.path.dirname(os.path.abspath(__file__))
  spec = importlib.util.spec_from_file_location(
    _PACKAGE, f'{folder}/__init__.py', submodule_search_locations=[folder]
  )
  assert spec and spec.loader  # There is a file of Python at that place.
  sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(sys.modules[_PACKAGE])


if __name__ == '__main__':
  main()
