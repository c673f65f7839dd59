"""Problems are drawn by how they went before, and the state knows how."""

import functools
import itertools

import few_steps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_groups

from grpo_jax import build, config, curriculum, history, train

NAN = np.nan


def test_what_fails_is_hard_and_what_is_open_is_in_the_middle():
  success = np.array([0, 0.25, 0.5, 1], np.float32)
  assert curriculum.hard(success).tolist() == [1, 0.75, 0.5, 0]
  assert curriculum.middle(success).tolist() == [0, 0.75, 1, 0]
  assert curriculum.none(success).tolist() == [1, 1, 1, 1]


def test_a_visit_moves_what_is_remembered_of_that_problem_and_no_other():
  rng = np.random.default_rng(0)
  known = history.fresh(20, prior=0.5)
  success, visits = [0.5] * 20, [0] * 20
  for _ in range(10):
    rows = rng.permutation(20)[:6]
    right_PG = rng.choice([0.0, 0.3, 1.0, NAN], size=(6, 3))
    right_PG[0] = NAN
    known = history.record(known, rows, right_PG, decay=0.75)
    for row, right_G in zip(rows, right_PG.tolist(), strict=True):
      scored = [x for x in right_G if x == x]
      if scored:
        share = sum(x >= 1 for x in scored) / len(scored)
        success[row] = 0.75 * success[row] + 0.25 * share
        visits[row] += 1
  np.testing.assert_allclose(known.success_N, success, rtol=1e-6)
  assert known.visits_N.tolist() == visits
  assert known.success_N.dtype == jnp.float32


def test_a_problem_that_is_not_in_the_training_split_leaves_no_trace():
  known = history.fresh(4, prior=0.5)
  found = history.record(known, np.array([-1]), np.ones((1, 2)), decay=0.5)
  test_groups.assert_equal(found, known)


def believed(success):
  return history.History(
    jnp.array(success, jnp.float32), jnp.zeros(len(success), jnp.int32)
  )


def draws(known, size, count, weigh=curriculum.hard, floor=0.05):
  draw = functools.partial(history.draw, size=size, weigh=weigh, floor=floor)
  keys = jax.random.split(jax.random.key(3), count)
  return np.asarray(jax.jit(jax.vmap(draw, (None, 0)))(known, keys))


def test_draws_follow_the_weights_one_after_the_other_without_a_repeat():
  weights = np.array([0.05, 0.2, 0.5, 1.0])  # The floor, and 1 - success.
  count = 20_000
  found = draws(believed([1.0, 0.8, 0.5, 0.0]), 2, count)
  for a, b in itertools.product(range(4), repeat=2):
    left = weights.sum() - weights[a]
    wanted = weights[a] / weights.sum() * weights[b] / left if a != b else 0
    share = np.mean((found == [a, b]).all(axis=1))
    error = np.sqrt(wanted * (1 - wanted) / count)
    assert abs(share - wanted) <= 4 * error, (a, b)


def test_all_problems_can_be_drawn_at_once():
  found = draws(believed([0.1] * 50), 50, 3)
  assert (np.sort(found, axis=1) == np.arange(50)).all()
  assert (found[0] != found[1]).any()


def test_the_floor_keeps_what_is_solved_and_what_is_hopeless_in_play():
  for weigh, success in ((curriculum.hard, 1.0), (curriculum.middle, 0.0)):
    known = believed([success] + [0.5] * 9)
    found = draws(known, 1, 2000, weigh=weigh, floor=0.5)
    weight = 0.5 / (0.5 + 9 * float(weigh(np.float32(0.5))))
    share = np.mean(found == 0)
    assert abs(share - weight) < 4 * np.sqrt(weight / 2000)


# In a run, on 8 devices.


@pytest.fixture(scope='module')
def hard(tmp_path_factory):
  with few_steps.scored():
    c = few_steps.make_config(**{'curriculum.name': 'hard', 'fuse': True})
    return few_steps.compiled(c, tmp_path_factory.mktemp('hard'))


def test_a_step_draws_by_what_the_steps_before_it_found(hard):
  run, steps = hard
  count = run.dataset.size('train')
  state, news = few_steps.walk(run, steps, few_steps.begin(run, steps), 4)
  assert count < 4 * few_steps.P * 4  # So that some are visited again.
  success, visits = np.full(count, 0.5, np.float32), np.zeros(count, int)
  key = jax.random.key(run.config.seed)
  for done, new in enumerate(news):
    rows_P = new.rollout.prompts.rows_P
    known = history.History(jnp.array(success), jnp.array(visits))
    expected = history.draw(
      known,
      build.draw_key(key, jnp.int32(done)),
      size=few_steps.P,
      weigh=curriculum.hard,
      floor=0.05,
    )
    np.testing.assert_array_equal(rows_P, expected)
    assert len(set(rows_P.tolist())) == few_steps.P
    examples = run.dataset.read('train', rows_P)
    assert [x.id for x in examples] == new.rollout.prompts.ids_P.tolist()

    believed_P = success[rows_P]
    assert new.metrics['curriculum/success'] == pytest.approx(believed_P.mean())
    share = np.mean(visits > 0)
    assert new.metrics['curriculum/visited'] == pytest.approx(share)
    right_P = new.rewards.parts['answer'].mean(axis=1)
    success[rows_P] = (success[rows_P] + right_P) / 2
    visits[rows_P] += 1
  np.testing.assert_allclose(state.history.success_N, success, rtol=1e-6)
  np.testing.assert_array_equal(state.history.visits_N, visits)
  assert state.history.success_N.sharding.is_fully_replicated
  assert np.unique(success).size > 2


