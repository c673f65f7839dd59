"""For each alarm a fault is injected; healthy runs are silent.

The runs are of a bigram model that compiles in no time: rollout, update and
alarms are those of any run, and the rewards are known.
"""

import dataclasses
import functools
import gzip
import json
import math
import pathlib
import re

import command
import few_steps
import jax
from jax.nn import initializers
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import (
  alarms,
  build,
  config,
  fit,
  history,
  metrics,
  models,
  process,
  types,
)

GOLDEN = pathlib.Path(__file__).parent / 'golden'
P, G, T, D = 8, 4, 12, 16
KNOBS = config.alarms(config.default())
EVEN, LOOPHOLE = 0, 7  # Of the first token.


# A small run.


def apply(params, inputs, cache=None):
  return types.ModelOutputs(params['embed'][inputs.tokens_BT], cache)


@functools.cache
def small(folder, **changes):
  """run, rollout, update; the weights of the bigram are `weights()`."""
  c = few_steps.make_config(
    **{
      'data.knobs.problems': 40,
      'optim.lr': 0.02,
      'optim.schedule': 'constant',
    }
    | {name.replace('__', '.'): x for name, x in changes.items()}
  )
  workdir = folder / f'run{len([*folder.iterdir()])}'
  run = build.build(c, str(workdir), jax.devices()[:1])
  V = run.tokenizer.vocab_size
  bigram = models.Model(
    table={
      'embed': models.Param((V, D), ('vocab', 'embed'), initializers.zeros),
      'head': models.Param((D, V), ('embed', 'vocab'), initializers.zeros),
    },
    vocab_size=V,
    apply=apply,
    init_cache=lambda prompt_cache, *sizes: prompt_cache,
    head=lambda params: params['head'],
  )
  run = dataclasses.replace(run, model=bigram)
  f = build.functions(run)
  return run, jax.jit(f.rollout), jax.jit(f.update), f


def weights(run, ends=3.0):
  """Stops after each token with a probability of about 0.25."""
  rng = np.random.default_rng(0)
  V = run.tokenizer.vocab_size
  embed = rng.normal(scale=0.1, size=(V, D))
  head = rng.normal(scale=0.1, size=(D, V))
  embed[:, 0], head[0] = 1.0, 0.0
  head[0, list(run.tokenizer.eos_ids)] = ends
  head[0, LOOPHOLE] = 1.5
  return {'embed': jnp.float32(embed), 'head': jnp.float32(head)}


def go(
  small,
  steps,
  reward,
  *,
  params=None,
  sampler=lambda params: params,
  key=build.roll_key,
  held_out=None,
):
  """Walks; the alarms, the last state, and what each step measured."""
  run, roll, update, f = small
  watch = alarms.Watch(config.alarms(run.config))
  state = jax.jit(lambda x: f.start_rl(f.init(x)))(
    weights(run) if params is None else params
  )
  found, told = [], []
  with jax.set_mesh(run.mesh):
    for step in range(1, steps + 1):
      prompts = build.train_batch(run, step % 3)  # They come again.
      dice = key(jax.random.key(0), state.step)
      rolled = roll(sampler(state.params), prompts, dice)
      total_PG = jnp.float32(reward(step, jax.device_get(rolled)))
      scores = types.Rewards(total_PG, {'answer': total_PG})
      state, numbers = update(state, rolled, scores)
      numbers = {k: float(x) for k, x in numbers.items()}
      if held_out and step % 5 == 0:
        prompts = build.eval_batches(run)[0][0].replace(rows_P=prompts.rows_P)
        rolled = roll(state.params, prompts, jax.random.key(1))
        numbers['eval/accuracy'] = held_out(jax.device_get(rolled))
      told.append(numbers)
      found += watch(step, numbers)
  return found, state, told


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('alarms')


def parity(step, rolled):
  """Mostly: a problem is never solved for good."""
  noise_PG = np.random.default_rng(step).random((P, G)) < 0.05
  return (rolled.tokens_PGT[..., 0] % 2 == EVEN) ^ noise_PG


def chance(step, rolled):
  return np.random.default_rng(step).random((P, G))


# The alarms, one after the other.


def test_nothing_is_heard_of_a_run_that_learns(folder):
  found, _, told = go(small(folder), 40, parity)
  assert found == []
  assert told[0]['reward/mean'] < 0.6 and told[-1]['reward/mean'] > 0.8


