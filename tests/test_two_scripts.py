"""The small language with two scripts: true, in both of them, and rewarded."""

import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
import test_rewards

from grpo_jax import datasets, prompts, rewards
from grpo_jax.datasets import two_scripts
from grpo_jax.rewards.host import records

EXAMPLES = list(two_scripts.examples(4000))
PIECES = [bytes([byte]) for byte in range(256)]
MIX = {
  'answer': {'weight': 1.0, 'only': 'kind=sum|quadratic'},
  'countdown': {'weight': 1.0, 'only': 'kind=countdown'},
  'right': {'weight': 0.0, 'file': 'any_of', 'parts': ('answer', 'countdown')},
}


def of(kind):
  return [x for x in EXAMPLES if x.columns['kind'] == kind]


def equations(text):
  return re.findall(r'(-?\d+)([+*-])(\d+)=(-?\d+)( wait| στοπ)?', text)


def test_all_kinds_come_alike_often():
  assert [len(of(kind)) for kind in two_scripts.KINDS] == [1000] * 4


@pytest.mark.parametrize('kind', two_scripts.KINDS)
def test_what_is_worked_out_is_true_but_for_slips_that_are_corrected(kind):
  for example in of(kind):
    found = equations(example.reasoning)
    assert found
    for a, sign, b, result, corrected in found:
      true = {'+': int(a) + int(b), '-': int(a) - int(b), '*': int(a) * int(b)}
      if kind == 'sum' and corrected:
        assert true[sign] != int(result)
      else:
        assert true[sign] == int(result)


def test_sums_and_roots_are_right():
  for example in of('sum'):
    assert sum(map(int, example.prompt.split('+'))) == int(example.answer)
  for example in of('quadratic'):
    terms = re.findall(r'([+-]?)(\d*)(x*)', example.prompt)
    found = {
      len(x): int(f'{sign}{digits or 1}')
      for sign, digits, x in terms
      if digits or x
    }
    r, s = map(int, example.answer.split())
    assert found == {2: 1, 1: -(r + s), 0: r * s} and r <= s


def test_orders_of_a_quadratic_stay_on_one_side():
  found = datasets.split(iter(EXAMPLES), 0.2, two_scripts.key)
  sides = [{two_scripts.key(x.prompt) for x in found[split]} for split in found]
  assert not set.intersection(*sides)
  assert two_scripts.key('6-5x+xx') == two_scripts.key('xx+6-5x')
  assert two_scripts.key('6-5x+xx') != two_scripts.key('5-6x+xx')


def test_scripts_are_mixed_as_often_as_asked():
  def scripts(example):
    words = re.findall(r'[a-zα-ω]+', example.reasoning)
    return {word in two_scripts.GREEK for word in words}

  found = [scripts(x) for x in two_scripts.examples(2000, mixed=0, greek=0.25)]
  assert all(len(x) == 1 for x in found)
  assert 0.2 < np.mean([x == {False} for x in found]) < 0.3
  found = [scripts(x) for x in two_scripts.examples(2000, mixed=1.0)]
  assert np.mean([len(x) == 2 for x in found]) > 0.5


@pytest.mark.parametrize(
  'text,score',
  [
    ('<answer>even</answer>', 1.0),
    ('<think>first 11+1=12 so</think><answer>even after 11</answer>', 2.0),
    ('<answer>even even after 11 before 13</answer>', 3.0),
    ('<answer>odd after 11</answer>', -1.0),  # A true and a false one.
    ('<answer>ζυγος after 11</answer>', 1.5),  # Mixed.
    ('<answer>ζυγος απο 11</answer>', 2.0),
    ('<answer></answer>', 0.0),
    ('even', -1.0),
  ],
)
def test_the_judge_counts_what_is_true(text, score):
  completion = records.Completion(
    text, prompt='tell 12', columns={'kind': 'tell'}
  )
  assert two_scripts.judge(completion) == score
  assert two_scripts.liked(completion) == float(score >= 2)


def test_the_judge_leaves_other_kinds_alone():
  completion = records.Completion('7', '3+4', columns={'kind': 'sum'})
  assert two_scripts.judge(completion) is None
  assert two_scripts.liked(completion) is None


def test_each_kind_is_scored_by_its_own_rule():
  chosen = [next(iter(of(kind))) for kind in two_scripts.KINDS]
  right = [prompts.completion(x, True).encode() for x in chosen]
  wrong = [b'<answer>1</answer>'] * 4
  rng = np.random.default_rng(0)
  rows = [[*text] for text in itertools.chain(*zip(right, wrong, strict=True))]
  rollout, _ = test_rewards.make_rollout(rng, rows, [b''] * 4, 2)
  references = rewards.references(chosen, None, MIX)
  width = max(len(x) for x in references['countdown'])
  arrays = {
    name: jnp.array(
      [[*x, *[-1] * (max(map(len, many)) - len(x))] for x in many]
    )
    for name, many in references.items()
  }
  assert width >= 4
  answers_PC = jnp.array(
    [list(x.answer.encode().ljust(24, b'\0')) for x in chosen], jnp.uint8
  )
  given = rollout.prompts.replace(references=arrays, answers_PC=answers_PC)
  scores = rewards.reward(rollout, given, rewards.token_text(PIECES, MIX), MIX)
  nan = np.nan
  expected = {
    'answer': [[1, 0], [nan, nan], [1, 0], [nan, nan]],
    'countdown': [[nan, nan], [1, 0], [nan, nan], [nan, nan]],
    'right': [[1, 0], [1, 0], [1, 0], [nan, nan]],
  }
  for name, score_PG in expected.items():
    np.testing.assert_array_equal(scores.parts[name], score_PG)
  np.testing.assert_array_equal(scores.total_PG, expected['right'])
