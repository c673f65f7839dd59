"""A recipe: its stages take each other's weights and words."""

import json
import signal
import time
from types import SimpleNamespace

import command
from flax import traverse_util
import jax
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_recipe

from grpo_jax import build, initial, pipeline, process, rejection, train

# Orbax warns that it places arrays as they were saved, which is wanted.
pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """A recipe that was carried out without an interruption."""
  workdir = tmp_path_factory.mktemp('recipe') / 'r'
  return workdir, pipeline.carry_out(small_recipe.get_config(), str(workdir))


def weights(workdir, name):
  folder = workdir / name
  c = pipeline.configure(small_recipe.get_config(), name, str(workdir))
  c.model.init, c.tokenizer.path = str(folder), initial.tokenizer(str(folder))
  c.pretrain.steps = 0
  c.pretrain.files = ()
  run = build.build(c, str(workdir.parent / f'look_{workdir.name}_{name}'))
  return np.concatenate(
    [np.ravel(x) for _, x in sorted(_flat(train.start(run).params).items())]
  )


def state(workdir):
  """Everything in the last checkpoint of a run."""
  manager = ocp.CheckpointManager(workdir / 'checkpoints')
  found = manager.restore(manager.latest_step(), args=ocp.args.PyTreeRestore())
  manager.close()
  leaves = jax.tree_util.tree_flatten_with_path(found)[0]
  return {jax.tree_util.keystr(k): np.asarray(x) for k, x in leaves}


def _flat(params):
  return traverse_util.flatten_dict(params, sep='/')


@pytest.mark.slow
def test_stages_begin_with_the_weights_of_earlier_ones(done):
  workdir, summaries = done
  assert list(summaries) == [*small_recipe.get_config().order]
  base, zero, cold = (weights(workdir, x) for x in ('base', 'zero', 'cold'))
  assert 0 < np.abs(zero - base).max() < 1e-3  # One step of Adam at 1e-5.
  assert 0 < np.abs(cold - base).max() < 0.1  # Three steps of fine-tuning.
  assert np.abs(cold - zero).max() > 0


@pytest.mark.slow
def test_an_evaluation_finds_what_the_stage_itself_found(done):
  workdir, _ = done
  found = [
    json.loads((workdir / name / 'evaluations' / 'after.json').read_text())
    for name in ('cold', 'again')
  ]
  assert found[0] == found[1]
  summary = json.loads((workdir / 'again' / 'summary.json').read_text())
  assert 'accuracy_after' in summary and 'accuracy_before' not in summary


@pytest.mark.slow
def test_the_table_has_every_policy_on_the_same_problems(done):
  workdir, _ = done
  rows = json.loads((workdir / 'table.json').read_text())
  names = ['base', 'zero', 'cold', 'student', 'taught']
  assert [row['stage'] for row in rows] == names
  assert rows[2]['what'] == 'sft of base on said'
  found = [
    json.loads(
      (workdir / 'table' / x / 'evaluations' / 'after.json').read_text()
    )
    for x in names
  ]
  assert len({tuple(e['prompts']) for e in found}) == 1
  for row, e in zip(rows, found, strict=True):
    assert row['parts']['truncated'] == np.mean(e['parts']['truncated'])
    assert row['length'] == np.mean(e['lengths_NG'])
  # The stage itself found the same, on the same problems with the same dice.
  own = workdir / 'cold' / 'evaluations' / 'after.json'
  assert json.loads(own.read_text())['texts'] == found[2]['texts']


def test_what_was_looked_at_can_be_a_start(tmp_path):
  c = small_recipe.tiny()
  published = pipeline.but(c, model__init='/published/w.gguf')
  r = pipeline.recipe(
    seen=pipeline.stage('evaluate', published),
    zero=pipeline.stage('grpo', c, 'seen'),
    again=pipeline.stage('evaluate', c, 'zero'),
    more=pipeline.stage('distill', c, 'again', teacher='seen'),
  )
  zero, more = (pipeline.configure(r, x, tmp_path) for x in ('zero', 'more'))
  assert zero.model.init == zero.tokenizer.path == '/published/w.gguf'
  assert more.model.init == str(tmp_path / 'zero')
  assert more.tokenizer.path == more.reference.init == '/published/w.gguf'


