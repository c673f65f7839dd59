"""Device rewards against regular expressions on the decoded text."""

import re
import sys
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import rewards, text, types
from grpo_jax.rewards import mix

ANSWERS = [b'7', b'42', b'-3', '√2'.encode(), b'a b']
C = 6
FORMAT = re.compile(
  rb'\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*', re.DOTALL
)


def answer_oracle(data, reference):
  if data.count(b'<answer>') != 1 or data.count(b'</answer>') != 1:
    return 0.0
  match = re.search(rb'<answer>(.*)</answer>', data, re.DOTALL)
  return float(match is not None and match[1].strip() == reference)


def format_oracle(data, ended):
  if any(data.count(tag.encode()) != 1 for tag in text.TAGS) or not ended:
    return 0.0
  match = FORMAT.fullmatch(data)
  return float(match is not None and all(match[k].strip() for k in (1, 2)))


def fragments(rng):
  """Every byte, and pieces of what the completions are made of."""
  source = b'<think>1+2=3</think>\n<answer> 42 </answer> <answer>7</answer>'
  cuts = rng.integers([len(source), 7], size=(150, 2))
  pieces = [source[start : start + size] for start, size in cuts]
  return [bytes([byte]) for byte in range(256)] + pieces + [b'', b'', b'><']


def whole_tags(rng):
  del rng
  return [bytes([byte]) for byte in range(256)] + [
    tag.encode() for tag in text.TAGS
  ]


def completion(rng, reference):
  """A right completion, mutated more or less, or nothing like one."""

  def choose(*options):
    return options[rng.integers(len(options))]

  pieces = [
    choose(b'', b'', b' ', b'\n'),
    b'<think>',
    choose(b'1+2', b'x', b' y ', b'', b' ', b'a<b'),
    b'</think>',
    choose(b'', b'', b'\n', b' \t ', b'.'),
    b'<answer>',
    choose(b'', b'', b' ', b'\n ', b' ' * 12),
    choose(*[reference] * 4, b'8', reference + b'0', reference + b'\0', b''),
    choose(b'', b'', b' ', b'\n ', b' ' * 12),
    b'</answer>',
    choose(b'', b'', b' ', b'\n', b'\0', b'!'),
  ]
  if rng.random() < 0.5:
    k, j = rng.integers(len(pieces), size=2)
    mutation = rng.integers(4)
    if mutation == 0:
      del pieces[k]
    elif mutation == 1:
      pieces.insert(k, pieces[j])
    elif mutation == 2:
      pieces[k], pieces[j] = pieces[j], pieces[k]
    else:
      cut = rng.integers(len(pieces[k]) + 1)
      pieces[k] = pieces[k][:cut] + rng.bytes(1) + pieces[k][cut + 1 :]
  return b''.join(pieces) if rng.random() < 0.98 else b''


def encode(rng, vocabulary, data):
  """Cuts a text into tokens at random, with empty tokens in between."""
  ids = {}
  for i, piece in enumerate(vocabulary):
    ids.setdefault(piece, []).append(i)
  tokens, at = [], 0
  while at < len(data):
    ahead = sorted({data[at : at + size] for size in range(10)})
    fits = [i for piece in ahead for i in ids.get(piece, ())]
    tokens.append(fits[rng.integers(len(fits))])
    at += len(vocabulary[tokens[-1]])
  return tokens


def make_rollout(rng, token_lists, answers, G):
  """Completions in [P, G], with noise in the padding."""
  B, T = len(token_lists), max(1, *map(len, token_lists)) + 2
  tokens_BT = rng.integers(0, 256, (B, T), dtype=np.int32)
  for row_T, tokens in zip(tokens_BT, token_lists, strict=True):
    row_T[: len(tokens)] = tokens
  lengths_B = np.array([len(tokens) for tokens in token_lists], np.int32)
  P = B // G
  prompts = types.Prompts(
    tokens_PL=jnp.zeros((P, 1), jnp.int32),
    lengths_P=jnp.ones(P, jnp.int32),
    ids_P=jnp.arange(P, dtype=jnp.uint32),
    answers_PC=jnp.array([list(x.ljust(C, b'\0')) for x in answers], 'uint8'),
  )
  rollout = types.Rollout(
    prompts=prompts,
    tokens_PGT=jnp.asarray(tokens_BT.reshape(P, G, T)),
    lengths_PG=jnp.asarray(lengths_B.reshape(P, G)),
    ended_PG=jnp.asarray(rng.random((P, G)) < 0.9),
    logps_PGT=jnp.zeros((P, G, T)),
    actions_PGT=jnp.ones((P, G, T), bool),
  )
  return rollout, prompts


def score(completions, reference=b'7', ended=True, **parts):
  """Rewards of a few completions of one prompt, byte by byte."""
  rng = np.random.default_rng(0)
  args = [*make_rollout(rng, completions, [reference], len(completions))]
  args[0] = args[0].replace(ended_PG=jnp.full_like(args[0].ended_PG, ended))
  table = text.token_text([bytes([byte]) for byte in range(256)])
  return rewards.reward(*args, table, parts or {'answer': 1.0, 'format': 0.5})


