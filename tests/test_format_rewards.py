"""Rewards for the form of a completion, against re and other codebases."""

import functools
import json
import pathlib
import re

import completions
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from grpo_jax import rewards
from grpo_jax.rewards import pattern, reasoning_steps, tag_count

B, T = 1024, 192
GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'format_rewards.json'
SECTIONS = ('think', 'plan', 'answer')
MIX = {
  'tag_count': 1.0,
  'lines': {'file': 'tag_count', 'tags': tag_count.OPEN_R1},
  'odd': {'file': 'tag_count', 'tags': ('aa', 'é', '\n-')},
  'trl': {'file': 'pattern', 'regex': pattern.TRL},
  'open_r1': {'file': 'pattern', 'regex': pattern.OPEN_R1},
  'reasoning_steps': {},
  'plans': {
    'file': 'reasoning_steps',
    'patterns': ('^(<think>)?First', 'Step', 'é|中'),
    'enough': 2,
  },
  'format': {'sections': SECTIONS},
}
# As they are published, but for digits, which are ASCII here.
TRL = re.compile(
  r'^<think>(?!.*<think>)(.*?)</think>.*$', re.DOTALL | re.MULTILINE
)
OPEN_R1 = re.compile(
  r'^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$',
  re.DOTALL | re.MULTILINE,
)
STEPS = re.compile(
  r'(Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,)', re.ASCII
)

TAGS = [f'<{end}{name}>' for name in SECTIONS for end in ('', '/')]
PIECES = [*TAGS, 'Step 12:', 'Step 3', '4.', '\n-', '\n*', 'First,', 'Second,']
PIECES += ['Next,', 'Finally,', '\n', '\n\n', ' ', 'aa', 'é', '中', '<', '</th']
PIECES = [piece.encode() for piece in PIECES]
FORMS = [
  [b'<think>\n', b'', b'\n</think>\n<answer>\n', b'', b'\n</answer>'],
  [b'<think>', b'', b'</think>', b'', b'\n'],
  [b'7.', b'', b'\n- a\n- b', b''],
  [b'<think>x', b'', b'</think><plan>y', b'', b'</plan><answer>z</answer>\n'],
  [b'<think>x</think> <plan>y</plan>\n<answer>z</answer>'],
]
TOKENS = completions.vocabulary(PIECES)


@functools.cache
def scorer():
  text = rewards.token_text(TOKENS, MIX)
  score = jax.jit(lambda x, text: rewards.reward(x, x.prompts, text, MIX).parts)
  return lambda made: score(made, text)


def expected(data, ended):
  """The scores by Python, in the order of MIX."""
  text = data.decode('utf-8', 'replace')
  counts = [
    [text.count(tag) for tag in tags]
    for tags in (
      ('<think>', '</think>', '<answer>', '</answer>'),
      ('<think>\n', '\n</think>\n', '\n<answer>\n', '\n</answer>'),
      ('aa', 'é', '\n-'),
    )
  ]
  tags = [sum(n == 1 for n in found) / len(found) for found in counts]
  plans = len(re.findall('Step|é|中', text))
  plans += re.match('(<think>)?First', text) is not None
  pairs = r'\s*'.join(f'<{name}>(.*)</{name}>' for name in SECTIONS)
  match = re.fullmatch(rf'\s*{pairs}\s*', text, re.DOTALL | re.ASCII)
  formed = match and all(part.strip(' \t\n\r\f\v') for part in match.groups())
  formed = formed and all(text.count(tag) == 1 for tag in TAGS) and ended
  return [
    *tags,
    TRL.match(text) is not None,
    OPEN_R1.match(text) is not None,
    min(1, len(STEPS.findall(text)) / 3),
    min(1, plans / 2),
    bool(formed),
  ]


@pytest.mark.slow
# Without shrinking: a batch is large, and the first error names its part.
@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(
  seed=st.integers(0, 2**32 - 1),
  drawn=st.lists(st.lists(st.sampled_from(PIECES), max_size=9), max_size=64),
)
def test_the_form_is_scored_as_python_scores_the_decoded_text(seed, drawn):
  rng = np.random.default_rng(seed)
  texts = [b''.join(pieces) for pieces in drawn]
  while len(texts) < B:
    texts.append(completions.draw(rng, PIECES, FORMS))
  made, read = completions.rollout(rng, TOKENS, texts, T)
  found = scorer()(made)
  rows = zip(read, made.ended_PG[:, 0], strict=True)
  expected_BR = np.float32([expected(*row) for row in rows])
  for name, expected_B in zip(MIX, expected_BR.T, strict=True):
    np.testing.assert_array_equal(found[name][:, 0], expected_B, name)
    assert found[name].dtype == np.float32
    assert 0.02 < expected_B.mean() < 0.9, name  # It can be either.


def test_trl_and_open_r1_give_the_same_scores():
  rows = json.loads(GOLDEN.read_text())['rows']
  assert len(rows) == 226
  rng = np.random.default_rng(0)
  texts = [row[0].encode() for row in rows]
  made, read = completions.rollout(rng, TOKENS, texts, 3000)
  assert read == texts
  found = scorer()(made)
  names = ['trl', 'open_r1', 'lines', 'reasoning_steps']
  for k, name in enumerate(names, start=1):
    expected_B = np.float32([row[k] for row in rows])
    np.testing.assert_array_equal(found[name][:, 0], expected_B, name)
    assert 5 < np.count_nonzero(expected_B) < 221


def test_a_digit_of_another_script_is_no_digit():
  digit = '\u0664'  # open-r1's `\d` takes it, ours does not.
  texts = [f'Step {digit}:'.encode(), b'Step 4:']
  made, _ = completions.rollout(np.random.default_rng(0), TOKENS, texts, 32)
  mix = {'reasoning_steps': {'enough': 1}}
  text = rewards.token_text(TOKENS, mix)
  total_PG = rewards.reward(made, made.prompts, text, mix).total_PG
  assert total_PG[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
  'reads,knobs,words',
  [
    (pattern.reads, {}, "regex='' must be the regular expression that"),
    (pattern.reads, {'regex': r'\ba'}, r'Escape \b is not implemented'),
    (tag_count.tags, {'tags': ()}, r'tags=() must be texts in a list'),
    (tag_count.tags, {'tags': '<a>'}, "tags='<a>' must be texts in a list"),
    (tag_count.tags, {'tags': ('a', '')}, "tags=('a', '') must be texts"),
    (reasoning_steps.reads, {'enough': 0}, 'enough=0 must be above 0'),
    (reasoning_steps.reads, {'patterns': 'a'}, "patterns='a' must be regular"),
    (reasoning_steps.reads, {'patterns': ()}, 'patterns=() must be regular'),
  ],
)
def test_knobs_that_ask_for_nothing_are_refused(reads, knobs, words):
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    reads(**knobs)
  assert '\n' not in str(error.value)


def test_a_form_compiles_without_a_callback():
  rng = np.random.default_rng(0)
  made, _ = completions.rollout(rng, TOKENS, [b'Step 1:'], 8)
  text = rewards.token_text(TOKENS, MIX)
  jaxpr = jax.make_jaxpr(lambda x: rewards.reward(x, x.prompts, text, MIX))(
    made
  )
  assert 'callback' not in str(jaxpr)
