"""Bad values are refused in one line that names them and what is allowed."""

import command
from etils import epath
import gguf
import numpy as np
import pytest

from grpo_jax import build, checkpoint, config
from grpo_jax.losses import policy

SMOKE = 'quickstart.py:smoke'


def test_a_bare_name_is_true_and_values_take_the_type_of_their_default():
  found = config.parse_arg(
    'smoke,group_size=16,lr=3e-4,name=x',
    smoke=False,
    group_size=8,
    lr=1.0,
    name='',
  )
  assert found.to_dict() == {
    'smoke': True,
    'group_size': 16,
    'lr': 3e-4,
    'name': 'x',
  }
  assert type(found.group_size) is int


@pytest.mark.parametrize('arg', ['', ','])
def test_without_an_argument_the_defaults_hold(arg):
  assert config.parse_arg(arg, smoke=False, n=3).to_dict() == {
    'smoke': False,
    'n': 3,
  }


@pytest.mark.parametrize(
  'text,value', [('=true', True), ('=False', False), ('', True)]
)
def test_booleans_can_be_spelt_out(text, value):
  assert config.parse_arg(f'smoke{text}', smoke=False).smoke is value


@pytest.mark.parametrize(
  'arg,words',
  [
    ('smok', ["'smok'", 'smoke, n']),
    ('smoke=maybe', ["'smoke=maybe'", 'true or false']),
    ('n', ["'n'", '=<int>']),
    ('n=many', ["'n=many'", 'int']),
  ],
)
def test_a_bad_argument_is_named(arg, words):
  refused(lambda: config.parse_arg(arg, smoke=False, n=3), words)


def test_the_defaults_pass():
  config.check(config.default().lock())


def refused(call, words):
  with pytest.raises(ValueError) as error:
    call()
  message = str(error.value)
  assert '\n' not in message
  assert [word for word in words if word not in message] == [], message


COUNTS = [
  'data.prompts',
  'data.max_prompt',
  'pretrain.rows',
  'pretrain.width',
  'rollout.max_tokens',
  'updates.passes',
  'updates.minibatches',
  'updates.microbatches',
  'updates.head_chunk',
  'eval.problems',
  'eval.samples',
  'eval.batch',
  'sample.problems',
  'sample.keep',
  'log.completions_every',
  'checkpoint.every',
  'checkpoint.keep',
]


@pytest.mark.parametrize('name', COUNTS)
@pytest.mark.parametrize('value', [0, -1])
def test_counts_must_be_positive(name, value):
  c = config.default()
  c.update_from_flattened_dict({name: value})
  c.pretrain.steps = 1
  refused(lambda: config.check(c), [f'{name}={value}', 'at least 1'])


@pytest.mark.parametrize(
  'changes,words',
  [
    (
      {'advantage.name': 'gae'},
      ["advantage.name='gae'", 'grpo, dr_grpo, ', 'rloo'],
    ),
    ({'advantage.name': 'load'}, ["advantage.name='load'"]),
    ({'loss.name': 'ppo'}, ["loss.name='ppo'", 'ppo_clip', 'reinforce']),
    (
      {'aggregate.name': 'sum'},
      ["'sum'", 'token_mean, sequence_mean, ', 'constant_length'],
    ),
    ({'kl.name': 'k9'}, ["kl.name='k9'", 'k1, k2, k3']),
    ({'loss.name': 'reinforce'}, ['loss.clip_', 'it takes nothing']),
    ({'model.name': 'lama'}, ["model.name='lama'", 'llama']),
    ({'model.name': 'layers'}, ["model.name='layers'", 'llama']),
    ({'model.dtype': 'float12'}, ["model.dtype='float12'", 'bfloat16']),
    ({'model.dtype': 'float64'}, ['model.dtype=float64', 'JAX_ENABLE_X64']),
    ({'data.name': 'gsm9k'}, ["'gsm9k'", 'chains', 'sums']),
    ({'data.name': 'packing'}, ["'packing'", 'chains', 'sums']),
    ({'optim.name': 'adam'}, ["'adam'", "'adamw'", "'sgd'"]),
    ({'optim.schedule': 'step'}, ["'step'", "'cosine'"]),
    ({'pretrain.optim.name': 'adam'}, ['pretrain.optim', "'adam'"]),
    ({'rollout.group_size': 1}, ['rollout.group_size=1', "'grpo'", '2']),
    ({'rollout.group_size': 0}, ['rollout.group_size=0']),
    ({'rollout.stages': 0}, ['rollout.stages=0']),
    ({'rollout.stages': 65}, ['rollout.stages=65', 'rollout.max_tokens=64']),
    ({'rollout.temperature': 0.0}, ['rollout.temperature=0.0', 'above 0']),
    ({'rollout.temperature': -1.0}, ['rollout.temperature=-1.0']),
    ({'rollout.temperature': np.nan}, ['rollout.temperature=nan']),
    (
      {'updates.minibatches': 3, 'updates.microbatches': 2},
      ['data.prompts=16', 'updates.microbatches', '6'],
    ),
    ({'pretrain.steps': -1}, ['pretrain.steps=-1']),
    ({'kl.coef': -0.1}, ['kl.coef=-0.1']),
    ({'kl.where': 'both'}, ["kl.where='both'", 'loss, reward']),
    ({'kl.where': 'reward'}, ["kl.where='reward'", 'kl.coef']),
    ({'kl.name': 'k1', 'kl.coef': 0.1}, ["kl.name='k1'", 'zero', 'k1_plus']),
    ({'kl.target': 0.1}, ['kl.target=0.1', 'kl.coef']),
    ({'reference.every': 9}, ['reference.every=9', 'kl.coef=0']),
    ({'reference.rate': 1.5}, ['reference.rate=1.5']),
    ({'entropy.low': 2.0}, ['entropy.low=2.0', 'entropy.high=1.0']),
    (
      {'updates.skip_even': True, 'kl.coef': 0.1},
      ['updates.skip_even', 'kl.where'],
    ),
    (
      {'updates.skip_even': True, 'entropy.measure': True},
      ['updates.skip_even', 'entropy.measure'],
    ),
    (
      {'select.name': 'top_covariance'},
      ["select.name='top_covariance'", 'kl_cov'],
    ),
    ({'steps': -1}, ['steps=-1', 'below 0']),
    (
      {'reference.init': 'runs/teacher'},
      ["reference.init='runs/teacher'", 'kl.coef=0'],
    ),
    (
      {'reference.init': 'a', 'kl.coef': 1.0, 'reference.every': 5},
      ["reference.init='a'", 'reference.every=5'],
    ),
  ],
)
def test_what_cannot_work_is_refused_by_name(changes, words):
  c = config.default()
  c.update_from_flattened_dict(changes)
  refused(lambda: config.check(c), words)


