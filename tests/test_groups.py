"""Which groups and completions count: sampling on, leaving out, cutting off."""

import json

import few_steps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_resume

from grpo_jax import (
  build,
  checkpoint,
  config,
  fit,
  groups,
  metrics,
  sharding,
  train,
  types,
)
from grpo_jax.rewards import truncated

P, G, T = 4, 3, 5
NAN = np.nan

MIXED = np.array([[0, 1, 0], [1, 1, 1], [NAN, 0, 1], [0, 0, 0]], np.float32)


def batch(total_PG, first=0):
  """A batch whose every leaf tells which group is which, from `first` on."""
  size = len(total_PG)
  number_P = np.arange(first, first + size, dtype=np.int32)
  number_PG = number_P[:, None] * 10 + np.arange(G)
  number_PGT = number_PG[..., None] * 10 + np.arange(T)
  prompts = types.Prompts(
    tokens_PL=number_P[:, None],
    lengths_P=number_P,
    ids_P=number_P.astype(np.uint32),
    answers_PC=number_P[:, None].astype(np.uint8),
    references={'x': number_P[:, None]},
    rows_P=number_P,
  )
  rollout = types.Rollout(
    prompts=prompts,
    tokens_PGT=number_PGT,
    lengths_PG=number_PG,
    ended_PG=number_PG % 2 == 0,
    logps_PGT=number_PGT.astype(np.float32),
    actions_PGT=number_PGT % 3 == 0,
  )
  total_PG = np.asarray(total_PG, np.float32)
  return rollout, types.Rewards(total_PG, {'answer': total_PG + 1})


@pytest.mark.parametrize(
  'group,expected',
  [
    ([0, 1, 0], True),
    ([1, 1, 1], False),
    ([NAN, 0, 1], True),
    ([NAN, 1, 1], False),
    ([NAN, NAN, 1], False),
    ([NAN, NAN, NAN], False),
    ([0.1, 0.1, np.float32(0.1) + np.float32(1e-8)], True),
    ([1000.1, 1000.1, 1000.1], False),
  ],
)
def test_a_group_differs_if_two_of_its_scores_do(group, expected):
  found = groups.differ(np.array([group], np.float32))
  assert found.tolist() == [expected]


def test_a_greedy_completion_makes_no_group_differ():
  # The last of each group is greedy; only the second group's others differ.
  kept = batch(np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]], 'f4'))
  (_, rewards), count = groups.merge(kept, kept, group_size=G - 1)
  assert count == 2 and rewards.total_PG[:2].tolist() == [[0, 1, 1], [0, 1, 1]]
  assert groups.merge(kept, kept, group_size=G)[1] == 4


def test_the_groups_that_differ_come_first_and_each_brings_all_it_has():
  rng = np.random.default_rng(0)
  for _ in range(20):
    kept_PG, new_PG = rng.integers(2, size=(2, P, G)).astype(np.float32)
    kept_PG[rng.random((P, G)) < 0.2] = NAN
    kept, new = batch(kept_PG), batch(new_PG, first=P)
    found, count = groups.merge(kept, new, group_size=G)

    differing, others = [], []
    for total_PG, base in ((kept_PG, 0), (new_PG, P)):
      for p in range(P):
        known = {x for x in total_PG[p].tolist() if x == x}
        (differing if len(known) > 1 else others).append(base + p)
    expected = (differing + others)[:P]
    assert int(count) == min(P, len(differing))
    both = jax.tree.map(lambda *x: np.concatenate(x), kept, new)
    jax.tree.map(
      lambda x, y: np.testing.assert_array_equal(x, y[expected]),  # noqa: B023
      found,
      both,
    )


def sampler(counts):
  """Batches that are lists of numbers, merged by putting them together."""
  asked = []

  def sample(number):
    asked.append(number)
    return [number], counts[number]

  def merge(kept, new):
    both = kept + new
    return both, sum(counts[number] for number in both)

  return asked, sample, merge


