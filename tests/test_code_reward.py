"""Programs against tests, and what the sandbox lets them do."""

import json
import os
import pathlib
import shutil
import time

import pytest

from grpo_jax.rewards import host
from grpo_jax.rewards.host import code, sandbox

if not shutil.which('bwrap'):
  pytest.skip('bubblewrap is not installed', allow_module_level=True)

ADD = 'a, b = map(int, input().split())\nprint(a + b)'
PAIRS = [
  {'input': '1 2\n', 'output': '3\n'},
  {'input': '5 6', 'output': '11'},
  {'input': '1 1', 'output': '3'},  # Wrong, so that shares are to be seen.
  {'input': '-1 1', 'output': ' 0 \n\n'},
]


def score(text, tests, seconds=5.0, **knobs):
  completion = host.Completion(text, columns={'tests': tests})
  return code.code(completion, seconds, **knobs)


def block(program):
  return f'So:\n```python\n{program}\n```\nDone.'


def run(program, stdin='', seconds=5.0, **limits):
  return sandbox.run([program], stdin, seconds, sandbox.Limits(**limits))


def commands():
  """The arguments of every process of the machine."""
  lines = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      lines.append(path.read_bytes().split(b'\0'))
    except OSError:
      pass  # It has ended meanwhile.
  return lines


@pytest.mark.parametrize('unsafe', [False, True])
def test_the_score_is_the_share_of_tests_that_pass(unsafe):
  assert score(block(ADD), PAIRS, unsafe=unsafe) == 0.75
  assert score(block(ADD), json.dumps(PAIRS), unsafe=unsafe) == 0.75
  strict = dict(all_or_nothing=True, unsafe=unsafe)
  assert score(block(ADD), PAIRS, **strict) == 0
  assert score(block(ADD), PAIRS[:2], **strict) == 1


def test_asserts_are_run_after_the_program():
  program = block('def twice(x):\n  return 2 * x')
  tests = ['assert twice(2) == 4', 'assert twice(2) == 5', 'assert once(1)']
  assert score(program, tests) == pytest.approx(1 / 3)
  # Leaving early, or with success, passes nothing.
  for early in ('exit()', 'import os; os._exit(0)', 'raise SystemExit(0)'):
    assert score(block(early), ['assert False']) == 0


def test_no_tests_leave_the_completion_out_and_no_program_gets_nothing():
  assert score(block(ADD), []) is None
  assert score('I do not know.', PAIRS) == 0


def test_the_program_is_the_last_block_of_the_last_answer():
  cases = {
    block('1') + block('2'): '2\n',
    '<answer>3</answer>': '3',
    f'{block("4")}<answer>{block("5")}</answer>{block("6")}': '5\n',
    '<answer>7</answer> or <answer>8</answer>': '8',
    '<answer><answer>9</answer>': '9',
    '```py\n10\n```': '10\n',
    '```Python\n11\n```': None,
    '```\n12\n```': None,
    'x = 13': None,
    '```python\n14': None,
  }
  for text, program in cases.items():
    assert code.extract(text) == program, text


def test_a_program_that_fails_its_test_in_any_way_is_wrong_and_not_unscored():
  good = "print('3')"
  cases = {
    good: 1,
    f'{good}\nraise ValueError': 0,
    f'{good}\nexit(1)': 0,
    f'{good}\nexit(0)': 1,
    f'{good}\nwhile True: pass': 0,
    f'{good}\nimport os, time\nos.close(1)\ntime.sleep(9)': 0,
    "print('4')": 0,
    "print('x' * 10**8)": 0,
    "while True: print('x' * 10**6)": 0,
    'def f(:': 0,
    '(' * 100_000: 0,
    'x = 1\0': 0,
    '"\ud800"': 0,
    '9**9**9': 0,
    'import sys; sys.stdout.buffer.write(b"\\xff3")': 0,
  }
  for program, expected in cases.items():
    test = {'input': '', 'output': '3'}
    found = score(block(program), [test], seconds_per_test=0.5)
    assert found == expected, program


def test_a_slow_program_is_judged_before_the_deadline_of_the_pool():
  spec = host.Spec('code', 'code', seconds=1.0)
  tests = [{'input': '', 'output': '1'}] * 20
  slow = 'import time\ntime.sleep(0.15)\nprint(1)'
  completion = host.Completion(block(slow), columns={'tests': tests})
  with host.Pool([spec], 1) as pool:
    outcome = pool.submit([completion]).result(20)
  assert outcome.failures == []
  assert 0 < outcome.scores['code'][0] < 0.5


