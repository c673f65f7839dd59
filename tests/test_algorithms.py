"""A published algorithm goes into a config by name, under what one changes."""

import json
import re
import runpy
import subprocess
import sys

import command
import jax
from ml_collections import ConfigDict
import pytest

from grpo_jax import algorithms, build, config, recipes

NAMES = algorithms.names()
CONFIGS = sorted(
  path
  for path in (command.ROOT / 'configs').glob('*.py')
  if not path.name.startswith('r1_')  # Recipes: each stage has its own.
)


def with_algorithm(name, **sections):
  """config.default() with values changed, then the algorithm asked for."""
  c = config.default()
  for section, value in sections.items():
    if isinstance(value, dict):
      c[section].update(value)
    else:
      c[section] = value
  c.algorithm = name
  return c


def applied(name, scale=False):
  c = config.default()
  algorithms.apply(c, name, scale)
  return c


@pytest.mark.parametrize('name', NAMES)
def test_what_a_recipe_names_exists_and_takes_its_knobs(name):
  c = applied(name)
  for section in ('advantage', 'loss', 'select', 'off_policy', 'aggregate'):
    config.choose(section, c[section])
  config.choose('kl', c.kl)


@pytest.mark.parametrize('name', NAMES)
def test_a_recipe_makes_a_config_that_passes(name):
  config.check(algorithms.resolve(with_algorithm(name)).lock())


@pytest.mark.parametrize('name', NAMES)
def test_the_update_of_a_recipe_traces_and_keeps_the_form_of_the_state(
  name, tmp_path
):
  c = with_algorithm(name)
  c.model.sizes = dict(layers=1)
  c.data.update(prompts=32, knobs={'problems': 200})
  c.rollout.update(group_size=4, max_tokens=8)
  c.eval.update(problems=8, batch=8)
  run = build.build(c, str(tmp_path / 'run'), jax.devices()[:1])
  f, state = build.functions(run), build.templates(run)[1]
  prompts, key = build.train_batch(run, 0), jax.random.key(0)
  with jax.set_mesh(run.mesh):
    rolled = jax.eval_shape(f.rollout, state.params, prompts, key)
    scored = jax.eval_shape(f.reward, rolled, prompts, run.text)
    after, metrics = jax.eval_shape(f.update, state, rolled, scored)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
  assert metrics['loss'].shape == ()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('scale', [False, True])
def test_a_recipe_keeps_to_the_keys_and_types_of_the_defaults(name, scale):
  c, base = applied(name, scale), config.default()
  assert set(c.keys()) == set(base.keys())
  for section, value in base.items():
    if not isinstance(value, ConfigDict):
      assert type(c[section]) is type(value)
      continue
    for key in set(value) & set(c[section]):
      assert type(c[section][key]) is type(value[key]), f'{section}.{key}'
    if section not in algorithms._WHOLE:
      assert set(c[section]) == set(value)


@pytest.mark.parametrize('name', NAMES)
def test_a_recipe_says_where_its_numbers_are_from(name):
  text = getattr(recipes, name).__doc__
  assert re.search(r'\d{4}\.\d{5}|verl|TRL|prime-rl', text)


