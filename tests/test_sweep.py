"""A sweep does each run once, goes on where it stopped, and compares."""

import json
import pathlib
import signal
import sys
import time

import command
import numpy as np
import pytest

sys.path.append(str(command.ROOT / 'experiments'))
sys.path.append(str(command.ROOT / 'configs'))
import compare  # noqa: E402
import plot  # noqa: E402
import quickstart  # noqa: E402
import sweep as the_sweep  # noqa: E402


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
  flags = ['--seeds=0:2', '--config.pretrain.steps=3000', '--parallel=2']
  flags.append('--config.log.every=0.1')
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
  assert found['seeds'] == [0, 1]
  assert list(found['settings']) == ['grpo', 'dr_grpo']
  assert list(found['differences']) == ['dr_grpo']
  for seed in (0, 1):
    before = [
      json.loads((workdir / f'{name}_{seed}' / 'summary.json').read_text())
      for name in ('pretrained', 'grpo', 'dr_grpo')
    ]
    # The weights are the same, and so is what they are measured to do, which
    # is the end of pre-training and the start of the others.
    lengths = [x.get('length_before', x['length_after']) for x in before]
    assert len({*lengths}) == 1
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
  found = json.loads((workdir / 'sweep.json').read_text())
  assert list(found['settings']) == ['dr_grpo'] and not found['differences']


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
    (['--set=optim.lr=1', '--config.optim.lr=4'], ['--config.optim.lr']),
    (['--set=steps=1,2', '--steps=3'], ['--steps', 'give one of them']),
    (['--set=loss.nmae=gspo'], ["no key 'nmae'", "did you mean 'name'"]),
    (['--set=loss.name=ppo_clip,gspoo'], ["'gspoo'", 'loss.name=gspoo_0']),
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


@pytest.mark.slow
def test_a_setting_that_changes_pre_training_has_its_own(tmp_path):
  workdir = tmp_path / 'sweep'
  flags = ['--set=pretrain.steps=0,4', '--set=optim.lr=1e-2', '--seeds=3']
  done = command.run(*sweep(workdir, *flags, '--parallel=2'), timeout=900)
  assert done.returncode == 0, done.stdout + done.stderr
  names = [f'pretrain.steps={steps},optim.lr=1e-2' for steps in (0, 4)]
  first = 'pretrained,pretrain.steps=4_3'
  ran = {x.parent.name for x in workdir.glob('*/summary.json')}
  assert ran == {first, *(f'{name}_3' for name in names)}
  asked = [
    json.loads((workdir / f'{name}_3' / 'config.json').read_text())
    for name in names
  ]
  inits = [x['model']['init'] for x in asked]
  assert inits == ['', str(workdir / first / 'checkpoints' / '4')]
  assert [(x['optim']['lr'], x['seed']) for x in asked] == [(1e-2, 3)] * 2
  # The weights are those that were pre-trained, and do the same.
  before = [
    json.loads((workdir / name / 'evaluations' / f'{when}.json').read_text())
    for name, when in (
      (first, 'after'),
      (f'{names[1]}_3', 'before'),
      (f'{names[0]}_3', 'before'),
    )
  ]
  assert before[0]['texts'] == before[1]['texts'] != before[2]['texts']
  found = json.loads((workdir / 'sweep.json').read_text())
  assert list(found['settings']) == names and found['seeds'] == [3]
  assert 'One seed: no intervals' in done.stdout
  assert (workdir / 'figure.png').read_bytes().startswith(b'\x89PNG')


def smoke():
  return quickstart.get_config('smoke').lock()


def planned(*words, seeds=(0, 1)):
  named = the_sweep.settings(the_sweep.parse(smoke(), words))
  return the_sweep.plan(smoke(), pathlib.Path('w'), named, list(seeds))