@pytest.mark.slow
def test_a_published_policy_is_in_the_table(done, tmp_path):
  workdir, _ = done
  c = small_recipe.tiny()
  zero = str(workdir / 'zero')
  own = {'model__init': zero, 'tokenizer__path': initial.tokenizer(zero)}
  published = pipeline.but(c, **own)
  r = pipeline.recipe(
    table=c,
    seen=pipeline.stage('evaluate', published),
    again=pipeline.stage('evaluate', c, 'seen'),  # The same weights once more.
  )
  pipeline.carry_out(r, str(tmp_path / 'r'))
  [row] = json.loads((tmp_path / 'r' / 'table.json').read_text())
  assert (row['stage'], row['what']) == ('seen', f'evaluate of {zero}')
  own = json.loads((workdir / 'table.json').read_text())[1]
  assert own['stage'] == 'zero'
  assert row | {'stage': 0, 'what': 0} == own | {'stage': 0, 'what': 0}


@pytest.mark.slow
def test_a_student_comes_near_to_its_teacher_in_what_it_writes(done):
  workdir, _ = done
  lines = (workdir / 'taught' / 'metrics.jsonl').read_text().splitlines()
  kl = [row['kl/reference'] for row in map(json.loads, lines)]
  print(kl)
  assert len(kl) == 24 and np.mean(kl[:2]) > 0.1
  assert np.mean(kl[-4:]) < 0.75 * np.mean(kl[:2])


@pytest.mark.slow
def test_samples_are_kept_by_bounds_best_first_and_once(done):
  workdir, summaries = done
  rows = [
    json.loads(line)
    for line in (workdir / 'said' / rejection.FILE).read_text().splitlines()
  ]
  found = summaries['said']
  assert found['kept'] == len(rows) > 0
  assert found['sampled'] == 16 * 2 == sum(found['reasons'].values())
  texts = [(row['prompt'], row['completion']) for row in rows]
  assert len(set(texts)) == len(texts)


def test_what_is_kept_is_the_best_that_passes():
  """Three problems' completions, chosen by hand."""
  c = small_recipe.tiny()
  c.sample.least = {'answer': 1.0, 'language': 0.5}
  c.sample.margin = 0.05
  texts = [['a', 'a', 'long', 'b'], ['x', 'y', 'z', 'w'], ['k', 'k', 'k', 'k']]
  vocabulary = sorted({text for row in texts for text in row})
  run = SimpleNamespace(
    config=c,
    tokenizer=SimpleNamespace(decode=lambda ids: vocabulary[ids[0]]),
  )
  tokens = np.array([[[vocabulary.index(t)] * 3 for t in r] for r in texts])
  rollout = SimpleNamespace(
    lengths_PG=np.array([[1, 1, 3, 1], [1, 1, 1, 1], [2, 2, 2, 2]]),
    tokens_PGT=tokens,
    ended_PG=np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], bool),
  )
  nan = np.nan
  answer = np.array([[1, 1, 1, 1], [1, 0, nan, 1], [0, 0, 0, 0]], float)
  language = np.array([[1, 1, 1, 1], [nan, 1, 1, 1], [1, 1, 1, 1]], float)
  total = np.array([[1, 1, 1.0, 0.9], [1, 1, 1, 1], [1, 1, 1, 1]])
  rewards = SimpleNamespace(
    total_PG=total, parts={'answer': answer, 'language': language}
  )
  examples = [SimpleNamespace(prompt=f'{i}?', answer='1') for i in range(3)]
  said = rejection.candidates(run, examples, rollout, rewards)
  rows, pairs, counts = rejection.select(c, said)
  # 'a' is there twice; of equal rewards the shorter text comes first.
  kept = [(row['prompt'], row['completion']) for row in rows]
  assert kept == [('0?', 'a'), ('0?', 'long')]
  assert pairs == [
    {'prompt': '0?', 'chosen': 'a', 'rejected': 'b'}
  ]  # The others are as good as each other.
  assert counts == {
    'passed': 3,
    'repeated': 1,
    'language': 1,
    'answer': 6,
    'truncated': 1,
  }


