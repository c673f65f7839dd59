"""Runs that train a reward model, and RL that asks what they trained."""

import json

import few_steps
import jax
import numpy as np
import orbax.checkpoint as ocp
import preferences
import pytest

from grpo_jax import (
  build,
  checkpoint,
  config,
  fit_preference,
  process,
  sharding,
  train,
)

# Orbax warns that it places arrays as they were saved, which is wanted.
pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('preference')


@pytest.fixture(scope='module')
def whole(folder):
  """The workdir of a run that nobody stopped."""
  workdir = folder / 'whole'
  assert fit_preference.fit(preferences.make_config(folder), str(workdir))
  return workdir


def lines(workdir):
  """metrics.jsonl without the times."""
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [
    {k: v for k, v in row.items() if not k.startswith('time/')} for row in rows
  ]


def last_state(workdir):
  manager = ocp.CheckpointManager(workdir / 'checkpoints')
  state = manager.restore(manager.latest_step(), args=ocp.args.PyTreeRestore())
  manager.close()
  return jax.tree.map(np.asarray, state)


def test_a_simple_preference_is_learnt(whole):
  summary = json.loads((whole / 'summary.json').read_text())
  assert summary['pair_accuracy_before'] < 0.8
  assert summary['pair_accuracy_after'] > 0.95
  assert summary['pair_lead_after'] > 1
  assert summary['heldout_pairs'] > 100
  assert summary['heldout_pairs'] + summary['train_pairs'] == 600


def test_every_step_has_a_line(whole):
  found = lines(whole)
  steps = [row['step'] for row in found]
  assert steps == [*range(1, preferences.STEPS + 1)]
  names = {'loss', 'grad_norm', 'preference/accuracy', 'preference/lead'}
  assert all(names <= row.keys() for row in found)
  assert found[-1]['loss'] < 0.2 < 0.5 < found[0]['loss']


def test_a_finished_run_is_left_as_it_is(whole, folder):
  summary = json.loads((whole / 'summary.json').read_text())
  again = fit_preference.fit(preferences.make_config(folder), str(whole))
  assert again == summary


class StopLater(process.Stop):
  """Is asked to stop when it is looked at for the n-th time."""

  def __init__(self, looks):
    super().__init__()
    self.looks = looks

  def __bool__(self):
    self.looks -= 1
    return self.looks < 0


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
  whole, folder, monkeypatch, capsys
):
  workdir, c = folder / 'stopped', preferences.make_config(folder)
  with monkeypatch.context() as patch:
    patch.setattr(process, 'Stop', lambda: StopLater(13))
    assert fit_preference.fit(c, str(workdir)) is None
  assert len(lines(workdir)) == 14
  assert not (workdir / 'summary.json').exists()
  assert 'stopped and saved at step 14' in capsys.readouterr().out
  later = StopLater(1000)
  with monkeypatch.context() as patch:
    patch.setattr(process, 'Stop', lambda: later)
    assert fit_preference.fit(c, str(workdir))
  assert 'going on from step 14' in capsys.readouterr().out
  assert 1000 - later.looks <= preferences.STEPS - 14 + 1  # One a step.
  assert lines(workdir) == lines(whole)
  jax.tree.map(
    np.testing.assert_array_equal, last_state(workdir), last_state(whole)
  )
  found, expected = (
    json.loads((x / 'summary.json').read_text()) | {'seconds': 0}
    for x in (workdir, whole)
  )
  assert found == expected
  with pytest.raises(ValueError, match='preference.steps is 40 there and 50'):
    fit_preference.fit(
      preferences.make_config(folder, **{'preference.steps': 50}), str(workdir)
    )


@pytest.mark.parametrize('fsdp', [1, 8])
def test_a_step_on_eight_devices_equals_that_on_one(folder, tmp_path, fsdp):
  found = []
  for devices, cut in ((8, fsdp), (1, 1)):
    c = preferences.make_config(folder, **{'mesh.fsdp': cut})
    run = build.build(c, str(tmp_path / str(devices)), jax.devices()[:devices])
    pairs = fit_preference._read(run)['train']
    batch = fit_preference._batch(run, pairs, 0)
    with jax.set_mesh(run.mesh):
      steps = train.compile_preference(run, batch)
      state = steps.start()
      declared = build.preference(run).template
      assert jax.tree.all(
        jax.tree.map(
          lambda x, t: x.sharding.is_equivalent_to(t.sharding, x.ndim),
          state,
          declared,
        )
      )
      state, numbers = steps.update(state, batch)
      found.append(jax.device_get((state, numbers)))
  (state, numbers), (expected, expected_numbers) = found
  for name, value in expected_numbers.items():
    assert float(numbers[name]) == pytest.approx(float(value), abs=1e-5), name
  # A tenth of the gradient; the step itself of a weight without one is noise.
  moments, expected = (x.opt_state[1][0].mu for x in (state, expected))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), moments, expected
  )


