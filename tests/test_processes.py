"""Two processes with 4 devices each train as one with 8, also when one dies."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import command
import jax
import numpy as np
import one_answer
import published
import pytest
import restored
import safetensors_written as written

from grpo_jax import process

PRETRAIN, RL, EVERY = 40, 6, 20
FLAGS = [
  '--config.mesh.data=1',
  '--config.mesh.fsdp=8',
  f'--config.pretrain.steps={PRETRAIN}',
  f'--config.steps={RL}',
  f'--config.checkpoint.every={EVERY}',
  # Enough to earn some rewards: gradients and moments of RL are not zero.
  '--config.pretrain.rows=8',
  '--config.pretrain.optim.lr=5e-3',
  '--config.kl.coef=0.04',  # The state holds a reference too.
  '--config.data.knobs.problems=2000',
  '--config.data.prompts=8',
  '--config.log.every=0.0',  # A line a step.
  # In float32 one draw in many thousands falls between the probabilities that
  # two meshes round differently, and its token is another one.
  '--config.model.dtype=float64',
]
# Nothing here depends on what XLA makes faster, and it compiles sooner.
ENV = {
  'COLUMNS': '100',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  'JAX_ENABLE_X64': '1',
}
LOST = (
  'error: another process of this run ended or cannot be reached; the same '
  'command, started on all hosts, goes on from the last checkpoint'
)

pytestmark = pytest.mark.slow


class Pair:
  """Two processes of a run, each with a file for its words."""

  def __init__(self, folder, *script, env=None):
    """`script` gets a coordinator's address and its place for '{where}'."""
    folder.mkdir(exist_ok=True)
    with socket.create_server(('', 0)) as server:
      where = f'localhost:{server.getsockname()[1]}'
    self.files, self.processes = [], []
    for i in range(2):
      files = [folder / f'{name}{i}' for name in ('out', 'err')]
      with files[0].open('w') as out, files[1].open('w') as err:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, 'tests/one_of_many.py']
            + [x.format(where=where, number=i) for x in script],
            cwd=command.ROOT,
            env=os.environ
            | ENV
            | {'JAX_NUM_CPU_DEVICES': '4'}
            | {k: x.format(number=i) for k, x in (env or {}).items()},
            stdout=out,
            stderr=err,
          )
        )
      self.files.append(files)

  def said(self, i: int) -> str:
    return self.files[i][0].read_text()

  def errors(self, i: int) -> str:
    return self.files[i][1].read_text()

  def send(self, i: int, signal_: signal.Signals, after: str) -> None:
    """To one of them, once the lead has said something."""
    end = time.monotonic() + 300
    while after not in self.said(0):
      ended = [x.poll() is not None for x in self.processes]
      if any(ended) or time.monotonic() > end:
        self.kill()
        pytest.fail(self.said(0) + self.errors(0) + self.errors(1))
      time.sleep(0.01)
    self.processes[i].send_signal(signal_)

  def codes(self, timeout: float) -> list[int]:
    """Of their exits; kills them if it takes longer."""
    end = time.monotonic() + timeout
    try:
      return [x.wait(end - time.monotonic()) for x in self.processes]
    finally:
      self.kill()

  def kill(self) -> None:
    for x in self.processes:
      x.kill()
      x.wait()

  def end(self) -> None:
    assert self.codes(300) == [0, 0], self.errors(0) + self.errors(1)


def train(workdir, config='quickstart.py:smoke', flags=(), env=None) -> Pair:
  line = command.train(config, workdir, *FLAGS, *flags)
  others = '--coordinator {where} --processes 2 --process {number}'
  folder = workdir.with_name(f'{workdir.name}.said')
  return Pair(folder, *line, *others.split(), env=env)


def train_alone(workdir, config='quickstart.py:smoke', flags=(), env=None):
  """The same run as one process."""
  line = command.train(config, workdir, *FLAGS, *flags)
  with pytest.MonkeyPatch.context() as patch:
    settings = ENV | {'JAX_NUM_CPU_DEVICES': '8'} | (env or {})
    for name, value in settings.items():
      patch.setenv(name, value)
    done = command.run(*line)
  assert done.returncode == 0, done.stderr


def rows(workdir, name='metrics.jsonl'):
  return [json.loads(x) for x in (workdir / name).read_text().splitlines()]


def numbers(workdir):
  """metrics.jsonl without the times, which differ from run to run."""
  return [
    {k: v for k, v in row.items() if not k.startswith(('time/', 'host/'))}
    for row in rows(workdir)
  ]


