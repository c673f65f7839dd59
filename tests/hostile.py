"""Completions that mean harm: Python for user functions and for the sandbox,
LaTeX for the maths parser. Each comes with what may become of it.

`PROGRAMS` are run in the sandbox, against a test that wants to read 'safe', and
those of them that would do no harm to the machine are run by a user's function
as well. A program prints 'safe' where it was refused what it tried.
"""

import textwrap

# Programs that nothing but a deadline or a limit ends; none prints 'safe'.
ENDLESS = {
  'loop': 'while True: pass',
  'power': '9**9**9',
  'power of a string': 'x = "x" * 9**9; x * 9**9',
  'factorial': 'import math; math.factorial(10**8)',
  'shift': 'x = 1 << 10**11',
  'sum': 'sum(range(10**13))',
  'sleep': 'import time; time.sleep(10**6)',
  'regex': 'import re; re.match("(a+)+$", "a" * 60 + "b")',
  'ignores signals': """
    import signal, time
    for number in range(1, 65):
      try: signal.signal(number, signal.SIG_IGN)
      except (OSError, ValueError): pass
    while True: time.sleep(1)""",
  'blocks signals': """
    import signal
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True: pass""",
  'swallows everything': """
    while True:
      try:
        while True: pass
      except BaseException: pass""",
  'stops itself': """
    import os, signal, time
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(10**6)""",
  'threads': """
    import threading, time
    for _ in range(4):
      threading.Thread(target=time.sleep, args=[10**6]).start()
    time.sleep(10**6)""",
  'spinning threads': """
    import threading
    def spin():
      while True: pass
    for _ in range(4):
      threading.Thread(target=spin).start()
    spin()""",
  'waits for itself': """
    import threading
    lock = threading.Lock()
    lock.acquire(); lock.acquire()""",
  'memory': """
    hog = []
    while True:
      try: hog.append(bytearray(2**26))
      except MemoryError: pass""",
  'list': 'x = []\nwhile True: x.append(x[:])',
  'generator': 'x = list(iter(int, 1))',
  'fork bomb': """
    import os
    while True:
      try: os.fork()
      except OSError: pass""",
  'children that hang': """
    import os, time
    for _ in range(4):
      if os.fork() == 0: time.sleep(10**6)
    os.wait()""",
  'daemon, then hang': """
    import os, time
    if os.fork() == 0:
      os.setsid()
      if os.fork() == 0: time.sleep(10**6)
      os._exit(0)
    while True: pass""",
  'sleep of the shell': """
    import subprocess, sys
    subprocess.run([sys.executable, '-c', 'import time; time.sleep(10**6)'])""",
  'prints': 'while True: print("x" * 10**6)',
  'pipe to itself': 'import os; r, w = os.pipe(); os.read(r, 1)',
  'deep comparison': """
    x = y = ()
    for _ in range(200): x, y = (x, x), (y, y)
    x == y""",
  'hash': """
    class H:
      def __hash__(self): return 0
      def __eq__(self, other): return False
    {H(): 0 for _ in range(10**6)}""",
}
# Programs that end in one way or the other; none prints 'safe'.
SHORT = {
  'exits': 'import os; os._exit(0)',
  'exits badly': 'import os; os._exit(77)',
  'raises exit': 'raise SystemExit(0)',
  'interrupts': 'raise KeyboardInterrupt',
  'raises': 'raise ValueError("x" * 10**6)',
  'cannot be told': """
    class E(Exception):
      def __str__(self): raise self
    raise E""",
  'divides': '1 / 0',
  'recurses': 'f = lambda: f()\nf()',
  'recurses without a limit': """
    import sys
    sys.setrecursionlimit(10**9)
    class A:
      def __getattr__(self, name): return getattr(self, name + 'x')
    A().x""",
  'parentheses': '(' * 100_000 + ')' * 100_000,
  'brackets': '[' * 5_000,
  'minus': '-' * 100_000 + '1',
  'powers': '*'.join(['x'] * 50_000),
  'indents': ''.join(' ' * k + 'if 1:\n' for k in range(200)),
  'null': 'x = 1\0',
  'surrogate': 'x = "\ud800"',
  'surrogate out': 'print("\\ud800")',
  'right to left': '\u202eprint("efas")',
  'syntax': 'def f(:',
  'aborts': 'import os; os.abort()',
  'segfault': 'import ctypes; ctypes.string_at(0)',
  'kills itself': 'import os; os.kill(os.getpid(), 9); 1 / 0',
  'kills its group': 'import os; os.killpg(0, 9); 1 / 0',
  'kills its parent': 'import os; os.kill(os.getppid(), 9); 1 / 0',
  'closes all': 'import os; os.closerange(0, 10**4); 1 / 0',
  'writes to all': """
    import os
    for fd in range(3, 256):
      try: os.write(fd, os.urandom(5000))
      except OSError: pass
    1 / 0""",
  'writes little to all': """
    import os
    for fd in range(3, 256):
      try: os.write(fd, b'\\0')
      except OSError: pass
    1 / 0""",
  'a lot of output': """
    import sys
    for _ in range(100):
      sys.stdout.write('x' * 10**6)
    1 / 0""",
  'a lot of errors': """
    import sys
    for _ in range(100):
      sys.stderr.write('x' * 10**6)
    1 / 0""",
  'daemon': """
    import os, time
    if os.fork() == 0:
      os.setsid()
      if os.fork() == 0:
        os.closerange(0, 10**4)
        time.sleep(10**6)
      os._exit(0)
    1 / 0""",
  'daemon, then exit': """
    import os, time
    if os.fork() == 0:
      os.setsid()
      os.closerange(0, 10**4)
      time.sleep(10**6)
    os._exit(0)""",
  'child answers': 'import os; os.fork(); 1 / 0',
  'exit handler': """
    import atexit, time
    atexit.register(time.sleep, 10**6)
    1 / 0""",
  'shadows': """
    import builtins, sys
    builtins.isinstance = builtins.len = builtins.float = None
    sys.modules.clear()
    1 / 0""",
  'hooks': """
    import sys
    sys.settrace(lambda *args: 1 / 0)
    sys.excepthook = None
    1 / 0""",
  'no memory': 'x = bytearray(2**40)',
  'no string': 'x = str(10**10**5)',
}
# Programs for the sandbox alone; the sandbox refuses, and they print 'safe'.
REFUSED = {
  'reads the shadow': 'open("/etc/shadow").read()',
  'reads the users': 'open("/etc/passwd").read()',
  'reads the home': 'import os; os.listdir(os.path.expanduser("~root/.ssh"))',
  'reads a process': 'open("/proc/1/environ").read()',
  'reads the memory': 'open("/proc/self/mem", "rb").read(1)',
  'writes the root': 'open("/x", "w")',
  'writes the system': 'open("/usr/bin/x", "w")',
  'writes the devices': 'open("/dev/shm/x", "w")',
  'deletes the system': 'import os; os.remove("/usr/bin/env")',
  'deletes everything': """
    import os
    for name in os.listdir('/usr'): os.rename('/usr/' + name, '/usr/gone')""",
  'changes modes': 'import os; os.chmod("/usr", 0o777)',
  'links': 'import os; os.symlink("/etc/shadow", "x"); open("x").read()',
  'makes a device': 'import os; os.mknod("x", 0o60777, os.makedev(8, 0))',
  'fills the disk': """
    for k in range(1000):
      open(f'/tmp/{k}', 'wb').write(bytes(2**20))""",
  'one huge file': """
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    open('/tmp/x', 'wb').write(bytes(2**25))""",
  'truncates': """
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    import os
    os.truncate(open('/tmp/x', 'wb').fileno(), 2**40)""",
  'opens many files': 'x = [open("/tmp/x", "w") for _ in range(10**4)]',
  'forks often': """
    import os, time
    for _ in range(100):
      if os.fork() == 0:
        time.sleep(10**6)""",
  'calls home': """
    import socket
    socket.create_connection(('1.1.1.1', 80), 0.3)""",
  'calls by name': """
    import socket
    socket.create_connection(('example.com', 80), 0.3)""",
  'calls the host': """
    import socket
    socket.create_connection(('127.0.0.1', 22), 0.3)""",
  'sends': """
    import socket
    socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))""",
  'raw socket': """
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)""",
  'calls docker': """
    import socket
    socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')""",
  'kills the first': 'import os; os.kill(1, 9)',
  'becomes root': 'import os; os.setuid(0); open("/usr/x", "w")',
  'raises limits': """
    import resource
    try: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    except ValueError as error: raise OSError from error""",
  'raises priority': 'import os; os.setpriority(os.PRIO_PROCESS, 0, -20)',
  'changes root': 'import os; os.chroot("/tmp")',
  'mounts': """
    import ctypes
    if ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, 0): raise OSError""",
  'reboots': """
    import ctypes
    if ctypes.CDLL(None).reboot(0x1234567): raise OSError""",
  'traces the parent': """
    import ctypes, os
    if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0): raise OSError""",
  'sets the clock': 'import time; time.clock_settime(0, 0)',
  'sets the name': 'import socket; socket.sethostname("x")',
}
# What the maths parser is given; no answer of these is right.
LATEX = {
  'laughs': '\\boxed{' + '\\frac{' * 200 + '1' + '}{2}' * 200 + '}',
  'deep fractions': '\\boxed{' + '\\frac{1}{' * 3000 + '1' + '}' * 3001,
  'deep roots': '\\boxed{' + '\\sqrt{' * 3000 + '1' + '}' * 3001,
  'parentheses': '\\boxed{' + '(' * 100_000 + '1' + ')' * 100_000 + '}',
  'braces': '\\boxed{' * 100_000,
  'open braces': '$' + '{' * 100_000,
  'closed braces': '\\boxed{1' + '}' * 100_000,
  'tower': '\\boxed{9^{9^{9}}}',
  'high tower': '\\boxed{' + '9^{' * 40 + '9' + '}' * 41,
  'long power': '\\boxed{123456789^{987654321}}',
  'factorial': '\\boxed{99999999!}',
  'factorials': '\\boxed{9' + '!' * 50 + '}',
  'binomial': '\\boxed{\\binom{10^9}{10^8}}',
  'sum': '\\boxed{\\sum_{n=1}^{10^{12}} \\frac{1}{n^n}}',
  'product': '\\boxed{\\prod_{n=1}^{10^{9}} n}',
  'integral': '\\boxed{\\int_0^1 \\sin(x^{x^{x}}) e^{\\cos x} dx}',
  'limit': '\\boxed{\\lim_{x \\to 0} \\frac{\\sin x^{x}}{x^{x^x}}}',
  'polynomial': '\\boxed{(x+1)^{100000}}',
  'polynomials': '\\boxed{(a+b+c+d+e+f+g)^{60} - (a+b)^{99}}',
  'digits': '\\boxed{' + '7' * 200_000 + '}',
  'decimals': '\\boxed{0.' + '7' * 200_000 + '}',
  'terms': '\\boxed{' + '+'.join(['x'] * 20_000) + '}',
  'signs': '\\boxed{' + '-' * 50_000 + '1}',
  'commas': '\\boxed{' + '1,' * 50_000 + '1}',
  'set': '\\boxed{\\{' + ','.join(map(str, range(9000))) + '\\}}',
  'matrix': '\\boxed{\\begin{pmatrix}' + '1&2\\\\' * 5000 + '\\end{pmatrix}}',
  'equations': '\\boxed{' + 'x=' * 20_000 + '1}',
  'many boxes': '\\boxed{1}' * 20_000,
  'many dollars': '$1$ ' * 50_000,
  'dollars': '$' * 200_000,
  'backslashes': '\\' * 200_000,
  'spaces': '\\boxed{' + ' ' * 200_000 + '1}',
  'percent': '\\boxed{' + '\\%' * 50_000 + '}',
  'text': '\\boxed{' + '\\text{' * 5000 + 'a' + '}' * 5001,
  'left right': '\\boxed{' + '\\left(' * 5000 + '1' + '\\right)' * 5000 + '}',
  'powers of i': '\\boxed{' + 'i^{' * 500 + 'i' + '}' * 501,
  'trigonometry': '\\boxed{' + '\\sin(' * 60 + 'x' + ')' * 60 + '}',
  'units': '\\boxed{1' + '\\text{ cm}' * 20_000 + '}',
  'answers': 'the final answer is $1$. ' * 20_000,
  'null': '\\boxed{1\0}',
  'surrogate': '\\boxed{\ud800}',
  'unicode': '\\boxed{' + '\u0661\u202e\u2212\U0001d7d9' * 5000 + '}',
  'python': '\\boxed{__import__("os")._exit(1)}',
  'lambda': '\\boxed{\\lambda: exec("while 1: pass")}',
}


def cases():
  """(kind, name, text): what 'user', 'code' and 'maths' are attacked with."""
  programs = {name: _clean(text) for name, text in (ENDLESS | SHORT).items()}
  refused = {name: _refused(_clean(text)) for name, text in REFUSED.items()}
  found = [('user', name, text) for name, text in programs.items()]
  found += [
    ('code', name, f'<answer>{text}</answer>')
    for name, text in (programs | refused).items()
  ]
  return found + [('maths', name, text) for name, text in LATEX.items()]


def _clean(source):
  return textwrap.dedent(source).lstrip('\n')


def _refused(source):
  body = textwrap.indent(source, '  ')
  return f'try:\n{body}\nexcept OSError:\n  print("safe")\n'
