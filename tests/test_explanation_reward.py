"""The overlap with a reference explanation against counting in Python."""

import collections

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_rewards

from grpo_jax import datasets, text
from grpo_jax.rewards import explanation

WORDS = [b'so', b' x', b'=', b'3', b'+', b'4', b'\xe2\x88\x9a', b'\n', b'so x']
TAGS = [tag.encode() for tag in text.TAGS[:2]]
TOKENS = [bytes([byte]) for byte in range(256)] + WORDS + TAGS
TOKENS += [b'', b'<thi', b'nk>', b'x</', b'think>so', b'><']


def reasoned(tokens):
  """Tokens of which every byte is after any <think> and before </think>."""
  data = b''.join(TOKENS[i] for i in tokens)
  start, end = data.find(TAGS[0]), data.find(TAGS[1])
  start = start + len(TAGS[0]) if start >= 0 else 0
  end = end if end >= start else len(data)
  inside, at = [], 0
  for i in tokens:
    if at >= start and at + len(TOKENS[i]) <= end:
      inside.append(i)
    at += len(TOKENS[i])
  return inside


def longest_common(x, y):
  row = [0] * (len(y) + 1)
  for a in x:
    above, row = row, [0]
    for j, b in enumerate(y):
      row.append(above[j] + 1 if a == b else max(row[j], above[j + 1]))
  return row[-1]


def f1(shared, x, y):
  return 2 * shared / max(x + y, 1)


def oracle(tokens, reference, n, share):
  if not reference:
    return np.nan
  said = reasoned(tokens)
  sides = [
    collections.Counter(tuple(x[i : i + n]) for i in range(len(x) - n + 1))
    for x in (said, reference)
  ]
  grams = f1((sides[0] & sides[1]).total(), *(side.total() for side in sides))
  longest = longest_common(said, reference)
  return share * grams + (1 - share) * f1(longest, len(said), len(reference))


def score(completions, references, N, T=None, **knobs):
  """Scores in [P, G] of completions in P groups; ids out of range are noise."""
  P = len(references)
  rng = np.random.default_rng(0)
  rollout, prompts = test_rewards.make_rollout(
    rng, completions, [b''] * P, len(completions) // P
  )
  if T:
    width = T - rollout.tokens_PGT.shape[2]
    tokens_PGT = jnp.pad(rollout.tokens_PGT, ((0, 0), (0, 0), (0, width)))
    rollout = rollout.replace(tokens_PGT=tokens_PGT)
  reference_PN = np.full((P, N), -1, np.int32)
  for row_N, row in zip(reference_PN, references, strict=True):
    row_N[: len(row)] = row
  return compiled(rollout, prompts, reference_PN, tuple(knobs.items()))


TABLE = text.token_text(TOKENS)


@jax.jit(static_argnums=3)
def compiled(rollout, prompts, reference_PN, knobs):
  return explanation.explanation(
    rollout, prompts, TABLE, reference_PN=reference_PN, **dict(knobs)
  )


def reasonings(rng, G, P, longest):
  """References, and completions that follow them more or less."""
  words = range(256, 256 + len(WORDS))
  first, last = (TOKENS.index(tag) for tag in TAGS)
  completions, references = [], []
  for _ in range(P):
    reference = rng.choice(words, rng.integers(longest + 1)).tolist()
    references.append(reference)
    for _ in range(G):
      said = [i for i in reference if rng.random() < 0.8]
      for _ in range(rng.integers(4)):
        at = rng.integers(len(said) + 1)
        said[at:at] = rng.choice(len(TOKENS) + 2, rng.integers(5)).tolist()
      if rng.random() < 0.1:
        said = said * 10  # Much too long.
      tokens = [first, *said, last, *rng.choice(words, 3).tolist()]
      kind = rng.integers(8)
      if kind == 0:  # Without a tag, or with one in the middle.
        tokens.remove([first, last][rng.integers(2)])
      elif kind == 1:
        at = rng.integers(len(tokens))
        tokens.insert(at, [first, last][rng.integers(2)])
      elif kind == 2:  # Cut into other tokens.
        data = b''.join((TOKENS + [b''] * 2)[i] for i in tokens)
        tokens = test_rewards.encode(rng, TOKENS, data)
      elif kind == 3:
        tokens = tokens[: rng.integers(len(tokens))]
      completions.append(tokens)
  return completions, references


@pytest.mark.parametrize(
  'n, share, longest',
  [(1, 1.0, 40), (2, 0.5, 40), (2, 0.0, 65), (3, 1.0, 70), (4, 0.25, 31)],
)
def test_the_overlap_is_what_python_counts(n, share, longest):
  rng = np.random.default_rng([n, longest])
  P, G = 400, 5
  completions, references = reasonings(rng, G, P, longest)
  # The tables clamp ids: two past the end are the empty token.
  known = [[min(i, len(TOKENS)) for i in row] for row in completions]
  score_PG = score(known, references, longest, n=n, share=share)
  TOKENS.append(b'')
  try:
    expected_B = [
      oracle(row, references[b // G], n, share) for b, row in enumerate(known)
    ]
  finally:
    TOKENS.pop()
  np.testing.assert_allclose(score_PG.ravel(), expected_B, atol=1e-6)
  assert 0.1 < np.nanmean(expected_B) < 0.9
  assert 0 < np.isnan(expected_B).mean() < 0.1


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_overlap_of_any_tokens(data):
  word = st.sampled_from([*range(256, 260), *range(265, len(TOKENS))])
  rows = st.lists(word, max_size=12)
  completions = data.draw(st.lists(rows, min_size=40, max_size=40))
  references = data.draw(
    st.lists(st.lists(word, max_size=8), min_size=8, max_size=8)
  )
  completions = [[265, *row, 266] for row in completions]
  score_PG = score(completions, references, 8, T=18, n=2, share=0.5)
  expected_B = [
    oracle(row, references[b // 5], 2, 0.5) for b, row in enumerate(completions)
  ]
  np.testing.assert_allclose(score_PG.ravel(), expected_B, atol=1e-6)


def test_the_same_reasoning_is_1_with_or_without_tags_and_none_is_0():
  words = [256, 257, 258, 259]
  cases = [
    [265, *words, 266],
    [265, 266],
    words,
    [*words, 266, 256],
    [265, *words],
    [265, *words[::-1], 266],
    [265, 266, *words],
  ]
  score_PG = score(cases, [words], 4, n=2, share=0.5)
  np.testing.assert_allclose(score_PG, [[1, 0, 1, 1, 1, 0.125, 0]])


def test_a_token_that_stands_far_apart_in_the_reference_counts_once():
  """The carry goes through a word of bits that has nothing to do with it."""
  reference = [256, *range(80), 256]
  score_PG = score([[265, 256, 266]], [reference], 82, share=0.0)
  np.testing.assert_allclose(score_PG, [[2 / 83]], rtol=1e-6)


def test_the_reference_is_the_reasoning_of_the_example():
  class Tokenizer:
    def encode(self, words):
      return list(words.encode())

  example = datasets.Example('1+2?', '3', 'so 3')
  assert explanation.reference(example, Tokenizer(), n=3) == list(b'so 3')