# Written down from the papers and codebases once more.
@pytest.mark.parametrize(
  'name,numbers',
  [
    ('grpo', {'kl.coef': 0.04, 'kl.name': 'k3', 'kl.where': 'loss'}),
    ('grpo', {'aggregate.name': 'sequence_mean', 'updates.minibatches': 1}),
    ('r1_zero', {'loss.clip_low': 10.0, 'loss.clip_high': 10.0}),
    ('r1_zero', {'kl.coef': 0.001, 'loss.name': 'ppo_clip'}),
    ('r1', {'loss.clip_high': 10.0, 'kl.coef': 0.001}),
    ('dapo', {'loss.clip_low': 0.2, 'loss.clip_high': 0.28, 'kl.coef': 0.0}),
    ('dapo', {'aggregate.name': 'token_mean', 'truncated': 'mask'}),
    ('dr_grpo', {'advantage.name': 'dr_grpo'}),
    ('dr_grpo', {'aggregate.name': 'constant_length', 'kl.coef': 0.0}),
    ('gspo', {'loss.clip_low': 3e-4, 'loss.clip_high': 4e-4}),
    ('gmpo', {'loss.clip_low': 0.4, 'loss.clip_high': 0.4}),
    ('sapo', {'loss.tau_good': 1.0, 'loss.tau_bad': 1.05}),
    ('luspo', {'loss.clip_low': 2e-3, 'loss.clip_high': 2.5e-3}),
    ('vespo', {'loss.k_good': 2.0, 'loss.lambda_good': 3.0}),
    ('vespo', {'loss.k_bad': 3.0, 'loss.lambda_bad': 2.0}),
    ('rloo', {'kl.coef': 0.03, 'kl.where': 'reward', 'kl.name': 'k1'}),
    ('magistral', {'aggregate.name': 'group_length', 'kl.coef': 0.0}),
    ('dppo', {'loss.clip_low': 0.15, 'loss.clip_high': 0.15}),
    ('clip_cov', {'select.share': 2e-4, 'select.low': 1.0, 'select.high': 5.0}),
    ('kl_cov', {'select.share': 0.002, 'loss.coef': 1.0}),
    ('high_entropy', {'select.share': 0.2, 'loss.clip_high': 0.28}),
    ('prime_rl', {'loss.clip_low': 0.2, 'loss.clip_high': 0.2}),
    ('prime_rl', {'loss.tau': 1e-3, 'loss.name': 'masked_pg'}),
    ('intellect_2', {'loss.delta': 4.0, 'kl.coef': 0.001}),
    ('skywork_or1', {'entropy.target': 0.2, 'entropy.step': 0.005}),
    ('lite_ppo', {'advantage.name': 'batch_scaled'}),
    ('trl', {'advantage.eps': 1e-4, 'advantage.ddof': 1, 'kl.coef': 0.0}),
    ('verl', {'advantage.eps': 1e-6, 'loss.cap': 3.0, 'kl.value_cap': 10.0}),
  ],
)
def test_the_numbers_of_a_paper_are_there(name, numbers):
  c = algorithms.resolve(with_algorithm(name))
  for path, number in numbers.items():
    assert value(c, path) == number


@pytest.mark.parametrize(
  'name,numbers',
  [
    ('r1_zero', {'optim.lr': 3e-6, 'rollout.group_size': 16}),
    ('r1_zero', {'data.prompts': 512, 'updates.minibatches': 16}),
    ('r1_zero', {'rollout.max_tokens': 32_768}),
    ('dapo', {'data.prompts': 512, 'rollout.group_size': 16}),
    ('dapo', {'rollout.max_tokens': 20_480, 'optim.lr': 1e-6}),
    ('grpo', {'rollout.group_size': 64, 'rollout.max_tokens': 1024}),
  ],
)
def test_numbers_of_scale_come_only_when_asked_for(name, numbers):
  with_scale, without = applied(name, scale=True), applied(name)
  for path, number in numbers.items():
    assert value(with_scale, path) == number
    if path != 'updates.minibatches':
      assert value(without, path) == value(config.default(), path)


def value(c, path):
  for key in path.split('.'):
    c = c[key]
  return c


def test_what_a_recipe_does_not_name_is_what_the_defaults_have_off():
  base = config.default()
  for section, off in algorithms.OFF.items():
    if not isinstance(off, dict):
      assert base[section] == off
      continue
    for key, x in off.items():
      assert base[section][key] == x, f'{section}.{key}'


@pytest.mark.parametrize('name', NAMES)
def test_asking_for_it_in_the_config_does_the_same_as_applying_it(name):
  assert algorithms.resolve(with_algorithm(name)) == applied(name)


