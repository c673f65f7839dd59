"""Numbers and texts of answers, against Python's re and fractions."""

from fractions import Fraction
import random
import re
import time

import hypothesis
from hypothesis import strategies
import jax
import numpy as np
import pytest
import texts

from grpo_jax.text import symbols, values

C = 48
LIMIT = 2**30
NONE = 'no number'
MISFIT = 'does not fit'


def number(batch):
  return texts.run(values.number, batch, C=C)


def plain(batch):
  rows = texts.run(values.plain, batch, C=C)
  return [bytes(row).rstrip(b'\0') for row in rows]


def python_decimal(text):
  """Fraction, MISFIT, or None if it is no decimal."""
  if not re.fullmatch(r'[0-9][0-9,]*(\.[0-9]*)?|\.[0-9]+', text):
    return None
  whole, _, places = text.partition('.')
  first, *rest = whole.split(',')
  if rest and not (0 < len(first) < 4 and all(len(x) == 3 for x in rest)):
    return None
  whole, places = ''.join([first, *rest]), places.rstrip('0')
  digits = int(whole + places or '0')
  if digits >= LIMIT or len(places) > 9:
    return MISFIT
  return Fraction(digits, 10 ** len(places))


def python_whole(text):
  return None if '.' in text else python_decimal(text)


def python_number(text):
  """Fraction, MISFIT or NONE."""
  text = texts.symbols(text)
  found = re.fullmatch(r'([+-]?) *\$? *(.*?) *%?', text)
  if re.match(r'\$ *[+-]', text):
    found = re.fullmatch(r'\$ *([+-]) *(.*?) *%?', text)
  if not found:
    return NONE
  sign, body = found.groups()
  sign = -1 if sign == '-' else 1
  whole, first, second = '0', body, '1'
  read_whole = read_parts = python_decimal
  if found := re.fullmatch(r'(.*?) *f([0-9])([0-9])', body):
    whole, first, second = found.groups()
    whole, read_whole = whole or '0', python_whole
  elif found := re.fullmatch(r'f *\{(.*?)\} *\{(.*?)\}', body):
    first, second = found.groups()
    for part in (first, second):
      sign *= -1 if part.strip().startswith('-') else 1
    first, second = (
      re.sub('^[+-]', '', part.strip()).strip() for part in (first, second)
    )
  elif found := re.fullmatch(r'(.*?) *f *\{(.*?)\} *\{(.*?)\}', body):
    whole, first, second = (part.strip() for part in found.groups())
    read_whole = read_parts = python_whole
  elif found := re.fullmatch(r'([0-9,]+) +([0-9,]+) */ *([0-9,]+)', body):
    whole, first, second = found.groups()
  elif found := re.fullmatch('(.*?) */ *(.*?)', body):
    first, second = found.groups()
  parts = [read_whole(whole), read_parts(first), read_parts(second)]
  if None in parts or parts[2] == 0:
    return NONE
  if MISFIT in parts:
    return MISFIT
  part = parts[1] / parts[2]
  seen = [part, parts[0] * part.denominator, parts[0] + part]
  if any(max(x.numerator, x.denominator) >= LIMIT for x in seen):
    return MISFIT
  return sign * (parts[0] + part)


def python_plain(text):
  """The text in normal form, as bytes."""
  found = re.fullmatch(
    r'([+-]?) *\$? *([0-9.,]+) *%?|\$ *([+-]) *([0-9.,]+) *%?',
    texts.symbols(text),
  )
  if found and python_decimal(digits := found[2] or found[4]):
    whole, _, places = digits.replace(',', '').partition('.')
    places = places.rstrip('0')
    digits = whole.lstrip('0') + ('.' + places if places else '')
    minus = '-' if '-' in (found[1], found[3]) and digits else ''
    return (minus + digits or '0').encode()
  if found and python_decimal(digits) == 0:
    return b'0'
  return re.sub(rb'[ \t-\r]+', b' ', texts.unwrapped(text)).lower()


