"""The countdown reward against Python's parser, and three other projects."""

import collections
from fractions import Fraction
import json
import pathlib
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_answer_reward
import test_expressions
import test_rewards
import texts

from grpo_jax import datasets, rewards
from grpo_jax.rewards import countdown

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden/countdown.json').read_text()
)['records']
PIECES = [bytes([byte]) for byte in range(256)]
PIECES += [b'<answer>', b'</answer>', b'</', b'>(', b') ', b'12', b'=', b'']
N = 5  # The target, and up to four numbers.


def compiled(size=128, **knobs):
  mix = {'countdown': {'size': size} | knobs}
  run = jax.jit(lambda *args: rewards.reward(*args, mix).parts['countdown'])
  table = rewards.token_text(PIECES, mix)

  def score(rows, problems):
    rollout, prompts = test_answer_reward.inputs(rows, [b''] * len(rows), 1)
    reference_PN = np.full((len(rows), N), -1, np.int32)
    for row_N, problem in zip(reference_PN, problems, strict=True):
      row_N[: len(problem)] = problem
    prompts = prompts.replace(
      references={'countdown': jnp.asarray(reference_PN)}
    )
    return np.asarray(run(rollout, prompts, table))[:, 0]

  return score


# Rows in which we say otherwise, (ours, theirs), and why.
POWERS = {
  (18, 19, 20, 36, 37, 38): (0, 1),  # 2**3 and 7//2 are no expressions.
}
SPELLING = {
  (67, 104): (1, 0),  # A line break beside the equation changes nothing,
  (76,): (1, 0),  # nor does a box around it,
  (90,): (1, 0),  # nor does a minus of Unicode.
}
# We take the last pair of tags, these two the first.
FIRST_PAIR = {(69, 83, 107): (1, 0), (70, 82): (0, 1)}
TINYZERO = {
  (67, 104): (1, 0),  # As above.
  (68, 71): (1, 0),  # It looks at the last line alone.
  (76, 90): (1, 0.1),  # As above.
  # Whatever stands in its tags is an equation to it: powers, factorials, text,
  # equals signs, a parenthesis that stays open, and divisions by zero.
  (21, 22, 23, 57, 58, 59, 60, 61, 62, 63, 64, 65, 73, 74, 75): (0, 0.1),
  (77, 78, 79, 80, 89, 92, 96, 101): (0, 0.1),
}


@pytest.mark.parametrize(
  'theirs, partial, differences',
  [
    (lambda row: row['tinyzero_assistant_prefixed'], 0.1, POWERS | TINYZERO),
    (
      lambda row: row['nano_aha']['equation_reward'],
      0.0,
      POWERS | SPELLING | FIRST_PAIR,
    ),
    (
      lambda row: row['grpo_zero']['answer_reward'],
      0.0,
      POWERS | SPELLING | FIRST_PAIR,
    ),
  ],
)
def test_equations_are_graded_as_elsewhere_but_for_named_rows(
  theirs, partial, differences
):
  rows = [list(row['solution_str'].encode()) for row in GOLDEN]
  problems = [[row['target'], *row['numbers']] for row in GOLDEN]
  score_B = compiled(last=True, partial=partial)(rows, problems)
  pairs = [
    (round(ours.item(), 6), theirs(row))
    for ours, row in zip(score_B, GOLDEN, strict=True)
  ]
  found = {b: pair for b, pair in enumerate(pairs) if pair[0] != pair[1]}
  assert found == {b: pair for rows, pair in differences.items() for b in rows}
  assert sum(ours == 1 for ours, _ in pairs) > 30


def oracle(
  data, problem, last, all_numbers, equals=False, partial=0.0, size=128
):
  found = test_answer_reward.locate(data, 'tags', b'answer', last)
  if found is None:
    return 0.0
  target, *numbers = problem
  text = found[0].strip()
  if len(text) > size:
    return np.nan
  if equals and b'=' in text:
    text, _, stated = text.partition(b'=')
    if not re.fullmatch(rb'\s*%d\s*' % target, stated):
      return 0.0
  try:
    value = test_expressions.python_value(text)
  except test_expressions.MisfitError:
    value = 'unknown'
  if value is None:
    return 0.0
  written = re.findall(r'[0-9]+\.?[0-9]*|\.[0-9]+', texts.symbols(text))
  used, allowed = (
    collections.Counter(map(Fraction, written)),
    collections.Counter(numbers),
  )
  if used == allowed if all_numbers else used <= allowed:
    if value == 'unknown':
      return np.nan
    return 1.0 if value == target else partial
  return partial