def test_a_step_depends_on_the_state_alone(hard, tmp_path):
  """Saved after two steps and read again, it goes on bit for bit."""
  test_groups.assert_goes_on(*hard, tmp_path)


def test_the_batch_to_look_at_before_a_run_is_its_first(hard):
  run, steps = hard
  _, [new] = few_steps.walk(run, steps, few_steps.begin(run, steps), 1)
  with few_steps.scored(), jax.set_mesh(run.mesh):
    found = train.next_batch(run, train.start(run))
  np.testing.assert_array_equal(
    found.rollout.tokens_PGT, new.rollout.tokens_PGT
  )


@pytest.mark.slow
def test_one_device_and_eight_draw_and_remember_the_same(hard, tmp_path):
  run, steps = hard
  state, news = few_steps.walk(run, steps, few_steps.begin(run, steps), 2)
  with few_steps.scored():
    run, steps = few_steps.compiled(run.config, tmp_path, devices=1)
  other, others = few_steps.walk(run, steps, few_steps.begin(run, steps), 2)
  for one, two in zip(news, others, strict=True):
    np.testing.assert_array_equal(
      one.rollout.prompts.rows_P, two.rollout.prompts.rows_P
    )
  np.testing.assert_allclose(
    state.history.success_N, other.history.success_N, rtol=1e-6
  )
  np.testing.assert_array_equal(state.history.visits_N, other.history.visits_N)


@pytest.mark.slow
def test_groups_that_are_thrown_away_are_remembered_too(tmp_path):
  changes = {'curriculum.name': 'middle', 'dynamic.batches': 3}
  with few_steps.scored():
    c = few_steps.make_config(**changes)
    run, steps = few_steps.compiled(c, tmp_path)
  state, [new] = few_steps.walk(run, steps, few_steps.begin(run, steps), 1)
  taken = int(new.metrics['groups/batches'])
  assert taken > 1
  assert int(np.sum(state.history.visits_N)) == taken * few_steps.P
  assert int(np.max(state.history.visits_N)) == 1
  # Nothing is right of these, and two out of three were thrown away.
  ids = np.array([x.id for x in run.dataset.all('train')])
  tried = np.asarray(state.history.visits_N) == 1
  hopeless = tried & (ids % 3 == 0)
  assert (np.asarray(state.history.success_N)[hopeless] == 0.25).all()
  assert set(np.flatnonzero(hopeless)) - set(new.rollout.prompts.rows_P)


@pytest.mark.parametrize(
  'changes,words',
  [
    ({'name': 'easy'}, ["curriculum.name='easy'", 'none, hard, middle']),
    ({'decay': 1.0}, ['curriculum.decay=1.0', '[0, 1)']),
    ({'decay': -0.5}, ['curriculum.decay=-0.5']),
    ({'floor': 0.0}, ['curriculum.floor=0.0', '(0, 1]']),
    ({'prior': 1.5}, ['curriculum.prior=1.5', '[0, 1]']),
  ],
)
def test_what_cannot_work_is_refused_by_name(changes, words):
  c = config.default()
  c.curriculum.update(changes)
  refused(lambda: config.check(c), words)


def refused(call, words):
  with pytest.raises(ValueError) as error:
    call()
  message = str(error.value)
  assert '\n' not in message
  assert [word for word in words if word not in message] == [], message


def test_an_unknown_knob_is_refused_by_name():
  c = config.default()
  c.curriculum.power = 2.0
  refused(lambda: config.check(c), ['curriculum.power', "'none'"])


def test_success_needs_a_part_that_tells_what_is_right():
  c = config.default()
  c.curriculum.name = 'hard'
  c.reward = {'format': 1.0}
  refused(lambda: config.check(c), ["'hard'", "eval.right='answer'", 'format'])


def test_a_mixture_has_shares_and_no_curriculum():
  c = config.default()
  c.curriculum.name = 'middle'
  c.data.name = 'mixture'
  refused(lambda: config.check(c), ["'middle'", "data.name='mixture'"])


def test_a_step_cannot_draw_more_problems_than_there_are(tmp_path):
  c = few_steps.make_config(**{'curriculum.name': 'hard'})
  c.dynamic.batches = 13
  refused(
    lambda: build.build(c, str(tmp_path), jax.devices()[:1]),
    ["curriculum.name='hard'", 'dynamic.batches = 104', 'to train on'],
  )