def heard(found, name):
  """The first of this name; its sentence is whole."""
  alarm = next(alarm for alarm in found if alarm.name == name)
  assert re.fullmatch(r"[A-Z0-9][^{}]+\w[^{}]*[.)']\.?", alarm.sentence)
  return alarm


def test_a_sampler_with_other_weights_drifts(folder):
  rng = np.random.default_rng(0)

  def other(params):
    return {
      k: x + rng.normal(scale=0.1, size=x.shape).astype('f4')
      for k, x in params.items()
    }

  found, _, told = go(small(folder), 3, parity, sampler=other)
  alarm = heard(found, 'drift')
  assert alarm.step == 1 and alarm.threshold == 0.02 < alarm.value
  assert alarm.value == told[0]['rollout/logp_drift']
  assert f'{alarm.value:.2g} nats' in alarm.sentence
  assert [alarm.name for alarm in found] == ['drift']  # And once.


def test_a_sampler_whose_key_does_not_change_repeats_itself(folder):
  slow = small(folder, optim__lr=1e-3)
  found, _, told = go(slow, 20, chance, key=lambda key, step: key)
  assert heard(found, 'duplicates').step == 3 + 10
  repeats = [numbers['rollout/repeats'] for numbers in told]
  assert max(repeats[:3]) == 0  # Each problem came once.
  assert min(repeats[3:]) > 0.5
  found, _, told = go(slow, 20, chance)
  assert found == []
  assert abs(np.mean([x['rollout/repeats'] for x in told])) < 0.1


def test_a_constant_reward_leaves_all_groups_degenerate(folder):
  found, _, _ = go(small(folder), 15, lambda *_: np.ones((P, G)))
  assert [alarm.name for alarm in found] == ['degenerate']
  assert heard(found, 'degenerate').step == 10
  assert 'For 10 steps no group' in found[0].sentence


def test_a_model_that_does_not_stop_is_cut(folder):
  params = weights(small(folder)[0], ends=-3.0)
  found, _, _ = go(small(folder), 12, chance, params=params)
  alarm = heard(found, 'truncated')
  assert alarm.step == 10 and alarm.value > 0.9
  assert alarm.sentence.startswith(f'{alarm.value:.0%} of completions are cut')


def test_a_policy_without_doubt_has_no_entropy(folder):
  sure = {k: 300 * x for k, x in weights(small(folder)[0]).items()}
  found, _, _ = go(small(folder), 12, chance, params=sure)
  alarm = heard(found, 'entropy')
  assert alarm.step == 10 and alarm.value < alarm.threshold == 1e-3


# On 2 minibatches: the second is of another policy than the sampler's.
FAST = {'optim__lr': 30.0, 'updates__minibatches': 2}


def test_an_enormous_learning_rate_makes_the_ratio_explode(folder):
  found, _, told = go(small(folder, **FAST), 2, chance)
  alarm = heard(found, 'ratio')
  assert alarm.step == 1
  assert alarm.value == told[0]['policy/log_ratio_max'] > alarm.threshold == 10
  # The sampler is still the trainer.
  assert 'drift' not in [alarm.name for alarm in found]


def test_weights_out_of_scale_make_the_gradient_explode(folder):
  params = weights(small(folder)[0])
  params = {'embed': 1e5 * params['embed'], 'head': params['head'] / 1e5}
  found, _, told = go(small(folder), 1, chance, params=params)
  alarm = heard(found, 'gradient')
  assert alarm.value == told[0]['grad_norm_max'] > alarm.threshold == 100


def test_a_reward_for_length_makes_it_run_away(folder):
  params = weights(small(folder)[0], ends=5.0)
  found, _, told = go(
    small(folder), 70, lambda step, rolled: rolled.lengths_PG, params=params
  )
  alarm = heard(found, 'length')
  lengths = [numbers['rollout/length'] for numbers in told[: alarm.step]]
  first = max(0, alarm.step - 60)
  assert alarm.value == pytest.approx(
    np.mean(lengths[-10:]) / np.mean(lengths[first : first + 10])
  )
  assert 20 < alarm.step and alarm.value > 3


