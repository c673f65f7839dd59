"""Rewards for what stands in the reasoning, against re on the decoded text."""

import functools
import re

import completions
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from grpo_jax import rewards
from grpo_jax.datasets import Example, quadratics
from grpo_jax.rewards import language, operations, reflection
from grpo_jax.text import words as words_lib

B, T = 1024, 192
LISTED = ('the', "don't", 'don', 'été', 'well-known', 'да', '中')
AGAIN = ('look  again', 'again', 'C++ (wait)')
MIX = {
  'reflection': {'weight': 0.0},
  'again': {'file': 'reflection', 'phrases': AGAIN, 'enough': 2},
  'language': {},
  'russian': {'file': 'language', 'scripts': ('cyrillic', 'greek')},
  'listed': {'file': 'language', 'words': LISTED},
  'operations': {},
  'others': {'file': 'operations', 'patterns': {'log': r'\\log|ln', 'a': '²'}},
}

PIECES = [
  '<think>',
  '</think>',
  '<answer>',
  ' ',
  '\n',
  ' ',
  '.',
  ', ',
  '-',
  "'",
]
PIECES += [
  'Wait',
  'wait',
  'await',
  'hmm',
  'Let  me\ncheck',
  'again',
  ' Actually',
]
PIECES += ['double-check', 'on second thought', 'look again', 'C++ (wait)', '_']
PIECES += [' the ', ' The', 'don', "don't", 'DON’T', 'été', 'ÉTÉ', 'well-known']
PIECES += [
  'да',
  ' ДА ',
  'слово',
  'λόγος',
  '中',
  '中文',
  'かな',
  'x',
  '12',
  '😀',
]
PIECES += ['√', '\\sqrt', 'square root', '±', '+-', '+/-', '\\pm', 'plus or ']
PIECES += ['minus', '\\frac', '1/2', '(', ')', '/', 'b^2 - 4ac', 'Δ', '²', '^2']
PIECES += ['factor', '\\log', 'ln', '*']
PIECES = [piece.encode() for piece in PIECES]
FORMS = [
  [b'<think>', b'', b' ', b'', b'</think>', b'', b'<answer>7</answer>'],
  [b'', b'<think>', b'', b' ', b''],
  [b'', b' ', b'', b'</think>', b''],
  [b'', b' ', b'', b'\n', b''],
]
TOKENS = completions.vocabulary(PIECES)


@functools.cache
def scorer():
  text = rewards.token_text(TOKENS, MIX)
  score = jax.jit(lambda x, text: rewards.reward(x, x.prompts, text, MIX).parts)
  return lambda made: score(made, text)


def reasoning(data):
  """What is between the tags, by cutting the text at them."""
  before, opened, after = data.partition(b'<think>')
  if not opened:
    after = before
  elif b'</think>' in before:
    return after
  return after.partition(b'</think>')[0]


def words(text, scripts):
  """All words of these scripts, by a regular expression of their letters."""
  ranges = {False: '', True: ''}
  for script in scripts:
    for first, last in words_lib.SCRIPTS[script]:
      ranges[script in ('han', 'kana')] += f'{chr(first)}-{chr(last)}'
  letters, single = (f'[{x}]' if x else '(?!)' for x in ranges.values())
  joined = f"(?:{letters}|['’-])"
  return re.findall(f'{single}|{letters}{joined}*', text)


def share(part, whole):
  return part / whole if whole else np.nan


def phrases_in(text, phrases):
  found = [r'\s+'.join(map(re.escape, phrase.split())) for phrase in phrases]
  regex = rf'(?:^|(?<=\W))(?:{"|".join(found)})(?=\W|$)'
  return len(re.findall(regex, text, re.ASCII | re.IGNORECASE))


def operations_in(text, patterns, indices):
  named = {sorted(patterns)[i] for i in indices if i >= 0}
  flags = re.ASCII | re.DOTALL
  found = [re.search(patterns[name], text, flags) for name in named]
  return share(sum(match is not None for match in found), len(found))


