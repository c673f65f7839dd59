"""Reading tokens as text, against Python's bytes."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import text

PIECES = [b'</', b'><', b'>7', b'think', b'answer', b'er></', b' \n', b'']
TAGS = (*text.TAGS, 'aba', 'aa', 'é')


def fragments(seed, size=120):
  """A vocabulary whose entries cut tags and characters anywhere."""
  rng = np.random.default_rng(seed)
  source = ' <think></think>\n <answer>7é\t</answer>abaaba \x00'.encode()
  cuts = [rng.integers([len(source), 7]) for _ in range(size)]
  return PIECES + [source[start : start + n] for start, n in cuts]


def whole_tags(seed):
  del seed
  return [*(tag.encode() for tag in text.TAGS), *b'ab 7\n'.split(), b' ', b'\n']


def random_batch(vocabulary, seed, B=2000, T=24):
  rng = np.random.default_rng(seed)
  tokens_BT = rng.integers(0, len(vocabulary), (B, T), dtype=np.int32)
  lengths_B = rng.integers(0, T + 1, B, dtype=np.int32)
  lengths_B[:3] = 0, 1, T
  return tokens_BT, lengths_B


def decode(vocabulary, tokens_BT, lengths_B):
  return [
    b''.join(vocabulary[token] for token in row[:length])
    for row, length in zip(tokens_BT, lengths_B, strict=True)
  ]


def padded(data, size):
  return np.frombuffer(data[:size].ljust(size, b'\0'), np.uint8)


@pytest.mark.parametrize('vocabulary', [fragments, whole_tags])
@pytest.mark.parametrize('seed', [0, 1])
def test_tags_are_found_however_the_tokens_cut_them(vocabulary, seed):
  vocabulary = vocabulary(seed)
  tokens_BT, lengths_B = random_batch(vocabulary, seed)
  table = text.token_text(vocabulary, TAGS)
  find = jax.jit(lambda *args: text.find(args[0], TAGS, *args[1:]))
  found = find(table, tokens_BT, lengths_B)
  texts = decode(vocabulary, tokens_BT, lengths_B)
  for tag, actual in zip(TAGS, found, strict=True):
    tag = tag.encode()
    counts = [data.count(tag) for data in texts]
    first = [max(data.find(tag), 0) for data in texts]
    ends = [
      start + len(tag) * (n > 0) for start, n in zip(first, counts, strict=True)
    ]
    np.testing.assert_array_equal(actual.count_B, counts)
    np.testing.assert_array_equal(actual.start_B, first)
    np.testing.assert_array_equal(actual.end_B, ends)


def test_a_search_for_some_tags_equals_a_search_for_all():
  vocabulary = fragments(2)
  tokens_BT, lengths_B = random_batch(vocabulary, 2, B=200)
  table = text.token_text(vocabulary)
  every = text.find(table, text.TAGS, tokens_BT, lengths_B)
  with jax.enable_x64(True):
    some = text.find(table, text.TAGS[:1:-1], tokens_BT, lengths_B)
  jax.tree.map(np.testing.assert_array_equal, some, every[:1:-1])


@pytest.mark.parametrize('seed', [3, 4])
def test_spans_trims_and_counts_equal_slices_of_the_text(seed):
  vocabulary = fragments(seed)
  tokens_BT, lengths_B = random_batch(vocabulary, seed)
  table = text.token_text(vocabulary)
  texts = decode(vocabulary, tokens_BT, lengths_B)
  sizes_B = np.array([len(data) for data in texts])
  rng = np.random.default_rng(seed)
  start_B, end_B = rng.integers(0, sizes_B + 1, (2, len(texts)))
  end_B[:1500] = np.minimum(start_B + rng.integers(0, 12), sizes_B)[:1500]
  end_B[:20] += 1000  # Past the end of the text.
  slices = [
    data[start:end]
    for data, start, end in zip(texts, start_B, end_B, strict=True)
  ]

  span = jax.jit(text.span, static_argnums=5)
  bytes_BC, overflow_B = span(table, tokens_BT, lengths_B, start_B, end_B, 10)
  expected_BC = np.stack([padded(data, 10) for data in slices])
  np.testing.assert_array_equal(bytes_BC, expected_BC)
  np.testing.assert_array_equal(overflow_B, [len(x) > 10 for x in slices])
  assert 100 < overflow_B.sum() < 1900

  args = table, tokens_BT, lengths_B, start_B, end_B
  trimmed = np.stack(jax.jit(text.trim)(*args), axis=1)
  for data, stripped, (start, end) in zip(texts, slices, trimmed, strict=True):
    assert 0 <= start <= end
    assert data[start:end] == stripped.strip()
  assert sum(x != x.strip() for x in slices) > 200

  edges_B2 = np.stack([start_B, end_B], axis=1)
  solids_B2 = jax.jit(text.solids)(table, tokens_BT, lengths_B, edges_B2)
  expected_B2 = [
    [len(b''.join(data[:edge].split())) for edge in edges]
    for data, edges in zip(texts, edges_B2, strict=True)
  ]
  np.testing.assert_array_equal(solids_B2, expected_B2)


def test_tokens_start_where_the_text_before_them_ends():
  vocabulary = fragments(5)
  tokens_BT, lengths_B = random_batch(vocabulary, 5, B=50)
  starts_BT, _ = text.offsets(text.token_text(vocabulary), tokens_BT, lengths_B)
  for t in range(tokens_BT.shape[1]):
    before = decode(vocabulary, tokens_BT, np.minimum(lengths_B, t))
    np.testing.assert_array_equal(starts_BT[:, t], [len(x) for x in before])


def test_a_character_split_over_tokens_comes_back_whole():
  vocabulary = [bytes([byte]) for byte in '<answer>√−½😀</answer>'.encode()]
  tokens_1T = np.arange(len(vocabulary), dtype=np.int32)[None]
  table, length = text.token_text(vocabulary), np.array([len(vocabulary)])
  tags = text.find(table, ('<answer>', '</answer>'), tokens_1T, length)
  edges = tags[0].end_B, tags[1].start_B
  bytes_1C, overflow = text.span(table, tokens_1T, length, *edges, 16)
  assert bytes(np.asarray(bytes_1C[0])).rstrip(b'\0').decode() == '√−½😀'
  assert not overflow


@pytest.mark.parametrize('outside', [-1, 3, 10**6])
def test_an_id_without_a_vocabulary_entry_adds_no_text(outside):
  table = text.token_text([b'<thi', b'nk>', b'x<think>'])
  tokens_1T = np.array([[0, outside, 1, 2]], np.int32)
  [found] = text.find(table, ('<think>',), tokens_1T, np.array([4]))
  assert (found.count_B, found.start_B, found.end_B) == (2, 0, 7)


def test_only_the_tokens_within_the_length_are_read():
  table = text.token_text([b'<think>'])
  tokens_BT = np.zeros((4, 3), np.int32)
  [found] = text.find(table, ('<think>',), tokens_BT, np.arange(4))
  np.testing.assert_array_equal(found.count_B, np.arange(4))


def test_tables_of_a_large_vocabulary_take_less_than_two_seconds():
  rng = np.random.default_rng(0)
  sizes = np.minimum(rng.geometric(1 / 7, 49152), 64)
  vocabulary = [rng.bytes(size) for size in sizes]
  began = time.perf_counter()
  jax.block_until_ready(text.token_text(vocabulary))
  assert time.perf_counter() - began < 2


def test_nothing_here_calls_back_to_the_host():
  table = text.token_text(PIECES)
  tokens_BT, lengths_B = jnp.zeros((2, 5), jnp.int32), jnp.ones(2, jnp.int32)

  def everything(table, tokens_BT, lengths_B):
    args = table, tokens_BT, lengths_B
    tags = text.find(table, text.TAGS, tokens_BT, lengths_B)
    start_B, end_B = text.trim(*args, tags[0].end_B, tags[1].start_B)
    return text.span(*args, start_B, end_B, 8)

  jaxpr = jax.make_jaxpr(everything)(table, tokens_BT, lengths_B)
  assert 'callback' not in str(jaxpr)
  assert not jaxpr.effects  # Debug prints.


def test_the_reasoning_is_between_the_think_tags_or_goes_to_the_end():
  cases = {
    'a<think>bc</think>d': 'bc',
    '<think>bc': 'bc',
    'bc</think>d': 'bc',
    'bc': 'bc',
    '': '',
    'a</think><think>b</think>c': 'b</think>c',
    '<think></think>': '',
    '<think>a<think>b</think>c</think>': 'a<think>b',
  }
  table = text.token_text([bytes([byte]) for byte in range(256)])
  T = max(map(len, cases))
  rows = [list(case.encode().ljust(T)) for case in cases]
  lengths_B = np.array([*map(len, cases)], np.int32)
  part_B2 = text.reasoning(table, np.array(rows, np.int32), lengths_B)
  for case, part, (start, end) in zip(
    cases, cases.values(), part_B2.tolist(), strict=True
  ):
    assert case[start:end] == part


@pytest.mark.parametrize('vocabulary', [fragments, whole_tags])
def test_the_last_of_many_tags_is_found_however_the_tokens_cut_it(vocabulary):
  vocabulary = vocabulary(3) + 30 * [b'</answer>', b'<think>']
  table = text.token_text(vocabulary, [*text.TAGS, 'a'])
  tokens_BT, lengths_B = random_batch(vocabulary, 3)
  texts = decode(vocabulary, tokens_BT, lengths_B)
  tags = ('</answer>', '<think>', 'a')  # Some tokens have several a.
  found = text.find(table, tags, tokens_BT, lengths_B, last=True)
  for tag, (count_B, start_B, end_B) in zip(tags, found, strict=True):
    tag = tag.encode()
    last = [max(data.rfind(tag), 0) for data in texts]
    np.testing.assert_array_equal(count_B, [data.count(tag) for data in texts])
    np.testing.assert_array_equal(start_B, last)
    ends = [i + len(tag) * (tag in x) for i, x in zip(last, texts, strict=True)]
    np.testing.assert_array_equal(end_B, ends)
    assert np.sum(np.asarray(count_B) > 1) > 5
