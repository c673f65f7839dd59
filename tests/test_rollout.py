"""Rollouts against the update's log-probs, and against a NumPy Llama."""

import dataclasses
import functools
import re

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import numpy_llama
import pytest

from grpo_jax import build, config, likelihood, models, rollout, types

V, G, T = 24, 4, 10
STOPS = (3, 7, 11)
MODEL = models.build('llama', 'tiny', vocab_size=V)
SIZES = dict(heads=2, kv_heads=1)
LENGTHS = (5, 1, 4, 2)


@pytest.fixture(scope='module')
def params():
  return models.init_params(MODEL, jax.random.key(0))


def prompts(width=6, padding=0, which=(0, 1, 2, 3)):
  """Some of four prompts, right-padded with something."""
  rows = [
    np.random.default_rng(i).integers(V, size=n) for i, n in enumerate(LENGTHS)
  ]
  tokens_PL = np.full((len(which), width), padding, np.int32)
  for p, i in enumerate(which):
    tokens_PL[p, : LENGTHS[i]] = rows[i]
  return types.Prompts(
    tokens_PL=tokens_PL,
    lengths_P=np.array([LENGTHS[i] for i in which], np.int32),
    ids_P=np.array([100 + i for i in which], np.uint32),
    answers_PC=np.zeros((len(which), 1), np.uint8),
  )


@functools.cache
def compiled(**knobs):
  knobs = dict(model=MODEL, group_size=G, max_tokens=T, stop_ids=STOPS) | knobs
  return jax.jit(functools.partial(rollout.rollout, **knobs))


def sample(params, prompts, seed=0, **knobs):
  key = jax.random.key(seed)
  return jax.device_get(compiled(**knobs)(params, prompts, key))


@functools.partial(jax.jit, static_argnames='temperature')
def update_logps(params, r, temperature=1.0):
  """What the update finds, laid out as the sampler writes it."""
  logps_PGT = likelihood.likelihood(
    params, r, model=MODEL, temperature=temperature
  ).logps_PGT
  return jnp.where(r.actions_PGT, logps_PGT, 0)


def rows(r):
  """Each completion: prompt ids, sampled ids (padding cut off), log-probs."""
  for p, g in np.ndindex(r.lengths_PG.shape):
    n = r.lengths_PG[p, g]
    prompt = r.prompts.tokens_PL[p, : r.prompts.lengths_P[p]]
    yield prompt, r.tokens_PGT[p, g, :n], r.logps_PGT[p, g, :n]


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_recorded_log_probs_equal_the_updates_and_an_uncached_pass(
  params, temperature
):
  r = sample(params, prompts(), temperature=temperature)
  update_PGT = update_logps(params, r, temperature=temperature)
  np.testing.assert_allclose(r.logps_PGT, update_PGT, atol=1e-5, rtol=0)
  for prompt, ids, logps in rows(r):
    logits = numpy_llama.logits(params, [*prompt, *ids], **SIZES)
    expected = numpy_llama.log_softmax(
      logits[len(prompt) - 1 : -1] / temperature
    )
    expected = expected[np.arange(len(ids)), ids]
    np.testing.assert_allclose(logps, expected, atol=1e-5, rtol=0)


def test_temperature_0_is_greedy_decoding(params):
  r = sample(params, prompts(), temperature=0.0, group_size=2)
  for prompt, ids, _ in rows(r):
    logits = numpy_llama.logits(params, [*prompt, *ids], **SIZES)
    np.testing.assert_array_equal(logits[len(prompt) - 1 : -1].argmax(-1), ids)


@pytest.mark.parametrize(
  'other',
  [
    dict(which=(2, 0, 3, 1)),
    dict(which=(3,)),
    dict(width=max(LENGTHS)),
    dict(width=64, padding=5),
    dict(padding=STOPS[0]),
  ],
  ids=['order', 'alone', 'no wider', 'wider', 'padded with a stop id'],
)
def test_a_completion_depends_on_its_own_prompt_alone(params, other):
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    whole = sample(wide, prompts())
    r = sample(wide, prompts(**other))
  order = list(other.get('which', range(4)))
  for name in ('tokens_PGT', 'lengths_PG', 'ended_PG', 'actions_PGT'):
    actual, expected = getattr(r, name), getattr(whole, name)[order]
    np.testing.assert_array_equal(actual, expected, err_msg=name)
  np.testing.assert_allclose(r.logps_PGT, whole.logps_PGT[order], atol=1e-6)


@pytest.mark.parametrize('size', [1, 2 * G])
def test_a_group_of_another_size_begins_with_the_same_completions(params, size):
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    expected = sample(wide, prompts()).tokens_PGT[:, :size]
    actual = sample(wide, prompts(), group_size=size).tokens_PGT[:, :G]
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('stops', [(3,), (7, 3), STOPS])
def test_a_completion_ends_with_the_first_stop_id(params, stops):
  r = sample(params, prompts(), group_size=16, stop_ids=stops)
  last = set()
  for p, g in np.ndindex(4, 16):
    tokens_T = r.tokens_PGT[p, g].tolist()
    found = [t for t in range(T) if tokens_T[t] in stops]
    n = found[0] + 1 if found else T
    assert r.lengths_PG[p, g] == n
    assert r.ended_PG[p, g] == bool(found)
    np.testing.assert_array_equal(r.actions_PGT[p, g], np.arange(T) < n)
    assert np.all(r.logps_PGT[p, g, :n] < 0)
    assert np.all(r.logps_PGT[p, g, n:] == 0)
    last |= {tokens_T[n - 1]} if found else set()
  assert last == set(stops)
  # Neither the first nor the last token is always the end.
  assert r.lengths_PG.min() == 1
  assert 0 < r.ended_PG.mean() < 1