def expected(data, references):
  """The scores by Python, in the order of MIX."""
  text = reasoning(data).decode('utf-8', 'replace')
  everything = words(text, words_lib.SCRIPTS)
  listed = [word.rstrip("'’-").lower() in LISTED for word in everything]

  def consistency(scripts):
    others = [script for script in words_lib.SCRIPTS if script not in scripts]
    target = len(words(text, scripts))
    return share(target, target + len(words(text, others)))

  return [
    phrases_in(text, reflection.PHRASES),
    min(1, phrases_in(text, AGAIN) / 2),
    consistency(['latin']),
    consistency(['cyrillic', 'greek']),
    share(sum(listed), len(listed)),
    operations_in(text, operations.PATTERNS, references['operations']),
    operations_in(text, MIX['others']['patterns'], references['others']),
  ]


@pytest.mark.slow
# Without shrinking: a batch is large, and the first error names its part.
@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(
  seed=st.integers(0, 2**32 - 1),
  drawn=st.lists(st.lists(st.sampled_from(PIECES), max_size=9), max_size=64),
)
def test_reasoning_is_scored_as_python_scores_the_decoded_text(seed, drawn):
  rng = np.random.default_rng(seed)
  texts = [b''.join(pieces) for pieces in drawn]
  while len(texts) < B:
    texts.append(completions.draw(rng, PIECES, FORMS))
  references = {
    'operations': rng.integers(-1, len(operations.PATTERNS), (B, 4)),
    'others': rng.integers(-1, 2, (B, 2)),
  }
  made, read = completions.rollout(rng, TOKENS, texts, T, references)
  found = scorer()(made)
  expected_BR = np.float32(
    [
      expected(data, {name: rows[b] for name, rows in references.items()})
      for b, data in enumerate(read)
    ]
  )
  for name, expected_B in zip(MIX, expected_BR.T, strict=True):
    np.testing.assert_array_equal(found[name][:, 0], expected_B, name)
    assert found[name].dtype == np.float32
    assert 0.02 < np.nanmean(expected_B) < 0.98, name  # It can be either.


def score(texts, mix, references=None):
  rng = np.random.default_rng(0)
  texts = [text.encode() for text in texts]
  made, read = completions.rollout(rng, TOKENS, texts, 600, references)
  assert read == texts
  table = rewards.token_text(TOKENS, mix)
  reward = jax.jit(lambda x: rewards.reward(x, x.prompts, table, mix).total_PG)
  return reward(made)[:, 0].tolist()


def test_only_the_reasoning_is_read():
  texts = {
    '<think>wait</think>wait wait': 1,
    'wait <think>wait, wait': 2,  # It goes to the end.
    'wait wait</think>wait': 2,  # The prompt has opened it.
    'wait wait wait': 3,
    'wait</think> <think>wait wait</think> wait': 3,  # So does this.
    '<think>wait<think>wait</think>wait</think>': 2,
    '': 0,
  }
  assert score(texts, {'reflection': {}}) == list(texts.values())
  capped = [min(1, n / 4) for n in texts.values()]
  assert score(texts, {'reflection': {'enough': 4}}) == capped


def test_a_reasoning_without_words_has_no_language():
  texts = ['12 + 5 = 17', '', '<think></think>Good.', '<think>да no</think>no']
  found = score(texts, {'language': {'weight': 2}})
  np.testing.assert_array_equal(found, [np.nan, np.nan, np.nan, 1])


def test_a_list_tells_languages_of_one_script_apart():
  knobs = {'words': ('the', 'is', 'cat', 'so')}
  texts = ['The cat is le chat', "so 'the' CAT -- is", 'le chat', 'theist']
  assert score(texts, {'language': knobs}) == [np.float32(0.6), 1, 0, 0]


