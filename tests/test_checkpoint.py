"""A checkpoint gives back every bit, and a workdir belongs to one config."""

import asyncio
import logging
import math

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from grpo_jax import checkpoint, config, optim, types

OPTIMIZER = optim.make(lr=0.1, steps=10)


def new_state(step=3):
  """All dtypes that a state may hold, and moments that are not zero."""
  keys = jax.random.split(jax.random.key(step), 3)
  params = {
    'embed': jax.random.normal(keys[0], (8, 4)),
    'layers': {'norm': jax.random.normal(keys[1], (4,), jnp.bfloat16)},
  }
  opt_state = OPTIMIZER.init(params)
  _, opt_state = OPTIMIZER.update(params, opt_state, params)
  reference = jax.tree.map(lambda w: w * 2, params)
  return types.TrainState(
    jnp.int32(step), jnp.int32(40), params, opt_state, reference
  )


def template_of(state, sharding=None):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding or x.sharding
    ),
    state,
  )


def assert_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for x, y in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path) / 'checkpoints'


@pytest.fixture
def manager(folder):
  found = checkpoint.open_manager(folder, keep=2)
  yield found
  found.close()


def reopened(folder):
  return checkpoint.open_manager(folder, keep=2)


def test_a_state_comes_back_bit_for_bit(manager, folder):
  state = new_state()
  checkpoint.save(manager, state)
  manager.close()
  again = reopened(folder)
  found = checkpoint.restore(again, 3, template_of(state))
  again.close()
  assert isinstance(found, types.TrainState)
  assert type(found.opt_state) is type(state.opt_state)
  assert_equal(found, state)


def test_a_state_without_a_reference_comes_back(manager):
  state = new_state().replace(reference=None)
  checkpoint.save(manager, state)
  manager.wait_until_finished()
  assert_equal(checkpoint.restore(manager, 3, template_of(state)), state)


