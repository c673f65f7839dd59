"""The update against a plain loss, and what must not matter to it."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import advantages, build, grpo, likelihood, models, optim, types
from grpo_jax.losses import aggregate, policy
from grpo_jax.losses import kl as kl_lib
from grpo_jax.rollout import rollout as sample

ROOT = pathlib.Path(__file__).parents[1]
P, G, L, T, V = 4, 4, 5, 6, 12
EOS = 3
MODEL = models.build(
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
SGD = optax.sgd(1.0)  # New parameters show the gradient.
SLOW = optax.sgd(0.02)


def params():
  found = models.init_params(MODEL, jax.random.key(0))
  return jax.tree.map(lambda w: 2 * w, found)  # Far from uniform.


def new_state(optimizer=SGD, reference=None):
  zero = jnp.int32(0)
  weights = params()
  return types.TrainState(
    zero, zero, weights, optimizer.init(weights), reference
  )


def roll(temperature=1.0):
  rng = np.random.default_rng(0)
  prompts = types.Prompts(
    tokens_PL=rng.integers(V, size=(P, L), dtype=np.int32),
    lengths_P=np.array([2, L, 3, 1], np.int32),
    ids_P=np.arange(P, dtype=np.uint32),
    answers_PC=np.zeros((P, 1), np.uint8),
  )
  return jax.jit(
    lambda: sample(
      params(),
      prompts,
      jax.random.key(1),
      model=MODEL,
      group_size=G,
      max_tokens=T,
      stop_ids=(EOS,),
      temperature=temperature,
    )
  )()


def assert_same_metrics(found, wanted):
  found, wanted = dict(found), dict(wanted)
  for numbers in (found, wanted):  # The drift is nothing but rounding.
    assert numbers.pop('rollout/logp_drift') < 1e-5
  # A difference of two log-probabilities has the rounding of both.
  largest = [x.pop('policy/log_ratio_max') for x in (found, wanted)]
  assert largest[0] == pytest.approx(largest[1], rel=1e-5, abs=1e-5)
  assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.fixture(scope='module')
def rolled():
  found = roll()
  lengths_PG = np.asarray(found.lengths_PG)
  assert len(set(lengths_PG.ravel().tolist())) > 2 and found.ended_PG.any()
  return found


def rewards_of(total_PG):
  total_PG = jnp.asarray(total_PG, jnp.float32)
  return types.Rewards(total_PG, {'answer': total_PG})


def mixed():
  return rewards_of(np.random.default_rng(2).random((P, G)) > 0.5)


@functools.cache
def compiled(optimizer, **knobs):
  run = functools.partial(
    grpo.grpo_update, model=MODEL, optimizer=optimizer, **knobs
  )
  # What matters here is compile time.
  return jax.jit(run, compiler_options={'xla_backend_optimization_level': 0})


def update(state, rolled, rewards, optimizer=SGD, **knobs):
  """grpo_update under jit; tests with the same knobs share a program."""
  state, metrics = compiled(optimizer, **knobs)(state, rolled, rewards)
  return state, {name: float(value) for name, value in metrics.items()}


def assert_same(actual, expected, atol=2e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=atol), actual, expected
  )


def distance(a, b):
  return optax.tree.norm(jax.tree.map(jnp.subtract, a, b))


def plain_logps(weights, rolled, temperature=1.0):
  """Log-probs from passes over prompts and completions in one piece; PGT."""
  rolled = jax.device_get(rolled)
  starts_P = rolled.prompts.lengths_P
  width = rolled.tokens_PGT.shape[2]
  rows = np.zeros((P, G, starts_P.max() + width), np.int32)
  for p, start in enumerate(starts_P):
    rows[p, :, :start] = rolled.prompts.tokens_PL[p, :start]
    rows[p, :, start : start + width] = rolled.tokens_PGT[p]
  tokens_BS = rows.reshape(P * G, -1)
  positions_BS = np.broadcast_to(np.arange(tokens_BS.shape[1]), tokens_BS.shape)
  at_BT = np.repeat(starts_P, G)[:, None] + np.arange(width)

  return _whole(weights, tokens_BS, positions_BS, at_BT, temperature).reshape(
    P, G, width
  )


@jax.jit
def _whole(weights, tokens_BS, positions_BS, at_BT, temperature):
  inputs = types.ModelInputs(tokens_BS, positions_BS)
  hidden_BSD = MODEL.apply(weights, inputs).hidden_BTD
  logits_BSV = hidden_BSD @ MODEL.head(weights) / temperature
  rows_B1 = jnp.arange(P * G)[:, None]
  tokens_BT = jnp.take_along_axis(tokens_BS, at_BT, 1)
  return jax.nn.log_softmax(logits_BSV)[rows_B1, at_BT - 1, tokens_BT]


def test_the_step_is_the_gradient_of_a_plain_loss_on_whole_sequences(rolled):
  rewards = mixed()
  advantages_PG = np.asarray(advantages.grpo(rewards.total_PG))
  weights_PGT, tokens = np.zeros((P, G, T)), 0
  for p, g in np.ndindex(P, G):
    for t in range(int(rolled.lengths_PG[p, g])):
      weights_PGT[p, g, t] = -advantages_PG[p, g]
      tokens += 1

  @jax.jit
  @jax.value_and_grad
  def plain(weights):
    ratios_PGT = jnp.exp(plain_logps(weights, rolled) - rolled.logps_PGT)
    return jnp.sum(weights_PGT / tokens * ratios_PGT)

  expected, grads = plain(params())
  state, metrics = update(new_state(), rolled, rewards)
  np.testing.assert_allclose(metrics['loss'], expected, atol=1e-6)
  norm = optax.tree.norm(grads)
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
  assert_same(state.params, jax.tree.map(jnp.subtract, params(), grads))
  assert norm > 0.01
  assert state.step == 1 and state.cursor == P


@pytest.mark.parametrize(
  'mean',
  [aggregate.token_mean, aggregate.sequence_mean, aggregate.constant_length],
)
def test_microbatches_change_neither_loss_nor_step(rolled, mean):
  knobs = dict(kl_coef=0.1, aggregate=mean)
  reference = jax.tree.map(lambda w: 1.1 * w, params())
  state = new_state(reference=reference)
  one, metrics = update(state, rolled, mixed(), **knobs)
  assert metrics['grad_norm'] > 0.01
  for pieces in (2, 4) if mean is aggregate.token_mean else (4,):
    other, theirs = update(state, rolled, mixed(), microbatches=pieces, **knobs)
    assert_same(other.params, one.params)
    assert_same_metrics(theirs, metrics)


def test_a_teacher_has_a_model_of_its_own_and_pulls_the_policy_to_it(rolled):
  sizes = dict(layers=2, width=24, heads=2, kv_heads=2, head_size=12)
  teacher = models.build('llama', 'tiny', vocab_size=V, **sizes)
  theirs = models.init_params(teacher, jax.random.key(7))
  even = types.Rewards(jnp.zeros((P, G)), {'answer': jnp.zeros((P, G))})
  knobs = dict(kl_coef=1.0, kl=kl_lib.k1_plus, reference_model=teacher)
  state = new_state(SGD, reference=theirs)
  step = functools.partial(
    grpo.grpo_update, model=MODEL, optimizer=SGD, microbatches=2, **knobs
  )
  moved, metrics = jax.jit(step)(state, rolled, even)

  mask_PGT = np.asarray(rolled.actions_PGT)

  def distance_PGT(weights):
    ours = likelihood.likelihood(weights, rolled, model=MODEL)
    wanted = likelihood.likelihood(theirs, rolled, model=teacher)
    return ours.logps_PGT - wanted.logps_PGT

  found = float(metrics['kl/reference'])
  assert found == pytest.approx(
    np.mean(np.asarray(distance_PGT(params()))[mask_PGT]), abs=1e-5
  )

  def squared(weights):  # Its gradient is that of the reverse KL.
    half_PGT = distance_PGT(weights) ** 2 / 2
    return jnp.sum(half_PGT * mask_PGT) / mask_PGT.sum()

  grads = jax.grad(squared)(params())
  norm = float(optax.tree.norm(grads))
  assert norm > 0.01
  wanted = jax.tree.map(jnp.subtract, params(), grads)
  # Of one pass and of two microbatches; float32 adds up otherwise in each.
  assert_same(moved.params, wanted, atol=3e-6 * norm)


@pytest.mark.parametrize('knobs', [{}, {'aggregate': aggregate.sequence_mean}])
def test_the_padding_of_completions_does_not_matter(rolled, knobs):
  wide = [(0, 0), (0, 0), (0, 3)]
  padded = rolled.replace(
    tokens_PGT=jnp.pad(rolled.tokens_PGT, wide, constant_values=7),
    logps_PGT=jnp.pad(rolled.logps_PGT, wide),
    actions_PGT=jnp.pad(rolled.actions_PGT, wide),
  )
  narrow, metrics = update(new_state(), rolled, mixed(), **knobs)
  wider, theirs = update(new_state(), padded, mixed(), **knobs)
  assert_same(wider.params, narrow.params)
  assert_same_metrics(theirs, metrics)


def test_the_padding_of_prompts_does_not_matter(rolled):
  tokens_PL = jnp.pad(
    rolled.prompts.tokens_PL, [(0, 0), (0, 4)], constant_values=5
  )
  padded = rolled.replace(prompts=rolled.prompts.replace(tokens_PL=tokens_PL))
  narrow, metrics = update(new_state(), rolled, mixed())
  wider, theirs = update(new_state(), padded, mixed())
  assert_same(wider.params, narrow.params)
  assert_same_metrics(theirs, metrics)


@pytest.mark.parametrize('reward', [0.0, 0.1, 1000.1])
def test_equal_rewards_give_exactly_no_gradient(rolled, reward):
  rewards_PG = np.full((P, G), reward)
  rewards_PG[:, 0] = np.nan  # The mean of three floats 1000.1 is another one.
  state, metrics = update(new_state(), rolled, rewards_of(rewards_PG))
  assert metrics['grad_norm'] == 0 and metrics['groups/degenerate'] == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, params())


def test_the_old_policy_is_the_one_that_sampled(rolled):
  _, metrics = update(new_state(), rolled, mixed())
  assert metrics['rollout/logp_drift'] < 1e-5
  assert metrics['policy/clip_fraction'] == 0
  moved = rolled.replace(logps_PGT=rolled.logps_PGT - 0.5)
  _, metrics = update(new_state(), moved, mixed())
  assert metrics['rollout/logp_drift'] == pytest.approx(0.5, abs=1e-4)
  assert metrics['policy/clip_fraction'] > 0


def test_the_ratio_moves_in_a_second_pass(rolled):
  one, first = update(new_state(), rolled, mixed())
  two, both = update(new_state(), rolled, mixed(), passes=2)
  assert first['policy/clip_fraction'] == 0
  assert both['policy/clip_fraction'] > 0
  assert distance(one.params, two.params) > 0.01


def test_the_drift_is_that_before_the_first_optimizer_step(rolled):
  knobs = dict(passes=2, minibatches=2)
  _, metrics = update(new_state(), rolled, mixed(), **knobs)
  assert metrics['policy/clip_fraction'] > 0  # So the policy did move.
  assert metrics['rollout/logp_drift'] < 1e-5


def test_log_probabilities_are_at_the_temperature_of_the_sampler():
  cold = roll(temperature=0.5)
  _, metrics = update(new_state(), cold, mixed(), temperature=0.5)
  assert metrics['rollout/logp_drift'] < 1e-5
  _, metrics = update(new_state(), cold, mixed())
  assert metrics['rollout/logp_drift'] > 0.1

  found_PGT = jax.jit(
    lambda: (
      likelihood.likelihood(
        params(), cold, model=MODEL, temperature=0.5
      ).logps_PGT
    )
  )()
  expected_PGT = plain_logps(params(), cold, temperature=0.5)
  chosen_PGT = cold.actions_PGT
  np.testing.assert_allclose(
    found_PGT[chosen_PGT], expected_PGT[chosen_PGT], atol=1e-5
  )


def test_stopping_is_trained(rolled):
  """A completion that is a stop token alone, and the only one with a signal."""
  alone = rolled.replace(
    tokens_PGT=rolled.tokens_PGT.at[0, 0].set(EOS),
    lengths_PG=rolled.lengths_PG.at[0, 0].set(1),
    actions_PGT=rolled.actions_PGT.at[0, 0].set(jnp.arange(T) < 1),
  )
  before = plain_logps(params(), alone)[0, 0, 0]
  alone = alone.replace(logps_PGT=alone.logps_PGT.at[0, 0, 0].set(before))
  rewards = rewards_of(np.zeros((P, G)))
  signal_PG = jnp.zeros((P, G)).at[0, 0].set(1.0)
  state, _ = update(
    new_state(), alone, rewards, advantage=lambda rewards_PG: signal_PG
  )
  assert plain_logps(state.params, alone)[0, 0, 0] > before + 1e-3


def test_tokens_that_the_policy_did_not_choose_are_not_trained(rolled):
  """As those that a tool writes: the action mask decides, not the length."""
  rewards = mixed()
  none = rolled.replace(actions_PGT=jnp.zeros_like(rolled.actions_PGT))
  _, metrics = update(new_state(), none, rewards)
  assert metrics['grad_norm'] == 0 and metrics['loss'] == 0


def test_an_unscored_completion_has_no_advantage_and_the_step_is_finite(rolled):
  rewards_PG = np.array(mixed().total_PG)
  rewards_PG[0] = np.nan
  rewards_PG[1, :2] = np.nan, 1.0
  rewards_PG[1, 2:] = 0.0
  expected_PG = np.array(advantages.grpo(jnp.asarray(rewards_PG)))
  assert not expected_PG[0].any() and expected_PG[1, 0] == 0
  state, metrics = update(new_state(), rolled, rewards_of(rewards_PG))
  assert np.isfinite([*metrics.values()]).all()
  same, _ = update(
    new_state(),
    rolled,
    mixed(),
    advantage=lambda rewards_PG: jnp.asarray(expected_PG),
  )
  assert_same(state.params, same.params)
  assert metrics['grad_norm'] > 0.01


def test_a_step_of_the_optimizer_is_taken_for_each_minibatch_of_each_pass(
  rolled,
):
  adam = optim.make(lr=1e-3, steps=100)
  state, _ = update(
    new_state(adam), rolled, mixed(), adam, passes=3, minibatches=4
  )
  counts = optax.tree.get_all_with_path(state.opt_state, 'count')
  assert counts and all(n == 12 for _, n in counts)
  assert state.step == 1 and state.cursor == P


def test_without_a_kl_term_no_reference_is_held_or_run(rolled):
  state = new_state(reference=None)
  _, metrics = update(state, rolled, mixed())
  assert 'kl/reference' not in metrics

  def products(kl_coef):
    def run(state):
      return grpo.grpo_update(
        state, rolled, mixed(), model=MODEL, optimizer=SGD, kl_coef=kl_coef
      )

    jaxpr = jax.make_jaxpr(run)(new_state(reference=params()))
    return list(primitives(jaxpr.jaxpr)).count('dot_general')

  assert products(0.1) > products(0.0) > 0


def test_the_kl_is_zero_at_the_start_and_then_grows(rolled):
  state = new_state(reference=params())
  state, metrics = update(state, rolled, mixed(), SLOW, kl_coef=0.5)
  assert abs(metrics['kl/reference']) < 1e-8
  again, metrics = update(state, rolled, mixed(), SLOW, kl_coef=0.5)
  moved_PGT, start_PGT = (
    plain_logps(weights, rolled) for weights in (state.params, params())
  )
  d = np.asarray(moved_PGT - start_PGT)[np.asarray(rolled.actions_PGT)]
  expected = np.mean(np.exp(-d) + d - 1)
  assert expected > 1e-5
  assert metrics['kl/reference'] == pytest.approx(expected, rel=1e-4)
  jax.tree.map(np.testing.assert_array_equal, again.reference, params())

  _, without = update(state, rolled, mixed(), SLOW)
  assert metrics['loss'] == pytest.approx(
    without['loss'] + 0.5 * expected, abs=1e-5
  )


def test_the_kl_alone_pulls_back_to_the_reference(rolled):
  reference = jax.tree.map(lambda w: 1.2 * w, params())
  state, equal = new_state(reference=reference), np.zeros((P, G))
  kls = []
  for _ in range(2):
    state, metrics = update(state, rolled, rewards_of(equal), SLOW, kl_coef=0.5)
    kls.append(metrics['kl/reference'])
  assert 0 < kls[1] < kls[0]


def test_a_loss_with_its_own_statistics_reports_token_means(rolled):
  def counting(logps_PGT, old_logps_PGT, advantages_PG1, mask_PGT):
    losses_PGT, _ = policy.reinforce(
      logps_PGT, old_logps_PGT, advantages_PG1, mask_PGT
    )
    place_PGT = jnp.broadcast_to(jnp.arange(T), logps_PGT.shape)
    return losses_PGT, {'place': place_PGT.astype(jnp.float32)}

  _, metrics = update(
    new_state(), rolled, mixed(), policy_loss=counting, microbatches=2
  )
  lengths = np.asarray(rolled.lengths_PG).ravel()
  places = np.concatenate([np.arange(n) for n in lengths])
  assert metrics['policy/place'] == pytest.approx(places.mean(), rel=1e-5)


def primitives(jaxpr):
  """Names of all primitives, those of inner jaxprs too."""

  def is_jaxpr(x):
    return hasattr(x, 'eqns')

  for equation in jaxpr.eqns:
    yield equation.primitive.name
    inner = jax.tree.leaves([*equation.params.values()], is_leaf=is_jaxpr)
    for x in filter(is_jaxpr, inner):
      yield from primitives(x)


def callbacks(function, *arguments):
  jaxpr = jax.make_jaxpr(function)(*arguments)
  host = ('callback', 'print', 'infeed', 'outfeed')
  names = primitives(jaxpr.jaxpr)
  return [name for name in names if any(word in name for word in host)]


@pytest.mark.parametrize(
  'call',
  [
    lambda x: jax.pure_callback(np.sin, x, x),
    lambda x: jax.debug.print('{}', x),
    lambda x: jax.experimental.io_callback(print, None, x),
  ],
)
def test_a_callback_is_found_however_deep(call):
  def inside(x):
    def body(carry, _):
      jax.lax.cond(carry > 0, lambda: call(carry), lambda: call(carry))
      return jax.jit(lambda y: y + 1)(carry), None

    return jax.lax.while_loop(
      lambda y: y < 3,
      lambda y: jax.lax.scan(jax.checkpoint(body), y, length=2)[0],
      x,
    )

  assert callbacks(inside, jnp.float32(0))
  assert not callbacks(jnp.sin, jnp.float32(0))


def test_the_whole_iteration_has_no_callback(tmp_path):
  spec = importlib.util.spec_from_file_location(
    'quickstart', ROOT / 'configs' / 'quickstart.py'
  )
  quickstart = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(quickstart)
  c = quickstart.get_config('smoke')
  c.data.prompts = c.pretrain.rows = 8  # One for each device.
  run = build.build(c.lock(), str(tmp_path / 'run'))
  with jax.set_mesh(run.mesh):
    _, state = build.templates(run)
    iterate = build.functions(run).iterate
    arguments = state, build.train_batch(run, 0), run.text, jax.random.key(0)
    assert not callbacks(iterate, *arguments)
    jaxpr = jax.make_jaxpr(iterate)(*arguments).jaxpr
  names = list(primitives(jaxpr))
  assert 'while' in names and names.count('dot_general') > 20
