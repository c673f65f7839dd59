"""A run that is killed again and again ends as if nothing had happened.

SIGKILL, which no process hears coming, strikes at chosen moments first and then
at random times; the same command goes on. CI kills 5 times.

  pytest tests/test_resume.py -n 0 -s --kills 30

kills more often, and prints where each of them struck.
"""

import collections
from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import command
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

PRETRAIN, RL = 160, 80
FLAGS = [
  f'--config.pretrain.steps={PRETRAIN}',
  f'--config.steps={RL}',
  # Enough to earn some rewards: gradients and moments of RL are not zero.
  '--config.pretrain.rows=8',
  '--config.pretrain.optim.lr=5e-3',
  '--config.kl.coef=0.04',  # The state holds a reference too.
  '--config.checkpoint.every=20',
  '--config.data.knobs.problems=2000',
  '--config.eval.problems=40',
  '--config.log.completions_every=3',
  '--config.log.every=0.0',  # A line a step.
]
KILLS_OF_A_RUN = 5  # Then it may end.
HALF_A_CHECKPOINT = 'checkpoints/*.orbax-checkpoint-tmp*'

pytestmark = [
  pytest.mark.slow,
  # Orbax warns that it places arrays as they were saved, which is wanted.
  pytest.mark.filterwarnings('ignore:Sharding info not provided'),
]


class Session:
  """One process of a run, and what can be seen of it from outside."""

  def __init__(self, workdir, cache=None):
    self.workdir = workdir
    self.out = workdir.with_name(f'{workdir.name}.out')
    self.begun = time.time()
    env = os.environ | {'COLUMNS': '100'}
    if cache:
      env['JAX_COMPILATION_CACHE_DIR'] = str(cache)
    line = command.train('quickstart.py:smoke', workdir, *FLAGS)
    with self.out.open('w') as out:
      self.process = subprocess.Popen(
        [sys.executable, *line],
        cwd=command.ROOT,
        env=env,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # A group of its own, to be killed as a whole.
      )

  def said(self) -> str:
    return self.out.read_text()

  def made(self, pattern: str) -> list[str]:
    """Names of what is there and was not when the session began."""
    names = []
    for path in self.workdir.glob(pattern):
      try:
        if path.stat().st_mtime > self.begun:
          names.append(path.name)
      except FileNotFoundError:  # Renamed or removed since.
        pass
    return names

  def end(self) -> None:
    assert self.process.wait(timeout=300) == 0, self.said()[-5000:]

  def kill(self, moment: Callable[['Session'], bool], delay: float) -> bool:
    """Whether the moment came, and the run had not ended before the delay."""
    while not moment(self):
      if self.process.poll() is not None:
        self.end()
        return False
      time.sleep(0.001)
    time.sleep(delay)
    os.killpg(self.process.pid, signal.SIGKILL)
    if self.process.wait() != -signal.SIGKILL:
      self.end()
      return False
    with pytest.raises(ProcessLookupError):  # Nobody is left of the group.
      os.killpg(self.process.pid, 0)
    return True

  def struck(self) -> str:
    """What it was doing when it was killed: its words, and what it left."""
    said = self.said()
    steps = re.findall(r'^(pre-training|RL): (\d+)/(\d+)', said, re.M)
    name, done, total = steps[-1] if steps else ('', 0, 0)
    if 'evaluation after' in said:
      doing = 'ending'
    elif int(done) < int(total):
      doing = f'{name}, step {int(done) + 1}'
    elif name == 'RL':
      doing = 'evaluation after'
    elif 'evaluation before' in said:
      doing = 'RL, step 1'
    elif steps:
      doing = 'evaluation before'
    elif 'compile: ' in said:
      doing = 'restoring, or its first step'
    elif self.made('tokenizer.model'):
      doing = 'compilation'
    elif self.made('data/*/*/incomplete*'):
      doing = 'problems'
    else:
      doing = 'starting'
    half = self.made(HALF_A_CHECKPOINT) + self.made('**/*.partial')
    return ', '.join([doing, *(f'half a {name}' for name in half)])


# What a kill is aimed at -> the moment, and the longest delay after it.
AIMS = {
  'problems': (lambda s: s.made('data/*/*/incomplete*'), 0.05),
  'compilation': (lambda s: s.made('tokenizer.model'), 4.0),
  'checkpoint': (lambda s: s.made(HALF_A_CHECKPOINT), 0.01),
  'evaluation before': (
    lambda s: f'pre-training: {PRETRAIN}/{PRETRAIN}' in s.said(),
    0.15,
  ),
  'checkpoint of RL': (  # Not the first, or RL would begin anew.
    lambda s: s.made(f'checkpoints/{PRETRAIN + 40}.orbax-checkpoint-tmp*'),
    0.01,
  ),
  # So far the run of those who kill 5 times; now the next one.
  'pre-training': (lambda s: 'pre-training: 5' in s.said(), 0.05),
  'restoring': (lambda s: 'compile: ' in s.said(), 0.2),
  'RL': (lambda s: 'RL: 2' in s.said(), 0.05),
  'evaluation after': (lambda s: f'RL: {RL}/{RL}' in s.said(), 0.1),
  'ending': (lambda s: 'evaluation after' in s.said(), 0.02),
}