def test_a_stop_id_in_the_prompt_ends_nothing(params):
  some = prompts()
  some = some.replace(tokens_PL=np.full_like(some.tokens_PL, STOPS[0]))
  r = sample(params, some)
  assert r.lengths_PG.max() > 1
  update_PGT = update_logps(params, r)
  np.testing.assert_allclose(r.logps_PGT, update_PGT, atol=1e-5, rtol=0)


def test_without_a_stop_id_every_completion_is_truncated(params):
  r = sample(params, prompts(), stop_ids=(V,))
  np.testing.assert_array_equal(r.lengths_PG, T)
  assert not r.ended_PG.any()
  assert r.actions_PGT.all()


@pytest.mark.parametrize(
  'stops', [tuple(range(V)), tuple(range(0, V, 2)), (V,)]
)
def test_the_loop_ends_with_the_last_completion(params, stops):
  passes = []

  def apply(params, inputs, cache=None):
    jax.debug.callback(lambda: passes.append(inputs.tokens_BT.shape[1]))
    return MODEL.apply(params, inputs, cache)

  r = rollout.rollout(
    params,
    prompts(),
    jax.random.key(0),
    model=dataclasses.replace(MODEL, apply=apply),
    group_size=G,
    max_tokens=T,
    stop_ids=stops,
  )
  jax.effects_barrier()
  # The prompts, and then every token but the last goes in once.
  assert sorted(passes) == [1] * (int(r.lengths_PG.max()) - 1) + [6]


def test_members_of_a_group_and_other_keys_give_other_completions(params):
  # No stop: ten tokens of near-uniform noise never agree by chance.
  a, b = (sample(params, prompts(), seed=s, stop_ids=(V,)) for s in (0, 1))
  both = np.concatenate([a.tokens_PGT, b.tokens_PGT]).reshape(-1, T)
  assert len(np.unique(both, axis=0)) == len(both) == 2 * 4 * G


def test_every_position_has_its_own_noise(params):
  # With a model that always says the same, repeats would show as cycles.
  flat = jax.tree.map(jnp.zeros_like, params)
  r = sample(flat, prompts(), stop_ids=(V,), max_tokens=40)
  tokens_BT = r.tokens_PGT.reshape(-1, 40)
  agree = [np.mean(tokens_BT[:, t:] == tokens_BT[:, :-t]) for t in range(1, 20)]
  assert max(agree) < 4 / V
  np.testing.assert_allclose(r.logps_PGT, -np.log(V), rtol=1e-6)


@pytest.mark.parametrize('stages', [2, 3, T])
@pytest.mark.parametrize('stops', [(), STOPS])
def test_a_cache_that_grows_holds_the_same(params, stages, stops):
  whole = sample(params, prompts(), stop_ids=stops or (V,))
  found = sample(params, prompts(), stop_ids=stops or (V,), stages=stages)
  np.testing.assert_array_equal(found.tokens_PGT, whole.tokens_PGT)
  np.testing.assert_array_equal(found.lengths_PG, whole.lengths_PG)
  np.testing.assert_allclose(found.logps_PGT, whole.logps_PGT, atol=2e-6)


def test_a_stage_has_room_for_its_own_tokens_alone(params):
  read = functools.partial(
    rollout.rollout,
    model=MODEL,
    group_size=G,
    max_tokens=T,
    stop_ids=STOPS,
    stages=3,
  )
  text = jax.jit(read).lower(params, prompts(), jax.random.key(0)).as_text()
  B, H = len(LENGTHS) * G, MODEL.table['layers']['k'].shape[-1]
  rooms = set(map(int, re.findall(rf'tensor<{B}x1x{H}x(\d+)xf32>', text)))
  assert {4, 7, T} <= rooms and not rooms & {2, 3, 5, 6, 8, 9}


def test_the_weights_of_the_head_are_the_left_factor_on_a_cpu(params):
  program = compiled().lower(params, prompts(), jax.random.key(0)).compile()
  text, B = program.as_text(), len(LENGTHS) * G
  assert hlo.products(text, V, B) and not hlo.products(text, B, V)


def test_a_config_asks_for_stages_of_a_model_that_has_them(
  tmp_path, monkeypatch
):
  model = dataclasses.replace(models.build('llama', 'tiny'), grow_cache=None)
  monkeypatch.setattr(models, 'build', lambda *args, **sizes: model)
  c = config.default()
  c.data.knobs = {'problems': 100}
  build.build(c, str(tmp_path / 'whole'))
  c.rollout.stages = 2
  with pytest.raises(ValueError, match='^rollout.stages=2 needs a model whose'):
    build.build(c, str(tmp_path / 'run'))


def test_it_runs_without_jit(params):
  expected = sample(params, prompts())
  actual = compiled().__wrapped__(params, prompts(), jax.random.key(0))
  np.testing.assert_array_equal(actual.tokens_PGT, expected.tokens_PGT)
  np.testing.assert_allclose(actual.logps_PGT, expected.logps_PGT, atol=1e-5)


def test_bfloat16_models_record_float32_log_probs(params):
  model = models.in_dtype(MODEL, 'bfloat16')
  function = functools.partial(
    rollout.rollout, model=model, group_size=G, max_tokens=T, stop_ids=STOPS
  )
  r = jax.jit(function)(params, prompts(), jax.random.key(0))
  assert r.logps_PGT.dtype == jnp.float32
  drift_PGT = np.abs(update_logps(params, r) - r.logps_PGT)
  assert 1e-4 < drift_PGT.max() < 0.2