def assert_close(run, other):
  for x, y in zip(numbers(run), numbers(other), strict=True):
    assert x.keys() == y.keys()
    for name, value in x.items():
      assert y[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def weights(workdir):
  """The last state, as a list of NumPy arrays."""
  return [np.asarray(x) for x in jax.tree.leaves(restored.load(workdir)[1])]


def assert_equal(run, other):
  """Bit for bit: metrics, completions and the last state."""
  assert numbers(run) == numbers(other)
  assert rows(run, 'completions.jsonl') == rows(other, 'completions.jsonl')
  for x, y in zip(weights(run), weights(other), strict=True):
    assert x.tobytes() == y.tobytes()


def cut(workdir, copy, step):
  """A copy of a finished run that has come to a step."""
  shutil.copytree(workdir, copy)
  (copy / 'summary.json').unlink()
  (copy / 'evaluations' / 'after.json').unlink()
  for path in (copy / 'checkpoints').iterdir():
    if int(path.name) > step:
      shutil.rmtree(path)
  return copy


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of two processes, and what they said."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  pair = train(workdir)
  pair.end()
  return workdir, pair


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The same run as one process."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  train_alone(workdir)
  return workdir


def test_two_processes_train_as_one_does(whole, alone):
  assert_close(alone, whole[0])
  rl = rows(alone)[PRETRAIN:]
  assert len(rl) == RL
  assert max(row['grad_norm'] for row in rl) > 0.05
  assert max(row['reward/mean'] for row in rl) > 0


def test_two_processes_share_what_the_host_scores(tmp_path):
  # 16 prompts in two pieces, of which each process scores a half, and a last
  # batch of the evaluation that is half padding.
  settings = {
    'config': '../tests/hosted.py:smoke',
    'flags': [
      '--config.data.prompts=16',
      '--config.steps=2',
      '--config.eval.problems=12',
      '--config.eval.batch=8',
    ],
    'env': {'PYTHONPATH': str(command.ROOT / 'tests')},
  }
  one, two = tmp_path / 'one', tmp_path / 'two'
  train(two, **settings).end()
  train_alone(one, **settings)
  assert_close(one, two)
  for row, expected in zip(rows(two), rows(one), strict=True):
    for name in ('host/raised', 'host/hung', 'host/died'):
      assert row.get(name) == expected.get(name)
  rl = rows(two)[PRETRAIN:]
  assert all(row['reward/short'] < 0 < row['host/raised'] for row in rl)
  assert all(row['reward/short_unscored'] == 0 for row in rl)
  failed, expected = (
    sorted((x['step'], x['kind'], x['text']) for x in rows(y, 'failures.jsonl'))
    for y in (two, one)
  )
  assert failed == expected and len(failed) > 2


def test_the_lead_alone_writes_logs_and_speaks(whole, alone):
  workdir, pair = whole
  assert pair.said(1) == pair.errors(0) == pair.errors(1) == ''
  for line in ('2 processes, 8 devices', f'RL: {RL}/{RL}', 'Held-out problems'):
    assert pair.said(0).count(line) == 1
  assert 'Gloo' not in pair.said(0)
  assert [x['step'] for x in rows(workdir)] == [*range(1, PRETRAIN + RL + 1)]
  assert len(rows(workdir, 'completions.jsonl')) == len(
    rows(alone, 'completions.jsonl')
  )
  assert len(list((workdir / 'tensorboard').iterdir())) == 1
  names = {x.name for x in alone.iterdir()}
  assert {x.name for x in workdir.iterdir()} == names
  names = {x.name for x in (workdir / 'evaluations').iterdir()}
  assert names == {'before.json', 'after.json'}


def test_each_process_writes_its_part_of_a_checkpoint(whole):
  checkpoints = list((whole[0] / 'checkpoints').iterdir())
  assert {x.name for x in checkpoints} == {str(PRETRAIN), str(PRETRAIN + RL)}
  # Weights, two moments and, in RL, the reference, in float32.
  state = sum(x.nbytes for x in weights(whole[0]))
  for path in checkpoints:
    # At the least a half of its half: numbers are compressed. At the most is
    # not said, because an index is written anew while data come in.
    least = state / 4 * (1 if path.name == str(PRETRAIN + RL) else 3 / 4)
    for i in range(2):
      folder = path / 'default' / f'ocdbt.process_{i}' / 'd'
      sizes = [x.stat().st_size for x in folder.iterdir()]
      assert sum(sizes) > least


@pytest.mark.parametrize(
  'mesh, devices',
  [
    ({'data': 1, 'fsdp': 8, 'tensor': 1}, 8),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, 8),
    ({'data': 1, 'fsdp': 1, 'tensor': 1}, 1),
  ],
  ids=['fsdp 8', 'data 2 fsdp 2 tensor 2', 'one device'],
)
def test_one_process_restores_what_two_wrote(whole, mesh, devices):
  assert restored.check(whole[0], mesh, jax.devices()[:devices])