@dataclasses.dataclass
class Kill:
  run: str
  aim: str
  seconds: float
  struck: str
  went_on: str = ''


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that nobody disturbs. It fills the cache of compiled programs too."""
  session = Session(tmp_path_factory.mktemp('resume') / 'whole')
  session.end()
  return session.workdir


def test_a_run_that_is_killed_ends_like_one_that_is_not(
  whole, tmp_path, request
):
  wanted = request.config.getoption('--kills')
  aims, dice = collections.deque(AIMS), random.Random(0)
  kills = []
  try:
    for run in range(wanted):  # Enough, with one kill in each.
      if len(kills) < wanted:
        workdir = tmp_path / f'run{run}'
        count = min(KILLS_OF_A_RUN, wanted - len(kills))
        kills += kill_and_go_on(workdir, count, aims, dice)
        assert differences(whole, workdir) == []
  finally:
    print_table(kills)
  assert len(kills) == wanted


def kill_and_go_on(workdir, count, aims, dice) -> list[Kill]:
  """Carries one run out; fewer kills if it ends before their moments."""
  kills = []
  while True:
    aim = aims[0] if aims else 'any time'
    last = len(kills) == count
    # A process that is killed while it writes to JAX's cache leaves half a
    # program there for all to come; and with an empty one XLA takes its time.
    cold = aim == 'compilation' and not last
    session = Session(workdir, workdir.with_name('cold') if cold else None)
    if last:
      session.end()
      killed = False
    else:
      moment, delay = AIMS[aim] if aims else any_time(workdir, dice)
      killed = session.kill(moment, dice.uniform(0, delay))
    if kills:
      kills[-1].went_on = went_on(session.said())
    if not killed:
      return kills
    seconds = time.time() - session.begun
    kills.append(Kill(workdir.name, aim, seconds, session.struck()))
    if aims:
      aims.popleft()


def any_time(workdir, dice) -> tuple[Callable[[Session], bool], float]:
  """Among the seconds of the start, or the steps that the run has left."""
  done = [
    int(x.name) for x in workdir.glob('checkpoints/*') if x.name.isdigit()
  ]
  lines = dice.randrange(-60, PRETRAIN + RL - max(done, default=0))
  if lines < 0:
    return lambda s: True, 6.0
  return lambda s: s.said().count('\n') >= lines, 0.05


def went_on(said: str) -> str:
  """From where a session did, if it was not killed before."""
  if 'nothing is left to do' in said:
    return 'the end'
  if 'compile: ' not in said:
    return '-'
  step = re.search(r'going on from (step \d+)', said)
  return step[1] if step else 'the start'


def print_table(kills: list[Kill]) -> None:
  print('\n| kill | run | aimed at | after | struck in | then went on from |')
  print('| ---: | --- | --- | ---: | --- | --- |')
  for i, k in enumerate(kills, 1):
    cells = i, k.run, k.aim, f'{k.seconds:.1f} s', k.struck, k.went_on
    print('|', ' | '.join(map(str, cells)), '|')


def differences(whole, other) -> list[str]:
  """What is not the same in two workdirs, but for how long things took."""
  a, b = contents(whole), contents(other)
  # Who was killed before old checkpoints were removed has more of them.
  surplus = {x for x in b.keys() - a.keys() if x.startswith('checkpoint ')}
  names = (a.keys() | b.keys()) - surplus
  return sorted(name for name in names if a.get(name) != b.get(name))


def contents(workdir) -> dict:
  """Name -> what is compared, of all that a finished run is."""
  found = {
    'files': {x.name for x in workdir.iterdir()},
    'metrics.jsonl': numbers(workdir / 'metrics.jsonl'),
    'summary.json': json.loads((workdir / 'summary.json').read_text()),
  }
  del found['summary.json']['seconds']
  for name in ('config.json', 'tokenizer.model', 'completions.jsonl'):
    found[name] = (workdir / name).read_bytes()
  if (workdir / 'alarms.jsonl').exists():
    found['alarms.jsonl'] = (workdir / 'alarms.jsonl').read_bytes()
  for path in (workdir / 'evaluations').iterdir():
    found[f'evaluations/{path.name}'] = path.read_bytes()
  with ocp.CheckpointManager(workdir / 'checkpoints') as manager:
    for step in manager.all_steps():
      state = manager.restore(step, args=ocp.args.PyTreeRestore())
      leaves = jax.tree.leaves_with_path(state)
      found['newest'] = step, len(leaves)
      for path, x in leaves:
        name = f'checkpoint {step}{jax.tree_util.keystr(path)}'
        found[name] = x.dtype, x.shape, np.asarray(x).tobytes()
  return found


def numbers(path) -> list[dict]:
  """metrics.jsonl, with the names of the times but not the times."""
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: None if k.startswith('time/') else v for k, v in row.items()}
    for row in rows
  ]


def test_a_run_goes_on_from_the_checkpoint_before_one_that_is_cut_short(
  whole, tmp_path
):
  workdir = shutil.copytree(whole, tmp_path / 'other')
  (workdir / 'summary.json').unlink()
  (workdir / 'evaluations' / 'after.json').unlink()
  newest = workdir / 'checkpoints' / f'{PRETRAIN + RL}'
  for path in newest.glob('default/**/d/*'):
    os.truncate(path, path.stat().st_size // 2)
  session = Session(workdir)
  session.end()
  [_, one, two, three, *_] = session.said().splitlines()
  assert one.startswith(f'the checkpoint of step {newest.name} cannot be read:')
  assert two == f'it is kept as {newest}.unreadable'
  assert three == f'going on from step {PRETRAIN + RL - 20}'
  assert 'Traceback' not in session.said()
  assert differences(whole, workdir) == []


def test_the_runs_that_are_compared_learn_from_rewards(whole):
  """Or equal weights and moments would say little."""
  rows = numbers(whole / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [*range(1, PRETRAIN + RL + 1)]
  rewards = [row['reward/mean'] for row in rows[PRETRAIN:]]
  assert np.std(rewards) > 0 and rows[-1]['kl/reference'] > 0
  steps = {x.name for x in (whole / 'checkpoints').iterdir()}
  assert {f'{PRETRAIN + RL - 20}', f'{PRETRAIN + RL}'} <= steps
  logged = (whole / 'completions.jsonl').read_text().splitlines()
  some = [i for i in range(PRETRAIN + 1, PRETRAIN + RL + 1) if i % 3 == 0]
  assert len(logged) == len(some) * 2 * 8


# What a resume that is wrong would leave, and whether it is noticed.


def double_last_line(path):
  path.write_text(path.read_text() + path.read_text().splitlines()[-1] + '\n')


def lose_last_line(path):
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))


def change_digit(path, after):
  """The first one after the last such word."""
  text = path.read_text()
  i = re.compile(r'\d').search(text, text.rindex(after)).start()
  path.write_text(f'{text[:i]}{9 - int(text[i])}{text[i + 1 :]}')


def flip_bit(path, leaf):
  """The lowest of the last number in such a leaf of the newest checkpoint."""
  with ocp.CheckpointManager(path) as manager:
    step = manager.latest_step()
    state = manager.restore(step, args=ocp.args.PyTreeRestore())
  leaves = {
    jax.tree_util.keystr(key, simple=True, separator='/'): np.array(x)
    for key, x in jax.tree.leaves_with_path(state)
  }
  name = next(name for name in leaves if re.search(leaf, name))
  x = leaves[name].reshape(-1)
  x.view(np.uint8)[-x.itemsize] ^= 1
  state = jax.tree.unflatten(jax.tree.structure(state), leaves.values())
  shutil.rmtree(path / str(step))
  with ocp.CheckpointManager(path) as manager:
    manager.save(step, args=ocp.args.StandardSave(state))


@pytest.mark.parametrize(
  'name, doctor, arguments, noticed',
  [
    ('metrics.jsonl', double_last_line, (), 'metrics.jsonl'),
    ('metrics.jsonl', lose_last_line, (), 'metrics.jsonl'),
    ('metrics.jsonl', change_digit, ('"grad_norm"',), 'metrics.jsonl'),
    ('metrics.jsonl', change_digit, ('"time/step"',), None),
    ('completions.jsonl', double_last_line, (), 'completions.jsonl'),
    ('completions.jsonl', lose_last_line, (), 'completions.jsonl'),
    ('completions.jsonl', change_digit, ('"advantage"',), 'completions.jsonl'),
    (
      'evaluations/before.json',
      change_digit,
      ('"correct_NG"',),
      'evaluations/before.json',
    ),
    (
      'evaluations/after.json',
      pathlib.Path.unlink,
      (),
      'evaluations/after.json',
    ),
    ('evaluations/after.json.partial', pathlib.Path.touch, (), 'partial'),
    ('summary.json', change_digit, ('"reward_after"',), 'summary.json'),
    ('summary.json', change_digit, ('"seconds"',), None),
    ('metrics.jsonl.partial', pathlib.Path.touch, (), 'files'),
    (f'checkpoints/{PRETRAIN + RL}', shutil.rmtree, (), 'newest'),
    ('checkpoints', flip_bit, ('^params/',), "['params']"),
    ('checkpoints', flip_bit, ('^opt_state/.*/mu/',), "['mu']"),
    ('checkpoints', flip_bit, ('^opt_state/.*/nu/',), "['nu']"),
    ('checkpoints', flip_bit, ('^opt_state/.*/count',), "['count']"),
    ('checkpoints', flip_bit, ('^reference/',), "['reference']"),
    ('checkpoints', flip_bit, ('^cursor',), "['cursor']"),
  ],
)
def test_what_a_wrong_resume_would_leave_is_noticed(
  name, doctor, arguments, noticed, whole, tmp_path
):
  other = shutil.copytree(whole, tmp_path / 'other')
  assert differences(whole, other) == []
  doctor(other / name, *arguments)
  found = differences(whole, other)
  if noticed:
    assert any(noticed in x for x in found)
  else:
    assert found == []
