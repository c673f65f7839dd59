"""Host rewards: what a pool of workers makes of good and of bad functions."""

import contextlib
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from grpo_jax.rewards import host
from grpo_jax.rewards.host import checks, function, process, sandbox

HERE = 'host_functions'


def texts(*words, **fields):
  return [host.Completion(word, **fields) for word in words]


def outcome(spec, completions, group_size=1, workers=1):
  with host.Pool([spec], workers) as pool:
    return pool.submit(completions, group_size).result(60)


def spec(name, signature='score', seconds=20.0, **knobs):
  return host.Spec('part', f'{HERE}:{name}', signature, seconds, knobs)


def processes():
  """Arguments of every process, by its id."""
  found = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      found[int(path.parent.name)] = path.read_bytes().split(b'\0')
    except OSError:
      pass
  return found


def family(parent):
  """Workers of a pool in a process, and all that they forked."""
  end = [str(parent).encode(), b'']
  return [
    pid
    for pid, args in processes().items()
    if args[-2:] == end and any(arg.endswith(b'nursery.py') for arg in args)
  ]


def wait_for(condition, seconds=20):
  deadline = time.monotonic() + seconds
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.02)
  return condition()


def test_scores_come_in_the_order_of_the_completions():
  words = ['x' * (k % 97) for k in range(1000)]
  result = outcome(spec('length', scale=0.5), texts(*words), workers=2)
  assert result.scores == {'part': [0.5 * len(word) for word in words]}
  assert result.failures == []


def test_a_reward_sees_all_fields_of_a_completion():
  fields = dict(prompt='abc', answer='de', source='f', token_ids=(10, 20))
  completion = host.Completion('', columns={'extra': 100}, **fields)
  assert outcome(spec('whole'), [completion]).scores['part'] == [136]


def test_every_kind_of_number_is_a_score_and_nothing_else_is():
  expected = {
    'one': 1,
    'true': 1,
    'half': 0.5,
    'two': 2,
    'array': 3,
    'fraction': 0.25,
    'decimal': 0.125,
    'none': None,
    'nan': 'nan',
    'inf': 'nan',
    'text': 'raised',
    'bytes': 'raised',
    'list': 'raised',
    'complex': 'raised',
    'huge': 'raised',
    'arrays': 'raised',
    'class': 'raised',
  }
  result = outcome(spec('returns'), texts(*expected))
  kinds = {failure.text: failure.kind for failure in result.failures}
  for word, score in zip(expected, result.scores['part'], strict=True):
    wanted = expected[word]
    if isinstance(wanted, (int, float)):
      assert score == wanted and word not in kinds
    else:
      assert math.isnan(score) and kinds.get(word) == wanted


def test_a_failure_costs_its_own_completion_and_says_why():
  cases = {
    'score = 1': None,
    'raise KeyError("lost")': ('raised', "KeyError: 'lost'"),
    'import os; os._exit(3)': ('died', 'the worker ended with status 3'),
    'while True: pass': ('hung', 'no score within 0.5 s'),
    'raise SystemExit': ('raised', 'SystemExit: '),
    'score = float("nan")': ('nan', 'not a finite number'),
    'score = "7"': ('raised', "TypeError: '7' is not a number"),
    'score = 2': None,
  }
  result = outcome(spec('obey', seconds=0.5), texts(*cases))
  np.testing.assert_array_equal(result.scores['part'], [1, *[np.nan] * 6, 2])
  told = {f.text: (f.kind, f.detail) for f in result.failures}
  wanted = {k: (v[0], v[1].strip()) for k, v in cases.items() if v}
  assert told == wanted
  assert [f.index for f in result.failures] == [1, 2, 3, 4, 5, 6]
  assert {f.part for f in result.failures} == {'part'}


def test_the_deadline_is_for_each_completion_and_not_for_all():
  result = outcome(
    spec('obey', seconds=0.5), texts(*['import time; time.sleep(0.1)'] * 12)
  )
  assert result.scores['part'] == [1] * 12