def test_all_combinations_are_run_on_every_seed():
  _, runs = planned('loss.clip_high=0.2,0.28', 'algorithm=grpo,dapo')
  assert {name: [run.name for run in some] for name, some in runs.items()} == {
    name: [f'{name}_0', f'{name}_1']
    for name in (
      'loss.clip_high=0.2,grpo',
      'loss.clip_high=0.2,dapo',
      'loss.clip_high=0.28,grpo',
      'loss.clip_high=0.28,dapo',
    )
  }
  for name, some in runs.items():
    for seed, run in enumerate(some):
      asked = run.values
      assert asked['loss.clip_high'] in name and asked['algorithm'] in name
      assert asked['seed'] == str(seed)


def test_without_a_setting_the_config_itself_is_run():
  pretrained, runs = planned()
  assert [run.name for run in runs['config']] == ['config_0', 'config_1']
  assert [run.name for run in pretrained] == ['pretrained_0', 'pretrained_1']


@pytest.mark.parametrize(
  'words, expected',
  [
    (['loss.name=ppo_clip,gspo', 'data.prompts=2,4'], ['pretrained']),
    (['reference.every=0,2', 'updates.passes=1,2'], ['pretrained']),
    (
      ['model.variant=tiny,quickstart', 'optim.lr=1e-3,1e-4'],
      ['pretrained,model.variant=tiny', 'pretrained,model.variant=quickstart'],
    ),
    (
      ['data.heldout=0.05,0.1'],
      ['pretrained,data.heldout=0.05', 'pretrained,data.heldout=0.1'],
    ),
    (['pretrain.steps=0,7'], ['pretrained,pretrain.steps=7']),
    # Nobody has thought of it: the safe way.
    (['mesh.fsdp=1'], ['pretrained,mesh.fsdp=1']),
  ],
)
def test_pre_training_is_shared_where_it_is_the_same(words, expected):
  pretrained, runs = planned(*words, seeds=[5])
  assert [run.name for run in pretrained] == [f'{x}_5' for x in expected]
  for name, (run,) in runs.items():
    steps = 7 if 'steps=7' in name else 0 if 'steps=0' in name else 4
    if steps:
      own = run.values['model.init'].split('/')[1]
      assert run.values['model.init'] == f'w/{own}/checkpoints/{steps}'
      assert run.values['tokenizer.path'] == f'w/{own}/tokenizer.model'
      assert run.values['pretrain.steps'] == '0'
      changes = own.removesuffix('_5').split(',')[1:]
      assert own in [x.name for x in pretrained]
      assert all(change in name for change in changes)
    else:
      assert 'model.init' not in run.values


@pytest.mark.parametrize(
  'text, parts',
  [
    ('a', ['a']),
    ('1e-4,3e-4', ['1e-4', '3e-4']),
    ("('q','v'),('q',)", ["('q','v')", "('q',)"]),
    ("{'a': [1, 2], 'b': 3},{}", ["{'a': [1, 2], 'b': 3}", '{}']),
    (r'one\, two,three', ['one, two', 'three']),
    (r'\boxed{},:),a', [r'\boxed{}', ':)', 'a']),
    (',a', ['', 'a']),
  ],
)
def test_values_are_divided_at_commas_outside_brackets(text, parts):
  assert the_sweep.divide(text) == parts


def test_values_are_read_as_on_a_command_line():
  (run, *_), *_ = planned("lora.targets=('q','v')", 'lora.rank=2')[1].values()
  before = smoke()
  c, values = the_sweep.command.changed(before, run.values)
  assert c.lora.targets == ('q', 'v') and c.lora.rank == 2
  assert values['seed'] == 0 and c.is_locked
  assert before.lora.rank == 0


def test_names_are_safe_for_files_and_tell_settings_apart():
  long = 'x' * 200
  words = [
    "reward={'answer': 1.0},{'answer': 2.0}",
    rf'data.template=r1_zero,../{{question}},..\\{{question}},{long}',
  ]
  _, runs = planned(*words, seeds=[0])
  names = [run.name for (run,) in runs.values()]
  assert len(set(names)) == 8
  for name in names:
    assert the_sweep.re.fullmatch(r'[A-Za-z0-9_.,=+-]{1,120}', name), name
    assert name.startswith('reward=')


