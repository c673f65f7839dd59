"""Bradley-Terry on pairs: loss, gradient, and the pairs that files hold."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import datasets, models, preference, types
from grpo_jax.datasets import Example, pairs
from grpo_jax.models import scalar

V, T = 12, 7
MODEL = scalar.with_scalar_head(
  models.build(
    'llama',
    'tiny',
    layers=1,
    width=16,
    heads=2,
    kv_heads=1,
    head_size=8,
    feed_forward=24,
    vocab_size=V,
  )
)
PARAMS = models.init_params(MODEL, jax.random.key(0))
_RNG = np.random.default_rng(0)
PAIRS = types.Pairs(
  _RNG.integers(V, size=(5, 2, T)).astype(np.int32),
  _RNG.integers(1, T + 1, size=(5, 2)).astype(np.int32),
)


@jax.jit
def score(params, tokens_T, length):
  """Of one text alone."""
  return scalar.score(params, tokens_T[None], length[None], model=MODEL)[0]


@pytest.fixture(scope='module')
def slopes():
  """Of each pair: the lead, and its gradient."""

  def lead(params, tokens_2T, lengths_2):
    better, worse = (score(params, tokens_2T[i], lengths_2[i]) for i in (0, 1))
    return better - worse

  one = jax.jit(jax.value_and_grad(lead))
  rows = zip(PAIRS.tokens_P2T, PAIRS.lengths_P2, strict=True)
  return [one(PARAMS, *row) for row in rows]


@pytest.mark.parametrize('margin', [0.0, 0.7])
def test_a_step_follows_bradley_terrys_gradient(slopes, margin):
  """Each pair pulls by the chance that the model gives to the wrong order."""
  P, optimizer = len(slopes), optax.sgd(0.5)
  state = types.TrainState(
    jnp.int32(3), jnp.int32(10), PARAMS, optimizer.init(PARAMS)
  )
  step = functools.partial(
    preference.preference_update,
    model=MODEL,
    optimizer=optimizer,
    margin=margin,
  )
  after, numbers = jax.jit(step)(state, PAIRS)

  leads = [float(value) for value, _ in slopes]
  losses = [math.log1p(math.exp(margin - x)) for x in leads]
  assert float(numbers['loss']) == pytest.approx(sum(losses) / P, rel=1e-5)
  assert float(numbers['preference/lead']) == pytest.approx(
    sum(leads) / P, abs=1e-5
  )
  right = sum(x > 0 for x in leads) / P
  assert 0 < right < 1
  assert float(numbers['preference/accuracy']) == pytest.approx(right)
  grads = jax.tree.map(np.zeros_like, PARAMS)
  for value, (_, slope) in zip(leads, slopes, strict=True):
    pull = -1 / (1 + math.exp(value - margin)) / P
    grads = jax.tree.map(lambda g, s, pull=pull: g + pull * s, grads, slope)
  assert float(numbers['grad_norm']) == pytest.approx(
    float(optax.tree.norm(grads)), rel=1e-4
  )
  jax.tree.map(
    lambda new, old, g: np.testing.assert_allclose(
      new, old - 0.5 * g, atol=1e-5
    ),
    after.params,
    PARAMS,
    grads,
  )
  assert int(after.step) == 4 and int(after.cursor) == 10 + P


def test_the_gradient_is_the_slope_of_the_loss():
  """Along a direction, by central differences."""

  def loss(params):
    leads_P = preference.leads(params, PAIRS, model=MODEL)
    return preference.bradley_terry(leads_P, 0.3)

  with jax.enable_x64(True):
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), PARAMS)
    rng = np.random.default_rng(1)
    way = jax.tree.map(lambda w: rng.normal(size=w.shape), params)
    run = jax.jit(loss)
    ahead, behind = (
      run(jax.tree.map(lambda w, v, s=s: w + s * v, params, way))
      for s in (1e-6, -1e-6)
    )
    grads = jax.jit(jax.grad(loss))(params)
    slope = float(optax.tree.vdot(grads, way))
  expected = (float(ahead) - float(behind)) / 2e-6
  assert slope == pytest.approx(expected, rel=1e-6)


def test_a_lead_that_is_large_does_not_overflow():
  lead_P = jnp.array([-1e4, 1e4])
  assert preference.bradley_terry(lead_P) == pytest.approx(5e3)
  assert np.isfinite(jax.grad(preference.bradley_terry)(lead_P)).all()


def test_a_completion_scores_as_one_text_with_its_prompt():
  P, G, L = 3, 2, 4
  rng = np.random.default_rng(2)
  prompts = types.Prompts(
    tokens_PL=rng.integers(V, size=(P, L), dtype=np.int32),
    lengths_P=np.array([4, 1, 2], np.int32),
    ids_P=np.arange(P, dtype=np.uint32),
    answers_PC=np.zeros((P, 1), np.uint8),
  )
  lengths_PG = np.array([[7, 1], [3, 7], [2, 5]], np.int32)
  rollout = types.Rollout(
    prompts=prompts,
    tokens_PGT=rng.integers(V, size=(P, G, T), dtype=np.int32),
    lengths_PG=lengths_PG,
    ended_PG=lengths_PG < T,
    logps_PGT=np.zeros((P, G, T), np.float32),
    actions_PGT=np.ones((P, G, T), bool),
  )
  found_PG = jax.jit(functools.partial(preference.score_rollout, model=MODEL))(
    PARAMS, rollout
  )
  for p in range(P):
    for g in range(G):
      ids = [
        *prompts.tokens_PL[p, : prompts.lengths_P[p]],
        *rollout.tokens_PGT[p, g, : lengths_PG[p, g]],
      ]
      tokens_T = np.zeros(L + T, np.int32)
      tokens_T[: len(ids)] = ids
      expected = float(score(PARAMS, tokens_T, np.int32(len(ids))))
      assert found_PG[p, g] == pytest.approx(expected, abs=1e-5)


def encode(prompt, completion):
  return [len(prompt), *map(int, completion), 0]


def write(path, rows):
  lines = [json.dumps(dict(zip(pairs.COLUMNS, r, strict=True))) for r in rows]
  path.write_text('\n'.join(lines))


def test_pairs_are_padded_and_split_by_their_prompts(tmp_path):
  prompts = ['?' * n for n in range(1, 40)]
  rows = [(p, '12', '3') for p in prompts] + [(p, '', '45678') for p in prompts]
  write(tmp_path / 'pairs.jsonl', rows)
  found, left_out = pairs.load(
    str(tmp_path / 'pairs.jsonl'), encode, max_tokens=5, heldout=0.3
  )
  assert left_out == len(prompts)  # Those of 7 tokens.
  sides = {k: set(x.tokens_P2T[:, 0, 0]) for k, x in found.items()}
  held = sides['heldout']
  assert 4 <= len(held) <= 20 and held < {len(p) for p in prompts}
  assert sides['train'] == {len(p) for p in prompts} - held
  first = pairs.take(found['train'], [0])
  n = first.tokens_P2T[0, 0, 0]
  assert first.tokens_P2T.tolist() == [[[n, 1, 2, 0, 0], [n, 3, 0, 0, 0]]]
  assert first.lengths_P2.tolist() == [[4, 3]]


def test_pairs_of_problems_that_are_trained_on_are_held_out_as_well(tmp_path):
  examples = [Example(f'{i}?', '1') for i in range(400)]
  trained = datasets.split(iter(examples), 0.2, key=lambda prompt: prompt)
  prompts = [x.prompt for x in trained['train']]
  write(tmp_path / 'pairs.jsonl', [(p, '1', '2') for p in prompts])
  found, _ = pairs.load(str(tmp_path), encode, max_tokens=5, heldout=0.2)
  share = len(found['heldout'].lengths_P2) / len(prompts)
  assert 0.12 < share < 0.28


@pytest.mark.parametrize(
  'rows,words',
  [
    ([('a', '1', '2')], 'leaves no (heldout|train) pair: 1 are of preference'),
    ([('a', '123', '2')] * 9, 'leaves no train pair: 0 are of preference.max'),
  ],
)
def test_a_split_without_pairs_is_refused(tmp_path, rows, words):
  write(tmp_path / 'pairs.jsonl', rows)
  with pytest.raises(ValueError, match=words):
    pairs.load(str(tmp_path), encode, max_tokens=4, heldout=0.3)


def test_files_that_hold_no_pairs_are_refused(tmp_path):
  with pytest.raises(ValueError, match='names no .jsonl'):
    pairs.load(str(tmp_path), encode, max_tokens=4, heldout=0.3)
  (tmp_path / 'x.jsonl').write_text('{"prompt": "a", "chosen": "b"}\n')
  with pytest.raises(ValueError, match="x.jsonl, line 1: no column 'rejected'"):
    pairs.load(str(tmp_path), encode, max_tokens=4, heldout=0.3)
