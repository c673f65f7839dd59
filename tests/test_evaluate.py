"""Evaluations: what counts, what is summed up, and the file in between."""

import json
import types as python_types

from etils import epath
import numpy as np
import pytest

from grpo_jax import build, datasets, evaluate, types

N, G, T = 5, 2, 4


def evaluation(seed=0, **fields):
  rng = np.random.default_rng(seed)
  correct_NG = (rng.random((N, G)) > 0.5).astype(np.float32)
  return evaluate.Evaluation(
    **{
      'correct_NG': correct_NG,
      'reasoned_NG': (rng.random((N, G)) > 0.5).astype(np.float32),
      'reward_NG': correct_NG + 0.1,
      'lengths_NG': rng.integers(1, 9, (N, G)),
      'ended_NG': rng.random((N, G)) > 0.2,
      'texts': [f'text {n} √' for n in range(N)],
    }
    | fields
  )


def fake_sample(params, prompts, key, examples):
  """Scores that say which problem it was: row p has the first token p."""
  del params, key, examples
  P = len(prompts.ids_P)
  first_PG = np.repeat(prompts.tokens_PL[:, :1], G, axis=1)
  rollout = types.Rollout(
    prompts=prompts,
    tokens_PGT=np.broadcast_to(first_PG[..., None], (P, G, T)),
    lengths_PG=np.broadcast_to([1, 3], (P, G)),
    ended_PG=first_PG > 0,
    logps_PGT=np.zeros((P, G, T)),
    actions_PGT=np.ones((P, G, T), bool),
  )
  parts = {'answer': first_PG % 2, 'format': first_PG % 3}
  return rollout, types.Rewards(first_PG * 1.0, parts)


def encoded(examples):
  P = len(examples)
  tokens_PL = np.array([[int(example.prompt)] for example in examples])
  return types.Prompts(
    tokens_PL, np.ones(P), np.arange(P), np.zeros((P, 1), np.uint8)
  )


def run_of(heldout, problems, batch):
  """As much of a build.Run as the batches of an evaluation look at."""
  rows = [datasets.Example(str(i), '', '') for i in range(heldout)]

  def take(split, size, seed, cursor):
    assert (split, cursor) == ('heldout', 0)
    return rows[:size]

  space = python_types.SimpleNamespace
  return space(
    config=space(eval=space(problems=problems, batch=batch), seed=0),
    dataset=space(batch=take, size=lambda split: heldout),
    encode=encoded,
  )


@pytest.mark.parametrize(
  'heldout,problems,batch,sizes',
  [
    (9, 7, 3, [3, 3, 1]),  # A last batch that is filled up.
    (9, 6, 3, [3, 3]),
    (9, 5, 8, [5]),  # A batch is no larger than the problems.
    (4, 512, 3, [3, 1]),  # Fewer problems than asked for.
  ],
)
def test_every_problem_counts_once_and_padding_does_not(
  heldout, problems, batch, sizes
):
  batches = build.eval_batches(run_of(heldout, problems, batch))
  assert [len(some) for _, some in batches] == sizes
  assert len({prompts.tokens_PL.shape for prompts, _ in batches}) == 1
  result = evaluate.evaluate(fake_sample, None, batches, 0, str)
  count = min(problems, heldout)
  expected_NG = np.repeat(np.arange(count)[:, None], G, axis=1)
  np.testing.assert_array_equal(result.reward_NG, expected_NG)
  np.testing.assert_array_equal(result.correct_NG, expected_NG % 2)
  np.testing.assert_array_equal(result.reasoned_NG, expected_NG % 3)
  np.testing.assert_array_equal(result.ended_NG, expected_NG > 0)
  np.testing.assert_array_equal(result.lengths_NG, [[1, 3]] * count)
  assert result.texts == [f'[{n}]' for n in range(count)]


def test_a_batch_larger_than_all_held_out_problems_is_filled_up():
  [(prompts, some)] = build.eval_batches(run_of(4, 512, 10))
  assert len(some) == 4 and prompts.tokens_PL.shape == (10, 1)


def test_a_summary_gives_shares_of_completions():
  e = evaluation()
  found = evaluate.summarize(e)
  flat = list(zip(e.correct_NG.ravel(), e.reasoned_NG.ravel(), strict=True))
  reasoned = [right for right, thought in flat if thought == 1]
  direct = [right for right, thought in flat if thought != 1]
  assert found['accuracy'] == pytest.approx(np.mean([r for r, _ in flat]))
  assert found['accuracy_reasoned'] == pytest.approx(np.mean(reasoned))
  assert found['accuracy_direct'] == pytest.approx(np.mean(direct))
  assert found['reasoning'] == pytest.approx(len(reasoned) / (N * G))
  assert found['length'] == pytest.approx(np.mean(e.lengths_NG))
  assert found['reward'] == pytest.approx(np.mean(e.reward_NG), rel=1e-6)
  assert found['truncated'] == pytest.approx(1 - np.mean(e.ended_NG))
  low, high = found['accuracy_interval']
  assert low <= found['accuracy'] <= high and low < high


def test_a_share_of_nothing_is_none():
  found = evaluate.summarize(evaluation(reasoned_NG=np.ones((N, G))))
  assert found['accuracy_direct'] is None
  found = evaluate.summarize(evaluation(reasoned_NG=np.zeros((N, G))))
  assert found['accuracy_reasoned'] is None and found['reasoning'] == 0


def test_unscored_rewards_are_left_out_of_the_mean():
  reward_NG = np.ones((N, G))
  reward_NG[0, 0] = np.nan
  assert evaluate.summarize(evaluation(reward_NG=reward_NG))['reward'] == 1


@pytest.mark.parametrize('unscored', [1, N])
def test_a_problem_that_nobody_could_score_is_left_out(unscored):
  reward_NG = np.ones((N, G))
  reward_NG[:unscored] = np.nan
  e = evaluation(reward_NG=reward_NG)
  found = evaluate.summarize(e) | evaluate.gain(e, e)
  json.dumps(found, allow_nan=False)
  if unscored < N:
    assert found['reward_interval'] == (1, 1) and found['reward_gain'] == 0


def test_the_gain_is_paired_by_problem():
  """Problems that differ much, each of which gains the same."""
  before = evaluation(reward_NG=np.arange(N * G).reshape(N, G) * 1.0)
  after = evaluation(
    reward_NG=before.reward_NG + 0.5, correct_NG=np.ones((N, G))
  )
  found = evaluate.gain(before, after)
  assert found['reward_gain'] == 0.5
  assert found['reward_gain_interval'] == (0.5, 0.5)
  expected = 1 - before.correct_NG.mean()
  assert found['accuracy_gain'] == pytest.approx(expected)
  low, high = found['accuracy_gain_interval']
  assert low <= expected <= high and low < high


def test_an_evaluation_comes_back_from_its_file(tmp_path):
  reward_NG = np.ones((N, G))
  reward_NG[1, 1] = np.nan
  e, path = evaluation(reward_NG=reward_NG), epath.Path(tmp_path) / 'e.json'
  evaluate.save(e, path)
  found = evaluate.load(path)
  assert [p.name for p in path.parent.iterdir()] == ['e.json']
  for name, value in vars(e).items():
    np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
  assert evaluate.summarize(found) == evaluate.summarize(e)