def test_submit_returns_at_once_and_the_parts_do_not_mix():
  specs = [
    host.Spec('long', f'{HERE}:length'),
    host.Spec('slow', f'{HERE}:obey'),
  ]
  with host.Pool(specs, 2) as pool:
    begin = time.monotonic()
    word = 'import time; time.sleep(0.3); score = 3'
    futures = [pool.submit(texts(word)), pool.submit(texts('score = 4', ''))]
    assert time.monotonic() - begin < 0.2
    results = [future.result(20).scores for future in futures]
  assert results[0] == {'long': [len(word)], 'slow': [3]}
  assert results[1] == {'long': [9, 0], 'slow': [4, 1]}


def test_as_many_workers_are_started_as_were_asked_for():
  with host.Pool([spec('length')], 3):
    # A nursery, and of each worker a keeper and a scorer; in a namespace of
    # its own also who reaps there.
    assert len(family(os.getpid())) in (1 + 3 * 2, 1 + 3 * 3)


def test_nothing_to_score_is_scored_at_once():
  assert outcome(spec('length'), []).scores == {'part': []}


def test_a_column_that_does_not_travel_costs_its_own_completion():
  bad = host.Completion('', columns={'extra': lambda: 0})
  result = outcome(spec('length'), [*texts('a'), bad, *texts('bcd')])
  np.testing.assert_array_equal(result.scores['part'], [1, np.nan, 3])
  assert [f.kind for f in result.failures] == ['raised']


def test_long_texts_do_not_jam_the_line():
  words = ['x' * (300_000 + k) for k in range(40)]
  scores = outcome(spec('length', seconds=5), texts(*words)).scores['part']
  assert scores == [300_000 + k for k in range(40)]


def test_a_long_text_behind_one_that_hangs_waits_for_its_turn():
  quick = texts(*['score = 1'] * 50)
  with host.Pool([spec('obey', seconds=0.5)], 1) as pool:
    pool.submit(quick).result(20)  # Now the pool sends many at once.
    begin = time.monotonic()
    long = texts('while True: pass', 'score = 2' + ' ' * 300_000)
    result = pool.submit(long).result(20)
  assert time.monotonic() - begin < 5
  np.testing.assert_array_equal(result.scores['part'], [np.nan, 2])


def test_functions_written_for_trl_are_taken_as_they_are():
  given = [
    host.Completion('abc', 'Why?', '1', {'level': 2}, token_ids=(5, 6)),
    host.Completion('', '', '', {'level': None}),
  ]
  scores = outcome(spec('trl_all', 'trl'), given).scores['part']
  np.testing.assert_array_equal(scores, [209, np.nan])
  few = [host.Completion(word, answer='b', columns={'x': 1}) for word in 'ab']
  assert outcome(spec('trl_few', 'trl'), few).scores['part'] == [0, 1]
  knob = spec('trl_few', 'trl', bonus=0.25)
  assert outcome(knob, few).scores['part'] == [0.25, 1.25]
  chat = spec('trl_chat', 'trl', chat=True)
  assert outcome(chat, texts('', 'ab')).scores['part'] == [0, 2]
  assert outcome(spec('trl_async', 'trl'), texts('ab')).scores['part'] == [2]
  assert outcome(spec('sleepy'), texts('ab')).scores['part'] == [0.5]


def test_a_whole_group_is_scored_at_once_and_retried_one_by_one():
  words = ['ccc', 'a', 'bb', 'dddd', 'a', 'bad', 'ccc', '']
  result = outcome(spec('trl_rank', 'trl', group=True), texts(*words), 4)
  np.testing.assert_array_equal(
    result.scores['part'], [0.5, 0, 0.25, 0.75, 0, np.nan, 0, 0]
  )
  assert [(f.index, f.kind) for f in result.failures] == [(5, 'raised')]
  result = outcome(spec('trl_short', 'trl', group=True), texts('a', 'b'), 2)
  assert [f.detail for f in result.failures] == [
    'ValueError: 0 scores for 1 texts'
  ] * 2