def asking(whole, **changes):
  """RL whose reward is the model that the run trained."""
  c = few_steps.make_config(
    **{'eval.right': 'reward_model', 'eval.reasoned': 'reward_model'} | changes
  )
  c.reward = {'reward_model': {'init': str(whole)}}
  c.tokenizer.path = str(whole / 'tokenizer.model')
  config.check(c)
  return c


@pytest.fixture(scope='module')
def learning(whole, folder):
  """The run, and the news of a few RL steps."""
  run = build.build(asking(whole), str(folder / 'learning'))
  rows, news = sharding.batch_sharding(run.mesh), []
  whole = sharding.replicated(run.mesh)
  with jax.set_mesh(run.mesh):
    p = train.compile_programs(run, ['start_rl', 'iterate'])
    state = p['start_rl'](train.start(run))
    key = jax.jit(jax.random.key, out_shardings=whole)(0)
    text = train.put_text(run)
    for step in range(12):
      prompts = sharding.put(build.train_batch(run, step), rows)
      state, new = p['iterate'](state, prompts, text, key)
      news.append(train.News(*jax.device_get(new)))
  return run, news


def test_rl_raises_what_the_reward_model_says(learning):
  """Not what it was taught: so small a model likes other texts as well."""
  _, news = learning
  means = [x.rewards.total_PG.mean() for x in news]
  assert np.mean(means[-3:]) > np.mean(means[:3]) + 1, means


def test_the_fused_iteration_scores_as_the_trained_model_does(learning, whole):
  run, news = learning
  params = last_state(whole)['params']
  rolled, scores, *_ = news[-1]
  run_on_host = run.text.scorers['reward_model'].score
  expected_PG = jax.jit(run_on_host)(params, rolled)
  np.testing.assert_allclose(
    scores.parts['reward_model'], expected_PG, atol=1e-4
  )


def test_weights_of_a_reward_model_are_arguments_and_stay_in_parts(
  whole, tmp_path
):
  c = asking(whole, **{'mesh.data': 1, 'mesh.fsdp': 8})
  run = build.build(c, str(tmp_path / 'run'))
  scorer = run.text.scorers['reward_model']
  assert scorer.params['embed'].sharding.shard_shape((64, 32)) == (64, 4)
  assert set(scorer.params) == {'embed', 'layers', 'final_norm', 'score'}
  *_, text, _ = train.programs(run)['iterate'].arguments
  places = jax.tree.map(lambda x: x.sharding, text.scorers)
  assert places == jax.tree.map(lambda x: x.sharding, run.text.scorers)


def test_what_is_no_reward_model_for_this_policy_is_refused(
  whole, folder, tmp_path
):
  def refused(words, error=ValueError, **part):
    c = asking(whole)
    c.tokenizer.path = tokenizer
    c.reward = {'reward_model': part}
    with pytest.raises(error, match=words) as e:
      build.build(c, str(tmp_path / str(len(words))))
    assert '\n' not in str(e.value)

  tokenizer = str(whole / 'tokenizer.model')
  refused("reward.reward_model.init='' must be the workdir of a run")
  refused('there is no .*config.json', FileNotFoundError, init=str(folder))
  c = few_steps.make_config(**{'tokenizer.vocab_size': 50})
  other = build.build(c, str(tmp_path / 'other'))
  policy = str(other.workdir)
  refused('has no checkpoints', FileNotFoundError, init=policy)
  manager = checkpoint.open_manager(other.workdir / 'checkpoints', 1)
  checkpoint.save(manager, train.start(other))
  manager.close()
  refused(r"'score' is not there, \[32\] expected", init=policy)
  tokenizer = str(other.workdir / 'tokenizer.model')
  refused("which are not the policy's: tokenizer.path=", init=str(whole))
