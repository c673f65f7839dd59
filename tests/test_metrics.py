"""What is written of a step, against NumPy and against the files."""

import json
import math

from etils import epath
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import metrics, types

P, G, T = 4, 3, 5


@pytest.fixture
def workdir(tmp_path):
  return epath.Path(tmp_path)


def lines_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def rollout(seed=0):
  rng = np.random.default_rng(seed)
  lengths_PG = rng.integers(1, T + 1, (P, G))
  return types.Rollout(
    prompts=None,
    tokens_PGT=jnp.zeros((P, G, T), jnp.int32),
    lengths_PG=jnp.asarray(lengths_PG),
    ended_PG=jnp.asarray(rng.random((P, G)) > 0.3),
    logps_PGT=jnp.asarray(rng.normal(-1, 0.3, (P, G, T))),
    actions_PGT=jnp.asarray(np.arange(T) < lengths_PG[..., None]),
  )


def rewards(total_PG, **parts):
  return types.Rewards(
    jnp.asarray(total_PG, jnp.float32),
    {name: jnp.asarray(x, jnp.float32) for name, x in parts.items()},
  )


def test_a_batch_is_described_as_numpy_does():
  rng = np.random.default_rng(1)
  total_PG = rng.normal(size=(P, G))
  total_PG[0] = 0.25  # Equal.
  total_PG[1, 0] = np.nan
  total_PG[2] = np.nan, 3.0, 3.0  # Equal where scored.
  part_PG = rng.choice([0.0, 1.0, np.nan], size=(P, G), p=[0.2, 0.3, 0.5])
  part_PG[:, 0] = 1.0
  batch = rollout()
  found = metrics.describe(batch, rewards(total_PG, answer=part_PG))

  actions = np.asarray(batch.actions_PGT)
  low_P, high_P = np.nanmin(part_PG, axis=1), np.nanmax(part_PG, axis=1)
  expected = {
    'reward/mean': np.nanmean(total_PG),
    'reward/std': np.nanstd(total_PG),
    'reward/unscored': 2 / (P * G),
    'groups/degenerate': 2 / P,
    'reward/answer': np.nanmean(part_PG),
    'reward/answer_std': np.nanstd(part_PG),
    'reward/answer_unscored': np.mean(np.isnan(part_PG)),
    'groups/degenerate_answer': np.mean(~(low_P < high_P)),
    'rollout/length': np.mean(batch.lengths_PG),
    'rollout/length_max': np.max(batch.lengths_PG),
    'rollout/truncated': np.mean(~np.asarray(batch.ended_PG)),
    'rollout/entropy': -np.asarray(batch.logps_PGT)[actions].mean(),
  }
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_a_batch_that_nobody_could_score_is_all_degenerate_and_finite():
  unscored_PG = np.full((P, G), np.nan)
  found = metrics.describe(rollout(), rewards(unscored_PG, answer=unscored_PG))
  assert found['groups/degenerate'] == 1 and found['reward/unscored'] == 1
  assert found['reward/mean'] == 0 and found['reward/answer'] == 0


def test_a_masked_mean_ignores_what_is_masked_whatever_it_is():
  x = jnp.array([1.0, np.nan, 3.0, np.inf])
  assert metrics.masked_mean(x, jnp.array([True, False, True, False])) == 2
  assert metrics.masked_mean(x, jnp.zeros(4, bool)) == 0


def test_every_step_is_a_line_with_its_times(workdir):
  writer = metrics.Writer(workdir, step=0, begun=0.0)
  returned = writer.step(1, {'loss': jnp.float32(0.5)})
  writer.step(2, {'loss': jnp.float32(0.25)})
  writer.close()
  first, second = lines_of(workdir / 'metrics.jsonl')
  assert (first['step'], first['loss']) == (1, 0.5)
  assert (second['step'], second['loss']) == (2, 0.25)
  assert returned['loss'] == 0.5
  assert first['time/step'] > 0
  assert second['time/elapsed'] > first['time/elapsed']
  assert any((workdir / 'tensorboard').iterdir())


def test_tokens_per_second_are_of_the_completions(workdir):
  writer = metrics.Writer(workdir, step=0, begun=0.0)
  parts = {'time/rollout': 1.5, 'time/update': 0.5}
  batch = rollout()
  length = float(jnp.mean(batch.lengths_PG.astype(jnp.float32)))
  found = writer.step(1, {'rollout/length': length} | parts, batch)
  writer.close()
  assert found['time/step'] == 2
  tokens = int(np.sum(batch.lengths_PG))
  assert found['time/tokens_per_second'] == pytest.approx(tokens / 2)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.filterwarnings('ignore:NaN or Inf found:RuntimeWarning')
def test_a_number_that_is_not_finite_is_written_as_null(bad, workdir):
  writer = metrics.Writer(workdir, step=0, begun=0.0)
  writer.step(1, {'loss': jnp.float32(bad), 'grad_norm': jnp.float32(1)})
  writer.close()
  [line] = (workdir / 'metrics.jsonl').read_text().splitlines()
  row = json.loads(line, parse_constant=pytest.fail)
  assert row['loss'] is None and row['grad_norm'] == 1


