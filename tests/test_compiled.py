"""What the compiler made of a run's programs, read in its own text.

Which arrays are weights and which hold rows of the batch is known by their
sizes: see hlo.py.
"""

import dataclasses
import functools
import math

import hlo
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import pytest

from grpo_jax import build, grpo, models, preference, sharding, types
from grpo_jax.models import scalar

FSDP = hlo.MESHES['fsdp 8']
CUBE = hlo.MESHES['data 2, fsdp 2, tensor 2']


@pytest.fixture(scope='module', params=hlo.MESHES)
def run(request, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  return hlo.build_run(hlo.MESHES[request.param], workdir)


@pytest.fixture(scope='module')
def iterate(run):
  return hlo.compile_program(run, 'iterate')


def test_sizes_tell_weights_from_rows(run):
  for weight in jax.tree.leaves(build.templates(run)[1].params):
    assert math.log2(weight.size).is_integer()
  assert hlo.P % 3 == hlo.G % 3 == 0
  cut = run.mesh.shape['fsdp'] > 1
  assert bool(hlo.gathered_sizes(run)) == cut


def test_no_rows_of_the_batch_leave_their_device_in_an_iteration(run, iterate):
  text = iterate.as_text()
  assert hlo.collectives(text, run.mesh)
  assert not hlo.rows_that_move(text, run)


def test_a_reward_model_moves_its_weights_and_no_rows(run):
  model = scalar.with_scalar_head(run.model)
  layout = sharding.param_shardings(model, sharding.TRAIN, run.mesh)
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    models.abstract_params(model),
    layout,
  )
  score = functools.partial(preference.score_rollout, model=model)
  scorers = {'reward_model': types.Scorer(params, score)}
  asked = run.config.copy_and_resolve_references()
  with asked.unlocked():
    asked.reward = {'answer': 1.0, 'reward_model': {'pieces': 2}}
  run = dataclasses.replace(
    run, config=asked, text=run.text.replace(scorers=scorers)
  )
  compiled = hlo.compile_program(run, 'reward')
  text = compiled.as_text()
  assert not hlo.rows_that_move(text, run)
  cut = run.mesh.shape['fsdp'] * run.mesh.shape['tensor'] > 1
  assert bool(hlo.weights_that_move(text, run)) == cut
  size = sum(4 * x.size for x in jax.tree.leaves(params))
  parts = run.mesh.shape['fsdp'] * run.mesh.shape['tensor']
  held = compiled.memory_analysis().argument_size_in_bytes
  assert held > size / parts  # They are no constants.


def test_looking_for_repeats_moves_one_number_a_prompt(tmp_path):
  """Every device has to know how the problems of a step were answered."""
  sizes = hlo.MESHES['data 8']
  run = hlo.build_run(sizes, tmp_path, duplicates='warn')
  moved = hlo.rows_that_move(hlo.compile_program(run, 'update').as_text(), run)
  assert moved
  assert all(sent.sizes == {hlo.P} for sent in moved)


def test_no_rows_leave_their_device_in_pre_training(run):
  text = hlo.compile_program(run, 'pretrain').as_text()
  assert hlo.collectives(text, run.mesh)
  assert not hlo.rows_that_move(text, run)


def test_no_weights_move_inside_the_decode_loop(run, iterate):
  text = iterate.as_text()
  loop = hlo.decode_loop(text, run)
  assert ' dot(' in loop or 'dot_general' in loop
  assert not hlo.weights_that_move(loop, run)
  assert hlo.weights_that_move(text, run)


def test_nothing_moves_for_a_cache_that_grows(run):
  c = run.config.copy_and_resolve_references()
  c.rollout.stages = 3
  run = dataclasses.replace(run, config=c)
  text = hlo.compile_program(run, 'rollout').as_text()
  assert not hlo.rows_that_move(text, run)
  assert not hlo.weights_that_move(hlo.decode_loop(text, run), run)


def test_the_state_is_held_in_parts(run, iterate):
  parts = run.mesh.shape['fsdp'] * run.mesh.shape['tensor']
  assert_held_in_parts(iterate, hlo.state_bytes(run), parts)