@pytest.mark.parametrize('sizes', ['fsdp=8', 'data=2,fsdp=2,tensor=2'])
def test_two_processes_restore_what_one_wrote(alone, sizes, tmp_path):
  mesh = f'data=1,fsdp=1,tensor=1,{sizes}'
  script = ['tests/restored.py', str(alone), mesh, '{where}', '2', '{number}']
  Pair(tmp_path / 'said', *script).end()


def test_two_processes_go_on_where_one_was(alone, whole, tmp_path):
  run = cut(alone, tmp_path / 'run', PRETRAIN)
  pair = train(run)
  pair.end()
  assert f'going on from step {PRETRAIN}\n' in pair.said(0)
  assert 'pre-training: ' not in pair.said(0)
  assert_close(whole[0], run)


@pytest.fixture(scope='module')
def interrupted(whole, tmp_path_factory):
  """A run whose processes are killed and stopped, one of them at a time."""
  run = tmp_path_factory.mktemp('interrupted') / 'run'
  cut(whole[0], run, PRETRAIN)
  found = {}
  for name, i, number, after in (
    ('the lead killed', 0, signal.SIGKILL, '\nRL: 1/'),
    ('the other killed', 1, signal.SIGKILL, '\nRL: 1/'),
    ('the other stopped', 1, signal.SIGTERM, '\nRL: 2/'),
    ('the end', None, None, None),
  ):
    pair = train(run)
    if number:
      pair.send(i, number, after)
    begun = time.monotonic()
    codes = pair.codes(120)
    seconds = time.monotonic() - begun
    survivor = '' if i is None else pair.errors(1 - i)
    found[name] = codes, seconds, pair.said(0), survivor
  return run, found


@pytest.mark.parametrize('killed', [0, 1])
def test_when_a_process_is_killed_the_other_ends_and_says_what_to_do(
  killed, interrupted
):
  name = ('the lead killed', 'the other killed')[killed]
  codes, seconds, said, errors = interrupted[1][name]
  assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 1
  assert seconds < 60
  assert f'going on from step {PRETRAIN}' in said
  assert errors.splitlines()[-1] == LOST


def test_a_signal_to_one_process_saves_and_stops_both(interrupted):
  codes, _, said, errors = interrupted[1]['the other stopped']
  assert codes == [0, 0] and errors == ''
  step = int(said.split('stopped and saved at step ')[1].split(':')[0])
  assert PRETRAIN + 2 < step < PRETRAIN + RL
  assert f'going on from step {step}\n' in interrupted[1]['the end'][2]


def test_a_run_that_was_interrupted_ends_as_if_nothing_had_happened(
  whole, interrupted
):
  assert interrupted[1]['the end'][0] == [0, 0]
  assert_equal(interrupted[0], whole[0])


def test_a_part_that_one_process_cannot_read_is_read_by_none(whole, tmp_path):
  run = cut(whole[0], tmp_path / 'run', PRETRAIN + RL)
  newest = run / 'checkpoints' / str(PRETRAIN + RL)
  parts = (newest / 'default' / 'ocdbt.process_1' / 'd').iterdir()
  os.truncate(max(parts, key=lambda x: x.stat().st_size), 100)
  pair = train(run)
  pair.end()
  assert 'another process could not read it' in pair.said(0)
  assert f'going on from step {PRETRAIN}\n' in pair.said(0)
  assert newest.with_name(f'{newest.name}.unreadable').exists()
  assert_equal(run, whole[0])


def test_two_processes_sample_on_and_draw_as_one_does(tmp_path):
  flags = ['--config.dynamic.batches=2', '--config.curriculum.name=middle']
  train(tmp_path / 'pair', flags=flags).end()
  train_alone(tmp_path / 'alone', flags=flags)
  assert_close(tmp_path / 'alone', tmp_path / 'pair')
  rl = rows(tmp_path / 'alone')[PRETRAIN:]
  assert max(row['groups/batches'] for row in rl) == 2
  assert rl[-1]['curriculum/visited'] > 0