def test_lines_after_the_step_to_go_on_from_are_cut(workdir):
  writer = metrics.Writer(workdir, step=0, begun=0.0)
  for step in (1, 2, 3, 4):
    writer.step(step, {'loss': jnp.float32(step)})
    writer.completions([{'step': step, 'text': '√ é'}, {'step': step}])
  writer.close()
  for name in ('metrics', 'completions'):  # And the run was killed.
    with (workdir / f'{name}.jsonl').open('a') as file:
      file.write('{"step": 5, "text": "hal')

  again = metrics.Writer(workdir, step=2, begun=0.0)
  again.step(3, {'loss': jnp.float32(30)})
  again.completions([{'step': 3, 'text': 'new'}])
  again.close()
  rows = lines_of(workdir / 'metrics.jsonl')
  assert [(row['step'], row['loss']) for row in rows] == [
    (1, 1),
    (2, 2),
    (3, 30),
  ]
  rows = lines_of(workdir / 'completions.jsonl')
  assert [row['step'] for row in rows] == [1, 1, 2, 2, 3]
  assert rows[0]['text'] == '√ é' and rows[-1]['text'] == 'new'


def test_a_cut_that_is_interrupted_leaves_the_whole_file(workdir, monkeypatch):
  path = workdir / 'completions.jsonl'
  text = '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
  path.write_text(text)

  def killed(self, target):
    assert target == path and self != path
    assert self.read_text() == '{"step": 1}\n'  # All that would have stayed.
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(type(path), 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
      metrics.Writer(workdir, step=1, begun=0.0)
  assert path.read_text() == text
  metrics.Writer(workdir, step=2, begun=0.0).close()
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
  assert not list(workdir.glob('*.partial'))


def test_whatever_a_model_writes_survives_a_cut(workdir):
  # Line breaks to Python's splitlines(), but not to JSON.
  texts = ['a\u2028b', 'a\u2029b', 'a\x85b', 'a\x0bb\x0cc\x1cd', 'a\r\nb\n']
  texts += ['\x00', '\ufffd', '"\\', '√ 😀', '']
  writer = metrics.Writer(workdir, step=0, begun=0.0)
  writer.completions([{'step': 1, 'text': x} for x in texts])
  writer.completions([{'step': 2, 'text': 'of a step that was lost'}])
  writer.close()
  before = (workdir / 'completions.jsonl').read_bytes()
  metrics.Writer(workdir, step=1, begun=0.0).close()
  after = (workdir / 'completions.jsonl').read_bytes()
  assert before.startswith(after)
  rows = [json.loads(line) for line in after.split(b'\n')[:-1]]
  assert [row['text'] for row in rows] == texts


def test_numbers_survive_a_cut_to_the_last_bit(workdir):
  rng = np.random.default_rng(0)
  writer = metrics.Writer(workdir, step=0, begun=0.0)
  for step in (1, 2):
    values = rng.normal(size=50) * 10.0 ** rng.integers(-30, 30, 50)
    numbers = {f'x/{i}': jnp.float32(x) for i, x in enumerate(values)}
    writer.step(step, numbers)
  writer.close()
  before = (workdir / 'metrics.jsonl').read_bytes()
  metrics.Writer(workdir, step=2, begun=0.0).close()
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_the_time_of_all_sessions_is_added_up(workdir):
  line = {'step': 7, 'time/elapsed': 1000.0}
  (workdir / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  now = metrics.time.monotonic()
  writer = metrics.Writer(workdir, step=7, begun=now)
  assert 1000 <= writer.elapsed() < 1010
  writer.close()
  writer = metrics.Writer(workdir, step=0, begun=now)
  assert writer.elapsed() < 10
  writer.close()


@pytest.mark.parametrize('cut', ['', '{"step": 1', '\n', '{"step": 1}\n\n'])
def test_a_file_with_nothing_whole_in_it_is_no_obstacle(cut, workdir):
  (workdir / 'completions.jsonl').write_text(cut)
  writer = metrics.Writer(workdir, step=3, begun=0.0)
  writer.completions([{'step': 4}])
  writer.close()
  assert lines_of(workdir / 'completions.jsonl')[-1] == {'step': 4}


def test_the_interval_covers_the_mean_and_shrinks_with_more_scores():
  rng = np.random.default_rng(0)
  covered, widths = 0, {}
  for N in (30, 480):
    widths[N] = []
    for _ in range(50):
      low, high = metrics.bootstrap(rng.normal(2.0, 1.0, N), resamples=200)
      covered += low < 2.0 < high
      widths[N].append(high - low)
  assert 88 <= covered <= 100  # 95 expected of 100.
  # Four times as narrow with 16 times the scores, and 3.92 deviations wide.
  small, large = np.mean(widths[30]), np.mean(widths[480])
  assert small / large == pytest.approx(4, rel=0.1)
  assert large == pytest.approx(3.92 / 480**0.5, rel=0.1)


def test_the_interval_is_the_same_each_time():
  scores_N = np.arange(20.0)
  assert metrics.bootstrap(scores_N) == metrics.bootstrap(scores_N)
  assert metrics.bootstrap(np.ones(9)) == (1.0, 1.0)


@pytest.mark.parametrize(
  'N, share', [(2, 0.5), (3, 0.75), (5, 0.84), (10, 0.9)]
)
def test_the_interval_of_few_scores_is_too_narrow(N, share):
  """As its docstring says; of two and three it is their range."""
  scores_NX = np.random.default_rng(N).normal(size=(N, 4000))
  low_X, high_X = metrics.bootstrap(scores_NX, resamples=1000)
  covered = np.mean((low_X <= 0) & (0 <= high_X))
  assert covered == pytest.approx(share, abs=0.02)
  if N < 4:
    np.testing.assert_allclose(low_X, scores_NX.min(axis=0))
    np.testing.assert_allclose(high_X, scores_NX.max(axis=0))


def test_intervals_of_many_means_are_those_of_each():
  scores_NX = np.random.default_rng(0).normal(size=(6, 3))
  low_X, high_X = metrics.bootstrap(scores_NX)
  for x in range(3):
    expected = metrics.bootstrap(scores_NX[:, x])
    np.testing.assert_allclose((low_X[x], high_X[x]), expected, rtol=1e-12)
