"""The answer reward in all its forms against Python's re, and against verl."""

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
import test_rewards

from grpo_jax import rewards

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden/answer_reward.json').read_text()
)['rows']
BYTES = [bytes([byte]) for byte in range(256)]
PIECES = [*BYTES, b'<answer>', b'</answer>']
SIZE = 12  # Bytes of an answer that are looked at.


def inputs(rows, references, C):
  """Rollout and prompts of completions in token ids, G = 1."""
  rng = np.random.default_rng(0)
  rollout, _ = test_rewards.make_rollout(rng, rows, [b''] * len(rows), 1)
  answers_PC = [list(answer.ljust(C, b'\0')) for answer in references]
  prompts = rollout.prompts.replace(answers_PC=jnp.array(answers_PC, 'uint8'))
  return rollout, prompts


def score(rows, references, vocabulary, C, **knobs):
  mix = {'answer': knobs}
  run = jax.jit(lambda *args: rewards.reward(*args, mix).parts['answer'])
  table = rewards.token_text(vocabulary, mix)
  return np.asarray(run(*inputs(rows, references, C), table))[:, 0]


# Rows of the golden file in which we say otherwise, (ours, theirs), and why.
GSM8K = {
  (18, 67): (1, 0),  # '#### $42': a dollar changes nothing.
  (19, 68): (1, 0),  # '#### 42.': nor does a full stop,
  (20, 69): (1, 0),  # '#### 42.00': nor how a number is written.
  (24, 73): (1, 0),  # More than 300 characters before the end.
  (171,): (0, 1),  # '#### 42 apples and 3 pears' is not the number 42.
  (211,): (0, 1),  # '#### 3,000,' is no number.
}
MATH = {
  (22, 23, 71, 72): (1, 0),  # 1,234 and 1{,}234 are 1234.
  (33, 82): (0, 1),  # x=42 is not 42.
  (34, 83): (0, 1),  # Units in words belong to the text.
  (36, 85): (0, 1),  # As do degrees.
  (37, 86): (1, 0),  # \text{42} is 42.
  (79,): (1, 0),  # 0.7500 is 3/4.
  (161,): (0, 1),  # '\boxed 42' is no box.
  (167,): (0, 1),  # '42 \text{ or } 41' is not 42.
}
DAPO = {
  (14, 63): (0, 1),  # 'ANSWER:  x = 42 dollars': in capitals, an equation.
  (25, 74): (1, 0),  # More than 300 characters before the end.
  (208,): (1, 0),  # 10/4 is 5/2.
  (209,): (0, 1),  # 'square feet' is not taken away,
  (210,): (0, 1),  # nor an article.
  (221,): (0, 1),  # The answer is on the next line.
}
DAPO_BOX = {
  (22, 23, 71, 72): (1, 0),  # 1,234 and 1{,}234 are 1234.
  (26, 75, 146): (1, 0),  # More than 100 characters before the end.
  (37, 86): (1, 0),  # \text{42} is 42.
}


@pytest.mark.parametrize(
  'column, wrong, differences, knobs',
  [
    ('gsm8k_strict', 0, GSM8K, {'where': 'line', 'tag': '#### '}),
    ('math_reward', 0, MATH, {'where': 'box'}),
    ('math_dapo', -1, DAPO, {'where': 'line', 'tag': 'Answer:'}),
    (
      'math_dapo_strict_box',
      -1,
      DAPO_BOX,
      {'where': 'box', 'compare': 'text'},
    ),
  ],
)
def test_answers_are_graded_as_by_verl_but_for_named_rows(
  column, wrong, differences, knobs
):
  rows = [list(row['completion'].encode()) for row in GOLDEN]
  references = [row['ground_truth'].encode() for row in GOLDEN]
  score_B = score(rows, references, BYTES, 40, **{'compare': 'number'} | knobs)
  theirs_B = [float(row[column] > wrong) for row in GOLDEN]
  found = {
    b: (ours, theirs)
    for b, (ours, theirs) in enumerate(zip(score_B, theirs_B, strict=True))
    if ours != theirs and references[b]
  }
  assert found == {b: pair for rows, pair in differences.items() for b in rows}
  # Two problems without a reference: we do not score them, verl gives none.
  without = [b for b, reference in enumerate(references) if not reference]
  assert without == [46, 95]
  assert np.isnan(score_B[without]).all() and not any(theirs_B[46:96:49])
  assert 5 < sum(theirs_B) < 100