def equation(rng, numbers):
  """The numbers in a random order, between random operators."""
  numbers = [str(x) for x in rng.permutation(numbers)]
  if rng.random() < 0.2:
    numbers.pop()
  while len(numbers) > 1:
    at = rng.integers(len(numbers) - 1)
    operator = '+-*/+-*×'[rng.integers(8)]
    space = ' ' * (rng.random() < 0.2)
    text = numbers.pop(at) + space + operator + space + numbers[at]
    numbers[at] = f'({text})' if numbers[1:] or rng.random() < 0.1 else text
  return numbers[0] if numbers else ''


def problem_and_completion(rng):
  numbers = rng.integers(1, 20, rng.integers(2, N)).tolist()
  if rng.random() < 0.05:
    numbers = [99991, 99989, 99971]  # Their product does not fit.
  text = equation(rng, numbers)
  try:
    value = test_expressions.python_value(text.encode())
  except test_expressions.MisfitError:
    value = None
  target = int(value) if value and abs(value) < 1000 and value > 0 else 24
  target += int(rng.random() < 0.2)
  match rng.integers(12):
    case 0:
      text += f' = {target}'
    case 1:
      text += f'={rng.integers(30)}'
    case 2:
      text = '(' * 9 + text + ')' * 9
    case 3:
      text = ' ' * 9 + text + '\n' * 200
    case 4:
      text = text + '+0' * rng.integers(90)
    case 5:
      data = bytearray(text.encode() or b'1')
      data[rng.integers(len(data))] = rng.choice(
        list(b'0123456789+-*/() x=\xe2')
      )
      text = bytes(data)
  text = text if isinstance(text, bytes) else text.encode()
  data = b'so <answer>' + text + b'</answer>'
  match rng.integers(10):
    case 0:
      data = b'<answer>1</answer>' + data
    case 1:
      data = data + b'</answer>'
    case 2:
      data = data[: rng.integers(len(data))]
  return [target, *numbers], data


@pytest.mark.parametrize(
  'knobs',
  [
    {'last': False, 'all_numbers': True},
    {'last': True, 'all_numbers': True, 'partial': 0.1},
    {'last': True, 'all_numbers': False, 'equals': True, 'partial': 0.5},
    {'last': True, 'all_numbers': True, 'equals': True, 'size': 20},
  ],
)
def test_equations_are_worth_what_python_says(knobs):
  rng = np.random.default_rng(len(knobs))
  problems, datas = zip(
    *(problem_and_completion(rng) for _ in range(2500)), strict=True
  )
  rows = [test_rewards.encode(rng, PIECES, data) for data in datas]
  score_B = compiled(**knobs)(rows, problems)
  expected_B = [
    oracle(*pair, **knobs) for pair in zip(datas, problems, strict=True)
  ]
  np.testing.assert_allclose(score_B, expected_B, atol=1e-6)
  assert 0.1 < np.mean(np.array(expected_B) == 1) < 0.8
  assert 0.002 < np.isnan(expected_B).mean() < 0.5


ANY = {'last': True, 'all_numbers': True, 'partial': 0.1}
SCORE = compiled(**ANY)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_stands_in_the_tags_is_worth_what_python_says(data):
  piece = st.sampled_from(
    [b'3', b'4', b'+', b'*', b'-', b'/', b'(', b')', b' ']
  )
  texts_ = data.draw(
    st.lists(
      st.lists(piece, max_size=9).map(b''.join), min_size=40, max_size=40
    )
  )
  target = data.draw(st.integers(0, 13))
  datas = [b'<answer>' + text.ljust(9) + b'</answer>' for text in texts_]
  rows = [list(data) for data in datas]
  score_B = SCORE(rows, [[target, 3, 4]] * 40)
  expected_B = [oracle(data, [target, 3, 4], **ANY) for data in datas]
  np.testing.assert_allclose(score_B, expected_B, atol=1e-6)


def test_the_reference_is_the_target_and_the_numbers():
  example = datasets.Example('?', '3*4', '', {'target': 12, 'numbers': [4, 3]})
  assert countdown.reference(example, None, last=True) == [12, 4, 3]


def test_data_without_the_columns_is_refused():
  example = datasets.Example('?', '3*4', '', {'numbers': [4, 3]})
  message = "countdown: the data has no column 'target'; it has numbers"
  with pytest.raises(ValueError, match=message):
    countdown.reference(example, None)


def test_hostile_answers_are_scored_or_unscored_and_never_wait():
  hostile = [b'9**9**9', b'(' * 100 + b')' * 100, b'9' * 100, b'1/0', b'-' * 99]
  hostile += [b'3*4' + b'*1' * 40, b'((((((((((3*4))))))))))', b'3*4=12']
  rows = [list(b'<answer>' + text + b'</answer>') for text in hostile]
  score_B = SCORE(rows, [[12, 3, 4]] * len(rows))
  expected = [0, np.nan, 0.1, 0, 0, 0.1, np.nan, 0]
  np.testing.assert_allclose(score_B, expected, atol=1e-6)
