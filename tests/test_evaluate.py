"""Evaluations: what counts, what is summed up, and the file in between."""

import collections
import itertools
import json
import types as python_types

from etils import epath
import jax
import numpy as np
import pytest
import test_answer_reward

from grpo_jax import build, datasets, evaluate, rewards, types
from grpo_jax.rewards import answer

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
      'prompts': [f'problem {n}' for n in range(N)],
      'answers': [str(n) for n in range(N)],
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
  assert result.prompts == [str(n) for n in range(count)]


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


def test_an_evaluation_of_before_problems_were_kept_is_read(tmp_path):
  e, path = evaluation(), epath.Path(tmp_path) / 'e.json'
  evaluate.save(e, path)
  expected = evaluate.summarize(evaluate.load(path))
  fields = json.loads(path.read_text())
  del fields['prompts'], fields['answers']
  path.write_text(json.dumps(fields))
  assert evaluate.summarize(evaluate.load(path)) == expected


def brute_force(score, rows, k):
  """The mean of a score over all sets of k completions of a problem."""
  return np.mean([score(x) for x in itertools.combinations(rows, k)])


def majority(completions):
  """Expected rightness of the commonest answer; ties by equal chance."""
  votes = collections.Counter(x for _, x in completions if x is not None)
  if not votes:
    return 0.0
  most = max(votes.values())
  winners = [given for given, count in votes.items() if count == most]
  everyone = votes_of_all[0]
  return np.mean([everyone[given] for given in winners])


votes_of_all = [{}]  # Answer -> how right it is, among all of a problem.


@pytest.mark.parametrize('G', [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_sets_with_a_right_one(G):
  rng = np.random.default_rng(G)
  correct_NG = (rng.random((8, G)) > 0.6).astype(float)
  correct_NG[0], correct_NG[1] = 0, 1
  correct_NG[2, 0] = np.nan  # What nobody could score is not right.
  for k in range(1, G + 1):
    expected_N = [
      brute_force(lambda some: any(x == 1 for x in some), row, k)
      for row in correct_NG
    ]
    found_N = evaluate.pass_at_k(correct_NG, k)
    np.testing.assert_allclose(found_N, expected_N, atol=1e-12)


@pytest.mark.parametrize('G', [1, 3, 6, 8])
def test_maj_at_k_is_the_mean_over_all_sets(G):
  rng = np.random.default_rng(G)
  names = ['7', '8', '9', '10', None]
  for _ in range(12):
    answers_G = [names[i] for i in rng.integers(rng.integers(1, 6), size=G)]
    # Rightness goes by answer but for '8', of which some are right.
    correct_G = [
      float(x == '7' or (x == '8' and rng.random() > 0.5)) for x in answers_G
    ]
    votes_of_all[0] = {
      x: np.mean(
        [c for c, y in zip(correct_G, answers_G, strict=True) if y == x]
      )
      for x in set(answers_G)
    }
    rows = list(zip(correct_G, answers_G, strict=True))
    for k in range(1, G + 1):
      expected = brute_force(majority, rows, k)
      (found,) = evaluate.maj_at_k(np.array([correct_G]), [answers_G], k)
      assert found == pytest.approx(expected, abs=1e-12)


def test_a_tie_is_worth_its_expected_value():
  correct_NG = np.array([[1, 0, 0, 1], [1, 0, 1, 0]])
  answers = [['1', '2', '2', '1'], ['1', '2', '1', None]]
  found_N = evaluate.maj_at_k(correct_NG, answers, 4)
  np.testing.assert_allclose(found_N, [0.5, 1])


def test_many_completions_do_not_overflow():
  correct_NG = np.zeros((1, 512))
  correct_NG[0, :200] = 1
  answers = [['7'] * 200 + [str(i) for i in range(100, 400)] + [None] * 12]
  assert evaluate.pass_at_k(correct_NG, 1) == pytest.approx(200 / 512)
  assert evaluate.maj_at_k(correct_NG, answers, 512) == 1


@pytest.mark.parametrize('k', [0, 3])
def test_a_k_that_there_is_not_is_refused(k):
  with pytest.raises(ValueError, match=f'k={k} is not from 1 to 2'):
    evaluate.pass_at_k(np.ones((2, 2)), k)


# Completions, and answers that are equal by some comparison and not by others.
SAID = (
  '7', ' 7 ', '7.0', '14/2', '1,000', '1000', '$1000', 'x + 1', 'X  + 1',
  '0.5', '1/2', '\\frac{1}{2}', '-3', '3', 'seven', '', '1e3', '\\boxed{7}',
  '9' * 30, '9' * 30 + '.0', '123456789123/7', 'a' * 70,
)  # fmt: skip


@pytest.mark.parametrize('compare', ['bytes', 'text', 'number'])
@pytest.mark.parametrize(
  'where, opening, closing',
  [
    ('tags', '<answer>', '</answer>'),
    ('box', '\\boxed{', '}'),
    ('line', '#### ', '\n'),
  ],
)
def test_answers_that_the_reward_takes_for_equal_are_one_in_a_vote(
  where, opening, closing, compare
):
  knobs = {'where': where, 'compare': compare}
  knobs |= {'tag': '####'} if where == 'line' else {}
  texts = [f'so {opening}{x}{closing} is it' for x in SAID]
  texts += ['nothing', f'{opening}7' if where == 'tags' else 'nothing']
  rows = [list(text.encode()) for text in texts]
  vocabulary = [bytes([byte]) for byte in range(256)]
  table = rewards.token_text(vocabulary, {'answer': knobs})

  @jax.jit
  def both(rollout, prompts):
    mix = {'answer': knobs}
    score = rewards.reward(rollout, prompts, table, mix).parts['answer']
    return score, answer.said(rollout, table, **knobs)

  # Every answer as the reference of all, against what the classes say.
  for reference in SAID:
    nested = where == 'box' and reference.startswith('\\boxed')
    if not reference or len(reference) > 64 or nested:
      continue
    rollout, prompts = test_answer_reward.inputs(
      rows, [reference.strip().encode()] * len(rows), 64
    )
    score_PG, said = jax.device_get(both(rollout, prompts))
    given = [x for (x,) in evaluate.canonical(said)]
    own = given[SAID.index(reference)]
    for text, score, mine in zip(texts, score_PG[:, 0], given, strict=True):
      assert (score == 1) == (mine == own), (text, reference, mine, own)


def test_answers_that_nobody_reads_are_found_in_a_box_or_in_tags():
  assert evaluate.written_answer('so \\boxed{1  + x}.') == '1 + x'
  assert evaluate.written_answer('<answer> 7</answer>') == '7'
  assert evaluate.written_answer('none') is None
