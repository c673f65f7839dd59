"""The mix: what a config says of its parts, and their weighted sum."""

import functools
import math
import re
import sys
import types as python_types

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_rewards

from grpo_jax import build, config, datasets, rewards, text, types
from grpo_jax.rewards import mix

GOOD = list(b'<think>x</think><answer>7</answer>')
WRONG = list(b'<think>x</think><answer>8</answer>')
SHAPELESS = list(b'7')


@pytest.fixture
def files(monkeypatch):
  """Two reward files more: one with knobs, one that asks what is right."""

  def brevity(rollout, prompts, text, *, limit=10, slope=1.0):
    return slope * (limit - rollout.lengths_PG).astype(jnp.float32)

  def praise(rollout, prompts, text, *, right_PG, loud=1.0):
    return jnp.where(right_PG, loud, -loud)

  def missing(rollout, prompts, text, *, where):
    """NaN for completions of that many tokens."""
    return jnp.where(rollout.lengths_PG == where, jnp.nan, 0.5)

  infos = [*mix.pkgutil.iter_modules(rewards.__path__)]
  for function in (brevity, praise, missing):
    name = function.__name__
    module = python_types.ModuleType(f'grpo_jax.rewards.{name}')
    setattr(module, name, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    infos.append(python_types.SimpleNamespace(name=name))
  monkeypatch.setattr(mix.pkgutil, 'iter_modules', lambda path: infos)


def total(completions, parts):
  scores = test_rewards.score(completions, **parts)
  return scores.total_PG[0].tolist()


def test_a_weight_and_a_mapping_with_it_are_the_same(files):
  plain = total([GOOD, SHAPELESS], {'answer': 1.0, 'format': 0.25})
  mapped = {'answer': {}, 'format': {'weight': 0.25}}
  assert plain == total([GOOD, SHAPELESS], mapped) == [1.25, 0]


def test_a_score_is_clipped_then_shifted_then_scaled(files):
  entry = {'clip': (-2, 5), 'shift': 1.0, 'scale': 10.0, 'weight': 0.5}
  # Scores are 10 - length: 9, -24 and 3; the metrics keep them as they are.
  scores = test_rewards.score([[65], GOOD, [65] * 7], brevity=entry)
  assert scores.parts['brevity'].tolist() == [[9, -24, 3]]
  assert scores.total_PG.tolist() == [[30, -5, 20]]


def test_a_gate_is_closed_where_another_part_is_below_a_bound(files):
  gated = {'gate': 'answer', 'shift': 3.0, 'weight': 1.0}
  parts = {'answer': 0.0, 'format': gated}
  assert total([GOOD, WRONG, SHAPELESS], parts) == [4, 0, 0]
  parts = {'answer': 0.0, 'format': gated | {'open': 0}}
  assert total([GOOD, WRONG, SHAPELESS], parts) == [4, 4, 3]


def test_a_gate_that_is_not_scored_leaves_the_part_out(files):
  parts = {
    'format': {'gate': 'missing'},
    'missing': {'where': len(GOOD), 'weight': 0},
    'answer': 1.0,
  }
  assert total([GOOD], parts) == [1]
  del parts['answer']
  assert np.isnan(total([GOOD], parts)).all()
  # Scored, the gate is 0.5: below 1, and open from 0.5 on.
  assert total([SHAPELESS], parts) == [0]
  parts['missing'] = {'where': 1, 'weight': 0}
  parts['format']['open'] = 0.5
  assert total([GOOD], parts) == [1]


def test_a_part_is_told_which_completions_another_one_found_right(files):
  parts = {'praise': {'loud': 2.0}, 'answer': 0.0}
  assert total([GOOD, WRONG], parts) == [2, -2]
  parts = {'praise': {'right': 'format'}, 'format': 0.0}
  assert total([GOOD, WRONG, SHAPELESS], parts) == [1, 1, -1]


def test_what_asks_for_an_unscored_part_is_not_scored_either(files):
  scores = test_rewards.score(
    [GOOD, GOOD[:-1]],
    missing={'where': len(GOOD), 'weight': 0.0},
    praise={'right': 'missing', 'loud': 2.0},
  )
  np.testing.assert_array_equal(scores.parts['praise'], [[np.nan, -2.0]])


def test_one_file_may_be_two_parts(files):
  parts = {
    'brevity': {'limit': 2},
    'steep': {'file': 'brevity', 'limit': 1, 'slope': 3.0},
  }
  scores = test_rewards.score([SHAPELESS, [65] * 3], **parts)
  assert scores.parts['brevity'].tolist() == [[1, -1]]
  assert scores.parts['steep'].tolist() == [[0, -6]]
  assert scores.total_PG.tolist() == [[1, -7]]


def test_parts_come_back_in_the_order_in_which_they_were_declared(files):
  parts = {'praise': {}, 'format': 0.1, 'answer': 1.0, 'brevity': {}}
  assert [*test_rewards.score([GOOD], **parts).parts] == [*parts]
  asked = [part.name for part in mix.parse(parts)]
  assert asked == ['format', 'answer', 'brevity', 'praise']


def test_each_part_reads_with_machines_of_its_own():
  parts = {
    'one': {'file': 'pattern', 'regex': 'a+'},
    'two': {'file': 'pattern', 'regex': 'b+'},
  }
  rollout, prompts = test_rewards.make_rollout(
    np.random.default_rng(0), [[97, 97], [98]], [b'7'], 2
  )
  table = rewards.token_text([bytes([byte]) for byte in range(256)], parts)
  scores = rewards.reward(rollout, prompts, table, parts).parts
  assert scores['one'].tolist() == [[1, 0]]
  assert scores['two'].tolist() == [[0, 1]]
  assert set(table.tags) == set(text.TAGS)


@pytest.mark.parametrize(
  'parts,words',
  [
    ({'anwser': 1.0}, "no reward 'anwser'; there are answer,"),
    ({'brief': {'file': 'brevty'}}, "no reward 'brevty'; there are answer,"),
    (
      {'brevity': {'limits': 3}},
      "reward.brevity.limits: 'brevity' does not take it; it takes weight, ",
    ),
    ({'brevity': {'limits': 3}}, 'gate, open, right, only, limit, slope'),
    ({'praise': {'right_PG': 1}, 'answer': 1}, 'reward.praise.right_PG: '),
    ({'format': {'clip': (1, 0)}}, 'reward.format.clip=(1, 0) must be (low,'),
    ({'format': {'clip': (1,)}}, 'reward.format.clip=(1,) must be (low, high)'),
    ({'format': {'clip': 1.0}}, 'reward.format.clip=1.0 must be (low, high)'),
    ({'format': {'gate': ['a']}}, "reward.format.gate=['a'] must be a name"),
    ({'format': {'scale': 'x'}}, "reward.format.scale='x' must be a number"),
    ({'format': math.nan}, 'reward.format.weight=nan must be a number'),
    (
      {'format': {'gate': 'answer'}},
      "reward.format.gate='answer' is not another of the parts format",
    ),
    ({'format': {'gate': 'format'}}, "reward.format.gate='format' is not"),
    (
      {'praise': {}, 'format': 1.0},
      "reward.praise.right='answer' is not one of the parts format: give it",
    ),
    (
      {'praise': {'right': 'praise'}, 'answer': 1},
      'is not one of the parts an',
    ),
  ],
)
def test_what_does_not_exist_is_refused_with_what_does(files, parts, words):
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    mix.parse(parts)
  assert '\n' not in str(error.value)


# XLA takes the smallest of floats for 0.
NUMBERS = st.floats(-4, 4, width=32, allow_subnormal=False)
SCORES = st.lists(st.one_of(st.just(math.nan), NUMBERS), min_size=6, max_size=6)


@st.composite
def mixes(draw):
  """Parts with their scores, of which some open or close others."""
  names = 'abcd'[: draw(st.integers(1, 4))]
  parts, scores = [], {}
  for name in names:
    clip = draw(st.none() | st.tuples(NUMBERS, NUMBERS).map(sorted))
    parts.append(
      mix.Part(
        name=name,
        weight=draw(st.sampled_from([0, 0, 1, -0.5, 2]) if parts else NUMBERS),
        clip=clip,
        shift=draw(NUMBERS),
        scale=draw(NUMBERS),
        gate=draw(st.sampled_from(['', *names])),
        open=draw(NUMBERS),
      )
    )
    scores[name] = draw(SCORES)
  return parts, scores


def total_of(parts, scores, b):
  """The total of one completion, with one number at a time."""
  total, scored = 0.0, False
  for part in parts:
    score = scores[part.name][b]
    gate = scores[part.gate][b] if part.gate else part.open
    closed = gate < part.open  # Then it is 0, whatever the score is.
    if part.weight == 0 or math.isnan(gate):
      continue
    if math.isnan(score) and not closed:
      continue
    scored = True
    if closed:
      continue
    if part.clip:
      score = min(max(score, part.clip[0]), part.clip[1])
    total += part.weight * (score + part.shift) * part.scale
  return total if scored else math.nan


@settings(max_examples=150, deadline=None)
@given(mixes())
def test_the_total_is_what_a_plain_loop_adds_up(drawn):
  parts, scores = drawn
  if not any(part.weight for part in parts):
    return
  arrays = {name: jnp.array([row], 'float32') for name, row in scores.items()}
  total_PG = mix.total(arrays, parts)
  expected = [[total_of(parts, scores, b) for b in range(6)]]
  np.testing.assert_allclose(total_PG, expected, rtol=1e-5, atol=1e-4)


def examples(*kinds):
  return [
    datasets.Example(f'{i}', '7', columns={'kind': kind})
    for i, kind in enumerate(kinds)
  ]


def test_rules_score_some_problems_of_a_batch_and_a_model_the_others():
  parts = {
    'answer': {'only': 'kind=maths'},
    'reward_model': {'only': 'kind=chat', 'init': 'x', 'pieces': 3},
    'format': 0.5,
  }
  rollout, prompts = test_rewards.make_rollout(
    np.random.default_rng(0), [GOOD, WRONG, SHAPELESS] * 3, [b'7'] * 3, 3
  )
  rollout = rollout.replace(ended_PG=jnp.ones((3, 3), bool))
  told = rewards.references(examples('maths', 'chat', 'else'), None, parts)
  prompts = prompts.replace(
    references={name: np.array(rows) for name, rows in told.items()}
  )
  table = text.token_text([bytes([byte]) for byte in range(256)])
  table = table.replace(
    scorers={
      'reward_model': types.Scorer(
        {'w': jnp.float32(0.1)}, lambda params, x: params['w'] * x.lengths_PG
      )
    }
  )
  run = jax.jit(functools.partial(rewards.reward, mix=parts))
  found = run(rollout, prompts, table)
  nan, length = math.nan, 0.1 * len(GOOD)
  for name, expected in (
    ('answer', [[1, 0, 0], [nan] * 3, [nan] * 3]),
    ('reward_model', [[nan] * 3, [length, length, 0.1], [nan] * 3]),
    ('format', [[1, 1, 0]] * 3),
  ):
    np.testing.assert_allclose(found.parts[name], expected, rtol=1e-6)
  total = [[1.5, 0.5, 0], [length + 0.5, length + 0.5, 0.1], [0.5, 0.5, 0]]
  np.testing.assert_allclose(found.total_PG, total, rtol=1e-6)


@pytest.mark.parametrize('only', ['kind', '=maths', 'kind='])
def test_only_names_a_column_and_its_value(only):
  words = f"reward.answer.only='{only}' must be 'column=value'"
  with pytest.raises(ValueError, match=words):
    mix.parse({'answer': {'only': only}})


def test_a_value_that_no_problem_has_is_refused(tmp_path):
  c = config.default()
  c.data.knobs = {'problems': 100}
  c.reward = {'answer': 1.0, 'format': {'only': 'kind=chat'}}
  words = "reward.format.only='kind=chat': no problem has that"
  with pytest.raises(ValueError, match=words):
    build.build(c, str(tmp_path))