def test_each_process_reads_and_encodes_the_rows_of_its_devices(tmp_path):
  # Two pieces of eight rows: each process has four of either.
  script = tmp_path / 'own.py'
  script.write_text(
    'import sys\n'
    'import numpy as np\n'
    'from grpo_jax import build, process, sharding, train\n'
    'sys.path.insert(0, "tests")\n'
    'import hosted\n'
    'where, number = sys.argv.pop(), int(sys.argv.pop())\n'
    'process.join(where, 2, number)\n'
    'c = hosted.get_config("smoke")\n'
    'c.data.prompts, c.pretrain.steps = 16, 0\n'
    'run = build.build(c, sys.argv.pop())\n'
    'rows_P = build.train_rows(run, 3 * 16)\n'
    'part, examples = build.own_batch(run, rows_P)\n'
    'own = [i for i, x in enumerate(examples) if x is not None]\n'
    'first = 4 * number\n'
    'assert own == [*range(first, first + 4), *range(first + 8, first + 12)]\n'
    'whole = build.train_batch(run, 3)\n'
    'for name in ("tokens_PL", "lengths_P", "ids_P", "answers_PC"):\n'
    '  a, b = getattr(part, name), getattr(whole, name)\n'
    '  np.testing.assert_array_equal(a[own], b[own])\n'
    '  assert a.shape == b.shape and not a[first - 4].any()\n'
  )
  arguments = [str(tmp_path / 'run'), '{number}', '{where}']
  Pair(tmp_path / 'said', str(script), *arguments).end()


def test_each_process_reads_its_own_part_of_the_weights(tmp_path):
  golden = published.FOLDER / 'models' / 'llama_untied'
  shapes = {name: x.shape for name, x in written.read(golden).items()}
  rng = np.random.default_rng(0)
  folder = written.write_folder(
    tmp_path / 'hub',
    json.loads((golden / 'config.json').read_text()),
    {name: rng.standard_normal(shape) for name, shape in shapes.items()},
    dtype='BF16',
    files=3,
  )
  script = ['tests/load_counted.py', str(folder), '{where}', '{number}']
  pair = Pair(tmp_path / 'said', *script)
  pair.end()
  counts = [json.loads(pair.said(i).splitlines()[-1]) for i in range(2)]
  print(counts)
  for count in counts:  # A half, and the scales of norms, which all have.
    assert count['held'] / 2 <= count['asked'] < 0.52 * count['held']


def test_two_processes_evaluate_as_one_does(tmp_path):
  policy, data = one_answer.write(tmp_path / 'hub'), tmp_path / 'math.jsonl'
  # Every second is right; two batches of 8, the last half padding.
  answers = ('25', '50', '5^2', 'x', '\\frac{50}{2}', '7') * 2
  rows = [
    {'problem': f'Problem {i}', 'solution': f'So \\boxed{{{answer}}}.'}
    for i, answer in enumerate(answers)
  ]
  data.write_text('\n'.join(map(json.dumps, rows)))

  def line(out):
    return [
      *('experiments/evaluate.py', '--model', str(policy)),
      *('--data', f'math:path={data}', '--samples', '3', '--batch', '8'),
      *('--max-tokens', '16', '--json', str(tmp_path / out)),
      *('--set', "reward={{'maths': 1.0}}", 'eval.right=maths'),
    ]

  others = '--coordinator {where} --processes 2 --process {number}'
  pair = Pair(tmp_path / 'said', *line('two'), *others.split())
  pair.end()
  with pytest.MonkeyPatch.context() as patch:
    for name, value in (ENV | {'JAX_NUM_CPU_DEVICES': '8'}).items():
      patch.setenv(name, value)
    done = command.run(*(x.format() for x in line('one')))
  assert done.returncode == 0, done.stderr
  one, two = (
    json.loads((tmp_path / name).read_text())['policies']
    for name in ('one', 'two')
  )
  assert one == two
  scores = two[str(policy)]['scores']
  assert scores['pass@1']['mean'] == pytest.approx(6 / 12)
  assert scores['unscored']['mean'] == 0
  assert pair.said(1) == pair.errors(0) == pair.errors(1) == ''
  assert pair.said(0).count('pass@1') == 1