@pytest.mark.parametrize(
  'counts,wanted,batches,sampled',
  [
    ([4, 4, 4], 4, 3, 1),
    ([3, 0, 1, 4], 4, 4, 3),
    ([0, 0, 0, 4], 4, 3, 3),
    ([1, 4], 4, 1, 1),
  ],
)
def test_sampling_goes_on_until_enough_differ_and_no_longer(
  counts, wanted, batches, sampled
):
  asked, sample, merge = sampler(counts)
  kept, found = groups.fill(sample, merge, wanted=wanted, batches=batches)
  assert found == sampled
  assert asked == kept == list(range(sampled))


def test_what_batches_cost_is_added_up_and_the_rest_is_a_mean():
  rows = [
    {'time/rollout': 1.0, 'host/hung': 2.0, 'host/hidden': 0.5, 'x/y': 1.0},
    {'time/rollout': 2.0, 'host/hung': 1.0, 'host/hidden': 1.0, 'x/y': 3.0},
  ]
  assert groups.total(rows) == {
    'time/rollout': 3.0,
    'host/hung': 3.0,
    'host/hidden': 0.75,
    'x/y': 2.0,
  }


def test_a_batch_is_told_by_its_count_and_the_mean_of_what_is_scored():
  count, numbers = groups.look(types.Rewards(MIXED, {}))
  assert int(count) == 2
  mean = numbers['groups/reward_sampled']
  np.testing.assert_allclose(mean, np.nanmean(MIXED))


def test_groups_with_an_advantage_come_first_in_their_order():
  rng = np.random.default_rng(1)
  for shape in ((12, G, 1), (12, G, T)):
    advantages_PGT = np.zeros(shape, np.float32)
    chosen = np.sort(rng.permutation(12)[:5])
    advantages_PGT[chosen, 1, -1] = rng.normal(size=5)
    advantages_PGT[chosen[0]] = NAN
    indices_P, count = jax.jit(groups.order)(advantages_PGT)
    others = [p for p in range(12) if p not in chosen]
    assert indices_P.tolist() == [*chosen.tolist(), *others]
    assert int(count) == 5


def test_a_cut_completion_has_no_token_in_the_loss_and_others_keep_theirs():
  rollout, _ = batch(MIXED)
  found = groups.drop_truncated(rollout)
  for p in range(P):
    for g in range(G):
      ended = rollout.ended_PG[p, g]
      expected_T = rollout.actions_PGT[p, g] if ended else np.zeros(T, bool)
      np.testing.assert_array_equal(found.actions_PGT[p, g], expected_T)
  jax.tree.map(
    np.testing.assert_array_equal,
    found.replace(actions_PGT=None),
    rollout.replace(actions_PGT=None),
  )


def test_a_cut_completion_can_be_scored():
  rollout, _ = batch(MIXED)
  score_PG = truncated.truncated(rollout, rollout.prompts, None)
  np.testing.assert_array_equal(score_PG, np.where(rollout.ended_PG, 0.0, 1.0))
  assert score_PG.dtype == jnp.float32


# In a run, on 8 devices.

DYNAMIC = {'dynamic.batches': 3}


@pytest.fixture(scope='module')
def dynamic(tmp_path_factory):
  with few_steps.scored():
    c = few_steps.make_config(**DYNAMIC)
    return few_steps.compiled(c, tmp_path_factory.mktemp('dynamic'))


def test_a_step_learns_from_the_groups_of_all_batches_that_differ(dynamic):
  run, steps = dynamic
  state, news = few_steps.walk(run, steps, few_steps.begin(run, steps), 3)
  cursor, several = 0, 0
  for new in news:
    taken = int(new.metrics['groups/batches'])
    thrown = new.metrics['groups/thrown_away']
    assert 1 <= taken <= 3 and thrown == (taken - 1) * few_steps.P
    rows = build.train_rows(run, cursor, taken)
    cursor += taken * few_steps.P
    several += taken > 1

    # All that differ, of these problems and in their order, then others.
    total_PG, rows_P = new.rewards.total_PG, new.rollout.prompts.rows_P
    differ_P = total_PG.min(axis=1) < total_PG.max(axis=1)
    count = differ_P.sum()
    assert not differ_P[count:].any()
    places = [rows.tolist().index(row) for row in rows_P]
    assert places[:count] == sorted(places[:count])
    assert places[count:] == sorted(places[count:])
    assert count == few_steps.P or taken == 3
    # Every third prompt is hopeless.
    assert (new.rollout.prompts.ids_P[:count] % 3 != 0).all()
    expected = few_steps.parity(new.rollout, new.rollout.prompts, None)
    np.testing.assert_array_equal(total_PG, expected)
    examples = run.dataset.read('train', rows_P)
    assert [x.id for x in examples] == new.rollout.prompts.ids_P.tolist()
    assert new.metrics['grad_norm'] > 0
  assert int(state.cursor) == cursor
  assert several