@pytest.mark.parametrize(
  'words, error',
  [
    (['los.name=a'], "no key 'los' in config: did you mean 'loss'?"),
    (['loss.nam=a,b'], "no key 'nam' in config.loss: did you mean 'name'?"),
    (['optim.lr=1e-4,abc'], "optim.lr=abc: could not convert .* 'abc'"),
    (['optim.lr=1e-4,0.0001'], 'optim.lr: 0.0001 is there twice'),
    (['optim.lr=1e-4', 'optim.lr=1'], 'optim.lr is set twice'),
    (['optim.lr'], '--set optim.lr: it is not like'),
    (['seed=1,2'], '--seeds'),
    (['algorithm=grpo,dappo'], "'dappo' is not one of grpo, r1_zero"),
  ],
)
def test_a_setting_that_cannot_be_is_refused(words, error):
  with pytest.raises(ValueError, match=error) as e:
    the_sweep.parse(smoke(), words)
  assert '\n' not in str(e.value)


def run_of(folder, seed, accuracy, seconds):
  """What a finished run leaves, as far as it is compared."""
  folder.mkdir(parents=True)
  summary = {'seed': seed, 'seconds': 100.0 + seed}
  for when, gain in (('before', 0.0), ('after', 0.5)):
    summary |= {
      f'accuracy_{when}': accuracy + gain,
      f'reward_{when}': accuracy + gain + 0.1,
      f'length_{when}': 20.0 + gain,
      f'reasoning_{when}': 0.25,
    }
  summary |= {'accuracy_gain': 0.5, 'reward_gain': 0.5}
  (folder / 'summary.json').write_text(json.dumps(summary))
  rows = [{'loss': 1.0, 'time/step': 99.0}]  # Of pre-training.
  rows += [
    {
      'reward/mean': accuracy + step / 10,
      'reward/answer': accuracy,
      'reward/format': 0.5,
      'rollout/length': 20.0 + seed**2,
      'time/step': x,
    }
    for step, x in enumerate(seconds)
  ]
  lines = [json.dumps(row) for row in rows]
  (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  asked = {'eval': {'right': 'answer', 'reasoned': 'format'}}
  (folder / 'config.json').write_text(json.dumps(asked))
  return folder


@pytest.fixture
def groups(tmp_path):
  accuracies = {
    'worse': (0.1, 0.25, 0.3, 0.2, 0.1),
    'better': (0.3, 0.4, 0.45, 0.3, 0.35),
  }
  return {
    name: [
      run_of(tmp_path / f'{name}_{seed}', seed, x, [1.0, 2.0, 9.0])
      for seed, x in enumerate(row)
    ]
    for name, row in accuracies.items()
  }


def interval(values):
  """A loop: the middle 95 of 100 means of resamples."""
  rng, means = np.random.default_rng(0), []
  for _ in range(10_000):
    drawn = [values[rng.integers(len(values))] for _ in values]
    means.append(sum(drawn) / len(drawn))
  means.sort()
  return means[250], means[-251]


def test_intervals_are_of_resampled_seeds(groups):
  found = compare.summarize(groups)
  assert found['seeds'] == [0, 1, 2, 3, 4]
  after = found['settings']['worse']['accuracy_after']
  values = [0.6, 0.75, 0.8, 0.7, 0.6]
  np.testing.assert_allclose(after['values'], values)
  assert after['mean'] == pytest.approx(0.69)
  # Other dice: means of five lie 0.01 apart at the ends.
  np.testing.assert_allclose(after['interval'], interval(values), atol=0.011)
  row = found['settings']['worse']
  assert row['accuracy_before']['mean'] == pytest.approx(0.19)
  assert row['seconds_per_step']['mean'] == 2.0
  assert row['seconds']['mean'] == 102.0


def test_differences_are_paired_by_seed_in_any_order(groups):
  groups['better'].reverse()
  found = compare.summarize(groups)['differences']
  assert list(found) == ['better']
  values = [0.2, 0.15, 0.15, 0.1, 0.25]
  score = found['better']['accuracy_after']
  np.testing.assert_allclose(score['values'], values)
  np.testing.assert_allclose(score['interval'], interval(values), atol=0.011)
  assert found['better']['accuracy_gain']['interval'] == [0, 0]


def test_groups_of_other_seeds_are_refused(groups):
  groups['better'].pop()
  with pytest.raises(ValueError, match=r'better has the seeds \[0, 1, 2, 3\]'):
    compare.summarize(groups)


def test_one_seed_has_no_interval_and_it_is_said(groups):
  some = {name: runs[:1] for name, runs in groups.items()}
  found = compare.summarize(some)
  assert 'interval' not in found['settings']['better']['accuracy_after']
  assert 'interval' not in found['differences']['better']['accuracy_after']
  text = compare.table(found)
  assert ' to ' not in text and 'One seed: no intervals' in text


@pytest.mark.parametrize('seeds', [2, 3])
def test_the_interval_of_few_seeds_is_their_range_and_it_is_said(groups, seeds):
  found = compare.summarize({'worse': groups['worse'][:seeds]})
  score = found['settings']['worse']['accuracy_after']
  ends = min(score['values']), max(score['values'])
  assert score['interval'] == pytest.approx(ends)
  text = compare.table(found)
  assert f'Means over {seeds} seeds' in text
  assert 'from the lowest to the highest, and too narrow.' in text


def test_the_table_has_the_best_setting_first(groups):
  lines = compare.table(compare.summarize(groups)).splitlines()
  starts = [line.split(' | ')[0] for line in lines if line.startswith('| ')]
  assert starts == [
    *('| setting', '| ---', '| better', '| worse'),
    *('| less worse, seed by seed', '| ---', '| better'),
  ]
  cells = lines[2].strip('| ').split(' | ')
  assert cells[1].startswith('36.0% (3') and cells[2].startswith('86.0% (8')
  assert cells[3] == '+50.0% (+50.0% to +50.0%)'
  assert cells[4].startswith('0.960 (') and cells[5] == '20.5 (20.5 to 20.5)'
  assert (
    cells[6] == '25.0% (25.0% to 25.0%)' and cells[7] == '2.00 (2.00 to 2.00)'
  )
  assert lines[7].startswith('| better | +17.0% (+13.0% to +22.0%) | +17.0%')
  assert lines[-1].startswith('Means over 5 seeds') and 'narrow' in lines[-1]


def test_what_nobody_could_score_has_no_mean(groups):
  path = groups['better'][0] / 'summary.json'
  summary = json.loads(path.read_text()) | {'reward_after': None}
  path.write_text(json.dumps(summary))
  found = compare.summarize(groups)
  json.dumps(found, allow_nan=False)
  assert compare.table(found).splitlines()[2].split(' | ')[4] == '-'


def test_the_band_is_the_interval_at_each_step(monkeypatch):
  values_RS = np.random.default_rng(1).normal(size=(4, 7))
  low_S, high_S = plot.band(values_RS)
  for s in range(7):
    expected = the_sweep.compare.metrics.bootstrap(values_RS[:, s])
    np.testing.assert_allclose((low_S[s], high_S[s]), expected)
  monkeypatch.setattr(plot, '_COLUMNS', 3)
  np.testing.assert_array_equal(plot.band(values_RS), (low_S, high_S))


def test_the_figure_has_a_band_where_there_are_seeds(groups):
  figure = plot.draw_groups(groups, 'note')
  for axis in figure.axes:
    assert len(axis.collections) == 2 and len(axis.lines) == 2
  assert figure._suptitle.get_text().endswith('bootstrap interval over seeds')
  # Lengths of seeds are 20, 21, 24, 29 and 36 at every step.
  ends = figure.axes[3].collections[0].get_paths()[0].vertices[:, 1]
  expected = interval([20.0, 21.0, 24.0, 29.0, 36.0])
  np.testing.assert_allclose((ends.min(), ends.max()), expected, atol=0.4)
  figure = plot.draw_groups({'better': groups['better'][:1]})
  assert not any(axis.collections for axis in figure.axes)
  assert 'band' not in figure._suptitle.get_text()
