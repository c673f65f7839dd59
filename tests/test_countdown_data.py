"""Countdown problems can be solved; quadratic equations have their roots."""

import ast
from collections import Counter
from fractions import Fraction
import math
import operator
import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from grpo_jax.datasets import countdown, quadratics

_OPERATORS = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
}


def evaluate(text):
  """The value of an expression as a fraction, and the numbers in it."""
  numbers = []

  def walk(node):
    if isinstance(node, ast.BinOp):
      return _OPERATORS[type(node.op)](walk(node.left), walk(node.right))
    assert type(node.value) is int
    numbers.append(node.value)
    return Fraction(node.value)

  return walk(ast.parse(text, mode='eval').body), numbers


@given(
  st.integers(2, 5).flatmap(
    lambda low: st.fixed_dictionaries(
      {
        'numbers_min': st.just(low),
        'numbers_max': st.integers(low, 6),
        'largest': st.integers(4, 99),
        'target_max': st.integers(20, 999),
        'operations': st.sampled_from(['+-*/', '+-', '-+*']),
        'subset': st.booleans(),
        'tries': st.integers(0, 3),
        'style': st.sampled_from(['words', 'terse']),
        'seed': st.integers(0, 999),
      }
    )
  )
)
@settings(max_examples=100, deadline=None)
def test_every_countdown_problem_has_the_solution_that_it_tells(knobs):
  for example in countdown.examples(problems=10, **knobs):
    numbers, target = example.columns['numbers'], example.columns['target']
    value, used = evaluate(example.answer)
    assert value == target and 1 <= target <= knobs['target_max']
    assert knobs['numbers_min'] <= len(numbers) <= knobs['numbers_max']
    assert all(1 <= number <= knobs['largest'] for number in numbers)
    spare = Counter(numbers)
    spare.subtract(used)
    assert min(spare.values()) >= 0 and len(used) >= 2
    assert knobs['subset'] or not any(spare.values())
    operations = set(re.findall(r'[-+*/]', example.answer))
    assert operations <= set(knobs['operations'])
    in_prompt = [int(n) for n in re.findall(r'\d+', example.prompt)]
    assert in_prompt == [*numbers, target]


def test_the_reasoning_of_countdown_misses_and_then_arrives():
  misses = Counter()
  for example in countdown.examples(problems=2000, tries=2, subset=True):
    numbers, target = example.columns['numbers'], example.columns['target']
    *wrong, right = example.reasoning.split(';')
    misses[len(wrong)] += 1
    assert all(line.endswith(' no') for line in wrong)
    for line in [*wrong, right]:
      left = Counter(numbers)  # What there still is to work with.
      for step in line.removesuffix(' no').split():
        expression, result = step.split('=')
        value, used = evaluate(expression)
        assert value == int(result)
        left.subtract(used)
        assert min(left.values()) >= 0, example
        left[int(result)] += 1
      assert (value == target) == (line is right)
  assert set(misses) == {0, 1, 2} and min(misses.values()) > 300


def test_an_expression_has_no_needless_parentheses():
  count = 0
  for example in countdown.examples(problems=1000, numbers_max=5):
    for match in re.finditer(r'\(', example.answer):
      depth, end = 1, match.end()
      while depth:
        depth += {'(': 1, ')': -1}.get(example.answer[end], 0)
        end += 1
      inner = example.answer[match.end() : end - 1]
      bare = example.answer[: match.start()] + inner + example.answer[end:]
      assert ast.dump(ast.parse(bare)) != ast.dump(ast.parse(example.answer))
      count += 1
  assert count > 200


def test_the_words_of_countdown_say_what_is_allowed():
  [example] = countdown.examples(problems=1, seed=3, operations='+-')
  numbers = ', '.join(map(str, example.columns['numbers']))
  assert example.prompt == (
    f'Use each of the numbers {numbers} once, with + - and parentheses, to '
    f'make {example.columns["target"]}.'
  )
  [example] = countdown.examples(problems=1, subset=True)
  assert ' at most once, with + - * / and ' in example.prompt
  [example] = countdown.examples(problems=1, style='terse')
  assert re.fullmatch(r'(\d+ ){3,4}-> \d+', example.prompt)


@pytest.mark.parametrize('module', [countdown, quadratics])
def test_the_same_knobs_give_the_same_problems(module):
  first = list(module.examples(problems=50))
  assert first == list(module.examples(problems=50))
  assert first != list(module.examples(problems=50, seed=1))


@pytest.mark.parametrize('module', [countdown, quadratics])
def test_sixty_thousand_problems_take_seconds(module):
  start = time.process_time()
  assert sum(1 for _ in module.examples(problems=60_000)) == 60_000
  assert time.process_time() - start < 10  # 1 to 2 s on a quiet CPU.


