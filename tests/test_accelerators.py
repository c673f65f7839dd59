"""Programs for TPUs and GPUs, compiled where there are none.

The TPU's compiler is in libtpu, which JAX would look for a TPU with in every
other program: it is an extra, in an environment of its own. What NVIDIA's needs
cannot be had without a GPU, so that programs are only lowered for it.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re

import command
import hlo
import jax
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
import jax.export
import jax.numpy as jnp
import pytest

from grpo_jax import (
  build,
  config,
  likelihood,
  models,
  sharding,
  train,
  types,
)
from grpo_jax.models import decoder, lora

V5E_BYTES, V5P_BYTES = 16e9, 95e9  # Of one chip.
GPU_BYTES = 80e9

large = pytest.mark.skipif(
  'COMPILE_LARGE' not in os.environ,
  reason='takes minutes for each; COMPILE_LARGE=1 asks for it',
)


@pytest.fixture(scope='module')
def v5e():
  """Eight chips of two hosts, none of which is there."""
  yield from topology('v5e:2x4')


@pytest.fixture(scope='module')
def v5p():
  """The same of the larger kind, which is called v5p-16."""
  yield from topology('v5p:2x2x2')


def topology(name):
  """Its devices; with the compiler, which is told that there are none."""
  if not importlib.util.find_spec('libtpu'):
    pytest.skip("needs the TPU's compiler: pip install -e '.[plan]'")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TPU_SKIP_MDS_QUERY', '1')  # No server knows what we are.
    patch.setenv('TPU_LOG_DIR', 'disabled')
    with uncached():
      yield topologies.get_topology_desc(
        platform='tpu', topology_name=name
      ).devices


def bytes_of(program) -> int:
  """What a device has to have for it."""
  memory = program.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )


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
    assert bytes_of(program) < V5E_BYTES, name
  # The state lies in parts; tiles of 8 * 128 numbers are filled up.
  parts = run.mesh.shape['fsdp'] * run.mesh.shape['tensor']
  held = memory.alias_size_in_bytes * parts / hlo.state_bytes(run)
  assert 1 <= held < 1.3

  loop = hlo.decode_loop(compiled['rollout'].as_text(), run)
  assert ' convolution(' in loop  # So a TPU calls matrix products.
  assert not hlo.weights_that_move(loop, run)


@large
@pytest.mark.parametrize(
  'config,family,variant',
  [
    ('gsm8k_gemma3_270m', 'gemma3', '270m'),
    ('gsm8k_gemma3_1b', 'gemma3', '1b'),
  ],
)
def test_a_config_for_one_chip_fits_it(v5e, tmp_path, config, family, variant):
  run = without_downloads(config, family, variant, tmp_path, v5e[:1])
  with jax.set_mesh(run.mesh):
    program = train.compile_programs(run, ['iterate'])['iterate']
  print(f'{config}: {bytes_of(program) / 1e9:.1f} GB')
  assert bytes_of(program) < V5E_BYTES


@pytest.mark.parametrize('name', ['fsdp 8', 'data 2, fsdp 2, tensor 2'])
def test_an_update_by_splash_compiles_for_a_tpu(v5e, tmp_path, name):
  run = hlo.build_run(
    hlo.MESHES[name], tmp_path, 'bfloat16', v5e, attention='splash'
  )
  text = hlo.compile_program(run, 'update').as_text()
  called = splash_calls(text)
  assert {'fwd', 'dq', 'dkv'} == set(called)
  assert not hlo.rows_that_move(text, run)


def splash_calls(text):
  """Which of its kernels a program calls."""
  return [
    re.search(r'splash_mha_(fwd|dq|dkv)', line)[1]
    for line in text.splitlines()
    if 'custom_call_target="tpu_custom_call"' in line
  ]


@large
def test_the_memory_of_splash_is_far_below_that_of_all_logits(v5e):
  P, G, L, T = 1, 2, 128, 2048
  where, found = jax.sharding.SingleDeviceSharding(v5e[0]), {}

  def shape(*sizes, dtype='int32'):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=where)

  prompts = types.Prompts(shape(P, L), shape(P), shape(P), shape(P, 1))
  for kernel in ('plain', 'splash'):
    model = models.build('llama', 'tiny', head_size=64, attention=kernel)
    model = models.in_dtype(model, 'bfloat16')

    def loss(params, prompts, tokens_PGT, model=model):
      rolled = types.Rollout(prompts, tokens_PGT, *[None] * 4)
      judged = likelihood.likelihood(params, rolled, model=model)
      return jnp.sum(judged.logps_PGT)

    params = jax.tree.map(
      lambda x: shape(*x.shape, dtype=x.dtype), models.abstract_params(model)
    )
    lowered = jax.jit(jax.grad(loss)).lower(params, prompts, shape(P, G, T))
    program = lowered.compile()
    found[kernel] = program.memory_analysis().temp_size_in_bytes
  print(f'{T} tokens: {found}')
  assert found['splash'] < found['plain'] / 4


@large
@pytest.mark.parametrize(
  'config,variant,kind,chips,limit',
  [
    ('gsm8k_qwen25_1p5b', 'qwen25_1p5b', 'v5e', 8, V5E_BYTES),
    ('gsm8k_qwen3_8b', 'qwen3_8b', 'v5p', 8, V5P_BYTES),
    # No compiler for a GPU is here: a larger chip stands in for it.
    ('gsm8k_qwen25_1p5b:gpu', 'qwen25_1p5b', 'v5p', 1, GPU_BYTES),
  ],
)
def test_a_large_config_fits_its_chips(
  request, tmp_path, config, variant, kind, chips, limit
):
  devices = request.getfixturevalue(kind)
  assert len(devices) == 8
  run = without_downloads(config, 'llama', variant, tmp_path, devices[:chips])
  with jax.set_mesh(run.mesh):
    program = train.compile_programs(run, ['iterate'])['iterate']
  print(f'{config}: {bytes_of(program) / 1e9:.1f} GB')
  assert bytes_of(program) < limit


def without_downloads(config, family, variant, workdir, devices):
  """The run of a config, with sums for its data and no weights."""
  config, _, arg = config.partition(':')
  spec = importlib.util.spec_from_file_location(
    config, command.ROOT / 'configs' / f'{config}.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(arg)
  adapters, dtype = c.lora.to_dict(), c.model.dtype
  c.lora.rank = 0
  c.model.update(name='llama', variant='tiny', init='')
  c.data.update(name='sums', template='')
  run = build.build(c, str(workdir), devices)
  model = models.build(
    family, variant, remat=c.model.remat, attention=c.model.attention
  )
  model = models.in_dtype(model, dtype)
  if adapters['rank']:
    model = lora.adapt(model, **adapters)
  return dataclasses.replace(run, model=model)


@large
def test_what_is_not_recomputed_takes_memory_of_a_tpu(v5e):
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), v5e[:1])
  whole = sharding.replicated(mesh)
  device, host = {}, {}
  for remat in decoder.REMATS:
    model = wide(remat=remat)
    params = jax.tree.map(
      lambda x: x.update(sharding=whole), models.abstract_params(model)
    )
    ids_BT = jax.ShapeDtypeStruct((32, 256), jnp.int32, sharding=whole)

    def loss(params, ids_BT, places_BT, model=model):
      inputs = types.ModelInputs(ids_BT, places_BT)
      hidden_BTD = model.apply(params, inputs).hidden_BTD
      return jnp.sum(hidden_BTD.astype(jnp.float32) ** 2)

    with jax.set_mesh(mesh):
      lowered = jax.jit(jax.grad(loss)).lower(params, ids_BT, ids_BT)
    memory = lowered.compile().memory_analysis()
    device[remat] = memory.temp_size_in_bytes
    host[remat] = memory.host_temp_size_in_bytes
    print(f'{remat}: {device[remat]:,} bytes, in host memory {host[remat]:,}')
  assert device['none'] > 1.5 * device['dots'] > 2 * device['full']
  # What lies in host memory is a layer's input, for each of them.
  inputs = 8 * 32 * 256 * 512 * 2
  assert host == {'none': 0, 'dots': 0, 'full': 0, 'offload': inputs}
  assert device['offload'] < device['full']


@large
@pytest.mark.parametrize('program', ['update', 'iterate'])
def test_what_waits_in_host_memory_is_not_in_a_tpus(v5e, tmp_path, program):
  arguments, taken = [], []
  for offload in (False, True):
    run = update_of_many_tokens(tmp_path / str(offload), v5e[:1], offload)
    compiled = hlo.compile_program(run, program)
    memory = compiled.memory_analysis()
    waits = memory.host_argument_size_in_bytes
    arguments.append(memory.argument_size_in_bytes)
    taken.append(bytes_of(compiled))
    print(
      f'{program}: {taken[-1]:,} bytes, of them arguments {arguments[-1]:,};'
      f' in host memory {waits:,}'
    )
    # All of the state is written to where it was read from.
    in_place = memory.alias_size_in_bytes + memory.host_alias_size_in_bytes
    assert hlo.state_bytes(run) <= in_place < 1.01 * hlo.state_bytes(run)
    assert memory.host_alias_size_in_bytes == waits
  state = build.templates(run)[1]
  moved = jax.tree.leaves((state.reference, state.opt_state))
  moved = sum(x.size * x.dtype.itemsize for x in moved if x.ndim)
  assert moved <= waits < 1.01 * moved
  assert arguments[0] - arguments[1] == pytest.approx(moved, rel=0.01)
  # Not by as much: the optimizer's step has the moments on the device after
  # all, and the compiler fetches them before it.
  assert taken[1] < taken[0]


def update_of_many_tokens(workdir, devices, offload: bool) -> build.Run:
  """Activations take most of its memory, so that they tell when it is full."""
  c = config.default()
  c.data.update(prompts=16, knobs={'problems': 500})
  c.rollout.update(group_size=4, max_tokens=128)
  c.kl.coef = 0.1
  c.updates.head_chunk = 1024
  c.eval.update(problems=8, batch=8)
  c.offload.update(reference=offload, optimizer=offload)
  run = build.build(c, str(workdir), devices)
  return dataclasses.replace(run, model=wide(layers=4))


def wide(layers=8, **sizes) -> models.Model:
  model = models.build(
    'llama',
    'tiny',
    layers=layers,
    width=512,
    heads=4,
    kv_heads=4,
    head_size=128,
    feed_forward=2048,
    vocab_size=1024,
    **sizes,
  )
  return models.in_dtype(model, 'bfloat16')


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


@pytest.mark.parametrize('name', ['data 8', 'data 2, fsdp 2, tensor 2'])
def test_an_update_by_cudnn_is_lowered_for_a_gpu(tmp_path, monkeypatch, name):
  # There is none whose version could be asked for.
  monkeypatch.setattr(
    fused_attention_stablehlo, 'check_cudnn_version', lambda: 91_000
  )
  run = hlo.build_run(hlo.MESHES[name], tmp_path, 'bfloat16', attention='cudnn')
  calls = '__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward'
  with jax.set_mesh(run.mesh):
    function, arguments, *_ = train.programs(run)['update']
    exported = jax.export.export(
      function,
      platforms=['cuda'],
      disabled_checks=[
        jax.export.DisabledSafetyCheck.custom_call(call) for call in calls
      ],
    )(*arguments)
  text = exported.mlir_module()
  assert [call for call in calls if f'@{call}(' not in text] == []
