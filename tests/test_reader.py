"""Readers of tokens against re on the decoded text."""

import itertools
import re

import jax
import numpy as np
import pytest
import test_rewards

from grpo_jax import text
from grpo_jax.text import automata, reader

PATTERNS = {
  'whole': (r'<think>.*?</think>\s*<answer>.*</answer>', False),
  'count': ('[0-9]|=|\u4e2d', False),
  'words': ('wait|let me check', True),
}


def machine(name):
  regex, as_words = PATTERNS[name]
  if name == 'whole':
    return automata.whole(regex)
  return automata.count(regex, as_words)


def expected(name, data):
  regex, as_words = PATTERNS[name]
  decoded = data.decode('utf-8', 'replace')
  if name == 'whole':
    return int(re.fullmatch(regex, decoded, re.A | re.S) is not None)
  regex = rf'\b(?:{regex})\b' if as_words else regex
  return len(re.findall(regex, decoded, re.A | re.S))


def vocabulary(rng):
  source = '<think>wait \u4e2d let me check 1+2=3</think> <answer>7</answer>'
  source = source.encode() * 2
  cuts = rng.integers([len(source), 12], size=(200, 2))
  pieces = [source[start : start + size] for start, size in cuts]
  return [bytes([byte]) for byte in range(256)] + pieces + [b'']


def batch(rng, tokens):
  """Rows of random tokens, of which a part reads like something."""
  good = [b'<think>', b'wait', b' let me check', '\u4e2d'.encode(), b'1=1']
  good += [b'</think>', b'\n', b'<answer>', b'await', b'</answer>']
  rows = []
  for _ in range(400):
    picked = [good[i] for i in np.sort(rng.integers(len(good), size=6))]
    if rng.random() < 0.4:
      picked = good[:]
    if rng.random() < 0.3:
      picked[rng.integers(len(picked))] = rng.bytes(2)
    rows.append(test_rewards.encode(rng, tokens, b''.join(picked)))
  width = max(map(len, rows)) + 2
  tokens_BT = rng.integers(0, 256, (len(rows), width), dtype=np.int32)
  for row_T, row in zip(tokens_BT, rows, strict=True):
    row_T[: len(row)] = row
  lengths_B = np.array([*map(len, rows)], np.int32)
  return tokens_BT, lengths_B


@pytest.mark.parametrize('name', PATTERNS)
@pytest.mark.parametrize('seed', [0, 1])
def test_tokens_and_parts_of_them_read_as_their_bytes(name, seed):
  rng = np.random.default_rng(seed)
  tokens = vocabulary(rng)
  table = text.token_text(tokens)
  found = reader.reader(machine(name), table)
  tokens_BT, lengths_B = batch(rng, tokens)
  datas = [
    b''.join(tokens[i] for i in row_T[:length])
    for row_T, length in zip(tokens_BT, lengths_B, strict=True)
  ]
  hits_B = jax.jit(reader.hits)(found, table, tokens_BT, lengths_B)
  expected_B = [expected(name, data) for data in datas]
  assert hits_B.tolist() == expected_B
  assert 40 < np.count_nonzero(expected_B) < 390

  part_B2 = rng.integers(0, 60, (len(datas), 2), dtype=np.int32)
  part_B2[::3] = [0, 1000]  # Past the end is up to the end.
  hits_B = jax.jit(reader.hits)(found, table, tokens_BT, lengths_B, part_B2)
  expected_B = [
    expected(name, data[start:end])
    for data, (start, end) in zip(datas, part_B2.tolist(), strict=True)
  ]
  assert hits_B.tolist() == expected_B


def test_ids_outside_of_the_vocabulary_are_no_text():
  table = text.token_text([b'a', b'b'])
  found = reader.reader(automata.count('ab'), table)
  tokens_BT = np.array([[0, 5, 1, 0, 1]], np.int32)
  assert reader.hits(found, table, tokens_BT, np.array([5])).tolist() == [2]
  assert reader.hits(found, table, tokens_BT, np.array([4])).tolist() == [1]


def test_every_part_of_one_token_is_read_to_its_last_byte():
  table = text.token_text([b'', b'abcbb'])
  found = reader.reader(automata.count('b'), table)
  # In turn: the longest part sets how far all of a batch are read.
  hits = jax.jit(reader.hits)
  for start, end in itertools.product(range(0, 11, 2), range(0, 12, 3)):
    part_12 = np.array([[start, end]], np.int32)
    tokens_1T = np.array([[0, 1, 0, 1]], np.int32)
    [count] = hits(found, table, tokens_1T, np.array([4]), part_12)
    assert count == b'abcbbabcbb'[start:end].count(b'b')