def test_a_loophole_is_told_by_the_held_out_check(folder):
  """Right is an even token; another is paid for better."""

  def loophole(step, rolled):
    token_PG = rolled.tokens_PGT[..., 0]
    return np.where(token_PG == LOOPHOLE, 2.0, token_PG % 2 == EVEN)

  def strict(rolled):
    return float(np.mean(rolled.tokens_PGT[..., 0] % 2 == EVEN))

  found, _, told = go(small(folder), 80, loophole, held_out=strict)
  alarm = heard(found, 'hacking')
  accuracy = {
    i + 1: x['eval/accuracy']
    for i, x in enumerate(told)
    if 'eval/accuracy' in x
  }
  before = {i: x for i, x in accuracy.items() if i < alarm.step}
  best = max(before.values())
  assert alarm.value == best - accuracy[alarm.step] > 0.1
  since = min(i for i, x in before.items() if x == best)
  assert f'below that of step {since}, ' in alarm.sentence
  found, _, _ = go(small(folder), 40, parity, held_out=strict)
  assert found == []


# What of it is decided on the device.


def moved(small, **fault):
  """Whether the first step changes the weights, and what it measures."""
  _, state, [numbers] = go(small, 1, chance, **fault)
  before = weights(small[0])
  return not np.array_equal(state.params['head'], before['head']), numbers


def test_a_step_beyond_a_bound_is_not_taken(folder):
  skip = {f'alarms__{name}__action': 'skip' for name in config.SKIPPABLE}
  bounded = small(folder, **FAST, **skip)
  takes, numbers = moved(bounded)
  assert takes  # The first minibatch; the second has an exploding ratio.
  assert numbers['policy/log_ratio_max'] > 10 and numbers['update/skipped'] == 1
  takes, numbers = moved(
    bounded, sampler=lambda x: {**x, 'head': x['head'] * 2}
  )
  assert not takes  # Not even the second, though nothing has moved.
  assert numbers['rollout/logp_drift'] > 0.02 and numbers['update/skipped'] == 2
  assert numbers['policy/log_ratio_max'] < 10
  found, _, _ = go(bounded, 1, chance)
  assert heard(found, 'ratio').sentence.endswith('Such a step is not taken.')


def test_a_gradient_beyond_its_bound_is_not_taken(folder):
  skip = {'alarms__gradient__action': 'skip', 'alarms__gradient__above': 1e-3}
  takes, numbers = moved(small(folder, **skip))
  assert not takes and numbers['grad_norm_max'] > 1e-3
  assert numbers['update/skipped_in_a_row'] == 1
  assert moved(small(folder))[0]


def test_repeats_are_counted_as_a_loop_counts_them():
  rng = np.random.default_rng(0)
  openings_N, seen = jnp.zeros(6, jnp.uint32), {}
  jitted = jax.jit(history.repeats)
  for _ in range(30):
    rows_P = rng.permutation(8)[:4] - 2  # Those below 0 are no problems.
    tokens_PGT = rng.integers(2, size=(4, 2, 20))
    tokens_PGT[:, :, 2:16] = 0  # So that they repeat.
    lengths_PG = rng.integers(1, 4, (4, 2)) * 6
    logps_PGT = -rng.random((4, 2, 20)) / 20
    logps_PGT[np.arange(20) >= lengths_PG[..., None]] = 0
    excess = []
    for p, row in enumerate(rows_P.tolist()):
      some = min(16, lengths_PG[p, 0])
      opening = tuple(tokens_PGT[p, 0, :some])
      if row in seen:
        sure = math.exp(logps_PGT[p, 0, :some].sum())
        excess.append((seen[row] == opening) - sure)
      if row >= 0:
        seen[row] = opening
    rolled = types.Rollout(
      prompts=types.Prompts(None, None, None, None, rows_P=rows_P),
      tokens_PGT=tokens_PGT,
      lengths_PG=lengths_PG,
      ended_PG=None,
      logps_PGT=jnp.float32(logps_PGT),
      actions_PGT=None,
    )
    openings_N, found = jitted(openings_N, rolled)
    wanted = np.mean(excess) if excess else 0.0
    assert found['rollout/repeats'] == pytest.approx(wanted, abs=1e-6)


def test_a_problem_that_stands_twice_in_a_batch_may_do_so_in_any_order():
  tokens_PGT = np.arange(24).reshape(3, 1, 8)
  left = []
  for order in ([0, 1, 2], [2, 1, 0]):
    rolled = types.Rollout(
      prompts=types.Prompts(
        None, None, None, None, rows_P=np.array([1, 0, 1])[order]
      ),
      tokens_PGT=tokens_PGT[order],
      lengths_PG=np.full((3, 1), 8),
      ended_PG=None,
      logps_PGT=np.full((3, 1, 8), -1.0, np.float32),
      actions_PGT=None,
    )
    found, _ = history.repeats(jnp.zeros(2, jnp.uint32), rolled)
    left.append(found.tolist())
  assert left[0] == left[1] and 0 not in left[0]