def test_ordinary_programs_find_what_they_need():
  program = """
    import collections, dataclasses, decimal, heapq, itertools, json, math
    import pickle, random, re, statistics, string, sys, threading, typing
    @dataclasses.dataclass
    class Point:
      x: int
    assert pickle.loads(pickle.dumps(Point(3))) == Point(3)
    with open('here.txt', 'w') as f:
      f.write('3')
    thread = threading.Thread(target=lambda: print(open('here.txt').read()))
    thread.start()
    thread.join()
    sys.setrecursionlimit(10**6)
    deep = lambda n: n and deep(n - 1)
    deep(5_000)
    if __name__ == '__main__':
      print(sum(map(int, sys.stdin)), '√')
  """
  program = '\n'.join(line[4:] for line in program.splitlines())
  assert run(program, '1\n2\n').decode() == '3\n3 √\n'


def test_a_program_finds_no_files_no_network_and_no_processes():
  home = os.path.expanduser('~')
  here = pathlib.Path(__file__)
  reads = [
    '/etc/shadow',
    '/etc/passwd',
    str(here),
    f'{home}/.bashrc',
    '/proc/1',
  ]
  program = f"""
import os, socket
leaks = []
def attempt(name, f):
  try:
    f()
  except OSError:
    return
  leaks.append(name)
for path in {reads!r}:
  attempt(path, lambda: os.stat(path))
for path in ['/x', '/usr/x', '/dev/x', '/dev/shm/x', {home!r} + '/x']:
  attempt(path, lambda: open(path, 'w'))
attempt('internet', lambda: socket.create_connection(('1.1.1.1', 53), 1))
attempt('local', lambda: socket.create_connection(('127.0.0.1', 22), 1))
attempt('root', lambda: os.setuid(0))
attempt('kill', lambda: os.kill(1, 9))
attempt('mount', lambda: os.chroot('/tmp'))
print(leaks, [name for name in os.environ if 'PATH' in name])
"""
  assert run(program) == b'[] []\n'
  # The same program outside finds some of it, so that the list means something.
  outside = sandbox.run([program], '', 5, sandbox.Limits(), sandbox.UNSAFE)
  assert b'/etc/passwd' in outside and b'/proc/1' in outside


def test_programs_do_not_see_each_other():
  assert run("open('/tmp/mine', 'w').write('x')") == b''
  assert run("import os; print(os.listdir('/tmp'))") == b'[]\n'


def test_memory_files_and_processes_are_limited():
  assert run('x = bytearray(2**28); print(1)') == b'1\n'
  assert run('x = bytearray(2**30); print(1)') is None
  assert run('x = bytearray(2**28); print(1)', memory_mib=128) is None
  write = "for k in range(9): open(str(k), 'wb').write(bytes(2**20))\nprint(1)"
  assert run(write) == b'1\n'
  assert run(write, files_mib=4) is None
  fork = """
import os, time
made = 0
try:
  for _ in range(100):
    if os.fork() == 0:
      time.sleep(1)
      os._exit(0)
    made += 1
except OSError:
  pass
os.write(1, str(made).encode())
"""
  assert 1 <= int(run(fork)) <= 8
  raised = 'import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))'
  assert run(raised) is None


def test_a_fork_bomb_ends_in_time_and_leaves_nothing():
  bomb = 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass'
  begin = time.monotonic()
  # The odd size is what its processes are told by.
  assert run(bomb, seconds=0.5, files_mib=23) is None
  assert time.monotonic() - begin < 5
  size = str(23 * 2**20).encode()
  while any(size in line for line in commands()):
    assert time.monotonic() - begin < 5


def test_a_bubblewrap_that_does_not_work_is_refused_with_its_reason(
  monkeypatch, tmp_path
):
  fake = tmp_path / 'bwrap'
  fake.write_text('#!/bin/sh\necho "bwrap: no\nnamespaces" >&2\nexit 1\n')
  fake.chmod(0o755)
  monkeypatch.setattr(sandbox.shutil, 'which', lambda name: str(fake))
  sandbox.mode.cache_clear()
  with pytest.raises(ValueError, match=r'\(bwrap: no namespaces\).*unsafe'):
    host.check(host.Spec('a', 'code'))
  sandbox.mode.cache_clear()
