"""experiments/convert.py: what a run or a folder becomes, to be served."""

import json
import pathlib
import shutil

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors_written as written

from grpo_jax import checkpoint, weights
from grpo_jax.types import TrainState

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'models' / 'qwen2'
TEXT_FILES = ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja']


def convert(origin, folder, *flags):
  return command.run(
    'experiments/convert.py',
    *('--from', str(origin), '--to', str(folder)),
    *flags,
  )


@pytest.fixture(scope='module')
def origin(tmp_path_factory):
  """A published folder with a tokenizer, of which only names are looked at."""
  folder = tmp_path_factory.mktemp('published') / 'qwen2'
  shutil.copytree(GOLDEN, folder)
  for name in TEXT_FILES:
    (folder / name).write_text(f'"{name}"')
  (folder / 'generation_config.json').write_text('{"eos_token_id": [2, 5]}')
  return folder


@pytest.fixture(scope='module')
def run(origin):
  """The workdir of a run from that folder, which has doubled its weights."""
  workdir = origin.parent / 'run'
  workdir.mkdir()
  config = {
    'model': {'name': 'llama', 'variant': '', 'sizes': {}},
    'tokenizer': {'path': str(origin / 'tokenizer.json')},
  }
  config['model']['init'] = str(origin)
  (workdir / 'config.json').write_text(json.dumps(config))
  params = written.params_of(written.read(origin))
  manager = checkpoint.open_manager(workdir / 'checkpoints', keep=2)
  zero = jnp.int32(0)
  for step in (3, 4):
    doubled = jax.tree.map(lambda w, n=step: jnp.asarray(w * (n - 2)), params)
    state = TrainState(jnp.int32(step), zero, doubled, opt_state={'m': zero})
    checkpoint.save(manager, state)
  manager.close()
  return workdir


def assert_text_is_copied(folder, origin):
  for name in [*TEXT_FILES, 'config.json', 'generation_config.json']:
    ours, theirs = (
      json.loads((x / name).read_text()) for x in (folder, origin)
    )
    assert ours == theirs


def test_a_folder_comes_out_as_it_went_in(origin, tmp_path):
  done = convert(origin, tmp_path / 'm')
  assert done.returncode == 0, done.stderr
  assert written.raw(tmp_path / 'm') == written.raw(origin)
  assert_text_is_copied(tmp_path / 'm', origin)


def test_a_run_comes_out_with_its_weights_and_what_it_started_from(
  run, origin, tmp_path
):
  done = convert(run, tmp_path / 'm')
  assert done.returncode == 0, done.stderr
  before, after = written.read(origin), written.read(tmp_path / 'm')
  assert before.keys() == after.keys()
  for name in before:
    np.testing.assert_array_equal(after[name], 2 * before[name])
  assert_text_is_copied(tmp_path / 'm', origin)


def test_one_of_its_checkpoints_comes_out_in_another_dtype(
  run, origin, tmp_path
):
  path = run / 'checkpoints' / '3'
  done = convert(path, tmp_path / 'm', '--dtype', 'bfloat16')
  assert done.returncode == 0, done.stderr
  assert {x[0] for x in written.raw(tmp_path / 'm').values()} == {'BF16'}
  for name, array in written.read(tmp_path / 'm').items():
    wanted = written.read(origin)[name]
    np.testing.assert_allclose(array, wanted, rtol=2**-8)
  config = json.loads((tmp_path / 'm' / 'config.json').read_text())
  assert config['dtype'] == 'bfloat16'
  assert weights.architecture(tmp_path / 'm') == weights.architecture(origin)


@pytest.mark.parametrize(
  'name,words',
  [('lost', 'there is no such file'), ('empty', 'no checkpoints/<step>')],
)
def test_what_has_no_weights_is_refused(name, words, tmp_path):
  (tmp_path / 'empty').mkdir()
  config = {'model': {'name': 'llama', 'variant': 'tiny', 'sizes': {}}}
  (tmp_path / 'empty' / 'config.json').write_text(json.dumps(config))
  done = convert(tmp_path / name, tmp_path / 'm')
  assert done.returncode == 1
  assert done.stderr.startswith('error: ') and words in done.stderr
  assert not (tmp_path / 'm').exists()


def test_a_folder_that_is_there_is_not_written_over(origin, tmp_path):
  (tmp_path / 'notes').touch()
  done = convert(origin, tmp_path)
  assert done.returncode == 1 and 'is there already' in done.stderr
  assert [x.name for x in tmp_path.iterdir()] == ['notes']
