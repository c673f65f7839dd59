"""A checkpoint gives back every bit, and a workdir belongs to one config."""

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


def test_a_folder_of_something_else_is_refused_and_left_alone(workdir):
  workdir.mkdir()
  (workdir / 'thesis.tex').write_text('years of work')
  with pytest.raises(ValueError, match='no config.json'):
    checkpoint.claim(workdir, config.default())
  assert [path.name for path in workdir.iterdir()] == ['thesis.tex']
