"""experiments/evaluate.py on problems as they are published, of a policy whose
every answer is known."""

import json
import runpy
import sys

import command
import numpy as np
import one_answer
import pytest

from grpo_jax import comparison, evaluate
from grpo_jax.rewards import host
from grpo_jax.rewards.host import maths

# The first of each are answered by 25, and the others are not.
SOLVED = 'Five fives are $5 \\cdot 5 = \\boxed{%s}$.'
MATH = [  # HuggingFaceH4/MATH-500, test.jsonl.
  {
    'problem': f'Problem {i} of $x$.',
    'solution': SOLVED % answer,
    'answer': answer,
    'subject': 'Algebra',
    'level': 1 + i,
    'unique_id': f'test/algebra/{i}.json',
  }
  for i, answer in enumerate(
    ('25', '\\frac{50}{2}', '5^2', '25\\sqrt{2}', '\\left( 25, 1 \\right)')
  )
]
AIME_2024 = [  # HuggingFaceH4/aime_2024.
  {
    'id': 60 + i,
    'problem': f'Find the remainder {i}.',
    'solution': SOLVED % answer,
    'answer': answer,
    'url': 'https://artofproblemsolving.com/wiki',
    'year': '2024',
  }
  for i, answer in enumerate(('025', '204'))
]
AIME_2024_OTHER = [  # Maxwell-Jia/AIME_2024, whose answers are numbers.
  {
    'ID': f'2024-I-{i}',
    'Problem': f'Find the remainder {i}.',
    'Solution': SOLVED % answer,
    'Answer': answer,
  }
  for i, answer in enumerate((25, 204))
]
AIME_2025 = [  # opencompass/AIME2025, aime2025-I.jsonl.
  {'question': f'Find the sum {i}.', 'answer': answer}
  for i, answer in enumerate(('25', '70'))
]
GSM8K = [  # openai/grade-school-math, test.jsonl.
  {
    'question': f'Janet has {i} ducks. How many eggs?',
    'answer': f'She has 5*5=<<5*5=25>>25.\nThat is it.\n#### {answer}',
  }
  for i, answer in enumerate(('25', '1,025'))
]


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
  return one_answer.write(tmp_path_factory.mktemp('policy') / 'hub')


@pytest.fixture(scope='module')
def by_r1(policy, tmp_path_factory):
  """What the command finds on MATH-500, and what it prints."""
  folder = tmp_path_factory.mktemp('by_r1')
  done = command.run(
    'experiments/evaluate.py',
    *('--model', str(policy), '--protocol', 'r1', '--template', 'boxed'),
    *('--data', f'math:path={write(folder / "test.jsonl", MATH)}'),
    *('--max-tokens', '16', '--json', str(folder / 'out.json')),
    *('--set', "reward={'maths': 1.0}", 'eval.right=maths'),
  )
  assert done.returncode == 0, done.stderr
  report = json.loads((folder / 'out.json').read_text())
  return report['policies'][str(policy)], done.stdout


def test_the_protocol_of_r1_is_what_its_paper_says(by_r1):
  how = by_r1[0]['how']
  assert (how['temperature'], how['top_p'], how['samples']) == (0.6, 0.95, 64)
  assert 'pass@64' in by_r1[1]
  assert by_r1[0]['scores'].keys() >= {'pass@1', 'pass@64', 'maj@64'}


def test_math_500_is_scored_by_what_an_answer_means(by_r1):
  scores = by_r1[0]['scores']
  assert by_r1[0]['problems'] == 5 and by_r1[0]['how']['right'] == 'maths'
  for name in ('pass@1', 'pass@64', 'maj@64'):
    assert scores[name]['mean'] == pytest.approx(3 / 5)
  assert scores['unscored']['mean'] == scores['truncated']['mean'] == 0
  assert scores['length']['mean'] == len(one_answer.SAYS) + 1


def test_what_is_given_comes_before_the_protocol(monkeypatch):
  asked = {}

  def evaluate_path(path, values, data):
    asked.update(values)
    raise ValueError(path + data)

  monkeypatch.setattr(comparison, 'evaluate_path', evaluate_path)
  line = 'x --model m --protocol r1 --samples 2 --processes 1'
  monkeypatch.setattr(sys, 'argv', line.split())
  main = runpy.run_path('experiments/evaluate.py')['main']
  with pytest.raises(ValueError, match='^m$'):
    main()
  expected = {'eval.temperature': 0.6, 'eval.top_p': 0.95, 'eval.samples': 2}
  assert asked == expected


@pytest.mark.parametrize(
  'rows, name, data',
  [
    (MATH, 'test.jsonl', 'math:path={}'),
    (MATH, 'test.jsonl', 'files:path={},prompt=problem'),
    (AIME_2024, 'aime.jsonl', 'files:path={},prompt=problem'),
    (AIME_2024_OTHER, 'a.jsonl', 'files:path={},prompt=Problem,answer=Answer'),
    (AIME_2025, 'aime2025-I.jsonl', 'files:path={},prompt=question'),
    (GSM8K, 'test.jsonl', 'gsm8k:path={}'),
  ],
)
def test_published_files_are_read_and_scored(rows, name, data, tmp_path):
  path = write(tmp_path / name, rows)
  _, _, dataset = comparison.problems(data.format(path))
  examples = dataset.all('heldout')
  columns = ('problem', 'Problem', 'question')
  questions = [row[x] for row in rows for x in columns if x in row]
  assert [example.prompt for example in examples] == questions
  scores = [
    maths.maths(host.Completion(one_answer.SAYS, answer=example.answer))
    for example in examples
  ]
  assert scores == ([1, 1, 1, 0, 0] if rows is MATH else [1, 0])


@pytest.mark.slow
def test_of_gsm8k_the_test_problems_are_asked_and_scored(policy, tmp_path):
  write(tmp_path / 'test.jsonl', GSM8K)
  other = {'question': 'Unlike these?', 'answer': '#### 25'}
  write(tmp_path / 'train.jsonl', [other])
  scorer = {'weight': 1.0, 'where': 'box', 'compare': 'number'}
  values = {'eval.samples': 2, 'rollout.max_tokens': 16}
  values['reward'] = {'answer': scorer}
  found = comparison.evaluate_path(
    str(policy), values, f'gsm8k:path={tmp_path}'
  )
  right_N = evaluate.pass_at_k(found.result.correct_NG, 1)
  assert dict(zip(found.problems, right_N, strict=True)) == {
    GSM8K[0]['question']: 1,
    GSM8K[1]['question']: 0,
  }
  assert set(found.result.texts) == {one_answer.SAYS}


def test_completions_that_cannot_be_scored_are_told_of():
  scores_NG = np.array([[1, np.nan], [0, 1]])
  flat = evaluate.Evaluation(
    *[scores_NG] * 5, texts=[], answers_NG=[['25', None], ['7', '25']]
  )
  found = comparison.compare({'m': comparison.Evaluated(flat, ['a', 'b'], {})})
  scores = found['policies']['m']['scores']
  assert scores['unscored']['mean'] == 0.25
  assert scores['pass@1']['mean'] == 0.5