def assert_held_in_parts(compiled, size, parts):
  """The state comes in, and goes out in the same memory, batches counted."""
  memory = compiled.memory_analysis()
  for held in (
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes,
    memory.alias_size_in_bytes,
  ):
    assert size / parts <= held <= 1.1 * size / parts


def test_the_update_on_fsdp_8_holds_an_eighth_of_the_state(tmp_path):
  run = hlo.build_run(FSDP, tmp_path)
  compiled = hlo.compile_program(run, 'update')
  assert_held_in_parts(compiled, hlo.state_bytes(run), 8)
  # Gradients are summed up in parts too, and what is gathered is one layer.
  text = compiled.as_text()
  assert not hlo.carried(text) & hlo.stacks(run)
  parts = {(y, n // 8, m) for y, n, m in hlo.stacks(run)}
  assert hlo.carried(text) & parts


@pytest.mark.parametrize(
  'groups,axes',
  [
    ('replica_groups={{0,1},{2,3},{4,5},{6,7}}', 'tensor'),
    ('replica_groups={{0,2},{1,3},{4,6},{5,7}}', 'fsdp'),
    ('replica_groups=[4,2]<=[8]', 'tensor'),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', 'data'),
    ('replica_groups=[2,4]<=[2,2,2]T(1,0,2)', 'data tensor'),
    ("replica_groups=mesh['a'=4,'b'=2] {'b'}", 'tensor'),
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}", 'data fsdp'),
    ("replica_groups=mesh['a'=8] {'a':(2)2}", 'fsdp'),
    ("replica_groups=mesh['a'=8] {'a':(1)2}", 'data'),
    (
      "replica_groups=mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}",
      'fsdp',
    ),
    ('source_target_pairs={{0,1},{1,0},{6,7},{7,6}}', 'tensor'),
  ],
)
def test_groups_of_devices_are_read_in_all_notations(groups, axes):
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | CUBE)
  line = f'  %x.1 = f32[6,4]{{1,0}} all-gather(%y), {groups}, dimensions={{0}}'
  (sent,) = hlo.collectives(line, mesh)
  assert sent.shapes == ((6, 4),)
  assert sent.axes == set(axes.split())


# That the checks can fail:


def test_weights_that_move_in_the_decode_loop_are_found(tmp_path):
  run = hlo.build_run(FSDP, tmp_path)
  model = run.model

  def cut(w, zero):
    layout = PartitionSpec(*[None] * (w.ndim - 1), 'fsdp')
    return jax.lax.with_sharding_constraint(w + zero.astype(w.dtype), layout)

  def apply(params, inputs, cache=None):
    # Always 0, which the CPU's compiler does not know: weights that stay the
    # same it would gather before the loop.
    zero = jnp.minimum(inputs.positions_BT[0, 0], 0)
    params = jax.tree.map(lambda w: cut(w, zero), params)
    return model.apply(params, inputs, cache)

  run = dataclasses.replace(run, model=dataclasses.replace(model, apply=apply))
  text = hlo.compile_program(run, 'rollout').as_text()
  moved = hlo.weights_that_move(hlo.decode_loop(text, run), run)
  assert 'all-gather' in [sent.kind for sent in moved]


def test_rows_of_the_batch_that_are_gathered_are_found(tmp_path, monkeypatch):
  def split(tree, pieces):
    return jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), tree)

  monkeypatch.setattr(grpo, 'split', split)  # Pieces of neighbouring groups.
  run = hlo.build_run(hlo.MESHES['data 8'], tmp_path)
  text = hlo.compile_program(run, 'update').as_text()
  moved = hlo.rows_that_move(text, run)
  assert 'all-gather' in [sent.kind for sent in moved]


def test_no_device_waits_for_others_while_it_scores(tmp_path):
  """Exact numbers and n-grams are loops that end when all rows are done."""
  reward = {
    'answer': {'compare': 'number'},
    'repetition': 0.1,
    'length_kimi': 0.1,
  }
  run = hlo.build_run(FSDP, tmp_path, reward=reward)
  text = hlo.compile_program(run, 'reward').as_text()
  assert ' while(' in text
  assert not hlo.collectives(text, run.mesh)
