"""The maths reward against the scores that TRL gave."""

import json
import math
import pathlib

import pytest

from grpo_jax.rewards import host
from grpo_jax.rewards.host import maths

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'maths.json'


@pytest.fixture(scope='module')
def rows():
  return json.loads(GOLDEN.read_text())['rows']


@pytest.fixture(scope='module')
def scores(rows):
  """All columns in one pool: math-verify takes its time to import."""
  specs = [
    host.Spec(name, 'maths', seconds=30, knobs=knobs)
    for name, knobs in {
      'accuracy': {},
      'reasoning_accuracy': {'after': ['</think>']},
      'reasoning_accuracy_delims': {'after': ['</answer>', '</think>']},
      'plain': {'plain': True},
    }.items()
  ]
  given = [host.Completion(r['completion'], answer=r['solution']) for r in rows]
  with host.Pool(specs, 1) as pool:
    outcome = pool.submit(given).result(120)
  assert outcome.failures == []
  return outcome.scores


@pytest.mark.parametrize(
  'column', ['accuracy', 'reasoning_accuracy', 'reasoning_accuracy_delims']
)
def test_scores_are_those_of_trl(column, rows, scores):
  assert len(rows) == 226
  found = [None if math.isnan(score) else score for score in scores[column]]
  assert found == [row[column] for row in rows]


def test_plain_answers_count_where_they_are_allowed(rows, scores):
  pairs = list(zip(rows, scores['plain'], scores['accuracy'], strict=True))
  bare = [
    (plain, accuracy)
    for row, plain, accuracy in pairs
    if row['solution'] == '$42$' and row['completion'].rstrip().endswith(' 42')
  ]
  assert bare and all(pair == (1, 0) for pair in bare)


# References as MATH-500, AIME and GSM8K have them; a completion that is right,
# and one that is as right as what would be left of the reference in plain text.
BARE = [
  (r'\left( 3, \frac{\pi}{2} \right)', r'(3, \frac{\pi}{2})', '3'),
  ('p - q', '-q + p', 'q'),
  (r'3\sqrt{13}', r'3\sqrt{13}', '3'),
  ('6 - 5i', '6-5i', '5'),
  ('1,-2', '-2, 1', '1'),
  (r'10,\!080', '10080', '10'),
  (r'\frac43', r'\frac{4}{3}', '43'),
  (r'\$18.90', '18.90', '18'),
  (r'[-2,7]', '[-2, 7]', '7'),
  (r'\begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}', None, '2'),
  (r'\text{(C)}', 'C', 'D'),
  ('y = 2x + 3', 'y=3+2x', '3'),
  ('x^3+3x-6', 'x^3 - 6 + 3x', '6'),
  (r'90^\circ', '90', '9'),
  ('033', '33', '3'),
  ('1,000', '1000', '1'),
  ('-7', '-7', '7'),
]


@pytest.mark.parametrize('reference, right, wrong', BARE)
@pytest.mark.parametrize('marks', ['{}', '${}$', r'\({}\)', r'\boxed{{{}}}'])
def test_a_reference_needs_no_dollar_signs(reference, right, wrong, marks):
  def score(answer):
    given = host.Completion(
      rf'So \boxed{{{answer}}}.', answer=marks.format(reference)
    )
    return maths.maths(given)

  assert score(reference if right is None else right) == 1
  assert score(wrong) == 0


def test_prose_is_no_reference():
  given = host.Completion(r'\boxed{7}', answer='there is none')
  assert maths.maths(given) is None