def test_functions_written_for_verl_are_taken_as_they_are():
  fields = dict(answer='4', columns={'index': 7}, source='sums')
  result = outcome(spec('verl_float', 'verl'), texts('4', '5', **fields))
  assert result.scores['part'] == [1, 0]
  fields = dict(columns={'ground_truth': {'target': 9}})
  result = outcome(spec('verl_dict', 'verl'), texts('', **fields))
  assert result.scores['part'] == [9]


def test_what_is_printed_goes_nowhere():
  noise = """
    import os, sys
    for _ in range(100):
      sys.stdout.write('x' * 10**6)
    sys.stderr.write('x' * 10**6)
    os.write(1, b'y' * 10**6)
    os.write(2, b'y' * 10**6)
  """
  word = textwrap.dedent(noise)
  assert outcome(spec('obey'), texts(word)).scores['part'] == [1]


def test_a_worker_that_asks_for_too_much_memory_gets_none():
  with host.Pool([spec('obey')], 1, memory_gib=1) as pool:
    words = texts('x = bytearray(2**31)', 'x = bytearray(2**20)')
    result = pool.submit(words).result(60)
  assert [f.detail for f in result.failures] == ['MemoryError:']
  np.testing.assert_array_equal(result.scores['part'], [np.nan, 1])


DAEMON = """
import os, signal, time
if os.fork() == 0:
  os.setsid()
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  if os.fork() == 0:
    os.closerange(0, 100)
    time.sleep(1000)
  os._exit(0)
"""


@pytest.mark.parametrize('end', ['', 'os._exit(1)', 'time.sleep(1000)'])
@pytest.mark.parametrize('namespace', [True, False])
def test_no_process_is_left_where_daemons_were_started(
  end, namespace, tmp_path, monkeypatch
):
  if not namespace:  # A kernel that grants none.
    folder = shutil.copytree(process._SCRIPT.parent, tmp_path / 'host')
    source = (folder / 'nursery.py').read_text()
    assert source.count('alone = _can_be_alone()') == 1
    source = source.replace('alone = _can_be_alone()', 'alone = False')
    (folder / 'nursery.py').write_text(source)
    monkeypatch.setattr(process, '_SCRIPT', folder / 'nursery.py')
  with host.Pool([spec('obey', seconds=0.5)], 1) as pool:
    result = pool.submit(texts(DAEMON + end, 'score = 2')).result(60)
    assert len(family(os.getpid())) >= 2
  assert math.isnan(result.scores['part'][0]) == bool(end)
  assert result.scores['part'][1] == 2
  assert family(os.getpid()) == []


def test_a_reward_that_forks_answers_once():
  word = 'import os; os.fork(); score = 1'
  result = outcome(spec('obey'), texts(word, word, *['score = 2'] * 20))
  assert result.scores['part'] == [1, 1, *[2] * 20]
  assert result.failures == []


def test_the_worker_cannot_end_who_keeps_it():
  word = 'import os; os.kill(os.getppid(), 9); os.kill(os.getppid(), 19)'
  result = outcome(spec('obey', seconds=1), texts(word, 'score = 2'))
  assert result.scores['part'][1] == 2
  assert family(os.getpid()) == []


def test_when_the_run_is_killed_its_workers_end(tmp_path):
  script = tmp_path / 'run.py'
  script.write_text(
    textwrap.dedent(f"""
    import sys, time
    sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
    from grpo_jax.rewards import host
    pool = host.Pool([host.Spec('part', '{HERE}:obey', seconds=100)], 2)
    pool.submit([host.Completion({DAEMON + 'time.sleep(1000)'!r})] * 2)
    time.sleep(0.5)
    print('ready', flush=True)
    time.sleep(1000)
    """)
  )
  run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
  with run:
    assert run.stdout.readline() == b'ready\n'
    assert len(family(run.pid)) >= 4
    run.send_signal(signal.SIGKILL)
  assert wait_for(lambda: family(run.pid) == [])