def test_arrays_come_back_into_the_sharding_that_is_asked_for(manager):
  state = new_state()
  checkpoint.save(manager, state)
  manager.wait_until_finished()
  mesh = jax.make_mesh((4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  template = template_of(state, NamedSharding(mesh, PartitionSpec()))
  rows = NamedSharding(mesh, PartitionSpec('x'))
  template.params['embed'] = jax.ShapeDtypeStruct(
    (8, 4), 'float32', sharding=rows
  )
  found = checkpoint.restore(manager, 3, template)
  assert found.params['embed'].sharding == rows
  assert len(found.step.sharding.device_set) == 4
  assert_equal(found, state)


def test_the_next_step_may_reuse_the_memory_of_a_state_that_is_being_saved(
  manager,
):
  state = new_state()
  expected = jax.tree.map(np.array, state)
  template = template_of(state)

  def spoil(state):
    return jax.tree.map(lambda x: x * 0 - 1, state)

  spoil = jax.jit(spoil, donate_argnums=0).lower(state).compile()
  checkpoint.save(manager, state)
  spoilt = spoil(state)
  assert state.params['embed'].is_deleted()
  for _ in range(20):
    spoilt = spoil(spoilt)
  manager.wait_until_finished()
  assert_equal(checkpoint.restore(manager, 3, template), expected)


def test_the_newest_stay(manager):
  for step in (1, 2, 5):
    checkpoint.save(manager, new_state(step))
  manager.wait_until_finished()
  assert sorted(manager.all_steps()) == [2, 5]
  assert manager.latest_step() == 5
  found = checkpoint.restore(manager, 2, template_of(new_state(2)))
  assert_equal(found, new_state(2))


def test_a_step_that_is_there_is_not_written_again(manager):
  checkpoint.save(manager, new_state())
  manager.wait_until_finished()
  checkpoint.save(manager, new_state().replace(cursor=jnp.int32(99)))
  manager.wait_until_finished()
  found = checkpoint.restore(manager, 3, template_of(new_state()))
  assert found.cursor == 40


def test_a_half_written_checkpoint_is_no_checkpoint(manager, folder):
  checkpoint.save(manager, new_state())
  manager.close()
  partial = folder / '7.orbax-checkpoint-tmp'
  partial.mkdir()
  (partial / 'half').write_text('')
  again = reopened(folder)
  assert again.latest_step() == 3
  again.close()


def save_all(folder, scores, keep=2, best='reward/mean'):
  """Steps 1, 2, ..., each in a session of its own; returns what stays."""
  for step, score in enumerate(scores, 1):
    manager = checkpoint.open_manager(folder, keep, best)
    metrics = None if score is None else {best: score}
    checkpoint.save(manager, new_state(step), metrics)
    manager.close()
  return sorted(int(x.name) for x in folder.iterdir())


@pytest.mark.parametrize(
  'scores, stay',
  [
    ([0.1, 0.9, 0.2, 0.3, 0.4], [2, 4, 5]),
    ([0.1, 0.2, 0.9, 0.3, 0.4], [3, 4, 5]),
    ([0.1, 0.2, 0.3, 0.4, 0.5], [4, 5]),
    ([0.5, 0.5, 0.4, 0.4, 0.4], [2, 4, 5]),  # The later one of equals.
    ([-3.0, -2.0, -1.0, -5.0, -4.0], [3, 4, 5]),
    # Pre-training has no rewards, and a run may have no scored completion.
    ([None, None, None, None, None], [4, 5]),
    ([None, None, 0.0, None, None, None], [3, 5, 6]),
    ([0.1, 0.2, math.nan, 0.0, 0.0], [2, 4, 5]),
    ([math.inf, 0.2, 0.1, 0.0, 0.0], [2, 4, 5]),
    ([math.nan, math.nan, math.nan, math.nan], [3, 4]),
  ],
)
def test_the_best_stays_beside_the_newest_whatever_sessions_there_are(
  scores, stay, folder, caplog
):
  assert save_all(folder, scores) == stay
  # Orbax would warn of each step without metrics.
  assert [x for x in caplog.messages if 'metric' in x] == []


def test_the_best_of_one_session_stays(folder):
  manager = checkpoint.open_manager(folder, keep=1, best='reward/mean')
  for step, score in enumerate([None, 0.1, 0.9, 0.2, 0.3], 1):
    metrics = None if score is None else {'reward/mean': score}
    checkpoint.save(manager, new_state(step), metrics)
  manager.wait_until_finished()
  assert manager.all_steps() == [3, 5]
  assert_equal(
    checkpoint.restore(manager, 3, template_of(new_state(3))), new_state(3)
  )
  manager.close()


def test_without_a_name_no_best_one_stays(folder):
  assert save_all(folder, [0.9, 0.1, 0.2, 0.3], best='') == [3, 4]


def test_damaged_metrics_cost_a_checkpoint_its_rank_and_nothing_else(
  folder, capsys
):
  save_all(folder, [0.9, 0.1])
  (folder / '1' / 'metrics' / 'metrics').write_text('{"reward/me')
  manager = checkpoint.open_manager(folder, 2, 'reward/mean')
  assert '1/metrics/metrics cannot be read' in capsys.readouterr().out
  assert_equal(
    checkpoint.restore(manager, 1, template_of(new_state(1))), new_state(1)
  )
  manager.close()
  assert save_all(folder, [None, None, 0.2, 0.3]) == [3, 4]


def data_file(folder):
  """The largest: here it holds all arrays."""
  found = (x for x in (folder / 'default' / 'd').iterdir())
  return max(found, key=lambda x: x.stat().length)


def cut_short(path):
  path.write_bytes(path.read_bytes()[: path.stat().length // 2])


def spoil(path):
  path.write_bytes(bytes(path.stat().length))


def empty(folder):
  folder.rmtree()
  folder.mkdir()


DAMAGES = {
  'data cut short': lambda x: cut_short(data_file(x)),
  'data gone': lambda x: data_file(x).unlink(),
  'data zeroed': lambda x: spoil(data_file(x)),
  'index cut short': lambda x: cut_short(x / 'default' / 'manifest.ocdbt'),
  'index gone': lambda x: (x / 'default' / 'manifest.ocdbt').unlink(),
  'names cut short': lambda x: cut_short(x / 'default' / '_METADATA'),
  'names gone': lambda x: (x / 'default' / '_METADATA').unlink(),
  'arrays gone': lambda x: (x / 'default').rmtree(),
  'emptied': empty,
}

# Reading stops at the first error; what else was on its way has no reader.
unread = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


@unread
@pytest.mark.parametrize('damage', DAMAGES)
def test_an_unreadable_newest_falls_back_to_the_one_before(
  damage, folder, capsys
):
  save_all(folder, [0.1, 0.2, 0.3], keep=3)
  DAMAGES[damage](folder / '3')
  manager = checkpoint.open_manager(folder, 3, 'reward/mean')
  found = checkpoint.restore_newest(
    manager, lambda i: template_of(new_state(i))
  )
  assert_equal(found, new_state(2))
  said = capsys.readouterr().out.splitlines()
  assert said[0].startswith('the checkpoint of step 3 cannot be read: ')
  assert said[1:] == [
    f'it is kept as {folder / "3.unreadable"}',
    'going on from step 2',
  ]

  # The run comes to that step once more, and to the next.
  for step in (3, 4):
    checkpoint.save(manager, new_state(step), {'reward/mean': 0.0})
  manager.close()
  kept = {x.name for x in folder.iterdir()}
  assert kept == {'2', '3', '4', '3.unreadable'}
  again = reopened(folder)
  found = checkpoint.restore_newest(again, lambda i: template_of(new_state(i)))
  assert_equal(found, new_state(4))
  assert_equal(
    checkpoint.restore(again, 3, template_of(new_state(3))), new_state(3)
  )
  again.close()


def test_of_arrays_that_nobody_waits_for_nothing_is_heard(caplog):
  async def read():
    raise ValueError('cut short')

  async def read_all():
    orphan = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    del orphan

  checkpoint.hide_orphans()
  asyncio.run(read_all())
  logging.getLogger('asyncio').error('what else it says')
  assert caplog.messages == ['what else it says']


@unread
def test_as_many_as_are_unreadable_are_gone_back(folder, capsys):
  save_all(folder, [0.9, 0.1, 0.2])  # The best one is the last resort.
  for damage, step in (('emptied', '3'), ('data gone', '2')):
    DAMAGES[damage](folder / step)
  manager = checkpoint.open_manager(folder, 2, 'reward/mean')
  found = checkpoint.restore_newest(
    manager, lambda i: template_of(new_state(i))
  )
  assert_equal(found, new_state(1))
  assert manager.all_steps() == [1]
  manager.close()
  assert 'going on from step 1' in capsys.readouterr().out


@unread
def test_a_step_can_be_unreadable_twice(folder):
  save_all(folder, [0.1, 0.2])
  for _ in range(3):
    DAMAGES['emptied'](folder / '2')
    manager = checkpoint.open_manager(folder, 2, 'reward/mean')
    checkpoint.restore_newest(manager, lambda i: template_of(new_state(i)))
    checkpoint.save(manager, new_state(2))
    manager.close()
  assert {x.name for x in folder.iterdir()} == {
    '1',
    '2',
    '2.unreadable',
    '2.unreadable.2',
    '2.unreadable.3',
  }


@unread
def test_where_none_can_be_read_nothing_is_moved(folder):
  save_all(folder, [0.1, 0.2])
  DAMAGES['emptied'](folder / '1')
  DAMAGES['names gone'](folder / '2')
  manager = checkpoint.open_manager(folder, 2, 'reward/mean')
  with pytest.raises(ValueError, match='none of the checkpoints in .* can be'):
    checkpoint.restore_newest(manager, lambda i: template_of(new_state(i)))
  manager.close()
  assert {x.name for x in folder.iterdir()} == {'1', '2'}


def test_another_state_than_the_one_that_was_saved_is_not_read(folder):
  save_all(folder, [0.1])
  other = new_state().replace(params={'embed': jnp.zeros((8, 5))})
  manager = checkpoint.open_manager(folder, 2)
  with pytest.raises(ValueError, match='none of the checkpoints'):
    checkpoint.restore_newest(manager, lambda i: template_of(other))
  manager.close()


def test_where_there_are_none_the_run_begins(folder, capsys):
  manager = checkpoint.open_manager(folder, 2)
  assert checkpoint.restore_newest(manager, lambda i: None) is None
  manager.close()
  assert capsys.readouterr().out == ''


@pytest.fixture
def workdir(tmp_path):
  return epath.Path(tmp_path) / 'run'


def test_a_new_or_empty_workdir_can_be_claimed(workdir):
  checkpoint.claim(workdir, config.default())
  assert not workdir.exists()
  workdir.mkdir()
  checkpoint.claim(workdir, config.default())
  assert [*workdir.iterdir()] == []


def test_the_same_config_goes_on(workdir):
  c = config.default()
  c.data.shots = (('1 + 1?', '2'),)  # JSON makes lists of tuples.
  checkpoint.record(workdir, c)
  text = (workdir / 'config.json').read_text()
  checkpoint.claim(workdir, c.lock())
  assert (workdir / 'config.json').read_text() == text


@pytest.mark.parametrize(
  'changes,words',
  [
    ({'seed': 5}, ['seed is 0 there and 5 here']),
    ({'optim.lr': 0.5}, ['optim.lr is 1e-05 there and 0.5 here']),
    (
      {'seed': 5, 'loss.clip_high': 0.3},
      ['seed is 0 there', 'loss.clip_high is 0.2 there and 0.3 here'],
    ),
  ],
)
def test_another_config_is_refused_with_every_difference(
  changes, words, workdir
):
  checkpoint.record(workdir, config.default())
  text = (workdir / 'config.json').read_text()
  c = config.default()
  c.update_from_flattened_dict(changes)
  with pytest.raises(ValueError) as error:
    checkpoint.claim(workdir, c)
  message = str(error.value)
  assert '\n' not in message and str(workdir) in message
  assert [word for word in words if word not in message] == []
  assert message.count(' there and ') == len(changes)
  assert (workdir / 'config.json').read_text() == text


def test_a_key_that_only_one_of_them_has_is_a_difference(workdir):
  checkpoint.record(workdir, config.default())
  c = config.default()
  c.reward = config.ConfigDict({'answer': 1.0})
  with pytest.raises(ValueError, match='reward.format is 0.1 there'):
    checkpoint.claim(workdir, c)


def test_a_run_that_was_killed_before_it_had_a_config_goes_on(workdir):
  for name in ('data', 'tokenizer.model', 'config.json.partial'):
    (workdir / name).mkdir(parents=True)
  checkpoint.claim(workdir, config.default())


def test_a_workdir_may_be_given_back_until_it_holds_checkpoints(workdir):
  checkpoint.record(workdir, config.default())
  checkpoint.disown(workdir)
  checkpoint.disown(workdir)
  c = config.default()
  c.seed = 1
  checkpoint.claim(workdir, c)
  checkpoint.record(workdir, c)
  (workdir / 'checkpoints').mkdir()
  checkpoint.disown(workdir)
  with pytest.raises(ValueError, match='seed is 1 there and 0 here'):
    checkpoint.claim(workdir, config.default())


def test_a_folder_of_something_else_is_refused_and_left_alone(workdir):
  workdir.mkdir()
  (workdir / 'thesis.tex').write_text('years of work')
  with pytest.raises(ValueError, match='no config.json'):
    checkpoint.claim(workdir, config.default())
  assert [path.name for path in workdir.iterdir()] == ['thesis.tex']


def test_a_run_goes_on_with_another_mesh_and_number_of_cpu_devices(workdir):
  checkpoint.record(workdir, config.default())
  c = config.default()
  c.cpu_devices = 2
  c.mesh.fsdp = 4
  checkpoint.claim(workdir, c)
