"""A sweep does each run once, goes on where it stopped, and compares."""

import json
import signal
import sys
import time

import command
import numpy as np
import pytest

sys.path.append(str(command.ROOT / 'experiments'))
import compare  # noqa: E402


def sweep(workdir, *flags, config='quickstart.py:smoke'):
  return (
    'experiments/sweep.py',
    *('--config', f'configs/{config}'),
    f'--workdir={workdir}',
    *flags,
  )


@pytest.mark.slow
def test_a_sweep_stops_goes_on_and_takes_more_algorithms(tmp_path):
  workdir = tmp_path / 'sweep'
  flags = ['--seeds=0:2', '--config.pretrain.steps=400', '--parallel=2']
  line = sweep(workdir, '--algorithms=grpo,dr_grpo', *flags)
  log = workdir / 'logs' / 'pretrained_0.log'
  with command.start(*line) as process:
    until = time.monotonic() + 300
    while 'pre-training' not in (log.read_text() if log.exists() else ''):
      assert time.monotonic() < until and process.poll() is None
      time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
  assert process.returncode == 1
  assert 'the same command goes on from here' in out
  assert 'Traceback' not in err
  assert 'stopped and saved at step' in log.read_text()

  done = command.run(*line, timeout=900)
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'going on from step' in log.read_text()
  names = {x.name for x in workdir.iterdir()}
  assert {'table.md', 'sweep.json', 'figure.png', 'grpo_1', 'dr_grpo_0'} < names
  assert (workdir / 'figure.png').read_bytes().startswith(b'\x89PNG')
  assert (workdir / 'table.md').read_text() in done.stdout
  found = json.loads((workdir / 'sweep.json').read_text())
  assert list(found) == ['before RL', 'grpo', 'dr_grpo']
  for seed in (0, 1):
    before = [
      json.loads((workdir / f'{name}_{seed}' / 'summary.json').read_text())
      for name in ('pretrained', 'grpo', 'dr_grpo')
    ]
    # The weights are the same, and so is what they are measured to do.
    assert len({x['length_before'] for x in before}) == 1
    asked = json.loads((workdir / f'dr_grpo_{seed}/config.json').read_text())
    assert (asked['seed'], asked['algorithm']) == (seed, 'dr_grpo')

  times = {x: x.stat().st_mtime_ns for x in workdir.glob('*_?/*.json*')}
  more = sweep(workdir, '--algorithms=grpo,opo', *flags)
  done = command.run(*more, timeout=900)
  assert done.returncode == 0, done.stdout + done.stderr
  ran = {x.split(':')[0] for x in done.stdout.splitlines() if 'accuracy ' in x}
  assert {'opo_0', 'opo_1'} <= ran and 'grpo_0' not in ran
  assert times == {x: x.stat().st_mtime_ns for x in times}

  other = sweep(workdir, '--algorithms=grpo', *flags, '--steps=7')
  done = command.run(*other)
  assert done.returncode == 1
  assert 'grpo_0' in done.stderr and 'steps is 2 there' in done.stderr


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_compared(tmp_path):
  workdir = tmp_path / 'sweep'
  (workdir / 'grpo_0').mkdir(parents=True)
  # A folder that looks fine until the run opens it.
  (workdir / 'grpo_0' / 'tokenizer.model').write_text('')
  (workdir / 'grpo_0' / 'data').write_text('a file')
  line = sweep(workdir, '--algorithms=grpo,dr_grpo', '--seeds=0:1')
  done = command.run(*line, timeout=900)
  assert done.returncode == 1
  assert len(done.stderr.strip().splitlines()) == 1
  assert 'grpo_0: not done' in done.stderr and 'logs' in done.stderr
  assert list(json.loads((workdir / 'sweep.json').read_text())) == [
    'before RL',
    'dr_grpo',
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
  'flags,words',
  [
    (['--algorithms=grpo,dappo'], ["'dappo'", 'r1_zero, r1, dapo']),
    (['--algorithms='], ["''", 'r1_zero, r1, dapo']),
    (['--algorithms=grpo,grpo'], ['grpo', 'twice']),
    (['--algorithms=grpo', '--seeds=3:1'], ["'3:1'"]),
    (['--algorithms=grpo', '--seeds=a'], ["'a'", '0:3']),
    (['--algorithms=grpo', '--config.seed=4'], ['--config.seed']),
    (
      ['--algorithms=grpo,sapo', '--config.loss.clip_low=0.1'],
      ['sapo_0', 'loss.clip_low', 'tau_good'],
    ),
  ],
)
def test_bad_input_is_refused_in_one_line_before_anything_runs(
  flags, words, tmp_path
):
  done = command.run(*sweep(tmp_path / 'sweep', *flags))
  assert done.returncode == 1
  assert len(done.stderr.strip().splitlines()) == 1
  for word in words:
    assert word in done.stderr
  assert not (tmp_path / 'sweep').exists()


def run_of(folder, accuracy, seconds):
  """What a finished run leaves, as far as it is compared."""
  folder.mkdir(parents=True)
  summary = {}
  for when, gain in (('before', 0.0), ('after', 0.5)):
    summary |= {
      f'accuracy_{when}': accuracy + gain,
      f'reward_{when}': accuracy + gain + 0.1,
      f'length_{when}': 20.0 + gain,
      f'reasoning_{when}': 0.25,
    }
  (folder / 'summary.json').write_text(json.dumps(summary))
  rows = [{'loss': 1.0, 'time/step': 99.0}]  # Of pre-training.
  rows += [{'reward/mean': 0.5, 'time/step': x} for x in seconds]
  lines = [json.dumps(row) for row in rows]
  (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


@pytest.fixture
def groups(tmp_path):
  accuracies = {'worse': (0.1, 0.2, 0.3), 'better': (0.3, 0.3, 0.45)}
  return {
    name: [
      run_of(tmp_path / f'{name}_{seed}', x, [1.0, 2.0, 9.0])
      for seed, x in enumerate(row)
    ]
    for name, row in accuracies.items()
  }


def test_the_interval_is_students_over_the_seeds(groups):
  found = compare.summarize(groups)
  after = found['worse']['accuracy']
  np.testing.assert_allclose(after['values'], [0.6, 0.7, 0.8])
  assert after['mean'] == pytest.approx(0.7)
  # t(0.975, 2) = 4.302653, deviation 0.1, three seeds.
  half = 4.302653 * 0.1 / 3**0.5
  assert after['interval'] == pytest.approx([0.7 - half, 0.7 + half])
  assert found['before RL']['accuracy']['mean'] == pytest.approx(0.2)
  assert found['worse']['seconds_per_step']['mean'] == 2.0


def test_one_seed_has_no_interval(groups):
  found = compare.summarize({'better': groups['better'][:1]})
  assert 'interval' not in found['better']['accuracy']
  assert '(1 seed)' in compare.table(found)


def test_the_table_has_the_best_algorithm_first(groups):
  lines = compare.table(compare.summarize(groups)).splitlines()
  assert [line.split(' | ')[0] for line in lines[2:]] == [
    '| before RL',
    '| better',
    '| worse',
  ]
  # Better: 0.8, 0.8 and 0.95; a share ends at 1.
  assert '85.0% (63.5 to 100.0)' in lines[3]
  assert lines[3].endswith('| 0.950 | 20.5 | 25.0% | 2.00 |')
