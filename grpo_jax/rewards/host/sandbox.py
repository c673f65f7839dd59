"""Runs a Python program that nobody has read, with bubblewrap around it.

Inside there is no network, no file but those of the interpreter and an empty
/tmp in memory, no other process, and a user without rights. Time, memory,
processes, files and output are limited, and the limits cannot be raised.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import BinaryIO

_MIB = 2**20
# What runs first inside. It takes its orders from a file that is open already,
# gives up what it does not need, and then is the program.
_INSIDE = """
import builtins, json, os, resource, sys, types
with os.fdopen(int(sys.argv[1]), 'rb') as f:
  orders = json.load(f)
for name, value in orders['limits'].items():
  resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (value, value))
if orders['uid']:
  os.setgroups([])
  os.setresgid(*[orders['uid']] * 3)
  os.setresuid(*[orders['uid']] * 3)
builtins.exit = builtins.quit = sys.exit
sys.argv = ['program.py']
sys.modules['__main__'] = main = types.ModuleType('__main__')
for source in orders['sources']:
  exec(compile(source, 'program.py', 'exec'), main.__dict__)
"""
_SHARED = """
  --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try
  --die-with-parent --new-session --cap-drop ALL --hostname sandbox
  --ro-bind /usr /usr --ro-bind-try /etc/ld.so.cache /etc/ld.so.cache
  --dev /dev --remount-ro /dev
""".split()
# Root becomes somebody else inside, so that the number of its processes is
# limited too; others get a user namespace, in which they already are.
_ROOT = ['--cap-add', 'CAP_SETUID', '--cap-add', 'CAP_SETGID']
_OTHERS = ['--unshare-user', '--uid', '65534', '--gid', '65534']
# Without bubblewrap: a program can read, write and send what this process can,
# and the number of its processes is not limited.
UNSAFE: tuple[list[str], int] = ([], 0)
_PYTHON = os.path.realpath(sys.executable)  # Not the link in a venv.


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a program may use."""

  memory_mib: int = 512  # Of each of its processes.
  processes: int = 8  # Threads count as well.
  files_mib: int = 16  # All its files together.
  output_mib: int = 1


def run(
  sources: Sequence[str],
  stdin: str,
  seconds: float,
  limits: Limits,
  way: tuple[list[str], int] | None = None,
) -> bytes | None:
  """The output of a program, of which the sources are executed in turn.

  None if it does not end with status 0, in time and within its limits.
  `way` is `mode()`, which it is by default, or UNSAFE.

  Raises:
    OSError: there is no bubblewrap that works.
  """
  deadline = time.monotonic() + seconds
  outside, uid = way or mode()
  numbers = {
    'CPU': math.ceil(seconds) + 1,
    'AS': limits.memory_mib * _MIB,
    'NPROC': limits.processes,
    'FSIZE': limits.files_mib * _MIB,
    'NOFILE': 64,
    'CORE': 0,
  }
  if not outside:
    del numbers['NPROC']  # All processes of the user would count.
  # A number that no other sandbox has: processes are counted by user.
  uid = uid and uid + secrets.randbelow(2**29)
  orders = {'sources': list(sources), 'limits': numbers, 'uid': uid}
  with (
    tempfile.TemporaryDirectory() as folder,
    _memory(json.dumps(orders)) as program,
    _memory(stdin) as given,
  ):
    tmp = f'--perms 1777 --size {limits.files_mib * _MIB} --tmpfs /tmp'.split()
    tmp += ['--chdir', '/tmp', '--remount-ro', '/', '--']
    process = subprocess.Popen(
      [*outside, *(tmp if outside else []), _PYTHON, '-I', '-S', '-c', _INSIDE]
      + [str(program.fileno())],
      stdin=given,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      pass_fds=[program.fileno()],
      cwd=folder,
      env={'PYTHONIOENCODING': 'utf-8'},
      start_new_session=True,
    )
    with process:
      try:
        return _read(process, deadline, limits.output_mib * _MIB)
      finally:
        try:
          os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
          pass


@functools.cache
def mode() -> tuple[list[str], int]:
  """bubblewrap's arguments, and the first user id to become inside, or 0.

  Raises:
    OSError: it does not work here; one line.
  """
  bwrap = shutil.which('bwrap')
  if not bwrap:
    raise OSError(_REFUSED.format('not found: apt-get install bubblewrap'))
  shared = [bwrap, *_SHARED, *_interpreter()]
  ways = [([*shared, *_OTHERS], 0)]
  if os.getuid() == 0:
    ways.insert(0, ([*shared, *_ROOT], 2**20))
  for way in ways:
    if (
      run(['import math\nprint("here")'], '', 10, Limits(), way=way)
      == b'here\n'
    ):
      return way
  error = subprocess.run([*ways[0][0], 'true'], capture_output=True, text=True)
  reason = ' '.join(error.stderr.split()) or 'no output'
  raise OSError(_REFUSED.format(f'not working here ({reason})'))


def _interpreter() -> list[str]:
  """Shows the interpreter and the libraries of the system, at their paths."""
  args = []
  for path in ('/bin', '/lib', '/lib64', '/sbin'):
    if os.path.islink(path):
      args += ['--symlink', os.readlink(path), path]
    else:
      args += ['--ro-bind-try', path, path]
  prefix = pathlib.PurePath(sys.base_prefix)
  if not prefix.is_relative_to('/usr'):
    for parent in [*prefix.parents][-2::-1]:
      args += ['--dir', str(parent)]  # Others than root may pass it.
    args += ['--ro-bind', str(prefix), str(prefix)]
  return args


@contextlib.contextmanager
def _memory(text: str) -> Iterator[BinaryIO]:
  """A file without a name, to be read from its start."""
  with os.fdopen(os.memfd_create('sandbox'), 'wb+') as f:
    f.write(text.encode('utf-8', 'surrogatepass'))
    f.seek(0)
    yield f


def _read(
  process: subprocess.Popen, deadline: float, most: int
) -> bytes | None:
  """All output, if there is not too much of it and the program ends well."""
  assert process.stdout  # It is a pipe.
  output = bytearray()
  while len(output) <= most:
    left = deadline - time.monotonic()
    if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
      return None
    data = os.read(process.stdout.fileno(), 2**16)
    if not data:
      break
    output += data
  else:
    return None
  try:
    left = max(deadline - time.monotonic(), 0)
    return bytes(output) if process.wait(left) == 0 else None
  except subprocess.TimeoutExpired:
    return None


_REFUSED = (
  'code is run with bubblewrap only, and that is {}; unsafe=True does without '
  'it, and lets programs do what you can'
)