@pytest.mark.parametrize(
  'change,words',
  [
    (lambda c: c.stages.zero.update(start='cold'), ['zero', 'start', 'base']),
    (lambda c: c.stages.cold.update(data='zero'), ['cold', 'data', 'said']),
    (lambda c: c.stages.cold.update(kind='dpo'), ['cold', 'kind', 'sft']),
    (lambda c: c.stages.zero.update(data='said'), ['zero', 'imitates']),
    (lambda c: c.stages.zero.config.update(steps=0), ['zero', 'at least 1']),
    (lambda c: c.stages.cold.config.update(steps=2), ['cold', 'steps=2', '0']),
    (lambda c: c.stages.said.update(start=''), ['said', 'needs a start']),
    (
      lambda c: c.stages.zero.config.optim.update(name='adam'),
      ['zero', 'adamw'],
    ),
  ],
)
def test_what_cannot_work_is_refused_in_a_line(change, words, tmp_path):
  c = small_recipe.get_config()
  change(c)
  with pytest.raises(ValueError) as error:
    pipeline.check(c, str(tmp_path))
  message = str(error.value)
  assert '\n' not in message
  assert [word for word in words if word not in message] == [], message
  assert not list(tmp_path.iterdir())


def test_a_signal_after_the_last_step_of_a_stage_stops_there(
  tmp_path, monkeypatch
):
  begun = []

  def run(config, workdir):
    begun.append(workdir.rpartition('/')[2])
    (tmp_path / begun[-1]).mkdir()
    (tmp_path / begun[-1] / 'summary.json').write_text('{}')
    with process.stop_on_signal():  # As a run does.
      if begun == ['base']:
        signal.raise_signal(signal.SIGTERM)
    return {}

  kinds = {
    name: kind._replace(carry_out=run) for name, kind in pipeline.KINDS.items()
  }
  monkeypatch.setattr(pipeline, 'KINDS', kinds)
  c = small_recipe.get_config()
  c.table, c.order = ConfigDict(), ('base', 'zero')
  assert pipeline.carry_out(c, str(tmp_path)) is None
  assert begun == ['base']
  assert pipeline.carry_out(c, str(tmp_path)) == {'base': {}, 'zero': {}}
  assert begun == ['base', 'zero']


KILLS = (  # When: in which stage, what it has just printed, seconds after.
  ('stage 1 of 4', 'compile', 0.0),  # Before anything was learnt.
  ('stage 1 of 4', '3/3', 0.2),  # Between pre-training and its evaluation.
  ('stage 2 of 4', '', 0.5),
  ('stage 3 of 4', '', 1.0),
  ('stage 3 of 4', 'kept', 0.0),
  ('stage 4 of 4', '', 2.0),
)
JUDGED_KILLS = (
  ('stage 2 of 5', 'kept', 0.0),
  ('stage 3 of 5', '', 1.0),
  ('stage 3 of 5', 'compile', 0.3),  # Among its steps, as those below.
  ('stage 3 of 5', 'evaluation after', 0.0),
  ('stage 5 of 5', 'evaluation before', 0.3),
  ('stage 5 of 5', 'evaluation after', 0.0),
)


def killed(line, stage, words, seconds) -> bool:
  """Starts it again; of a stage that is done nothing is said any more."""
  with command.start(*line) as started:
    reached = False
    for said in started.stdout:
      reached |= stage in said
      if reached and words in said:
        time.sleep(seconds)
        started.kill()
        break
    started.wait()
    return started.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
  'config,order,kills,files',
  [
    (
      '',
      ('base', 'zero', 'said', 'cold'),
      KILLS,
      ('table.json', f'said/{rejection.FILE}'),
    ),
    (
      ':judged',
      ('base', 'pairs', 'helpful', 'student', 'taught'),
      JUDGED_KILLS,
      (f'pairs/{rejection.PAIRS}',),
    ),
  ],
)
def test_a_recipe_that_is_killed_anywhere_goes_on_exactly(
  config, order, kills, files, tmp_path
):
  def line(name):
    return [
      'experiments/r1.py',
      f'--config=tests/small_recipe.py{config}',
      f'--config.order={order!r}',
      f'--workdir={tmp_path / name}',
    ]

  whole = command.run(*line('whole'))
  assert whole.returncode == 0, whole.stderr
  assert sum(killed(line('cut'), *kill) for kill in kills) >= 4
  done = command.run(*line('cut'))
  assert done.returncode == 0, done.stderr
  for file in files:
    ours, theirs = (tmp_path / x / file for x in ('whole', 'cut'))
    assert ours.read_text() == theirs.read_text()
  for stage in order:
    if (tmp_path / 'whole' / stage / 'checkpoints').exists():
      ours, theirs = (state(tmp_path / x / stage) for x in ('whole', 'cut'))
      assert ours.keys() == theirs.keys()
      for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], name)