def test_the_first_batch_has_the_dice_of_a_run_that_takes_no_other(dynamic):
  run, steps = dynamic
  state = few_steps.begin(run, steps)
  rows_P = build.train_rows(run, 0)
  prompts, _ = build.own_batch(run, rows_P)
  with jax.set_mesh(run.mesh):
    roll = train.compile_programs(run, ['rollout'])['rollout']
    prompts = sharding.put(prompts, sharding.batch_sharding(run.mesh))
    key = jax.random.fold_in(jax.random.key(run.config.seed), 0)
    key = jax.device_put(key, sharding.replicated(run.mesh))
    alone = roll(state.params, prompts, key)
  _, [new] = few_steps.walk(run, steps, state, 1)
  known = new.rollout.prompts.rows_P.tolist()
  common = [(p, known.index(r)) for p, r in enumerate(rows_P) if r in known]
  assert common
  for p, q in common:
    np.testing.assert_array_equal(
      alone.tokens_PGT[p], new.rollout.tokens_PGT[q]
    )


def test_the_same_prompt_in_a_later_batch_has_other_dice(dynamic):
  run, steps = dynamic
  rows_P = build.train_rows(run, 0)
  with jax.set_mesh(run.mesh):
    one = build.own_batch(run, rows_P)
    state = few_steps.begin(run, steps)
    _, new = steps.iterate(state, *one, more=[one, one])
  assert new.metrics['groups/batches'] > 1
  found = {}
  for p, row in enumerate(np.asarray(new.rollout.prompts.rows_P).tolist()):
    found.setdefault(row, []).append(new.rollout.tokens_PGT[p].tobytes())
  again = [tokens for tokens in found.values() if len(tokens) > 1]
  assert again
  assert all(len(set(tokens)) == len(tokens) for tokens in again)


def test_keys_of_batches_steps_and_draws_are_all_different():
  key = jax.random.key(0)
  found = [
    build.roll_key(key, jnp.int32(step), number)
    for step in range(4)
    for number in range(4)
  ]
  found += [build.draw_key(key, jnp.int32(step)) for step in range(4)]
  bits = {np.asarray(jax.random.key_data(x)).tobytes() for x in found}
  assert len(bits) == len(found)
  plain = jax.random.fold_in(key, 3)
  assert build.roll_key(key, jnp.int32(3)) == plain


def test_a_step_depends_on_the_state_alone(dynamic, tmp_path):
  """Saved after two steps and read again, it goes on bit for bit."""
  run, steps = dynamic
  assert_goes_on(run, steps, tmp_path)


def assert_goes_on(run, steps, folder):
  state, _ = few_steps.walk(run, steps, few_steps.begin(run, steps), 2)
  manager = checkpoint.open_manager(folder / 'saved', keep=2)
  checkpoint.save(manager, state)
  manager.wait_until_finished()
  state, news = few_steps.walk(run, steps, state, 4)
  found = checkpoint.restore_newest(manager, lambda _: build.templates(run)[1])
  manager.close()
  found, again = few_steps.walk(run, steps, found, 4)
  assert_equal(found, state)
  for one, other in zip(again, news, strict=True):
    assert_equal(one[:2], other[:2])
    assert untimed(one.metrics) == untimed(other.metrics)


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def untimed(numbers):
  return {
    name: float(x)
    for name, x in numbers.items()
    if not name.startswith(('time/', 'host/'))
  }


