"""Whole runs, as processes: what they print, what they leave, how they stop."""

import json
import signal
from unittest import mock

import command
import jax
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp
import pytest

from grpo_jax import fit, process

SMOKE = 'quickstart.py:smoke'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A :smoke run of the quickstart."""
  workdir = tmp_path_factory.mktemp('run') / 'quickstart'
  done = command.run(*command.train(SMOKE, workdir))
  assert done.returncode == 0, done.stderr
  return workdir, done


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(workdir):
  """metrics.jsonl without the times, which differ from run to run."""
  return [
    {k: v for k, v in row.items() if not k.startswith('time/')}
    for row in rows(workdir / 'metrics.jsonl')
  ]


def last_state(workdir):
  manager = ocp.CheckpointManager(workdir / 'checkpoints')
  state = manager.restore(manager.latest_step(), args=ocp.args.PyTreeRestore())
  manager.close()
  return jax.tree.map(np.asarray, state)


def assert_equal_states(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_leaves_what_readme_promises(finished):
  workdir, _ = finished
  assert {x.name for x in workdir.iterdir()} == {
    'checkpoints',
    'completions.jsonl',
    'config.json',
    'data',
    'evaluations',
    'metrics.jsonl',
    'summary.json',
    'tensorboard',
    'tokenizer.model',
  }
  assert list((workdir / 'tensorboard').glob('events*'))
  assert json.loads((workdir / 'config.json').read_text())['seed'] == 0


def test_every_step_has_one_line_of_metrics(finished):
  lines = rows(finished[0] / 'metrics.jsonl')
  assert [row['step'] for row in lines] == [1, 2, 3, 4, 5, 6]
  keys = {'reward/mean', 'reward/answer', 'reward/format', 'rollout/length'}
  keys |= {'rollout/truncated', 'rollout/logp_drift', 'groups/degenerate'}
  keys |= {'loss', 'grad_norm', 'time/step', 'time/tokens_per_second'}
  for row in lines[4:]:
    assert keys <= row.keys()
    assert row['rollout/logp_drift'] < 1e-5


def test_the_summary_compares_before_and_after(finished):
  summary = json.loads((finished[0] / 'summary.json').read_text())
  for name in ('accuracy', 'reasoning', 'length'):
    for when in ('before', 'after'):
      assert np.isfinite(summary[f'{name}_{when}'])
  assert summary['seed'] == 0 and summary['seconds'] > 0


def test_logged_completions_carry_scores_and_advantages(finished):
  lines = rows(finished[0] / 'completions.jsonl')
  # 2 steps of 2 prompts with 8 completions each.
  assert len(lines) == 2 * 2 * 8
  for row in lines:
    assert row['prompt'].startswith('Start at')
    total = row['reward_parts']['answer'] + 0.1 * row['reward_parts']['format']
    assert row['reward'] == pytest.approx(total)
    assert np.isfinite(row['advantage'])


def test_without_a_terminal_a_run_prints_plain_lines(finished):
  out = finished[1].stdout
  steps = ('problems: 500/500', 'compile: ', 'pre-training: 4/4', 'RL: 2/2')
  for line in steps:
    assert f'\n{line}' in f'\n{out}'
  assert 'Held-out problems' in out
  assert out.count('Start at') == 3  # Three completions at the end.
  assert '\x1b' not in out
  assert finished[1].stderr == ''


def test_its_curves_can_be_drawn(finished, tmp_path):
  out = tmp_path / 'curve.png'
  done = command.run('experiments/plot.py', '--out', str(out), str(finished[0]))
  assert done.returncode == 0, done.stderr
  assert out.read_bytes().startswith(b'\x89PNG')


def test_a_finished_run_is_left_alone(finished):
  workdir, _ = finished
  before = {x: x.stat().st_mtime_ns for x in workdir.glob('*.jsonl')}
  done = command.run(*command.train(SMOKE, workdir))
  assert done.returncode == 0
  assert 'nothing is left to do' in done.stdout
  assert {x: x.stat().st_mtime_ns for x in workdir.glob('*.jsonl')} == before


def test_a_profile_holds_the_operations_of_the_last_of_few_steps(tmp_path):
  flags = ('--profile', '--config.steps=1', '--config.pretrain.steps=2')
  done = command.run(*command.train(SMOKE, tmp_path / 'run', *flags))
  assert done.returncode == 0, done.stderr
  (path,) = (tmp_path / 'run' / 'profile').glob('**/*.xplane.pb')
  planes = jax.profiler.ProfileData.from_file(str(path)).planes
  events = {e.name for p in planes for line in p.lines for e in line.events}
  assert any('jit(iterate)' in name or 'dot' in name for name in events)


def test_three_programs_compute_what_one_does(finished, tmp_path):
  apart = tmp_path / 'apart'
  done = command.run(*command.train(SMOKE, apart, '--config.fuse=False'))
  assert done.returncode == 0, done.stderr
  for one, three in zip(numbers(finished[0]), numbers(apart), strict=True):
    assert one.keys() == three.keys()
    for name, value in one.items():
      assert three[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
  timed = rows(apart / 'metrics.jsonl')[-1]
  parts = [timed[f'time/{x}'] for x in ('rollout', 'reward', 'update')]
  assert timed['time/step'] == pytest.approx(sum(parts))


# Orbax warns that it places arrays as they were saved, which is what is wanted.
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
@pytest.mark.parametrize(
  'name, after', [('SIGTERM', 'RL: '), ('SIGINT', 'pre-training: ')]
)
def test_a_stopped_run_goes_on_with_the_same_command(tmp_path, name, after):
  flags = ['--config.steps=30', '--config.pretrain.steps=60']
  flags += ['--config.log.every=0.0', '--config.checkpoint.every=1000']
  whole = command.train(SMOKE, tmp_path / 'whole', *flags)
  parts = command.train(SMOKE, tmp_path / 'parts', *flags)
  assert command.run(*whole).returncode == 0

  with command.start(*parts) as process:
    for line in process.stdout:
      if line.startswith(after):
        process.send_signal(getattr(signal, name))
        break
    out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert 'stopped and saved at step' in out
  assert 'Held-out' not in out
  assert not (tmp_path / 'parts' / 'summary.json').exists()

  done = command.run(*parts)
  assert done.returncode == 0, done.stderr
  assert 'going on from step' in done.stdout
  assert numbers(tmp_path / 'parts') == numbers(tmp_path / 'whole')
  assert_equal_states(
    last_state(tmp_path / 'parts'), last_state(tmp_path / 'whole')
  )


def test_a_run_without_finite_gradients_stops_and_leaves_its_batch(tmp_path):
  flags = ['--config.optim.lr=1e38', '--config.updates.max_skipped=2']
  flags += ['--config.optim.clip_norm=0', '--config.steps=6']
  done = command.run(*command.train(SMOKE, tmp_path / 'run', *flags))
  assert done.returncode == 1
  line = done.stderr.splitlines()[-1]
  assert line.startswith('error: step ') and 'updates.max_skipped' in line
  (path,) = (tmp_path / 'run').glob('not_finite_*.npz')
  assert str(path) in line
  batch = np.load(path)
  assert {'tokens_PGT', 'logps_PGT', 'prompts.tokens_PL'} <= {*batch}
  assert batch['total_PG'].shape == (2, 8)


def test_an_unknown_metric_is_refused_before_anything_trains(tmp_path):
  workdir = tmp_path / 'run'
  flag = '--config.checkpoint.best=reward/men'
  done = command.run(*command.train(SMOKE, workdir, flag))
  assert done.returncode == 1
  [line] = done.stderr.splitlines()
  assert line.startswith("error: checkpoint.best='reward/men' is not a metric")
  assert 'reward/mean' in line
  # With the right name the workdir will do: it has no config yet.
  assert {x.name for x in workdir.iterdir()} == {'data', 'tokenizer.model'}


def test_a_run_says_that_it_ended_when_its_last_checkpoint_is_there(
  monkeypatch,
):
  events = []

  class Manager:
    def wait_until_finished(self):
      events.append('saved')

  monkeypatch.setattr(fit, '_evaluate', lambda *args: None)
  monkeypatch.setattr(
    fit, '_conclude', lambda *args: events.append('concluded')
  )
  monkeypatch.setattr(
    fit.progress, 'say', lambda line: events.append(line.split(' at ')[0])
  )
  steps = ConfigDict(
    {
      'steps': 3,
      'pretrain': {'steps': 4},
      'eval': {'every': 0},
      'model': {'init': ''},
    }
  )
  session = mock.MagicMock(manager=Manager(), stop=process.Stop())
  session.run.config = steps
  state = mock.MagicMock(step=7)
  fit._carry_out(session, state)
  assert events == ['saved', 'concluded']

  events.clear()
  monkeypatch.setattr(fit, 'loop', lambda *args: (state, True))
  fit._carry_out(session, state)
  assert events == ['saved', 'stopped and saved']
