"""Two hundred completions that mean harm, through one pool of two workers."""

import collections
import math
import os
import pathlib
import shutil
import time

import hostile
import pytest

from grpo_jax.rewards import host

CASES = hostile.cases()
FILES_MIB = 19  # An odd number, which tells our sandboxes from others.
GOOD = {
  'user': host.Completion('score = 1.0', columns={'for': 'user', 'tests': []}),
  'code': host.Completion(
    '<answer>print("safe")</answer>',
    columns={
      'for': 'code',
      'tests': [{'input': '', 'output': 'safe'}, 'assert 1'],
    },
  ),
  'maths': host.Completion(
    'It is $\\boxed{\\frac{2}{4}}$.',
    answer='$\\frac{1}{2}$',
    columns={'for': 'maths', 'tests': []},
  ),
}
SPECS = [
  host.Spec('user', 'host_functions:obey_if_asked', seconds=0.4),
  host.Spec(
    'code',
    'code',
    seconds=4.0,
    knobs={'seconds_per_test': 1.0, 'limits': {'files_mib': FILES_MIB}},
  ),
  host.Spec('maths', 'maths', seconds=1.0),
]


def completion(kind, text):
  if kind == 'maths':
    columns = {'for': kind, 'tests': []}
    return host.Completion(text, answer='$-123457$', columns=columns)
  tests = [{'input': '', 'output': 'safe'}] if kind == 'code' else []
  return host.Completion(text, columns={'for': kind, 'tests': tests})


def ours():
  """Processes of this test's pool and sandboxes, whoever their parent is."""
  found = []
  size = str(FILES_MIB * 2**20).encode()
  end = [str(os.getpid()).encode(), b'']
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      args = (path / 'cmdline').read_bytes().split(b'\0')
      environ = (path / 'environ').read_bytes()
    except OSError:
      continue
    if args[-2:] == end or size in args or b'GRPO_JAX_HOSTILE' in environ:
      found.append(args)
  return found


@pytest.mark.slow
def test_two_hundred_hostile_completions_cost_nothing_but_themselves(
  monkeypatch,
):
  if not shutil.which('bwrap'):
    pytest.skip('bubblewrap is not installed')
  assert len(CASES) >= 200
  monkeypatch.setenv('GRPO_JAX_HOSTILE', '1')  # Handed on to all they start.
  # After each of them comes a good one of the same kind.
  given = []
  for kind, _, text in CASES:
    given += [completion(kind, text), GOOD[kind]]
  begin = time.monotonic()
  with host.Pool(SPECS, 2, memory_gib=1.5) as pool:
    outcome = pool.submit(given).result(300)
    seconds = time.monotonic() - begin
    after = pool.submit(list(GOOD.values())).result(60)
  deadline = time.monotonic() + 10
  while ours() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert ours() == []

  kinds = collections.defaultdict(dict)
  for failure in outcome.failures:
    kinds[failure.index][failure.part] = failure.kind
  for k, (kind, name, _) in enumerate(CASES):
    where = f'{kind}: {name}'
    score = outcome.scores[kind][2 * k]
    failed = kinds[2 * k].get(kind)
    if kind == 'user':
      assert failed in ('raised', 'hung', 'died') and math.isnan(score), where
    elif kind == 'code':
      assert score == (name in hostile.REFUSED) and not failed, where
    else:
      assert score == 0 or failed and math.isnan(score), where
    # Everything else is as it should be: the other parts, and the good one.
    assert set(kinds[2 * k]) <= {kind}, where
    assert outcome.scores[kind][2 * k + 1] == 1, where
    assert not kinds[2 * k + 1], where
  assert [after.scores[kind][j] for j, kind in enumerate(GOOD)] == [1, 1, 1]
  assert after.failures == []
  count = collections.Counter((f.part, f.kind) for f in outcome.failures)
  print(f'{len(CASES)} cases in {seconds:.0f} s: {dict(count)}')