@pytest.mark.slow
def test_one_device_and_eight_sample_the_same_batches(dynamic, tmp_path):
  run, steps = dynamic
  state, news = few_steps.walk(run, steps, few_steps.begin(run, steps), 1)
  with few_steps.scored():
    c = few_steps.make_config(**DYNAMIC)
    run, steps = few_steps.compiled(c, tmp_path, devices=1)
  other, others = few_steps.walk(run, steps, few_steps.begin(run, steps), 1)
  tokens = [new.rollout.tokens_PGT for new in (news[0], others[0])]
  np.testing.assert_array_equal(*tokens)
  assert int(other.cursor) == int(state.cursor)
  for name, value in untimed(news[0].metrics).items():
    assert others[0].metrics[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
@pytest.mark.parametrize(
  'changes',
  [
    DYNAMIC,
    {'curriculum.name': 'hard'},
    DYNAMIC | {'curriculum.name': 'middle', 'truncated': 'mask'},
    DYNAMIC | {'host.workers': 1, 'data.prompts': 16},
  ],
  ids=['dynamic', 'curriculum', 'both', 'host'],
)
def test_a_run_that_breaks_off_ends_like_one_that_does_not(
  changes, tmp_path, monkeypatch
):
  def carry_out(folder):
    with few_steps.scored():
      c = few_steps.make_config(**changes, steps=5)
      c.checkpoint.every = 2
      if 'host.workers' in changes:
        c.reward = {
          'answer': 1.0,
          'odd': {'function': 'mine:odd_or_none', 'weight': 0.5},
        }
      fit.fit(c.lock(), str(folder))

  carry_out(tmp_path / 'whole')
  step = metrics.Writer.step

  def break_off(self, number, *arguments):
    if number == 4:
      raise KeyboardInterrupt
    return step(self, number, *arguments)

  with monkeypatch.context() as patch:
    patch.setattr(metrics.Writer, 'step', break_off)
    with pytest.raises(KeyboardInterrupt):
      carry_out(tmp_path / 'parts')
  carry_out(tmp_path / 'parts')
  found = test_resume.differences(tmp_path / 'whole', tmp_path / 'parts')
  # How much of the scoring was hidden behind the sampling is a time too.
  assert [name for name in found if name != 'metrics.jsonl'] == []
  rows = [lines(tmp_path / name) for name in ('whole', 'parts')]
  assert rows[0] == rows[1]
  assert len(rows[0]) == 5
  if 'dynamic.batches' in changes:
    assert max(row['groups/batches'] for row in rows[0]) > 1


def lines(workdir):
  found = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [untimed(json.loads(line)) for line in found]


@pytest.mark.parametrize(
  'changes,words',
  [
    ({'dynamic.batches': 0}, ['dynamic.batches=0', 'at least 1']),
    ({'truncated': 'drop'}, ["truncated='drop'", 'count, mask']),
    (
      {
        'dynamic.batches': 2,
        'rollout.group_size': 1,
        'advantage': {'name': 'reinforce_pp'},
      },
      ['dynamic.batches=2', 'rollout.group_size=1'],
    ),
  ],
)
def test_what_cannot_work_is_refused_by_name(changes, words):
  c = config.default()
  advantage = changes.pop('advantage', None)
  c.update_from_flattened_dict(changes)
  if advantage:
    c.advantage = advantage
  with pytest.raises(ValueError) as error:
    config.check(c)
  message = str(error.value)
  assert '\n' not in message
  assert [word for word in words if word not in message] == [], message


def test_the_mask_is_for_training_and_an_evaluation_looks_at_all(tmp_path):
  changes = {'truncated': 'mask', 'eval.samples': few_steps.G}
  run = build.build(
    few_steps.make_config(**changes), str(tmp_path), jax.devices()[:1]
  )
  f = build.functions(run)
  with jax.set_mesh(run.mesh):
    params = train.start(run).params
    arguments = params, build.train_batch(run, 0), jax.random.key(0)
    masked = jax.jit(f.rollout)(*arguments)
    sampled = jax.jit(f.rollout_sample)(*arguments)
  assert_equal(masked, groups.drop_truncated(sampled))
  assert not sampled.ended_PG.all()
  assert not masked.actions_PGT[~masked.ended_PG].any()
  assert sampled.actions_PGT.any(axis=2).all()