def test_the_reasoning_of_a_quadratic_has_all_of_its_operations():
  examples = list(quadratics.examples(problems=8, roots='integer+irrational'))
  rows = rewards.references(examples, None, {'operations': {}})['operations']
  names = sorted(operations.PATTERNS)
  assert [[names[i] for i in row] for row in rows] == [
    example.columns['operations'] for example in examples
  ]
  texts = [f'<think>{x.reasoning}</think>' for x in examples[:6]]
  texts += ['<think>By sqrt(2)</think>+-', 'x = 5']
  references = {'operations': np.array(rows)}
  found = score(texts, {'operations': {}}, references)
  assert found == [*[1] * 6, 0.5, 0]


def test_a_problem_that_names_no_operation_is_not_scored():
  mix = {'operations': {}}
  plain = Example('Solve it.', '7')
  assert rewards.references([plain], None, mix) == {'operations': [[]]}
  references = {'operations': np.array([[-1, -1]])}
  assert np.isnan(score(['sqrt'], mix, references)).all()


WRITTEN = {
  'sqrt': ['√2', '\\sqrt{2}', 'the square root', '2^(1/2)'],
  'plus_minus': ['±', '+-', '+/-', '\\pm', 'plus or minus', '+−'],
  'fraction': ['\\dfrac{1}{2}', '1/2', '(a + b) / c', 'a/(b)', '1 ÷ 2'],
  'discriminant': ['Discriminant', 'Δ', 'b² − 4ac', 'b^2 - 4 a c'],
  'square': ['x²', 'x^2', 'x^{2}', 'x**2', 'squared'],
  'factor': ['We factor', '(x - 2)(x + 3)', '(x) * (y)'],
}


def test_each_way_to_write_an_operation_is_found():
  none = 'and/or a - b + c, root of all </p>'
  assert set(WRITTEN) == set(operations.PATTERNS)
  names = sorted(WRITTEN)
  rows = [(text, name) for name in names for text in [*WRITTEN[name], none]]
  indices = [[names.index(name)] for _, name in rows]
  references = {'operations': np.array(indices)}
  found = score([text for text, _ in rows], {'operations': {}}, references)
  assert found == [text != none for text, _ in rows]


@pytest.mark.parametrize(
  'function,knobs,words',
  [
    (reflection.reads, {'enough': 0}, 'enough=0 must be above 0, or None'),
    (reflection.reads, {'phrases': 'wait'}, "phrases='wait' must be texts"),
    (reflection.reads, {'phrases': ('a', ' ')}, "phrases=('a', ' ') must be"),
    (reflection.reads, {'phrases': ()}, 'phrases=() must be texts'),
    (language.reads, {'scripts': ('elvish',)}, "'elvish' is not one of latin,"),
    (
      language.reads,
      {'words': ('a b',)},
      "'a b' in a list of words is not one",
    ),
    (language.reads, {'scripts': ()}, 'scripts=() must be'),
    (operations.reads, {'patterns': {}}, 'patterns={} has no operations'),
    (operations.reads, {'patterns': {'a': ''}}, 'matches the empty text'),
  ],
)
def test_knobs_that_ask_for_nothing_are_refused(function, knobs, words):
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    function(**knobs)
  assert '\n' not in str(error.value)


def test_an_operation_that_has_no_pattern_is_refused():
  example = Example('Solve it.', '7', columns={'operations': ['cube']})
  with pytest.raises(
    ValueError, match="'cube' in 'Solve it.' is not one of di"
  ):
    rewards.references([example], None, {'operations': {}})


def test_reading_the_reasoning_does_not_call_back():
  references = {
    name: np.zeros((1, 1), int) for name in ('operations', 'others')
  }
  rng = np.random.default_rng(0)
  made, _ = completions.rollout(rng, TOKENS, [b'wait'], 8, references)
  text = rewards.token_text(TOKENS, MIX)
  jaxpr = jax.make_jaxpr(lambda x: rewards.reward(x, x.prompts, text, MIX))(
    made
  )
  assert 'callback' not in str(jaxpr)