@pytest.mark.parametrize('name', NAMES)
def test_of_two_algorithms_the_last_one_is_there_alone(name):
  c = applied('skywork_or1')
  algorithms.apply(c, 'kimi_k15')
  algorithms.apply(c, 'verl')
  algorithms.apply(c, name)
  assert c == applied(name)


def test_what_is_assigned_after_applying_overrides_knob_by_knob():
  c = applied('sapo')
  c.loss.tau_good = 2.0
  c.kl.coef = 0.1
  found = algorithms.resolve(c)
  assert found.loss.to_dict() == {
    'name': 'sapo',
    'tau_good': 2.0,
    'tau_bad': 1.05,
  }
  assert found.kl.coef == 0.1


def test_a_changed_knob_stays_and_the_rest_comes_from_the_recipe():
  found = algorithms.resolve(
    with_algorithm(
      'dapo',
      loss={'clip_low': 0.1},
      dynamic={'batches': 3},
      updates={'minibatches': 16},
    )
  )
  assert (found.loss.clip_low, found.loss.clip_high) == (0.1, 0.28)
  assert found.dynamic.batches == 3
  assert found.updates.minibatches == 16  # Not cut to what has four groups.
  assert found.truncated == 'mask'


def test_a_knob_that_was_given_stays_even_with_the_value_of_the_default():
  given = ['loss.clip_high', 'truncated', 'updates.minibatches']
  found = algorithms.resolve(with_algorithm('dapo'), given)
  assert (found.loss.clip_low, found.loss.clip_high) == (0.2, 0.2)
  assert found.truncated == 'count'
  assert found.updates.minibatches == 1
  assert found.dynamic.batches == 10


def test_another_loss_stays_with_its_own_knobs_alone():
  c = with_algorithm('dapo')
  c.loss = {'name': 'gspo', 'clip_low': 3e-4, 'clip_high': 4e-4}
  found = algorithms.resolve(c)
  assert found.loss.to_dict() == c.loss.to_dict()
  assert found.dynamic.batches == 10


def test_a_loss_that_was_given_by_name_stays_though_it_is_the_defaults():
  found = algorithms.resolve(with_algorithm('sapo'), ['loss.name'])
  assert found.loss == config.default().loss


def test_another_kl_keeps_the_coefficient_and_place_of_the_recipe():
  found = algorithms.resolve(with_algorithm('rloo', kl={'name': 'k3'}))
  assert found.kl.name == 'k1'  # Not changed: that is the default's name.
  found = algorithms.resolve(with_algorithm('rloo', kl={'name': 'k2'}))
  assert (found.kl.name, found.kl.coef) == ('k2', 0.03)
  assert found.kl.where == 'reward'
  found = algorithms.resolve(with_algorithm('verl', kl={'name': 'k2'}))
  assert 'value_cap' not in found.kl


def test_resolving_changes_neither_the_config_nor_its_lock():
  c = with_algorithm('dapo').lock()
  before = c.to_json()
  found = algorithms.resolve(c)
  assert c.to_json() == before
  assert found.is_locked and found.loss.is_locked
  assert algorithms.resolve(found) is found
  plain = config.default()
  assert algorithms.resolve(plain) is plain


def test_a_resolved_config_is_the_same_after_json():
  found = algorithms.resolve(with_algorithm('verl', loss={'clip_low': 0.1}))
  again = ConfigDict(json.loads(found.to_json()))
  assert algorithms.resolve(again) is again


@pytest.mark.parametrize(
  'prompts,microbatches,expected',
  [(512, 1, 16), (64, 1, 16), (32, 1, 8), (16, 1, 4), (8, 2, 1), (24, 1, 6)]
  + [(2, 1, 1), (7, 1, 1), (16, 2, 2)],
)
def test_minibatches_are_as_many_as_leave_each_four_groups(
  prompts, microbatches, expected
):
  c = config.default()
  c.data.prompts, c.updates.microbatches = prompts, microbatches
  algorithms.apply(c, 'dapo')
  assert c.updates.minibatches == expected