def locate(data, where, tag, last):
  """What `where` finds, and whether it goes on for longer; or None."""
  if where == 'tags':
    opening, closing = b'<%s>' % tag, b'</%s>' % tag
    counts = data.count(opening), data.count(closing)
    if not all(counts) or (counts != (1, 1) and not last):
      return None
    start = data.rfind(opening) + len(opening)
    end = data.rfind(closing)
    return (data[start:end], False) if start <= end else None
  opening = b'\\boxed{' if where == 'box' else tag
  if opening not in data:
    return None
  rest = data[data.rfind(opening) + len(opening) :]
  depth = 0
  for at, byte in enumerate(rest[:SIZE]):
    depth += (byte == ord('{')) - (byte == ord('}'))
    if byte == ord('\n') if where == 'line' else depth < 0:
      return rest[:at], False
  longer = len(rest) > SIZE
  return (rest, longer) if where == 'line' or longer else None


def value(data):
  """A number in Python's way, for the plain ones that the tests write."""
  found = re.fullmatch(
    rb'([+-]?)\$?(|[0-9]+(?:,[0-9]{3})*)(\.[0-9]*)?(?:/([0-9]+))?\.?', data
  )
  if not found or not re.search(rb'[0-9]', data.split(b'/')[0]):
    return None
  sign, whole, places, under = found.groups(b'')
  number = Fraction((sign + whole.replace(b',', b'') + places).decode())
  under = int(under or 1)
  return number / under if under else None


def oracle(data, reference, where, tag, last, compare):
  found = locate(data, where, tag, last)
  if found is None:
    return 0.0
  answer, longer = found
  answer = answer.strip()
  if longer or (compare != 'bytes' and len(answer) > SIZE):
    return np.nan
  if compare == 'bytes':
    return float(answer == reference)
  same = value(answer) == value(reference) and value(answer) is not None
  if compare == 'text' and b'/' in answer + reference:
    same = False
  normal = [
    b' '.join(x.lower().split()).rstrip(b'.') for x in (answer, reference)
  ]
  return float(same or normal[0] == normal[1])


WRITTEN = [b'7', b'42', b'-3', b'1/2', b'0.5', b'1,234', b'a b', b'Paris']
OTHERS = [b'7.0', b'$42', b'-3.', b'2/4', b'.50', b'1234', b'A  B', b'paris.']
OTHERS += [b'7 ' * 9, b'x' * SIZE, b'x' * (SIZE + 1), b'1/0', b'', b'\xe2\x88']


def completion(rng, reference):
  """Something with the answer in it, in all of the ways and none."""

  def choose(*options):
    return options[rng.integers(len(options))]

  pieces = []
  for _ in range(rng.integers(1, 4)):
    written = choose(reference, *OTHERS, WRITTEN[rng.integers(len(WRITTEN))])
    index = [*WRITTEN, *OTHERS].index(written)
    if rng.random() < 0.5:
      written = choose(reference, OTHERS[index % 8])
    space = choose(b'', b'', b' ', b'\n', b' ' * 9)
    pieces += choose(
      [b'<answer>', space, written, space, b'</answer>'],
      [b'<answer>', written, b'</answer>'],
      [b'\\boxed{', written, b'}', choose(b'.', b'}', b'')],
      [b'\\boxed{', b'{', written, b'}', b'}'],
      [b'#### ', space.strip(b'\n'), written, choose(b'\n', b'', b'\nso')],
      [b'#### ', written, b'\n'],
    )
  if rng.random() < 0.3:
    k, j = rng.integers(len(pieces), size=2)
    match rng.integers(4):
      case 0:
        del pieces[k]
      case 1:
        pieces.insert(k, pieces[j])
      case 2:
        pieces[k] = pieces[k][: rng.integers(len(pieces[k]) + 1)]
      case 3:
        pieces[k] = pieces[k] + b'z' * 30
  return b''.join(pieces) if rng.random() < 0.98 else b''