@pytest.mark.parametrize(
  'section,value,words',
  [
    ('reward', {'answr': 1.0}, ["'answr'", 'answer', 'format']),
    ('reward', {'answer': 0.0}, ['answer', '0.0', 'weight']),
    ('reward', {}, ['no part has a weight']),
    (
      'loss',
      {'name': 'ppo_clip', 'clip': 0.2},
      ['loss.clip', 'clip_low, clip_high'],
    ),
    (
      'loss',
      {'name': 'cispo_cap', 'level': 'mean'},
      ["loss.level='mean'", "'cispo_cap'", 'gspo'],
    ),
    (
      'loss',
      {'name': 'dual_clip', 'level': 'sum'},
      ["loss.level='sum'", "'dual_clip'", 'gspo'],
    ),
    ('advantage', {'name': 'rloo', 'ddof': 1}, ['advantage.ddof', "'rloo'"]),
    ('loss', {'clip_low': 0.2}, ['loss', 'name', 'ppo_clip', 'reinforce']),
  ],
)
def test_a_replaced_section_is_checked(section, value, words):
  c = config.default()
  c[section] = config.ConfigDict(value)
  refused(lambda: config.check(c), words)


def test_the_kl_in_a_reward_that_is_looked_at_part_by_part_is_refused():
  c = config.default()
  c.advantage.name = 'gdpo'
  config.check(c)
  c.kl.update(where='reward', coef=0.1)
  refused(
    lambda: config.check(c), ["advantage.name='gdpo'", "kl.where='reward'"]
  )


def test_what_a_function_asks_for_has_to_be_known(monkeypatch):
  def eager(logps_PGT, old_logps_PGT, advantages_PGT, mask_PGT, *, logits_PGTV):
    pass

  monkeypatch.setattr(eager, '__module__', policy.__name__)
  monkeypatch.setattr(policy, 'eager', eager, raising=False)
  c = config.default()
  c.loss = config.ConfigDict({'name': 'eager'})
  words = ["'eager'", "'logits_PGTV'", 'correction_PGT, selected_PGT']
  refused(lambda: config.check(c), words)


def test_a_metric_of_weight_zero_passes_beside_one_with_a_weight():
  c = config.default()
  c.reward = config.ConfigDict({'answer': 1.0, 'format': 0.0})
  config.check(c)


def test_the_chosen_function_comes_with_its_knobs():
  c = config.default()
  function, knobs = config.choose('loss', c.loss)
  assert function.__name__ == 'ppo_clip'
  assert knobs == {'clip_low': 0.2, 'clip_high': 0.2}
  function, knobs = config.choose('kl', c.kl)
  assert function.__name__ == 'k3' and knobs == {}
  assert c.kl.coef == 0 and c.loss.name == 'ppo_clip'