def refused(function, *words):
  with pytest.raises(ValueError) as e:
    function()
  assert '\n' not in str(e.value)
  for word in words:
    assert word in str(e.value)


def test_an_unknown_name_lists_those_that_there_are():
  words = ["'dappo'", 'r1_zero, r1, dapo, ', 'verl']
  refused(lambda: applied('dappo'), *words)
  refused(lambda: algorithms.resolve(with_algorithm('dappo')), *words)
  refused(lambda: applied('_scale'), "'_scale'")
  refused(lambda: applied('dict'), "'dict'")


def test_a_second_algorithm_is_refused():
  c = applied('dapo')
  c.algorithm = 'gspo'
  refused(lambda: algorithms.resolve(c), "'gspo'", "'dapo'")


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.name)
def test_every_config_file_takes_an_algorithm_also_for_its_smoke_test(path):
  get_config = runpy.run_path(str(path))['get_config']
  for arg in ('algorithm=dapo', 'smoke,algorithm=dapo'):
    c = get_config(arg)
    assert c.algorithm == c.resolved == 'dapo'
    assert c.loss.clip_high == 0.28
    config.check(c.lock())
  assert get_config('').resolved == ''
  refused(lambda: get_config('algorithm=x'), "'x'", 'dapo')


PRINT = """
import sys
from absl import flags
from grpo_jax import algorithms, command
c = command.config_flag()
flags.FLAGS(sys.argv)
print(algorithms.resolve(c.value, command.given(c)).to_json())
"""


def command_line(*flags):
  done = subprocess.run(
    [sys.executable, '-c', PRINT, '--config', *flags],
    cwd=command.ROOT,
    text=True,
    capture_output=True,
    check=True,
  )
  return ConfigDict(json.loads(done.stdout))


def test_flags_override_an_algorithm_that_is_asked_for_by_flag():
  c = command_line(
    'configs/quickstart.py',
    '--config.algorithm=dapo',
    '--config.loss.clip_high=0.2',
    '--config.updates.minibatches=1',
  )
  assert (c.algorithm, c.resolved) == ('dapo', 'dapo')
  assert (c.loss.clip_high, c.updates.minibatches) == (0.2, 1)
  assert (c.truncated, c.dynamic.batches) == ('mask', 10)


def test_flags_reach_the_knobs_of_an_algorithm_in_the_configs_argument():
  c = command_line(
    'configs/quickstart.py:algorithm=sapo', '--config.loss.tau_good=2'
  )
  assert c.loss.to_dict() == {
    'name': 'sapo',
    'tau_good': 2.0,
    'tau_bad': 1.05,
  }


@pytest.mark.slow
def test_the_workdir_of_a_run_holds_what_the_algorithm_has_set(tmp_path):
  workdir = tmp_path / 'run'
  line = command.train(
    'quickstart.py:smoke', workdir, '--config.algorithm=dr_grpo'
  )
  done = command.run(*line)
  assert done.returncode == 0, done.stderr
  c = json.loads((workdir / 'config.json').read_text())
  assert c['algorithm'] == c['resolved'] == 'dr_grpo'
  assert c['advantage'] == {'name': 'dr_grpo'}
  assert c['aggregate'] == {'name': 'constant_length'}
  done = command.run(*line)
  assert 'nothing is left to do' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
  'flag,words',
  [
    ('--config.algorithm=dappo', ["'dappo'", 'r1_zero, r1, dapo']),
    (
      '--config.algorithm=sapo --config.loss.clip_low=0.1',
      ['loss.clip_low', "'sapo'"],
    ),
  ],
)
def test_a_bad_algorithm_is_one_line(flag, words, tmp_path):
  line = command.train('quickstart.py:smoke', tmp_path / 'run', *flag.split())
  done = command.run(*line)
  assert done.returncode == 1
  assert len(done.stderr.strip().splitlines()) == 1
  for word in words:
    assert word in done.stderr