@pytest.mark.parametrize(
  'module,knobs,message',
  [
    (countdown, {'problems': 0}, r'^problems=0 must be at least 1'),
    (countdown, {'largest': 0}, r'^largest=0 must be at least 1'),
    (countdown, {'numbers_min': 1}, r'^numbers_min=1 must be from 2 to'),
    (countdown, {'numbers_min': 9}, r'^numbers_min=9 must .* numbers_max=4'),
    (countdown, {'operations': '+^'}, r"^operations='\+\^' must be some of"),
    (countdown, {'style': 'long'}, r"^style='long' is not one of words, terse"),
    (countdown, {'tries': -1}, r'^tries=-1 must not be below 0'),
    (
      countdown,
      {'operations': '*', 'largest': 99, 'target_max': 1, 'numbers_min': 4},
      r"^operations='\*', largest=99, target_max=1: no solution in 10000",
    ),
    (quadratics, {'roots': 'complex'}, r"^roots='complex': each must be of in"),
    (quadratics, {'problems': 0}, r'^problems=0 must be at least 1'),
    (quadratics, {'leading': 0}, r'^leading=0 must be at least 1'),
    (
      quadratics,
      {'leading': 1, 'roots': 'rational'},
      r'^leading=1 must be at least 2',
    ),
  ],
)
def test_knobs_that_cannot_be_are_refused(module, knobs, message):
  with pytest.raises(ValueError, match=message):
    list(module.examples(**knobs))


def root(text):
  """(p + s sqrt(r)) / q as p/q, s/q and r, by an own parser of the form."""
  inside = re.search(r'sqrt\((\d+)\)', text)
  if not inside:
    return Fraction(text), Fraction(0), 1
  top, slash, q = text.rpartition('/')
  top = (top if slash else text).removeprefix('(').removesuffix('/')
  top = top.replace(inside[0], 'r').removesuffix(')')
  p, sign, s = re.fullmatch(r'(?:(-?\d+) )?([-+]?) ?(\d*)r', top).groups()
  q = int(q) if slash else 1
  s = Fraction(int(s or 1), q) * (-1 if sign == '-' else 1)
  return Fraction(int(p or 0), q), s, int(inside[1])


KINDS = ['integer', 'rational', 'irrational']


@given(
  kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
  leading=st.integers(2, 12),
  largest=st.integers(2, 30),
  seed=st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_every_root_solves_its_equation_exactly(kinds, leading, largest, seed):
  for example in quadratics.examples(
    10, '+'.join(kinds), leading, largest, seed
  ):
    a, b, c = example.columns['coefficients']
    roots = example.columns['roots']
    assert example.answer == ' or '.join(f'x = {text}' for text in roots)
    assert 1 <= a <= leading
    values = []
    for text in roots:
      p, s, r = root(text)  # x = p + s sqrt(r), so x^2 has two parts as well.
      assert a * (p * p + s * s * r) + b * p + c == 0
      assert a * 2 * p * s + b * s == 0
      values.append(float(p) + float(s) * math.sqrt(r))
      assert s == 0 or all(r % (n * n) for n in range(2, r))
    assert values == sorted(set(values))
    assert len(values) == (1 if b * b == 4 * a * c else 2)


def test_kinds_of_roots_are_what_they_are_called():
  kinds = {
    kind: [e.columns['roots'] for e in quadratics.examples(500, kind)]
    for kind in KINDS
  }
  for roots in kinds['integer']:
    assert all(re.fullmatch(r'-?\d+', text) for text in roots)
  for roots in kinds['rational']:
    assert any(re.fullmatch(r'-?\d+/\d+', text) for text in roots)
  for roots in kinds['irrational']:
    assert len(roots) == 2 and all('sqrt' in text for text in roots)


def test_an_equation_is_written_as_people_write_it():
  seen = set()
  for example in quadratics.examples(5000, 'integer+irrational', 2, 3):
    a, b, c = example.columns['coefficients']
    terms = [(a, 'x^2'), (b, 'x'), (c, '')]
    text = ''
    for n, power in terms:
      if n:
        size = str(abs(n)) if abs(n) != 1 or not power else ''
        sign = (' - ' if n < 0 else ' + ') if text else ''
        text += f'{sign}{size}{power}'
    assert example.prompt == f'Solve {text} = 0.'
    seen.add(example.prompt)
  assert 'Solve x^2 = 0.' in seen and 'Solve 2x^2 - x - 1 = 0.' not in seen


@pytest.mark.parametrize(
  'coefficients,answer,end',
  [
    (
      (1, -5, 6),
      'x = 2 or x = 3',
      'Its square root is sqrt(1) = 1. By the formula, x = (-b +- sqrt(1)) / '
      '(2a), so x = (5 - 1) / 2 = 2 or x = (5 + 1) / 2 = 3.',
    ),
    ((2, 4, 2), 'x = -1', 'so x = (-4 +- 0) / 4 = -1.'),
    (
      (1, -2, -1),
      'x = 1 - sqrt(2) or x = 1 + sqrt(2)',
      'sqrt(8) = 2sqrt(2). By the formula, x = (-b +- sqrt(8)) / (2a), so x = '
      '(2 - 2sqrt(2)) / 2 = 1 - sqrt(2) or x = (2 + 2sqrt(2)) / 2 = 1 + '
      'sqrt(2).',
    ),
    ((9, 0, -7), 'x = -sqrt(7)/3 or x = sqrt(7)/3', '/ 18 = sqrt(7)/3.'),
    ((2, 1, 0), 'x = -1/2 or x = 0', 'x = (-1 + 1) / 4 = 0.'),
  ],
)
def test_the_explanation_goes_by_discriminant_root_and_plus_or_minus(
  coefficients, answer, end
):
  a, b, c = coefficients
  example = quadratics.example(a, b, c)
  assert example.answer == answer
  square = b * b - 4 * a * c
  assert f'The discriminant is b^2 - 4ac = {b * b} ' in example.reasoning
  assert f' = {square}. Its square root is sqrt({square})' in example.reasoning
  assert example.reasoning.endswith(end)
  assert example.columns['operations'] == ['sqrt', 'plus_minus']
