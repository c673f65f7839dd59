"""Machines against Python's own regular expressions on decoded bytes."""

import random
import re

from hypothesis import example, given, settings
from hypothesis import strategies as st
import pytest

from grpo_jax.text import automata
from grpo_jax.text import words as words_lib

PIECES = ['<think>', '</think>', '<answer>', '</answer>', '\n', ' ', 'Step 1:']
PIECES += ['\n-', 'First,', 'wait', 'Wait', 'let me', ' check', 'a', 'b', '_']
PIECES += ['12', '.', '-', '\u00e9', '\u4e2d', '\U0001f600', '\ufffd', '\0']
TEXTS = st.lists(st.sampled_from(PIECES), max_size=9).map(
  lambda pieces: ''.join(pieces).encode()
)


@st.composite
def broken(draw):
  """Texts in which a few bytes are none of UTF-8 any more."""
  data = bytearray(draw(TEXTS))
  for _ in range(draw(st.integers(0, 3))):
    if data:
      data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
  return bytes(data[draw(st.integers(0, 2)) :])


def read(machine, data):
  state = hits = 0
  for byte in data:
    hits += int(machine.hits_SC[state, byte])
    state = int(machine.next_SC[state, byte])
  return hits + int(machine.end_S[state])


WHOLE = {
  regex: automata.whole(regex)
  for regex in [
    r'^<think>(?!.*<think>)(.*?)</think>.*$',
    r'^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$',
    r'[+-]?\d+(\.\d+)?',
    '\u00e9+|[^a]b|\U0001f600.',
    r'(a|b_)*\s?',
    r'\W*\w+\W*',
    r'a\$',
    r'[*+]+a|\++',
    r'.{2,5}',
    '(?i:WAIT)[^\u4e2d]*',
    '',
  ]
}
COUNTS = {
  (regex, as_words): automata.count(regex, as_words)
  for regex, as_words in [
    (r'Step \d+:|\n-|\n\*|First,|Second,', False),
    ('wait|let me check', True),
    ('(?i:wait)', True),
    ('a', True),
    ('\u00e9|\ufffd', False),
    ('<think>', False),
  ]
}


@pytest.mark.parametrize('regex', WHOLE)
@settings(max_examples=500, deadline=None)
@given(data=broken())
@example(data=b'\xe4\xb8')
@example(data=b'\xf0\x80\x80a')
@example(data=b'\xed\xa0\x80')
@example(data=b'\xc0\xaf')
@example(data=b'\xf4\x90\x80\x80')
def test_a_whole_match_is_that_of_re(regex, data):
  text = data.decode('utf-8', 'replace')
  expected = re.fullmatch(regex, text, re.ASCII | re.DOTALL) is not None
  assert read(WHOLE[regex], data) == expected


@pytest.mark.parametrize('regex', [r'.', r'..', r'...', '\ufffd.*', '\ufffd'])
def test_every_pair_of_bytes_decodes_as_python_has_it(regex):
  machine = automata.whole(regex)
  for pair in range(1 << 16):
    data = pair.to_bytes(2, 'big') + b'\x80'
    text = data.decode('utf-8', 'replace')
    assert read(machine, data) == bool(re.fullmatch(regex, text, re.DOTALL))


@pytest.mark.parametrize('regex,as_words', COUNTS)
@settings(max_examples=500, deadline=None)
@given(data=broken())
def test_matches_are_counted_as_findall_counts_them(regex, as_words, data):
  between = rf'\b(?:{regex})\b' if as_words else regex
  text = data.decode('utf-8', 'replace')
  expected = len(re.findall(between, text, re.ASCII | re.DOTALL))
  assert read(COUNTS[regex, as_words], data) == expected


@pytest.mark.parametrize(
  'scripts,expected',
  [
    (('latin',), 4),
    (('han',), 2),
    (('cyrillic',), 1),
    (('latin', 'cyrillic'), 5),
    (('greek', 'kana', 'han', 'other'), 4),
  ],
)
def test_words_are_counted_by_script(scripts, expected):
  text = "Hello, w\u00f6rld! don't well-known \u4e2d\u6587 \u043f\u0440\u0438"
  text += '\u0432\u0435\u0442 12+5 \u304b\u306a \U0001f600'
  assert read(words_lib.words(scripts), text.encode()) == expected


def test_words_of_a_list_are_counted_as_words():
  machine = words_lib.listed(
    ['The', "don't", 'a', 'a-b', '\u00e9t\u00e9', '\u4e2d']
  )
  cases = {
    'the THE The, then other the': 4,
    "don't DON'T 'don't' don ' t": 3,
    'a a-b a-b-c a- A-B--': 4,
    '\u00e9t\u00e9 \u00c9T\u00c9 \u00e9 t\u00e9': 2,
    'a\u4e2d\u4e2db': 3,
    '': 0,
  }
  assert [read(machine, text.encode()) for text in cases] == [*cases.values()]


@pytest.mark.parametrize(
  'word', ['', 'a b', '\u4e2d\u6587', "dogs'", '-a', '7']
)
def test_what_is_not_one_word_is_refused_in_a_list(word):
  with pytest.raises(ValueError, match='in a list of words is not one word'):
    words_lib.listed(['the', word])


def test_a_list_of_too_many_words_is_refused():
  rng = random.Random(0)
  words = [''.join(rng.choices('abcdefgh', k=9)) for _ in range(90)]
  with pytest.raises(
    ValueError, match='90 words needs 454 states, more than 256'
  ):
    words_lib.listed(words)
  syllables = [chr(0xAC00 + i) for i in range(300)]
  with pytest.raises(ValueError, match='300 words has 300 letters, too many'):
    words_lib.listed(syllables)


@pytest.mark.parametrize(
  'regex,words',
  [
    (r'\bx', r'Escape \b is not implemented'),
    (r'(a)\1', 'Group references are not implemented'),
    (r'(?<=a)b', 'lookbacks are not implemented'),
    (r'x.*a.{12}', 'needs more than 2000 states'),
    (r'(a|b)*a(a|b){8}', 'more than 256'),
    ('(', 'is no regular expression'),
    ('a**', 'is no regular expression'),
    ('a++a', 'possessive repetition'),
    (r'[x]*+', 'possessive repetition'),
    ('a(?#c)b', 'has what no automaton can do'),
  ],
)
def test_what_no_automaton_can_do_is_refused_by_name(regex, words):
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    automata.whole(regex)
  assert repr(regex) in str(error.value) and '\n' not in str(error.value)


def test_counting_nothing_and_unknown_scripts_are_refused():
  with pytest.raises(ValueError, match='matches the empty text'):
    automata.count('a*')
  with pytest.raises(ValueError, match="'klingon' is not one of latin, greek"):
    words_lib.words(('klingon',))


def test_a_machine_has_as_few_states_as_there_can_be():
  # Even and odd, for any byte but those of characters that are longer.
  machine = automata.whole('(?:[a-z][a-z])*')
  assert len(machine.end_S) == 3  # The third is the one without a way back.
