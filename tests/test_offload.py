"""Reference and optimizer state in host memory: the same run, bit for bit.

What it saves is in test_accelerators.py. A CPU has such memory to name, though
not to save.
"""

import functools

import few_steps
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import build, checkpoint, config, sharding, train

BOTH = {'offload.reference': True, 'offload.optimizer': True}
CASES = {
  'pre-trained': {'pretrain.steps': 2, 'pretrain.rows': 4},
  'a moving average, two minibatches, fsdp': {
    'reference.every': 1,
    'reference.rate': 0.5,
    'updates.minibatches': 2,
    'mesh.data': 1,
    'mesh.fsdp': 2,
  },
}


@pytest.fixture(scope='module', autouse=True)
def known_rewards():
  with few_steps.scored():
    yield


class Loop:
  """What fit does, with programs that were compiled in a hurry."""

  def __init__(self, folder, **changes):
    c = few_steps.make_config(**{'kl.coef': 0.1} | changes)
    self.run = build.build(c, str(folder), jax.devices()[:2])
    whole = sharding.replicated(self.run.mesh)
    self.put = functools.partial(
      sharding.put, shardings=sharding.batch_sharding(self.run.mesh)
    )
    self.text = sharding.put(self.run.text, whole)
    self.key = jax.device_put(jax.random.key(0), whole)
    names = ['start_rl', 'iterate'] + ['pretrain'] * bool(c.pretrain.steps)
    self.programs = {
      name: hlo.compile_program(self.run, name) for name in names
    }

  def begin(self):
    """The state in which RL begins."""
    state = train.start(self.run)
    for step in range(self.run.config.pretrain.steps):
      documents = self.put(build.pretrain_batch(self.run, step))
      state, _ = self.programs['pretrain'](state, documents)
    return self.programs['start_rl'](state)

  def step(self, state, step):
    prompts = self.put(build.train_batch(self.run, step))
    return self.programs['iterate'](state, prompts, self.text, self.key)


def kinds(state):
  """Memory kinds of what is not a single number, by field."""
  return {
    name: {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}
    for name, tree in vars(state).items()
  }


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  for a, e in leaves:
    np.testing.assert_array_equal(np.asarray(a), np.asarray(e))


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_a_run_is_the_same_with_host_memory(tmp_path, case):
  ends = []
  for name, offload in (('device', {}), ('host', BOTH)):
    loop = Loop(tmp_path / name, **CASES[case] | offload)
    state, told = loop.begin(), []
    for step in range(2):
      state, (*_, numbers) = loop.step(state, step)
      told.append(numbers)
    ends.append((state, told))
  assert_same(ends[1], ends[0])
  assert kinds(ends[0][0])['opt_state'] == {'device'}
  assert kinds(ends[0][0])['reference'] == {'device'}
  # `loop` and `state` are of the run with host memory.
  assert kinds(state)['opt_state'] == {sharding.HOST}
  assert kinds(state)['reference'] == {sharding.HOST}
  assert kinds(state)['params'] == {'device'}
  leaves = jax.tree.leaves(state), jax.tree.leaves(build.templates(loop.run)[1])
  for leaf, wanted in zip(*leaves, strict=True):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    assert leaf.sharding.memory_kind == wanted.sharding.memory_kind


def test_a_state_in_host_memory_is_donated_and_comes_back_to_it(tmp_path):
  loop = Loop(tmp_path / 'run', **BOTH)
  before = loop.begin()
  state, _ = loop.step(before, 0)
  assert all(x.is_deleted() for x in jax.tree.leaves(before))

  manager = checkpoint.open_manager(tmp_path / 'checkpoints', keep=1)
  checkpoint.save(manager, state)
  kept = jax.tree.map(lambda x: np.array(x), state)
  expected, _ = loop.step(state, 1)
  manager.wait_until_finished()
  template = build.templates(loop.run)[1]
  state = checkpoint.restore(manager, 1, template)
  manager.close()
  assert_same(state, kept)
  assert kinds(state) == kinds(template) == kinds(expected)
  actual, _ = loop.step(state, 1)
  assert_same(actual, expected)


@pytest.mark.parametrize('knob', ['reference', 'optimizer'])
def test_each_knob_moves_its_own_part(tmp_path, knob):
  c = few_steps.make_config(**{'kl.coef': 0.1, f'offload.{knob}': True})
  run = build.build(c, str(tmp_path / 'run'), jax.devices()[:1])
  found = kinds(build.templates(run)[1])
  moved = {'reference': 'reference', 'optimizer': 'opt_state'}[knob]
  assert found.pop(moved) == {sharding.HOST}
  assert set.union(*found.values()) == {'device'}


@pytest.mark.parametrize(
  'knob,changes',
  [
    ("model.remat='offload'", {'model.remat': 'offload'}),
    ('offload.reference=True', {'offload.reference': True, 'kl.coef': 0.1}),
    ('offload.optimizer=True', {'offload.optimizer': True}),
  ],
)
def test_devices_that_do_not_reach_their_host_are_refused(
  tmp_path, monkeypatch, knob, changes
):
  c = few_steps.make_config(**changes)
  monkeypatch.setattr(sharding, 'HOST', 'a kind that is nowhere')
  with pytest.raises(ValueError, match=f'^{knob} needs devices that reach'):
    build.build(c, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_a_reference_that_is_not_held_cannot_wait_anywhere():
  c = config.default()
  c.offload.reference = True
  with pytest.raises(ValueError, match='offload.reference: kl.coef=0 holds no'):
    config.check(c)
  c.kl.coef = 0.1
  config.check(c)
  c.lora.rank = 4
  with pytest.raises(ValueError, match='offload.reference: with lora.rank=4'):
    config.check(c)


def test_fetched_numbers_are_cut_as_they_were():
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {'fsdp': 8})
  rows = sharding.batch_sharding(mesh).with_memory_kind(sharding.HOST)
  x_X = jax.device_put(np.arange(16.0), rows)
  doubled_X = jax.jit(lambda x_X: 2 * sharding.fetch(x_X))(x_X)
  on_device = rows.with_memory_kind('device')
  assert doubled_X.sharding.is_equivalent_to(on_device, ndim=1)
  np.testing.assert_array_equal(doubled_X, 2 * jnp.arange(16.0))