UNKNOWN_REWARD = """
from grpo_jax import build, config

def get_config():
  c = config.default()
  c.reward = config.ConfigDict({'answr': 1.0})
  return c
"""


def truncated_weights(folder):
  path = folder / 'cut.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tensor('token_embd.weight', np.zeros((64, 32), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  path.write_bytes(path.read_bytes()[:-1000])
  return path


def other_run(folder):
  c = config.default()
  c.seed = 77
  checkpoint.record(epath.Path(folder), c)
  (folder / 'checkpoints').mkdir()
  (folder / 'checkpoints' / 'precious').write_text('weights')
  return folder


def foreign(folder):
  folder.mkdir()
  (folder / 'thesis.tex').write_text('years of work')
  return folder


def file(path):
  path.write_text('years of work')
  return path


# Config file, flags, what lies where the run is to be, words of the message.
COMMANDS = {
  'unknown key': (SMOKE, ['--config.optim.lrate=1'], None, ['lrate', 'lr']),
  'unknown key of the config': (SMOKE, ['--config.sed=1'], None, ['sed']),
  'value of another type': (
    SMOKE,
    ['--config.steps=many'],
    None,
    ['steps', 'many'],
  ),
  'unknown reward': (
    'REWARD',
    [],
    None,
    ["'answr'", 'answer, any_of, countdown'],
  ),
  'group of one': (
    SMOKE,
    ['--config.rollout.group_size=1'],
    None,
    ['rollout.group_size=1'],
  ),
  'mesh that does not fit': (
    SMOKE,
    ['--config.mesh.tensor=3'],
    None,
    ["'tensor': 3", 'devices'],
  ),
  'missing weights': (
    SMOKE,
    ['--config.pretrain.steps=0', '--config.model.init=lost.gguf'],
    None,
    ['lost.gguf', 'no such file'],
  ),
  'truncated weights': (
    SMOKE,
    ['--config.pretrain.steps=0', '--config.model.init=CUT'],
    None,
    ['cut.gguf', 'cut short'],
  ),
  'long prompt': (
    SMOKE,
    ['--config.data.max_prompt=4'],
    None,
    ['data.max_prompt=4', 'tokens'],
  ),
  'workdir of another config': (SMOKE, [], other_run, ['seed is 77', '0 here']),
  'workdir with foreign files': (SMOKE, [], foreign, ['no config.json']),
  'workdir that is a file': (SMOKE, [], file, ['run']),
  'bad config argument': (
    'quickstart.py:smok',
    [],
    None,
    ["'smok'", 'group_size, algorithm, smoke'],
  ),
}


@pytest.mark.parametrize('name', COMMANDS)
def test_a_bad_command_ends_in_one_line_before_anything_is_done(name, tmp_path):
  file, flags, prepare, words = COMMANDS[name]
  workdir = tmp_path / 'run'
  if prepare:
    prepare(workdir)
  if file == 'REWARD':
    file = tmp_path / 'bad.py'
    file.write_text(UNKNOWN_REWARD)
  else:
    file = f'configs/{file}'
  flags = [
    flag.replace('CUT', str(truncated_weights(tmp_path)))
    if 'CUT' in flag
    else flag
    for flag in flags
  ]
  before = contents(workdir)
  done = command.run(
    'experiments/train.py', f'--config={file}', f'--workdir={workdir}', *flags
  )
  assert done.returncode not in (0, -6, -11), done
  assert 'Traceback' not in done.stderr, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('error: '), done.stderr
  assert [word for word in words if word not in last] == [], last
  assert 'compile' not in done.stdout
  after = contents(workdir)
  kept = {path: text for path, text in after.items() if path in before}
  assert kept == before
  new = {path.parts[0] for path in after if path not in before}
  assert new <= (set() if prepare else {'data'})  # Generated problems.


def contents(path):
  if path.is_file():
    return {path: path.read_bytes()}
  return {
    found.relative_to(path): found.read_bytes()
    for found in path.rglob('*')
    if found.is_file()
  }


@pytest.mark.parametrize(
  'changes, devices',
  [
    ({}, 8),
    ({'data.prompts': 12}, 4),
    ({'data.prompts': 12, 'updates.microbatches': 2}, 2),
    ({'pretrain.steps': 1, 'pretrain.rows': 3}, 1),
    ({'eval.problems': 6}, 2),
    ({'mesh.data': 1}, 1),
  ],
)
def test_a_cpu_counts_as_so_many_devices_as_the_batches_can_be_cut(
  changes, devices
):
  c = config.default()
  c.update_from_flattened_dict({'cpu_devices': 8, 'eval.problems': 512})
  c.update_from_flattened_dict(changes)
  assert build.cpu_devices(c) == devices