def write_number(rng):
  """A number in one of the ways that are read, mostly."""

  def decimal():
    digits = rng.randrange(10 ** rng.choice([1, 2, 3, 5, 7, 10, 14]))
    text = f'{digits:,}' if rng.random() < 0.3 else str(digits)
    text = rng.choice(['', '', '', '0', '000']) + text
    if rng.random() < 0.4:
      text += '.' + rng.choice(['', '0', '50', '250', '000001', '3', '10203'])
    return rng.choice([text, text, text, text.replace(',', '{,}'), '.5'])

  def small():
    return str(rng.randrange(rng.choice([10, 200])))

  latex = rng.choice(['\\frac', '\\dfrac', '\\tfrac'])
  sign = rng.choice(['', '', '', '-', '+', '−', '- '])
  inner = rng.choice(['', '', '', '-'])
  forms = [decimal()] * 4
  forms += [f'{decimal()}/{decimal()}', f'{small()} / {small()}']
  forms += [f'{latex}{{{inner}{small()}}}{{{small()}}}'] * 2
  forms += [
    f'{latex}{{{decimal()}}}{{{decimal()}}}',
    latex + '12',
    latex + '3 4',
  ]
  forms += [f'{small()} {small()}/{small()}', small() + latex + '34']
  forms += [f'{small()} {latex}{{{small()}}}{{{small()}}}']
  text = sign + rng.choice(['', '', '', '$', '\\$']) + rng.choice(forms)
  return text + rng.choice(['', '', '', '', '%', '\\%', ' km', 'e3'])


def check_numbers(batch, actual):
  for n, text in enumerate(batch):
    expected = python_number(text[:C])
    numerator, denominator, valid, exact = (
      x[n].item() for x in jax.tree.leaves(actual)
    )
    assert valid == (expected is not NONE), text
    assert exact == (expected not in (NONE, MISFIT)), (text, expected)
    if exact:
      assert Fraction(numerator, denominator) == expected, text
      assert denominator == expected.denominator, text
    else:
      assert (numerator, denominator) == (0, 1), text


def check_plain(batch):
  for text, actual in zip(batch, plain(batch), strict=True):
    assert actual == python_plain(text[:C]).rstrip(b'\0'), text


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_numbers_are_what_python_reads(seed):
  batch = texts.corpus(seed, 4096, write_number)
  actual = number(batch)
  check_numbers(batch, actual)
  assert 0.3 < np.mean(actual.exact_B) < 0.7
  assert np.mean(actual.valid_B & ~actual.exact_B) > 0.02
  assert np.mean(actual.denominator_B > 1) > 0.1


@pytest.mark.parametrize('seed', [3, 4, 5])
def test_plain_texts_are_what_python_writes(seed):
  words = ['Paris', 'the  CAT', 'x = 3', 'É', 'a\tb\n c', 'None.', '10:30']
  words += ['0', '-0.00', '0' * 30, '.', '..', '1' * 30 + '.50', '-' + '9' * 40]

  def write(rng):
    return rng.choice([write_number(rng), *rng.choices(words, k=2)])

  batch = texts.corpus(seed, 4096, write)
  check_plain(batch)


PIECES = [*texts.MARKS, *'0123456789', *'.,+-/ $%{}f\0A', '\\boxed{', '\\text{']


@hypothesis.given(
  strategies.lists(
    strategies.lists(strategies.sampled_from(PIECES)).map(''.join)
    | strategies.text(),
    min_size=32,
    max_size=32,
  )
)
@hypothesis.settings(
  max_examples=100, deadline=None, derandomize=True, database=None
)
def test_whatever_is_written_is_read_as_python_does(batch):
  batch = [text.encode() for text in batch]
  check_numbers(batch, number(batch))
  check_plain(batch)


