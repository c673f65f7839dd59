"""What tokens weigh, against loops and verl's agg_loss."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.losses import aggregate

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'kl.npz')
RECORDS = json.loads(GOLDEN['records'].item())['agg']
VERL = {
  'token-mean': ('token_mean', {}),
  'token-sum': ('token_sum', {}),
  'seq-mean-token-sum': ('sequence_sum', {'empty': 'skip'}),
  'seq-mean-token-sum-norm': ('constant_length', {'empty': 'skip'}),
  'seq-mean-token-mean': ('sequence_mean', {'empty': 'skip'}),
}
ALL = [
  ('token_mean', {}),
  ('token_sum', {}),
  ('group_length', {}),
  ('constant_length', {'length': 9}),
] + [
  (name, {'empty': empty})
  for name in ('sequence_mean', 'sequence_sum', 'constant_length')
  for empty in ('count', 'skip')
]
P, G, T = 3, 4, 6


def mask():
  """One empty, one full completion, one with a hole, an empty group."""
  lengths_PG = np.array([[0, 6, 3, 1], [5, 5, 2, 4], [0, 0, 0, 0]])
  mask_PGT = (np.arange(T) < lengths_PG[..., None]).astype(float)
  mask_PGT[1, 0, 2] = 0
  return mask_PGT


def loop(name, mask_PGT, p, g, t, length=None, empty='count'):
  """What a token weighs, by the definition."""
  if not mask_PGT[p, g, t]:
    return 0.0
  counted = [
    row for row in mask_PGT.reshape(-1, T) if empty == 'count' or row.any()
  ]
  return {
    'token_mean': 1 / mask_PGT.sum(),
    'token_sum': 1.0,
    'group_length': 1 / mask_PGT[p].sum() / P,
    'constant_length': 1 / len(counted) / (length or T),
    'sequence_mean': 1 / len(counted) / mask_PGT[p, g].sum(),
    'sequence_sum': 1 / len(counted),
  }[name]


def in_a_batch(mask_BT, tokens, completions):
  """Rows of a mask, [1, B, T], among others that bring it to these numbers.

  60 tokens in 7 completions become 187 in 24 with 17 rows of 7 or 8.
  """
  rows = completions - np.sum(mask_BT.any(axis=1))
  lengths = np.arange(rows) < (tokens - mask_BT.sum()) % rows
  lengths = lengths + (tokens - mask_BT.sum()) // rows
  others = np.arange(mask_BT.shape[1]) < lengths[:, None]
  mask_PGT = np.concatenate([mask_BT, others])[None]
  assert mask_PGT.sum() == tokens
  assert mask_PGT.any(axis=-1).sum() == completions
  return mask_PGT


@pytest.mark.parametrize('record', RECORDS, ids=lambda r: r['id'])
def test_losses_and_gradients_are_those_of_verl(record):
  name, knobs = VERL[record['agg']]
  given = record['kwargs']
  if name == 'constant_length' and 'loss_scale_factor' in given:
    knobs = knobs | {'length': given['loss_scale_factor']}
  loss_BT, mask_BT = GOLDEN['agg.loss_mat'], GOLDEN['agg.loss_mask']
  mask_PGT = mask_BT[None]
  if 'batch_num_tokens' in given:  # The rows are a part of a global batch.
    mask_PGT = in_a_batch(
      mask_BT, given['batch_num_tokens'], given['global_batch_size']
    )
  with jax.enable_x64(True):
    weights_PGT = getattr(aggregate, name)(jnp.asarray(mask_PGT), **knobs)
    weights_BT = np.asarray(weights_PGT[0, : len(mask_BT)])
  # verl averages gradients over devices, and first multiplies by their number.
  weights_BT = weights_BT * given.get('dp_size', 1)
  expected_BT = GOLDEN[f'{record["id"]}.grad']
  # verl adds 1e-8 to a completion's tokens.
  np.testing.assert_allclose(weights_BT, expected_BT, rtol=2e-8)
  value = np.sum(weights_BT * loss_BT)
  np.testing.assert_allclose(value, record['value'], rtol=2e-8)


def test_every_average_of_verl_is_compared():
  assert {record['agg'] for record in RECORDS} == {*VERL}


@pytest.mark.parametrize('name,knobs', ALL)
@pytest.mark.parametrize('dtype', [float, bool])
def test_weights_equal_a_loop(name, knobs, dtype):
  mask_PGT = mask()
  with jax.enable_x64(True):
    weights_PGT = np.asarray(
      getattr(aggregate, name)(jnp.asarray(mask_PGT.astype(dtype)), **knobs)
    )
  for p, g, t in np.ndindex(P, G, T):
    expected = loop(name, mask_PGT, p, g, t, **knobs)
    np.testing.assert_allclose(weights_PGT[p, g, t], expected, rtol=1e-12)


@pytest.mark.parametrize('name,knobs', ALL)
def test_masked_batches_weigh_zero_and_stay_finite(name, knobs):
  weights_PGT = getattr(aggregate, name)(jnp.zeros((P, G, T)), **knobs)
  np.testing.assert_array_equal(weights_PGT, np.zeros((P, G, T)))


@pytest.mark.parametrize('name,knobs', ALL)
def test_weights_do_not_depend_on_padding_or_order(name, knobs):
  mask_PGT = mask()
  if name == 'constant_length':
    knobs = knobs | {'length': 9}  # Its default is the width, on purpose.
  function = getattr(aggregate, name)
  weights_PGT = function(mask_PGT, **knobs)
  wide_PGT = np.pad(mask_PGT, [(0, 0), (0, 0), (0, 5)])
  np.testing.assert_allclose(
    function(wide_PGT, **knobs)[..., :T], weights_PGT, rtol=1e-6
  )
  rng = np.random.default_rng(0)
  groups, rows = rng.permutation(P), rng.permutation(G)
  turned_PGT = mask_PGT[groups][:, rows]
  np.testing.assert_allclose(
    function(turned_PGT, **knobs), weights_PGT[groups][:, rows], rtol=1e-6
  )


@pytest.mark.parametrize(
  'name', ['token_mean', 'sequence_mean', 'group_length']
)
def test_means_weigh_one_where_every_completion_has_tokens(name):
  mask_PGT = mask()
  mask_PGT[..., 0] = 1
  weights_PGT = getattr(aggregate, name)(mask_PGT)
  np.testing.assert_allclose(jnp.sum(weights_PGT), 1, rtol=1e-6)


@pytest.mark.parametrize(
  'name', ['sequence_mean', 'sequence_sum', 'constant_length']
)
def test_an_unknown_count_of_empty_ones_is_refused(name):
  with pytest.raises(ValueError, match="'no' is not 'count' or 'skip'"):
    getattr(aggregate, name)(mask(), empty='no')