def test_close_does_not_wait_for_what_hangs():
  with host.Pool([spec('obey', seconds=100)], 1) as pool:
    futures = [pool.submit(texts('while True: pass')) for _ in range(2)]
    time.sleep(0.3)
    begin = time.monotonic()
  assert time.monotonic() - begin < 5
  for future in futures:
    with pytest.raises(RuntimeError, match='is closed'):
      future.result(0)
  with pytest.raises(RuntimeError, match='is closed'):
    pool.submit(texts('a'))


def test_a_worker_that_is_killed_between_two_batches_is_replaced():
  with host.Pool([spec('length')], 1) as pool:
    assert pool.submit(texts('a')).result(20).scores['part'] == [1]
    for pid in family(os.getpid()):
      with contextlib.suppress(ProcessLookupError):  # Ended with its parent.
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    result = pool.submit(texts('ab')).result(20)
  assert result.scores['part'] == [2] and result.failures == []


@pytest.mark.parametrize(
  'wrong, message',
  [
    (host.Spec('a', 'math'), "no function 'math'; there are maths, code, gym"),
    (host.Spec('a', ':f'), "no function ':f'"),
    (host.Spec('a', 'no_such:f'), "no module 'no_such'"),
    (host.Spec('a', f'{HERE}:no'), "has no attribute 'no'"),
    (host.Spec('a', f'{HERE}.no:f'), 'ModuleNotFoundError'),
    (
      host.Spec('a', f'{HERE}:length', 'lenght'),
      "no signature 'lenght'; there",
    ),
    (host.Spec('a', 'maths', 'trl'), "'maths' has no signature to choose"),
    (host.Spec('a', f'{HERE}:length', seconds=0), 'seconds 0; a deadline is'),
    (host.Spec('a', f'{HERE}:NOT_CALLABLE_HERE'), 'is None, not a function'),
    (spec('length', sclae=1), "unexpected keyword argument 'sclae'"),
    (spec('trl_few', 'trl', bonsu=1), "unexpected keyword argument 'bonsu'"),
    (spec('length', scale=lambda: 0), 'cannot travel'),
  ],
)
def test_what_cannot_work_is_refused_at_the_start(wrong, message):
  with pytest.raises(ValueError, match=message) as caught:
    host.Pool([wrong], 1)
  assert '\n' not in str(caught.value)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
  monkeypatch.setattr(checks.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='pip install math-verify'):
    host.check(host.Spec('a', 'maths'))
  with pytest.raises(ValueError, match='pip install reasoning-gym'):
    host.check(host.Spec('a', 'gym'))


def test_without_bubblewrap_code_is_refused_unless_unsafe(monkeypatch):
  monkeypatch.setattr(sandbox.shutil, 'which', lambda name: None)
  sandbox.mode.cache_clear()
  with pytest.raises(ValueError, match='apt-get install bubblewrap.*unsafe'):
    host.check(host.Spec('a', 'code'))
  host.check(host.Spec('a', 'code', knobs={'unsafe': True}))
  sandbox.mode.cache_clear()


def test_a_pool_needs_workers_and_names_and_whole_groups():
  with pytest.raises(ValueError, match='0 workers'):
    host.Pool([spec('length')], 0)
  with pytest.raises(ValueError, match="two host rewards have the name 'part'"):
    host.Pool([spec('length')] * 2, 1)
  with host.Pool([spec('length')], 1) as pool:
    with pytest.raises(ValueError, match='3 completions are not groups of 2'):
      pool.submit(texts(*'abc'), 2)


def test_workers_import_no_jax():
  word = (
    'import sys; score = sum(name.startswith("jax") for name in sys.modules)'
  )
  assert outcome(spec('obey'), texts(word)).scores['part'] == [0]
  assert function.BUILT_IN == ('maths', 'code', 'gym')