@pytest.mark.parametrize(
  'text, expected',
  [
    ('1,234.50', '2469/2'),
    ('  -7\n', '-7'),
    ('−7', '-7'),
    ('$5', '5'),
    ('-$5', '-5'),
    (r'\$1{,}000', '1000'),
    ('5.', '5'),
    ('.5', '1/2'),
    ('007', '7'),
    ('50%', '50'),
    (r'50\%', '50'),
    (r'\boxed{42}', '42'),
    (r'$\boxed {\text{42}}$.', '42'),
    ('3/4', '3/4'),
    ('6/8', '3/4'),
    ('0.5/0.25', '2'),
    (r'-\frac{1}{2}', '-1/2'),
    (r'\dfrac{-3}{ 4 }', '-3/4'),
    (r'\tfrac34', '3/4'),
    ('1 1/2', '3/2'),
    (r'-2\frac{1}{2}', '-5/2'),
    ('0.333333333', '333333333/1000000000'),
    ('1073741823', '1073741823'),
    ('1073741824', MISFIT),
    ('0.3333333333', MISFIT),
    ('1,23', NONE),
    ('1,2345', NONE),
    (',123', NONE),
    ('1e3', NONE),
    ('3/0', NONE),
    ('1/2/3', NONE),
    ('--3', NONE),
    ('1 2', NONE),
    ('5 km', NONE),
    ('1.2.3', NONE),
    ('f{1}{2}', NONE),
    ('1\0002', NONE),
    (r'\frac{1}{2', NONE),
    (r'\boxed{1} or \boxed{2}', NONE),
    ('.', NONE),
    ('', NONE),
  ],
)
def test_forms_of_numbers(text, expected):
  actual = number([text.encode()])
  assert actual.valid_B == (expected != NONE)
  assert actual.exact_B == (expected not in (NONE, MISFIT))
  if actual.exact_B:
    pair = (actual.numerator_B[0].item(), actual.denominator_B[0].item())
    assert Fraction(*pair) == Fraction(expected)


@pytest.mark.parametrize(
  'x, y, expected',
  [
    ('Paris.', 'paris', True),
    (r'\text{The  cat}', 'the cat', True),
    ('.50', r'\frac{2}{4}', True),
    ('50%', '0.5', False),
    ('12345678901234567890.0', '12,345,678,901,234,567,890', True),
    ('12345678901234567890', '12345678901234567891', False),
    ('-0.00000000001', '-.000000000010', True),
    ('3000000000/7', '3000000000/7', True),
    ('6000000000/14', '3000000000/7', False),
    ('0', '-0.0', True),
    ('0', '', False),
    ('x', 'y', False),
    ('7', 'seven', False),
  ],
)
def test_answers_that_are_equal(x, y, expected):
  given = [[x.encode()], [y.encode()]]
  for one, other in (given, given[::-1]):
    assert texts.run(values.equal, one, other, C=C) == expected


def test_what_is_not_exact_is_the_same_as_nothing():
  rows = ['3', '3.0', '9999999999', 'three']
  value = number([x.encode() for x in rows])
  others = [np.roll(np.arange(4), n) for n in range(4)]
  for order in others:
    other = jax.tree.map(lambda x_B, order=order: x_B[order], value)
    expected = [n < 2 and order[n] < 2 for n in range(4)]
    np.testing.assert_array_equal(values.same(value, other), expected)


def test_words_and_layers_are_the_ones_that_the_test_knows():
  assert symbols.WORDS == texts.MARKS
  assert len(symbols.WRAPS) == 9


def test_values_do_not_depend_on_jit():
  batch = [b'1,234.50', b'\\boxed{\\frac34}', b' The  Cat.', b'\xe2\x88']
  value = values.number(texts.padded(batch, C))
  jax.tree.map(np.testing.assert_array_equal, value, number(batch))


@pytest.mark.parametrize('function', [values.number, values.plain])
def test_values_have_the_same_dtypes_with_x64(function):
  batch_BC = texts.padded([b'1'], C)
  expected = jax.eval_shape(function, batch_BC)
  with jax.enable_x64(True):
    assert jax.eval_shape(function, batch_BC) == expected


def test_texts_of_different_lengths_can_be_equal():
  x_BC = texts.padded([b'2.0', b'2'], 3)
  y_BC = texts.padded([b'\\frac{4}{2}', b'20'], 11)
  np.testing.assert_array_equal(
    jax.jit(values.equal)(x_BC, y_BC), [True, False]
  )


def test_nothing_here_calls_back_to_the_host():
  batch_BC = texts.padded([b'1'], C)
  jaxpr = jax.make_jaxpr(values.equal)(batch_BC, batch_BC)
  assert 'callback' not in str(jaxpr)
  assert not jaxpr.effects


def test_4096_numbers_take_less_than_a_third_of_a_second():
  rng = random.Random(7)
  batch = [write_number(rng).encode() for _ in range(4096)]
  seconds = []
  for _ in range(4):
    began = time.perf_counter()
    number(batch)
    seconds.append(time.perf_counter() - began)
  assert min(seconds) < 0.3
