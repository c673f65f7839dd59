"""Adapters in PEFT's format, against those that PEFT wrote and computed.

golden/extract_peft.py tells where the numbers are from.
"""

import json

import jax.numpy as jnp
import numpy as np
import published
import pytest
import safetensors.numpy

from grpo_jax.models import lora
from grpo_jax.types import ModelInputs
from grpo_jax.weights import export

GOLDEN = np.load(published.FOLDER / 'peft.npz')
NAMES = ('llama_untied', 'qwen2', 'qwen3', 'gemma3')
PLACES = {
  **{x: f'self_attn.{x}_proj' for x in 'qkvo'},
  **{x: f'mlp.{x}_proj' for x in ('gate', 'up', 'down')},
}
RANK, ALPHA = 2, 3.0


@pytest.fixture(params=NAMES)
def name(request):
  return request.param


def tensors_of(name):
  """What PEFT wrote, by its names."""
  prefix = f'{name}.tensor.'
  return {
    key.removeprefix(prefix): GOLDEN[key]
    for key in GOLDEN
    if key.startswith(prefix)
  }


def params_of(name):
  """The parameters of the model with PEFT's adapters, layer by layer."""
  base, theirs = published.published(name).params, tensors_of(name)
  adapters = {
    f'{target}_{factor}': np.stack(
      [
        theirs[
          f'base_model.model.model.layers.{y}.{place}.lora_{factor.upper()}'
          '.weight'
        ].T
        for y in range(len(base['layers']['q']))
      ]
    )
    for target, place in PLACES.items()
    for factor in 'ab'
  }
  return base | {'layers': base['layers'] | adapters}


def logits(model, params, ids_BT):
  positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1]), ids_BT.shape)
  out = model.apply(params, ModelInputs(jnp.asarray(ids_BT), positions_BT))
  return np.asarray(out.hidden_BTD @ model.head(params))


def test_what_is_written_is_what_peft_writes(name, tmp_path):
  told = json.loads(
    (published.FOLDER / 'models' / name / 'config.json').read_text()
  )
  export.save_adapters(
    params_of(name),
    tmp_path,
    architecture=told['model_type'],
    rank=RANK,
    alpha=ALPHA,
    targets=lora.TARGETS,
    base='org/base',
  )
  ours = safetensors.numpy.load_file(tmp_path / 'adapter_model.safetensors')
  theirs = tensors_of(name)
  assert ours.keys() == theirs.keys()
  for key, tensor in ours.items():
    np.testing.assert_array_equal(tensor, theirs[key], key)
  config = json.loads((tmp_path / 'adapter_config.json').read_text())
  expected = json.loads(str(GOLDEN[f'{name}.config']))
  for key in ('r', 'lora_alpha', 'peft_type', 'task_type', 'bias'):
    assert config[key] == expected[key], key
  assert {*config['target_modules']} == {*expected['target_modules']}
  assert config.keys() <= expected.keys()


def test_logits_with_adapters_are_those_of_peft(name):
  model = lora.adapt(published.published(name).model, rank=RANK, alpha=ALPHA)
  got = logits(model, params_of(name), GOLDEN[f'{name}.ids'])
  np.testing.assert_allclose(got, GOLDEN[f'{name}.logits'], rtol=0, atol=1e-4)


def test_merged_weights_compute_what_peft_s_do(name):
  params = lora.merge(params_of(name), rank=RANK, alpha=ALPHA)
  model = published.published(name).model
  got = logits(model, params, GOLDEN[f'{name}.ids'])
  np.testing.assert_allclose(got, GOLDEN[f'{name}.merged'], rtol=0, atol=1e-4)
