"""What is counted, against the compiler's own count and by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import counts, likelihood, models
from grpo_jax.types import Prompts, Rollout

SIZES = dict(prompts=4, group_size=2, prompt_tokens=6, completion_tokens=8)


def model(**sizes):
  wide = dict(layers=2, width=128, heads=4, kv_heads=2, head_size=32)
  wide |= dict(feed_forward=256, vocab_size=512)
  return models.build('llama', 'tiny', unroll=True, **wide | sizes)


def by_hand(P, G, L, T):
  """Operations of one forward pass of model()."""
  qkvo = 128 * 128 + 2 * 128 * 64 + 128 * 128
  layers = 2 * (qkvo + 3 * 128 * 256)
  pairs = P * L * L / 2 + P * G * T * (L + T / 2)
  keys_and_values = 2 * 4 * 32 * 2 * pairs  # Layers, heads, size, twice.
  tokens = P * L + P * G * T
  return 2 * (layers * tokens + 128 * 512 * P * G * T + keys_and_values)


def test_a_step_is_counted_as_by_hand():
  found = counts.step(model(), **SIZES)
  assert found.rollout == by_hand(4, 2, 6, 8)
  assert found.update == 3 * found.rollout
  more = counts.step(model(), **SIZES, reference=True, passes=2)
  assert more.update == 7 * found.rollout
  assert more.rollout == found.rollout


def test_decoding_reads_the_weights_for_each_token_and_the_keys_seen_so_far():
  found = counts.step(model(), **SIZES)
  weights = counts.step(model(), **SIZES | dict(prompts=0))
  assert weights.rollout_bytes == 4 * 8 * (2 * (49_152 + 98_304) + 65_536)
  # Keys and values of 2 layers, 4 heads of 32: all of a prompt for each token,
  # once a group; half of a completion's own.
  keys = 2 * 4 * 32 * (4 * 6 * 8 + 8 * 8 * 8 / 2)
  assert found.rollout_bytes - weights.rollout_bytes == 4 * keys
  half = counts.step(model(), **SIZES, bytes_per_number=2)
  assert half.rollout_bytes == found.rollout_bytes / 2


def test_the_compiler_counts_nearly_the_same():
  P, G, L, T = 4, 4, 16, 16
  m = model()
  rollout = Rollout(
    Prompts(np.zeros((P, L), np.int32), np.full(P, L), None, None),
    np.zeros((P, G, T), np.int32),
    *[None] * 4,
  )

  def loss(params):
    return jnp.sum(likelihood.likelihood(params, rollout, model=m).logps_PGT)

  params = models.abstract_params(m)
  compiled = jax.jit(jax.grad(loss)).lower(params).compile()
  operations = compiled.cost_analysis()['flops']
  expected = counts.step(
    m, prompts=P, group_size=G, prompt_tokens=L, completion_tokens=T
  ).update
  # It counts norms and softmax, too; and a completion's last token, 1 in 16
  # here, is only predicted.
  assert 0.9 * expected < operations < 1.1 * expected


def numbers():
  return {'rollout/prompt_length': 6.0, 'rollout/length': 8.0}


def utilisation(kind, count=1, **changes):
  devices = [types.SimpleNamespace(device_kind=kind)] * count
  settings = dict(dtype='bfloat16', seconds=1e-5, prompts=4, group_size=2)
  return counts.utilisation(model(), devices, numbers(), **settings | changes)


def test_mfu_is_a_share_of_what_all_devices_promise():
  found = utilisation('TPU v4', 2)
  operations = 4 * by_hand(4, 2, 6, 8)
  expected = operations / 1e-5 / (2 * 275e12)
  assert found['time/mfu'] == pytest.approx(expected)
  slower = utilisation('TPU v4', 2, seconds=2e-5)
  assert slower['time/mfu'] == pytest.approx(expected / 2)
  wide = utilisation('TPU v4', 2, dtype='float32')
  assert wide['time/mfu'] == pytest.approx(expected * 2)


def test_nothing_is_said_of_devices_that_tell_nothing():
  assert utilisation('cpu') == {}


def test_memory_is_said_where_the_backend_tells(monkeypatch):
  device = types.SimpleNamespace(
    memory_stats=lambda: {'peak_bytes_in_use': 3_500_000_000}
  )
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])
  assert utilisation('cpu') == {'time/memory_gb': 3.5}
