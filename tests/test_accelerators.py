"""Programs for TPUs and GPUs, compiled where there are none.

The TPU's compiler is in libtpu, which JAX would look for a TPU with in every
other program: it is an extra, in an environment of its own. What NVIDIA's needs
cannot be had without a GPU, so that programs are only lowered for it.
"""

import contextlib
import importlib.util
import re

import hlo
import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
import jax.export
import pytest

from grpo_jax import sharding, train

V5E_BYTES = 16e9  # Of one chip.


@pytest.fixture(scope='module')
def v5e():
  """Eight chips of two hosts, none of which is there."""
  if not importlib.util.find_spec('libtpu'):
    pytest.skip("needs the TPU's compiler: pip install -e '.[plan]'")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TPU_SKIP_MDS_QUERY', '1')  # No server knows what we are.
    patch.setenv('TPU_LOG_DIR', 'disabled')
    with uncached():
      yield topologies.get_topology_desc(
        platform='tpu', topology_name='v5e:2x4'
      ).devices


@contextlib.contextmanager
def uncached():
  """Programs for a TPU can be cached, but not read back without one."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # It looks at the setting once.
  yield
  jax.config.update('jax_enable_compilation_cache', before)
  compilation_cache.reset_cache()


@pytest.mark.parametrize(
  'name,dtype',
  [
    ('data 8', 'float32'),
    ('fsdp 8', 'bfloat16'),
    ('data 2, fsdp 2, tensor 2', 'bfloat16'),
  ],
)
def test_rollout_and_update_compile_for_a_tpu(v5e, tmp_path, name, dtype):
  run = hlo.build_run(hlo.MESHES[name], tmp_path, dtype, v5e)
  assert {x.device_kind for x in run.mesh.devices.flat} == {'TPU v5 lite'}
  with jax.set_mesh(run.mesh):
    compiled = train.compile_programs(run, ['rollout', 'update'])

  for name, program in compiled.items():
    text, memory = program.as_text(), program.memory_analysis()
    assert hlo.collectives(text, run.mesh), name
    assert not hlo.rows_that_move(text, run), name
    total = (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.generated_code_size_in_bytes
    )
    assert total < V5E_BYTES, name
  # The state lies in parts; tiles of 8 * 128 numbers are filled up.
  parts = run.mesh.shape['fsdp'] * run.mesh.shape['tensor']
  held = memory.alias_size_in_bytes * parts / hlo.state_bytes(run)
  assert 1 <= held < 1.3

  loop = hlo.decode_loop(compiled['rollout'].as_text(), run)
  assert ' convolution(' in loop  # So a TPU calls matrix products.
  assert not hlo.weights_that_move(loop, run)


def test_weights_in_the_training_layout_move_in_a_tpus_decode_loop(
  v5e, tmp_path, monkeypatch
):
  monkeypatch.setattr(sharding, 'ROLLOUT', sharding.TRAIN)
  run = hlo.build_run(hlo.MESHES['fsdp 8'], tmp_path, 'bfloat16', v5e)
  loop = hlo.decode_loop(hlo.compile_program(run, 'rollout').as_text(), run)
  moved = hlo.weights_that_move(loop, run)
  assert 'all-gather' in [sent.kind for sent in moved]


@pytest.mark.parametrize('name', hlo.MESHES)
@pytest.mark.parametrize('program', ['rollout', 'update'])
def test_rollout_and_update_are_lowered_for_a_gpu(tmp_path, name, program):
  run = hlo.build_run(hlo.MESHES[name], tmp_path, 'bfloat16')
  with jax.set_mesh(run.mesh):
    function, arguments, *_ = train.programs(run)[program]
    exported = jax.export.export(function, platforms=['cuda'])(*arguments)
    shardings = exported.in_shardings_jax(run.mesh)
  assert exported.platforms == ('cuda',)
  assert exported.nr_devices == 8
  assert not exported.ordered_effects and not exported.unordered_effects

  leaves = jax.tree.leaves(arguments)
  assert len(shardings) == len(leaves)
  for i in exported.module_kept_var_idx:  # The others are not read.
    assert shardings[i].is_equivalent_to(leaves[i].sharding, leaves[i].ndim)
  text = exported.mlir_module()
  assert 'stablehlo.while' in text
  assert 'custom_call' not in text  # Nothing that one platform alone knows.
  summed = r'dot_general.*xbf16>, tensor<.*xbf16>\) -> tensor<.*xf32>'
  assert re.search(summed, text)
  donated = re.findall('tf.aliasing_output|jax.buffer_donor', text)
  state = arguments[0] if program == 'update' else ()
  assert len(donated) == len(jax.tree.leaves(state))
