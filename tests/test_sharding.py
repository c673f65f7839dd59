"""Rules on small cases, and one RL iteration on every kind of mesh."""

import contextlib
import dataclasses
import functools
import importlib.util
import pathlib
import re
import types as python_types

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from grpo_jax import build, models, optim, sharding, train, types
from grpo_jax.rewards import mix

WHOLE = dict(data=1, fsdp=1, expert=1, context=1, tensor=1)
MESHES = {
  'data 8': dict(data=8),
  'fsdp 8': dict(fsdp=8),
  'data 2, fsdp 2, tensor 2': dict(data=2, fsdp=2, tensor=2),
}
CUBE = MESHES['data 2, fsdp 2, tensor 2']


def mesh_of(**sizes):
  return sharding.make_mesh(WHOLE | sizes)


def test_one_size_may_be_the_rest():
  mesh = mesh_of(data=-1, tensor=2)
  assert dict(mesh.shape) == WHOLE | dict(data=4, tensor=2)
  assert mesh_of(data=8, fsdp=-1).shape['fsdp'] == 1


@pytest.mark.parametrize(
  'sizes',
  [
    dict(data=3),
    dict(data=4),
    dict(data=16),
    dict(data=-1, fsdp=3),
    dict(data=-1, fsdp=16),
    dict(data=-1, fsdp=-1),
    dict(data=-2, fsdp=-4),
    dict(data=-1, fsdp=0),
    dict(data=0),
  ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_number_of_devices(sizes):
  said = f'mesh {WHOLE | sizes} does not fit 8 devices'
  with pytest.raises(ValueError, match=re.escape(said)):
    mesh_of(**sizes)


@pytest.mark.parametrize(
  'axes,shape,expected',
  [
    (('batch', None), (8, 3), (('data', 'fsdp'), None)),
    (('batch', None), (6, 3), (None, None)),  # 6 rows on 2 * 2 devices.
    (('embed', 'heads'), (6, 10), (('fsdp',), ('tensor',))),
    (('embed', 'heads'), (5, 10), (None, ('tensor',))),
    (('vocab', 'embed'), (63, 10), (None, ('fsdp',))),
    (('layers', None), (4, 4), (None, None)),
  ],
)
def test_a_dimension_that_does_not_divide_stays_whole(axes, shape, expected):
  mesh = mesh_of(**CUBE)
  spec = sharding.spec(axes, shape, sharding.TRAIN, mesh)
  assert spec == PartitionSpec(*expected)
  jax.device_put(np.zeros(shape), NamedSharding(mesh, spec))


def test_rollout_weights_are_not_cut_along_their_width():
  mesh, model = mesh_of(**CUBE), models.build('llama', 'tiny')
  layout = sharding.param_shardings(model, sharding.ROLLOUT, mesh)
  assert layout['layers']['q'].spec == PartitionSpec(None, None, ('tensor',))
  layout = sharding.param_shardings(model, sharding.TRAIN, mesh)
  expected = PartitionSpec(None, ('fsdp',), ('tensor',))
  assert layout['layers']['q'].spec == expected


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_moments_lie_where_their_weights_do(name):
  # With four heads no two parameters have one shape and different places.
  model = models.build('llama', 'tiny', heads=4, tied=False)
  mesh = mesh_of(**CUBE)
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    models.abstract_params(model),
    sharding.param_shardings(model, sharding.TRAIN, mesh),
  )
  optimizer = optim.make(name=name, lr=1e-3, steps=10)
  opt_state = jax.eval_shape(optimizer.init, params)
  placed = sharding.like_params(opt_state, params, mesh)
  assert jax.tree.structure(placed) == jax.tree.structure(opt_state)
  where = {x.shape: x.sharding for x in jax.tree.leaves(params)}
  for x in jax.tree.leaves(placed):
    assert x.sharding == where.get(x.shape, sharding.replicated(mesh))
  whole = [x.sharding.is_fully_replicated for x in jax.tree.leaves(placed)]
  assert whole.count(False) == 9 * {'adamw': 2, 'sgd': 1}[name]


def test_constrain_places_on_a_mesh_and_does_nothing_without():
  x = jnp.zeros((8, 3))
  assert sharding.constrain(x, 'batch', None) is x
  with jax.set_mesh(mesh_of(**CUBE)):
    y = jax.jit(lambda x: sharding.constrain(x, 'batch', None))(x)
  assert y.sharding.shard_shape(y.shape) == (2, 3)


def test_batches_lie_along_the_data_axes():
  mesh = mesh_of(**CUBE)
  assert sharding.batch_divisor(mesh) == 4
  batch = {'a': np.arange(8), 'b': np.zeros((4, 5))}
  tree = sharding.put(batch, sharding.batch_sharding(mesh))
  assert tree['a'].sharding.shard_shape((8,)) == (2,)
  assert tree['b'].sharding.shard_shape((4, 5)) == (1, 5)


def config(sizes):
  """The quickstart's small version, with everything that a state may hold."""
  path = pathlib.Path(__file__).parents[1] / 'configs' / 'quickstart.py'
  spec = importlib.util.spec_from_file_location('quickstart', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config('smoke,group_size=4')
  c.mesh.update(WHOLE | sizes)
  c.model.unroll = False
  c.pretrain.steps = 0
  c.data.prompts = 16
  c.updates.microbatches = 2
  c.kl.coef = 0.1
  return c


def score(rollout, prompts, text):
  """Random weights earn no rule reward; this one sees every token."""
  del prompts, text
  counted_PGT = jnp.where(rollout.actions_PGT, rollout.tokens_PGT % 7, 0)
  return jnp.sum(counted_PGT, axis=-1) / rollout.lengths_PG


@contextlib.contextmanager
def scored():
  with pytest.MonkeyPatch.context() as patch:
    file = python_types.SimpleNamespace(answer=score, format=score)
    patch.setattr(mix, 'load', lambda name: file)
    yield


def iteration(run):
  """One compiled iteration from random weights, and the state before it."""
  with scored(), jax.set_mesh(run.mesh):
    steps = train.compile_steps(run)
    before = steps.start_rl(train.start(run))
    places = jax.tree.map(lambda x: x.sharding, before)
    return places, *steps.iterate(before, build.train_batch(run, 0), [])


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  run = build.build(config(MESHES['data 8']), tmp_path_factory.mktemp('one'))
  mesh = jax.make_mesh(
    (1,) * 5,
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 5,
    devices=jax.devices()[:1],
  )
  text = jax.device_put(run.text, sharding.replicated(mesh))
  run = dataclasses.replace(run, mesh=mesh, text=text)
  return jax.device_get(iteration(run)[1:])


# The part of an array that a device holds, by hand. Vocabulary 64, width 32.
SHARDS = {
  'data 8': {'q': (2, 32, 32), 'embed': (64, 32), 'rows': 2},
  'fsdp 8': {'q': (2, 4, 32), 'embed': (64, 4), 'rows': 2},
  'data 2, fsdp 2, tensor 2': {'q': (2, 16, 16), 'embed': (32, 16), 'rows': 4},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', MESHES)
def test_an_iteration_on_a_mesh_equals_that_on_one_device(
  one_device, tmp_path, name
):
  run = build.build(config(MESHES[name]), tmp_path)
  places, state, (rolled, scores, numbers, _) = iteration(run)

  declared = jax.tree.map(lambda x: x.sharding, build.templates(run)[1])
  for found in (places, jax.tree.map(lambda x: x.sharding, state)):
    assert_same_places(found, declared, state)
  adam = state.opt_state[1][0]
  for tree in (state.params, state.reference, adam.mu, adam.nu):
    assert shard(tree['layers']['q']) == SHARDS[name]['q']
    assert shard(tree['embed']) == SHARDS[name]['embed']
  assert shard(rolled.tokens_PGT)[0] == SHARDS[name]['rows']
  assert shard(scores.total_PG)[0] == SHARDS[name]['rows']

  expected_state, (expected, expected_scores, expected_numbers, _) = one_device
  np.testing.assert_array_equal(rolled.tokens_PGT, expected.tokens_PGT)
  np.testing.assert_allclose(rolled.logps_PGT, expected.logps_PGT, atol=1e-4)
  np.testing.assert_allclose(
    scores.total_PG, expected_scores.total_PG, rtol=1e-6
  )
  assert numbers.keys() == expected_numbers.keys()
  for key, value in expected_numbers.items():
    assert float(numbers[key]) == pytest.approx(value, abs=1e-4), key
  assert expected_numbers['grad_norm'] > 0.01
  # Adam's first moment is a tenth of the gradient after clipping.
  moments = zip(
    jax.tree.leaves(adam.mu),
    jax.tree.leaves(expected_state.opt_state[1][0].mu),
    strict=True,
  )
  for actual, moment in moments:
    difference = np.linalg.norm(actual - moment)
    assert difference < 1e-4 * np.linalg.norm(moment)
  assert int(state.step) == 1 and int(state.cursor) == 16


def shard(x):
  return x.sharding.shard_shape(x.shape)


def assert_same_places(found, declared, state):
  """Every leaf of the state lies as declared."""
  rows = zip(
    jax.tree.leaves(found),
    jax.tree.leaves(declared),
    jax.tree_util.tree_leaves_with_path(state),
    strict=True,
  )
  for actual, expected, (path, x) in rows:
    assert actual.is_equivalent_to(expected, x.ndim), path


def test_random_weights_do_not_depend_on_the_mesh(tmp_path):
  trees = []
  for name in ('data 8', 'fsdp 8'):
    run = build.build(config(MESHES[name]), tmp_path / name)
    with jax.set_mesh(run.mesh):
      state = train.start(run)
    assert isinstance(state, types.TrainState)
    declared = jax.tree.map(lambda x: x.sharding, build.templates(run)[0])
    found = jax.tree.map(lambda x: x.sharding, state)
    assert_same_places(found, declared, state)
    trees.append(state.params)
  # The bits are the same; the last one of a normal number made from them is
  # not on every version of XLA, which fuses the two programs differently.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
  jax.tree.map(close, *trees)