def test_an_error_of_one_process_ends_all_at_once(tmp_path):
  script = tmp_path / 'fail.py'
  script.write_text(
    'import sys\n'
    'from grpo_jax import command, process\n'
    'where, number = sys.argv.pop(), int(sys.argv.pop())\n'
    'def main():\n'
    '  process.join(where, 2, number)\n'
    '  process.wait("joined")\n'  # Before it, the other might still be joining.
    '  if process.is_lead():\n'
    '    raise OSError("no space")\n'
    '  process.wait("never")\n'
    'command.run(main)\n'
  )
  begun = time.monotonic()
  pair = Pair(tmp_path / 'said', str(script), '{number}', '{where}')
  assert pair.codes(120) == [1, 1]
  assert time.monotonic() - begun < process._SHUTDOWN
  assert pair.errors(0).splitlines()[-1] == 'OSError: no space'
  assert pair.errors(1).splitlines()[-1] == LOST


@pytest.mark.parametrize(
  'arguments, words',
  [
    ((None, 2, None), 'give all three'),
    (('localhost:1', 2, None), 'give all three'),
    (('localhost', 2, 0), "coordinator='localhost' is not host:port"),
    (('localhost:70000', 2, 0), "'localhost:70000' is not host:port"),
    (('localhost:7000', 2, 5), 'process=5 is not one of 0 to 1'),
    (('localhost:7000', 2, -1), 'process=-1 is not one of 0 to 1'),
  ],
)
def test_arguments_that_do_not_fit_together_are_refused(arguments, words):
  with pytest.raises(ValueError, match=words) as error:
    process.join(*arguments)
  assert '\n' not in str(error.value)


def test_a_port_in_use_is_refused():
  with socket.create_server(('', 0)) as server:
    where = f'localhost:{server.getsockname()[1]}'
    with pytest.raises(ValueError, match=f'{where}: Address already in use'):
      process.join(where, 2, 0)


def test_where_nobody_answers_one_line_says_so():
  with socket.create_server(('', 0)) as server:
    where = f'localhost:{server.getsockname()[1]}'
  code = 'from grpo_jax import process; process._JOIN = 1; '
  done = command.run('-c', f'{code}process.join({where!r}, 2, 1)')
  line = f'error: {where}: not all processes came within 1 seconds\n'
  assert (done.returncode, done.stderr) == (1, line)


def test_flags_that_do_not_fit_together_give_one_line(tmp_path):
  line = command.train('quickstart.py:smoke', tmp_path, '--processes=2')
  done = command.run(*line)
  assert done.returncode == 1
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


@pytest.fixture
def script(tmp_path, monkeypatch):
  """Joins whom it finds and tells; no cluster is there but a test's own."""
  for name in [*os.environ]:
    if name.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_')):
      monkeypatch.delenv(name)
  path = tmp_path / 'join.py'
  path.write_text(
    'import jax\n'
    'from grpo_jax import process\n'
    'process.join()\n'
    'print(jax.distributed.is_initialized(), end=" ")\n'
    'print(jax.process_index(), jax.process_count(), process.is_lead())\n'
    'assert bool(process._handlers[1:]) == (jax.process_count() > 1)\n'
  )
  return str(path)


def slurm(tasks: int, number: str) -> dict[str, str]:
  """What it sets for a task, all of them on one machine."""
  return {
    'SLURM_JOB_ID': str(free_job()),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(tasks),
    'SLURM_PROCID': number,
    'SLURM_LOCALID': number,
  }


def test_slurm_says_which_processes_there_are(script, tmp_path):
  pair = Pair(tmp_path / 'said', script, env=slurm(2, '{number}'))
  pair.end()
  assert pair.said(0) == 'True 0 2 True\n'
  assert pair.said(1) == 'True 1 2 False\n'


def free_job() -> int:
  """JAX makes a port of the number of the job."""
  while True:
    job = random.randrange(2**12)
    with contextlib.suppress(OSError):
      socket.create_server(('', 2**16 - 2**12 + job)).close()
      return job


def test_without_a_cluster_there_is_one_process(script):
  done = command.run(script)
  assert (done.stdout, done.stderr) == ('False 0 1 True\n', '')


def test_a_cluster_of_one_process_changes_nothing(script, monkeypatch):
  for name, value in slurm(1, '0').items():
    monkeypatch.setenv(name, value)
  done = command.run(script)
  assert (done.stdout, done.stderr) == ('True 0 1 True\n', '')
