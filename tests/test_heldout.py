"""Held-out problems in the middle of training: metrics of their steps."""

import json
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from grpo_jax import checkpoint, config, evaluate, fit

sys.path.append('configs')
import quickstart  # noqa: E402

BEGIN, STEPS, EVERY = 60, 7, 3
EVALUATED = [BEGIN + 3, BEGIN + 6, BEGIN + 7]  # The last step is one of them.

# Orbax warns that it places arrays as they were saved, which is wanted.
pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


def make_config(**changes):
  c = quickstart.get_config('smoke')
  c.update_from_flattened_dict(
    {
      'model.unroll': False,
      'mesh.data': 1,
      'mesh.fsdp': 8,
      'data.prompts': 8,
      'pretrain.steps': BEGIN,
      'pretrain.rows': 8,
      'pretrain.optim.lr': 1e-2,
      'steps': STEPS,
      'optim.lr': 1e-2,
      'eval.every': EVERY,
      'eval.problems': 24,
      'eval.batch': 24,
      'checkpoint.every': 1000,
      'checkpoint.keep': 1,
      'checkpoint.best': 'eval/reward',
    }
    | changes
  )
  return c


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('heldout') / 'run'
  fit.fit(make_config(), str(workdir))
  return workdir


def lines(workdir):
  """metrics.jsonl by step, without the times."""
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {
    row['step']: {k: v for k, v in row.items() if not k.startswith('time/')}
    for row in rows
  }


def states(workdir):
  with ocp.CheckpointManager(workdir / 'checkpoints') as manager:
    return {
      step: jax.tree.map(
        np.asarray, manager.restore(step, args=ocp.args.PyTreeRestore())
      )
      for step in manager.all_steps()
    }


def test_evaluated_steps_have_the_metrics_and_others_do_not(whole):
  for step, row in lines(whole).items():
    found = {name for name in row if name.startswith('eval/')}
    assert found == (set(evaluate.METRICS) if step in EVALUATED else set())


def test_the_last_step_is_evaluated_once_and_is_what_the_summary_says(whole):
  summary = json.loads((whole / 'summary.json').read_text())
  row = lines(whole)[BEGIN + STEPS]
  for name in ('accuracy', 'reasoning', 'reward', 'length', 'truncated'):
    assert row[f'eval/{name}'] == pytest.approx(summary[f'{name}_after'])
  assert 0 < row['eval/reward'] < 1.1  # Something was earned.


def test_the_checkpoint_that_does_best_on_them_stays(whole):
  rows = lines(whole)
  scores = {step: rows[step]['eval/reward'] for step in EVALUATED}
  assert len(set(scores.values())) == 3
  best = max(scores, key=scores.get)
  assert set(states(whole)) == {best, BEGIN + STEPS}
  told = whole / f'checkpoints/{best}/metrics/metrics'
  assert json.loads(told.read_text()) == {'eval/reward': scores[best]}


def test_evaluations_change_nothing_that_is_learnt(whole, tmp_path):
  changes = {'eval.every': 0, 'checkpoint.best': ''}
  fit.fit(make_config(**changes), str(tmp_path / 'run'))
  plain = lines(tmp_path / 'run')
  for step, row in lines(whole).items():
    kept = {k: v for k, v in row.items() if not k.startswith('eval/')}
    assert kept == plain[step]
  last = BEGIN + STEPS
  jax.tree.map(
    np.testing.assert_array_equal,
    states(whole)[last],
    states(tmp_path / 'run')[last],
  )


@pytest.mark.parametrize(
  'moment, step', [('evaluated', BEGIN + 6), ('written', BEGIN + 7)]
)
def test_a_run_killed_between_evaluation_and_save_ends_the_same(
  whole, tmp_path, monkeypatch, moment, step
):
  class Killed(BaseException):
    pass

  workdir, save, record = tmp_path / 'run', checkpoint.save, fit._record

  def killed_save(manager, state, score):
    if int(state.step) == step:
      manager.wait_until_finished()
      raise Killed
    save(manager, state, score)

  def killed_record(s, at, *news):
    if at == step:
      s.manager.wait_until_finished()
      raise Killed
    return record(s, at, *news)

  with monkeypatch.context() as patch:
    if moment == 'written':
      patch.setattr(checkpoint, 'save', killed_save)
    else:
      patch.setattr(fit, '_record', killed_record)
    with pytest.raises(Killed):
      fit.fit(make_config(), str(workdir))
  assert max(states(workdir)) == EVALUATED[EVALUATED.index(step) - 1]
  fit.fit(make_config(), str(workdir))
  assert lines(workdir) == lines(whole)
  ours, theirs = states(workdir), states(whole)
  assert set(ours) >= set(theirs)
  for at, state in theirs.items():
    jax.tree.map(np.testing.assert_array_equal, ours[at], state)
  for name in ('before', 'after'):
    path = f'evaluations/{name}.json'
    assert (workdir / path).read_bytes() == (whole / path).read_bytes()


def test_a_metric_of_evaluations_that_never_happen_is_refused(tmp_path):
  c = make_config(**{'eval.every': 0})
  with pytest.raises(ValueError, match="best='eval/reward' is not a metric"):
    fit.fit(c, str(tmp_path / 'run'))


@pytest.mark.parametrize(
  'name, value',
  [('every', -1), ('temperature', -0.1), ('top_p', 0.0), ('top_p', 1.1)],
)
def test_what_an_evaluation_cannot_do_is_refused(name, value):
  c = make_config(**{f'eval.{name}': value})
  with pytest.raises(ValueError, match=f'eval.{name}'):
    config.check(c)