def vocabulary(rng):
  source = b'<answer> 42 </answer>\\boxed{7}}\n#### 1,234<answer>$-3'
  cuts = rng.integers([len(source), 9], size=(150, 2))
  return BYTES + [source[start : start + size] for start, size in cuts] + [b'']


@pytest.mark.parametrize(
  'where, tag, last, compare',
  [
    ('tags', 'answer', False, 'bytes'),
    ('tags', 'answer', False, 'number'),
    ('tags', 'answer', True, 'bytes'),
    ('tags', 'answer', True, 'text'),
    ('box', '', True, 'bytes'),
    ('box', '', True, 'number'),
    ('line', '#### ', True, 'text'),
    ('line', '#### ', True, 'number'),
  ],
)
def test_answers_are_found_and_compared_as_python_does(
  where, tag, last, compare
):
  rng = np.random.default_rng([len(where), last, len(compare)])
  tokens = vocabulary(rng)
  references = [WRITTEN[i] for i in rng.integers(len(WRITTEN), size=1250)]
  texts = [completion(rng, reference) for reference in references]
  rows = [test_rewards.encode(rng, tokens, data) for data in texts]
  score_B = score(
    rows,
    references,
    tokens,
    8,
    where=where,
    tag=tag,
    last=last,
    compare=compare,
    size=SIZE,
  )
  expected_B = [
    oracle(data, reference, where, tag.encode(), last, compare)
    for data, reference in zip(texts, references, strict=True)
  ]
  np.testing.assert_array_equal(score_B, expected_B)
  assert 0.04 < np.nanmean(expected_B) < 0.9
  assert compare == 'bytes' or 0.01 < np.isnan(expected_B).mean() < 0.3


def compiled(knobs):
  mix = {'answer': knobs}
  run = jax.jit(lambda *args: rewards.reward(*args, mix).parts['answer'])
  return run, rewards.token_text(PIECES, mix)


RUN, TABLE = compiled({'compare': 'number', 'size': SIZE, 'last': True})


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_bytes_between_any_tags(data):
  """Scores are 0, 1 or NaN, and a row is not told by its neighbours."""
  token = st.sampled_from([256, 257, 256, 257, *b'1/2.0 $-,{}'])
  token |= st.integers(0, 255)
  rows = data.draw(
    st.lists(st.lists(token, max_size=20), min_size=40, max_size=40)
  )
  rows[0] = [*b'<answer>.5</answer>', 0]  # It also sets the width.
  rows = [row[:20] for row in rows]
  rollout, prompts = inputs(rows, [b'1/2'] * 40, 8)
  score_B = RUN(rollout, prompts, TABLE).ravel()
  expected_B = []
  for row in rows:
    text = b''.join(PIECES[i] for i in row)
    expected_B.append(locate(text, 'tags', b'answer', True))
  assert score_B[0] == 1
  for got, found in zip(score_B.tolist(), expected_B, strict=True):
    if found is None:
      assert got == 0
    elif len(found[0].strip()) > SIZE:
      assert np.isnan(got)
    elif value(found[0].strip()) is not None:
      assert got == (value(found[0].strip()) == Fraction(1, 2))
    else:
      assert got in (0, 1)


@pytest.mark.parametrize(
  'knobs, message',
  [
    ({'where': 'tag'}, "where='tag' is not tags, box or line"),
    ({'compare': 'value'}, "compare='value' is not bytes, text or number"),
  ],
)
def test_an_unknown_form_is_refused_with_the_known_ones(knobs, message):
  with pytest.raises(ValueError, match=message):
    rewards.token_text(BYTES, {'answer': knobs})


def test_the_default_is_the_bytes_in_the_only_answer_tags():
  rows = [b'<answer>1/2</answer>', b'<answer>0.5</answer>']
  rows += [b'<answer>1/2</answer><answer>1/2</answer>', b'\\boxed{1/2}']
  score_B = score([*map(list, rows)], [b'1/2'] * 4, BYTES, 4)
  np.testing.assert_array_equal(score_B, [1, 0, 0, 0])