@pytest.mark.parametrize('vocabulary', [fragments, whole_tags])
@pytest.mark.parametrize('seed', [0, 1])
def test_rewards_equal_regular_expressions_on_mutated_text(vocabulary, seed):
  rng = np.random.default_rng(seed)
  vocabulary = vocabulary(rng)
  P, G = 250, 8
  answers = [ANSWERS[i] for i in rng.integers(len(ANSWERS), size=P)]
  texts = [completion(rng, answer) for answer in answers for _ in range(G)]
  tokens = [encode(rng, vocabulary, data) for data in texts]
  rollout, prompts = make_rollout(rng, tokens, answers, G)
  ended_B = np.asarray(rollout.ended_PG).reshape(-1)
  parts = {'answer': 1.0, 'format': 0.25}
  table = text.token_text(vocabulary)
  scores = jax.jit(lambda *args: rewards.reward(*args, parts))(
    rollout, prompts, table
  )

  pairs = zip(texts, np.repeat(np.array(answers, object), G), strict=True)
  answer_B = np.array([answer_oracle(*pair) for pair in pairs])
  ends = zip(texts, ended_B, strict=True)
  format_B = np.array([format_oracle(*pair) for pair in ends])
  assert 0.2 < answer_B.mean() < 0.8 and 0.1 < format_B.mean() < 0.8
  np.testing.assert_array_equal(scores.parts['answer'].ravel(), answer_B)
  np.testing.assert_array_equal(scores.parts['format'].ravel(), format_B)
  np.testing.assert_array_equal(
    scores.total_PG.ravel(), answer_B + 0.25 * format_B
  )
  assert scores.total_PG.shape == (P, G)
  assert scores.total_PG.dtype == jnp.float32


@pytest.mark.parametrize('name', ['answer', 'format'])
def test_the_rules_hold_on_cases_that_are_named(name):
  good = b'<think>3+4</think><answer>7</answer>'
  cases = {  # Completion -> (answer, format).
    good: (1, 1),
    b'': (0, 0),
    b' \n<think>3+4</think>\n\n<answer> 7\t</answer>\n': (1, 1),
    b'<answer>7</answer>': (1, 0),
    b'<think> \n</think><answer>7</answer>': (1, 0),
    b'<think>x</think><answer> </answer>': (0, 0),
    b'<think>x</think><answer>8</answer>': (0, 1),
    b'<think>x</think><answer>7.</answer>': (0, 1),
    b'<think>x</think><answer>7\0</answer>': (0, 1),
    b'<think>x</think><answer>7' + b'7' * 40 + b'</answer>': (0, 1),
    b'<think>x</think><answer>' + b' ' * 40 + b'7</answer>': (1, 1),
    good + good: (0, 0),
    good + b'</answer>': (0, 0),
    b'</answer>7<answer>': (0, 0),
    b'<answer>7</answer><think>x</think>': (1, 0),
    b'<think>x<answer>7</think></answer>': (0, 0),
    b'Well, ' + good: (1, 0),
    good + b' Bye.': (1, 0),
    b'<think>x</think>so<answer>7</answer>': (1, 0),
    b'<think>x</think><answer>7</answer': (0, 0),
  }
  scores = score([list(data) for data in cases]).parts[name][0]
  expected = [pair[name == 'format'] for pair in cases.values()]
  np.testing.assert_array_equal(scores, expected)


def test_a_completion_that_was_cut_off_has_no_format():
  good = list(b'<think>x</think><answer>7</answer>')
  scores = score([good], ended=False)
  assert scores.parts['answer'] == 1 and scores.parts['format'] == 0


def test_a_problem_without_a_reference_has_no_answer_to_score():
  empty = list(b'<answer></answer>')
  parts = score([empty], b'').parts
  assert np.isnan(parts['answer']) and parts['format'] == 0


def test_a_reward_without_weight_is_only_a_metric():
  good = list(b'<think>x</think><answer>7</answer>')
  scores = score([good], answer=0.0, format=2.0)
  assert scores.total_PG == 2 and scores.parts['answer'] == 1


def test_nan_leaves_a_part_out_and_nothing_scored_is_nan():
  nan = np.nan
  parts = {
    'a': jnp.array([[1.0, nan, 1.0, nan, nan]]),
    'b': jnp.array([[1.0, 1.0, nan, nan, nan]]),
    'metric': jnp.array([[9.0, 9.0, nan, nan, 9.0]]),
  }
  weights = {'a': 0.5, 'b': 2.0, 'metric': 0.0}
  total_PG = mix.total(parts, [mix.Part(*item) for item in weights.items()])
  np.testing.assert_array_equal(total_PG, [[2.5, 2.0, 0.5, nan, nan]])


def test_one_file_adds_a_reward(monkeypatch):
  module = python_types.ModuleType('grpo_jax.rewards.brevity')
  module.brevity = lambda rollout, prompts, text: -1.0 * rollout.lengths_PG
  monkeypatch.setitem(sys.modules, module.__name__, module)
  found = [*mix.pkgutil.iter_modules(rewards.__path__)]
  found.append(python_types.SimpleNamespace(name='brevity'))
  monkeypatch.setattr(mix.pkgutil, 'iter_modules', lambda path: found)
  scores = score([[65, 66, 67]], answer=1.0, brevity=0.1)
  np.testing.assert_allclose(scores.total_PG, [[-0.3]], rtol=1e-6)


def test_an_unknown_reward_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="no reward 'anwser'; there are answer,"):
    mix.load('anwser')


def test_the_reward_compiles_without_a_callback():
  rng = np.random.default_rng(0)
  rollout, prompts = make_rollout(rng, [[1], [2, 3]], [b'7'], 2)
  table = text.token_text([bytes([byte]) for byte in range(256)])
  jaxpr = jax.make_jaxpr(
    lambda *args: rewards.reward(*args, {'answer': 1.0, 'format': 0.1})
  )(rollout, prompts, table)
  assert 'callback' not in str(jaxpr)
  assert not jaxpr.effects  # Debug prints.