# When they are heard.


def judged(values, steps=1, bound=1.0, name='truncated'):
  knobs = KNOBS | {name: {'above': bound, 'steps': steps, 'action': 'warn'}}
  watch, heard = alarms.Watch(knobs), []
  for i, value in enumerate(values):
    row = {
      'rollout/length': 1.0,
      'reward/mean': 0.0,
      'rollout/truncated': value,
    }
    heard += [x.step for x in watch(i, row) if x.name == name]
  return heard


def test_an_alarm_is_heard_again_when_it_has_been_quiet():
  assert judged([0, 2, 2, 0, 2, 2]) == [1]
  assert judged([2] + [0] * 9 + [2]) == [0]
  assert judged([2] + [0] * 10 + [2]) == [0, 11]


def test_so_many_steps_have_to_be_beyond_in_a_row():
  assert judged([2, 2, 0, 2, 2, 2, 2], steps=3) == [5]
  assert judged([2, 2, 1, 2, 2], steps=3) == []


def test_what_is_not_finite_is_beyond_and_what_is_not_there_is_nothing():
  assert (
    judged([0, math.nan]) == judged([0, None]) == judged([0, math.inf]) == [1]
  )
  watch = alarms.Watch(KNOBS)
  [alarm] = watch(
    1, {'rollout/length': 1.0, 'reward/mean': 0.0} | {'grad_norm_max': math.nan}
  )
  assert alarm.name == 'gradient' and alarm.value is None
  assert watch(2, {'loss': 1.0, 'grad_norm': math.nan}) == []  # Pre-training.


def test_an_alarm_that_is_off_is_not_heard():
  knobs = {name: knobs | {'action': 'off'} for name, knobs in KNOBS.items()}
  assert (
    alarms.Watch(knobs)(
      1, {'rollout/length': 1.0, 'reward/mean': 0.0} | {'grad_norm_max': 1e9}
    )
    == []
  )


def test_the_drift_that_is_allowed_follows_the_dtype():
  c = config.default()
  bounds = {}
  for c.model.dtype in ('float32', 'bfloat16'):
    bounds[c.model.dtype] = config.alarms(c)['drift']['above']
  assert bounds == {'float32': 0.02, 'bfloat16': 2.0}
  c.alarms.drift.above = 0.5
  assert config.alarms(c)['drift']['above'] == 0.5


# A whole run.


RUN = {
  'steps': 24,
  'checkpoint.every': 5,
  'model.sizes.layers': 1,
  'alarms.entropy': {'below': 10.0, 'steps': 4, 'action': 'warn'},  # At 4,
  'alarms.drift.above': 1e-9,  # 1,
  'alarms.length.above': 0.1,  # and 29, of which it will be 20.
  'alarms.length.steps': 1,
}


def fitted(workdir, **changes):
  with few_steps.scored():
    c = few_steps.make_config(**RUN | {'eval.batch': 8} | changes)
    return fit.fit(c.lock(), str(workdir))


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(workdir):
  return [
    {k: x for k, x in row.items() if not k.startswith('time/')}
    for row in rows(workdir / 'metrics.jsonl')
  ]


