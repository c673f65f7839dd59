"""The maths reward against the scores that TRL gave."""

import json
import math
import pathlib

import pytest

from grpo_jax.rewards import host

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
