"""Runs that start from published weights, without a word of what they are."""

import dataclasses
import json

import command
import jax
import numpy as np
import published
import pytest
import safetensors.numpy
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from grpo_jax import build, initial, train
from grpo_jax import config as config_lib
from grpo_jax.models import llama, lora

pytestmark = pytest.mark.slow

TEXTS = [
  f'What is {a} + {b}? Think. <answer>{a + b}</answer>'
  for a in range(40)
  for b in range(9)
]


def folder(path, name='qwen3'):
  """A tiny checkpoint and a tokenizer, as the Hub has them side by side."""
  path.mkdir()
  for file in (published.FOLDER / 'models' / name).iterdir():
    (path / file.name).write_bytes(file.read_bytes())
  bpe = Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=290,
    special_tokens=['<s>', '</s>'],
    initial_alphabet=alphabet,
    show_progress=False,
  )
  bpe.train_from_iterator(TEXTS, trainer)
  bpe.save(str(path / 'tokenizer.json'))
  told = {'bos_token': '<s>', 'eos_token': '</s>'}
  (path / 'tokenizer_config.json').write_text(json.dumps(told))
  return path


def small(init, **sections):
  c = config_lib.default()
  c.model.update(variant='', init=str(init))
  c.data.update(name='sums', prompts=8, max_prompt=64, heldout=0.25)
  c.rollout.update(group_size=2, max_tokens=8)
  c.eval.update(problems=8, samples=1, batch=8)
  c.steps = 2
  for name, values in sections.items():
    c[name].update(values)
  return c


@pytest.mark.parametrize('name', ['qwen3', 'gemma3'])
def test_model_and_tokenizer_are_those_of_the_folder(name, tmp_path):
  init = folder(tmp_path / 'hub', name)
  run = build.build(small(init), str(tmp_path / 'run'))
  assert run.tokenizer.vocab_size == 290  # Fewer than the model's 300 ids.
  assert run.model.vocab_size == 300
  state = train.start(run)
  expected = published.published(name).params
  for a, e in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(a, e)


def test_a_run_with_adapters_trains_goes_on_and_is_merged(tmp_path):
  # Trained, adapted once more from its checkpoint, and exported.
  init = folder(tmp_path / 'hub')
  flags = [
    f'--config.model.init={init}',
    '--config.model.variant=',
    '--config.data.name=sums',
    '--config.data.heldout=0.25',
    '--config.data.max_prompt=64',
    '--config.lora.rank=2',
    '--config.lora.dtype=bfloat16',
    '--config.lora.alpha=4.0',
    '--config.optim.lr=0.01',
    '--config.rollout.max_tokens=8',
    '--config.kl.coef=0.1',
    '--config.entropy.coef=1.0',  # A gradient whatever is right.
  ]
  done = command.run(
    *command.train('quickstart.py:smoke', tmp_path / 'run'),
    *flags,
    '--config.pretrain.steps=0',
  )
  assert done.returncode == 0, done.stderr
  on = small(tmp_path / 'run', lora={'rank': 2, 'dtype': 'bfloat16'})
  on.tokenizer.path = str(init)
  goes_on = train.start(build.build(on, str(tmp_path / 'on'))).params
  goes_on = jax.device_get(goes_on)
  out = tmp_path / 'out'
  done = command.run(
    'experiments/convert.py',
    '--from',
    tmp_path / 'run',
    '--to',
    out,
    '--dtype',
    'float32',
  )
  assert done.returncode == 0, done.stderr
  alone = tmp_path / 'adapters'
  done = command.run(
    'experiments/convert.py',
    '--from',
    tmp_path / 'run',
    '--to',
    alone,
    '--adapters',
  )
  assert done.returncode == 0, done.stderr
  assert_peft(alone, goes_on['layers'], init)
  run = build.build(small(out), str(tmp_path / 'again'))
  merged = jax.device_get(train.start(run).params)
  first = published.published('qwen3').params
  kept = jax.tree.map(  # As it was.
    lambda w: np.float32(np.asarray(w).astype('bfloat16')), first
  )
  moved = [
    name
    for name in lora.TARGETS
    if np.abs(merged['layers'][name] - kept['layers'][name]).max() > 1e-3
  ]
  assert moved == [*lora.TARGETS]
  np.testing.assert_array_equal(merged['embed'], kept['embed'])
  change = np.einsum(
    'yij,yjo->yio', goes_on['layers']['q_a'], goes_on['layers']['q_b']
  )
  np.testing.assert_allclose(
    merged['layers']['q'],
    np.float32(goes_on['layers']['q']) + 2 * change,
    rtol=2**-8,
    atol=1e-3,
  )


def assert_peft(folder, layers, base):
  """Names and shapes as PEFT saves them: A is (rank, in), B is (out, rank)."""
  told = json.loads((folder / 'adapter_config.json').read_text())
  assert told['peft_type'] == 'LORA' and told['r'] == 2
  assert told['lora_alpha'] == 4.0
  assert told['base_model_name_or_path'] == str(base)
  places = {'q': 'self_attn.q_proj', 'down': 'mlp.down_proj'}
  assert {'q_proj', 'down_proj'} <= {*told['target_modules']}
  tensors = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
  assert len(tensors) == 2 * 2 * len(lora.TARGETS)  # Layers, A and B.
  for name, place in places.items():
    for factor in 'ab':
      tensor = f'model.layers.1.{place}.lora_{factor.upper()}.weight'
      np.testing.assert_array_equal(
        tensors[f'base_model.model.{tensor}'], layers[f'{name}_{factor}'][1].T
      )


def test_a_variant_is_left_out_only_with_published_weights(tmp_path):
  with pytest.raises(ValueError, match="variant='' is that of the weights"):
    build.build(small(''), str(tmp_path / 'run'))


def test_a_named_variant_is_that_of_the_weights(tmp_path, monkeypatch):
  init = folder(tmp_path / 'hub')  # Of which only shapes could be compared.
  name, sizes = initial.architecture(str(init))
  own = llama.Sizes(**sizes)
  other = dataclasses.replace(own, rope_theta=5.0)
  monkeypatch.setitem(llama.VARIANTS, 'own', own)
  monkeypatch.setitem(llama.VARIANTS, 'other', other)

  def made(workdir, **knobs):
    c = small(init)
    c.model.update(knobs)
    return build.build(c, str(tmp_path / workdir)).model

  assert made('1', variant='own')
  message = f"rope_theta={own.rope_theta}, model.variant='other' has 5.0"
  with pytest.raises(ValueError, match=message):
    made('2', variant='other')
  assert made('3', variant='other', sizes={'rope_theta': 7.0})  # On purpose.
  with pytest.raises(ValueError, match="model.name='llama', not for 'gemma3'"):
    initial.check_variant(str(init), 'gemma3', 'tiny', {})


def test_adapters_keep_base_and_moments_apart(tmp_path):
  init = folder(tmp_path / 'hub')
  c = small(init, lora={'rank': 2, 'dtype': 'bfloat16'})
  run = build.build(c, str(tmp_path / 'run'))
  state = train.start(run)
  layers = state.params['layers']
  assert layers['q'].dtype == 'bfloat16' and layers['q_a'].dtype == 'float32'
  sizes = [x.size for x in jax.tree.leaves(state.opt_state)]
  adapters = sum(
    x.size for name, x in layers.items() if name.endswith(('_a', '_b'))
  )
  assert 2 * adapters <= sum(sizes) <= 2 * adapters + 8