def test_a_run_that_stops_and_is_killed_hears_what_the_whole_one_does(
  tmp_path, monkeypatch, capsys
):
  assert fitted(tmp_path / 'whole')
  said = capsys.readouterr().out
  whole = rows(tmp_path / 'whole' / 'alarms.jsonl')
  assert [(x['step'], x['name']) for x in whole][:2] == [
    (1, 'drift'),
    (4, 'entropy'),
  ]
  assert (20, 'length') in [(x['step'], x['name']) for x in whole]
  for x in whole:
    assert f'alarm, step {x["step"]}, {x["name"]}: {x["sentence"]}\n' in said
  assert said.count('alarm, step') == len(whole)

  stop = {'alarms.entropy.action': 'stop'}
  assert fitted(tmp_path / 'parts', **stop) is None
  said = capsys.readouterr().out
  assert 'The run is saved and stops.\n' in said
  assert 'stopped by the alarm entropy and saved at step 5: the same' in said

  once = metrics.Writer.step

  def killed(self, step, *args):
    if step == 18:
      raise KeyboardInterrupt
    return once(self, step, *args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(metrics.Writer, 'step', killed)
    fitted(tmp_path / 'parts', **stop)
  assert fitted(tmp_path / 'parts', **stop)
  assert 'going on from step 15' in capsys.readouterr().out
  assert numbers(tmp_path / 'parts') == numbers(tmp_path / 'whole')
  parts = rows(tmp_path / 'parts' / 'alarms.jsonl')
  for x in (*whole, *parts):
    x['sentence'] = x['sentence'].removesuffix(' The run is saved and stops.')
    assert x.pop('action') == (
      'stop' if x['name'] == 'entropy' and x in parts else 'warn'
    )
  assert parts == whole


def test_those_who_are_not_the_lead_write_nothing(tmp_path):
  alarm = alarms.Alarm(3, 'drift', 1.0, 0.5, 'Words.', 'warn')
  metrics.Writer(None, 0, 0.0).alarms([alarm])
  writer = metrics.Writer(tmp_path, 0, 0.0)
  writer.alarms([])
  assert not (tmp_path / 'alarms.jsonl').exists()
  writer.alarms([alarm])
  writer.close()
  assert rows(tmp_path / 'alarms.jsonl') == [dataclasses.asdict(alarm)]
  metrics.Writer(tmp_path, 2, 0.0).close()  # A run that goes on from there.
  assert rows(tmp_path / 'alarms.jsonl') == []


# Recorded healthy runs.


@pytest.mark.parametrize('path', sorted(GOLDEN.glob('healthy_*.jsonl.gz')))
def test_nothing_is_heard_of_recorded_healthy_runs(path):
  with gzip.open(path, 'rt') as file:
    origin, *lines = map(json.loads, file)
  assert 'experiments/train.py' in origin['command']
  watch, judged = alarms.Watch(KNOBS), 0
  for row in lines:
    assert watch(row['step'], row) == []
    judged += 'rollout/length' in row
  assert judged == origin['rl_steps']


# The config, and README.


@pytest.mark.parametrize(
  'changes,words',
  [
    ({'alarms.drift.action': 'shout'}, ["'shout'", 'warn, skip, stop, off']),
    ({'alarms.length.action': 'skip'}, ['alarms.length', 'drift, ratio, grad']),
    (
      {'alarms.ratio.action': 'skip', 'alarms.ratio.steps': 2},
      ['alarms.ratio.steps=2', 'must be 1'],
    ),
    ({'alarms.entropy.steps': 0}, ['alarms.entropy.steps=0', 'at least 1']),
    ({'alarms.gradient.above': math.inf}, ['alarms.gradient', 'inf', "'off'"]),
    ({'alarms.gradient.above': math.nan}, ['alarms.gradient', 'nan']),
  ],
)
def test_a_bad_knob_is_refused_in_words(changes, words):
  c = config.default()
  c.update_from_flattened_dict(changes)
  with pytest.raises(ValueError) as error:
    config.check(c)
  assert [word for word in words if word not in str(error.value)] == []
  assert '\n' not in str(error.value)


def test_an_alarm_that_is_none_or_is_bounded_on_the_other_side_is_refused():
  c = config.default()
  c.alarms.fire = dict(c.alarms.drift)
  with pytest.raises(
    ValueError, match="'fire' is not one of degenerate, drift"
  ):
    config.check(c)
  c = config.default()
  c.alarms.entropy = {'above': 1.0, 'steps': 1, 'action': 'warn'}
  with pytest.raises(ValueError, match='alarms.entropy=.*below'):
    config.check(c)


def test_all_alarms_have_knobs_and_a_line_in_readme():
  assert sorted(alarms.ALARMS) == sorted(KNOBS)
  readme = (command.ROOT / 'README.md').read_text()
  text = readme.split('\n## Alarms\n')[1].split('\n## ')[0]
  assert re.findall(r'^\| `(\w+)` \|', text, re.MULTILINE) == [*alarms.ALARMS]


def test_metrics_that_are_judged_are_measured(folder):
  _, _, [told] = go(small(folder), 1, parity)
  for name in ('drift', 'duplicates', 'degenerate', 'truncated', 'entropy'):
    measure, _ = alarms.ALARMS[name]
    assert measure(alarms.Past(rows=(told,))) is not None
  assert process.Stop().reason == ''
