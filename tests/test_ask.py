"""Streams equal rollouts; text arrives whole; tags are set apart."""

import sys

import jax
import pytest

from grpo_jax import ask, build, datasets, opened, rollout, train

sys.path.append('configs')
import quickstart  # noqa: E402

T = 12


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
  c = quickstart.get_config('smoke')
  c.model.unroll = False
  c.pretrain.steps = 0
  c.rollout.max_tokens = T
  c.data.prompts = 8
  run = build.build(c, str(tmp_path_factory.mktemp('ask')), jax.devices()[:1])
  return run, train.start(run).params


@pytest.mark.parametrize(
  'temperature, top_p', [(1.0, 1.0), (0.7, 0.8), (0.0, 1.0)]
)
def test_a_stream_has_the_tokens_of_a_rollout(policy, temperature, top_p):
  run, params = policy
  programs = train.stream(run, temperature, top_p)
  examples = run.dataset.batch('heldout', 4, 0, 0)
  prompts = run.encode(examples)
  rolled = rollout.rollout(
    params,
    prompts,
    jax.random.key(5),
    model=run.model,
    group_size=1,
    max_tokens=T,
    stop_ids=run.tokenizer.eos_ids,
    temperature=temperature,
    top_p=top_p,
  )
  seen = set()
  for p, example in enumerate(examples):
    ids = opened.to_ids(run.config, run.tokenizer, example.prompt)
    found = list(ask.stream(run, params, programs, ids, 5, example.id))
    length = rolled.lengths_PG[p, 0]
    assert found == rolled.tokens_PGT[p, 0, :length].tolist()
    seen.add(tuple(found))
  assert len(seen) > 1


def test_a_longer_prompt_compiles_only_at_powers_of_two(policy):
  run, params = policy
  programs = train.stream(run, 1.0, 1.0)
  for length in (17, 20, 25, 32):
    list(ask.stream(run, params, programs, [3] * length))
  assert programs.begin._cache_size() == 1
  assert programs.advance._cache_size() == 1
  assert [ask.padded(x) for x in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]


def test_a_character_that_is_cut_waits_for_its_bytes():
  whole = 'a√ 😀é'
  vocabulary = [bytes([x]) for x in range(256)]
  pieces = list(ask.text(vocabulary, whole.encode()))
  assert ''.join(pieces) == whole
  assert all('\ufffd' not in piece for piece in pieces)
  assert ''.join(ask.text(vocabulary, [0xE2, 0x88])) == '\ufffd'
  assert ''.join(ask.text([b'x'], [0, 7])) == 'x'  # An id without a meaning.


@pytest.mark.parametrize('size', [1, 2, 3, 100])
@pytest.mark.parametrize(
  'said, reasoning, answer',
  [
    ('<think>a<b</think><answer>7</answer>', 'a<b', '7'),
    ('<think>a', 'a', ''),
    ('plain < text <thin', '', 'plain < text <thin'),
    ('<answer>7</answer>', '', '7'),
  ],
)
def test_tags_are_dropped_and_say_what_is_what(said, size, reasoning, answer):
  pieces = (said[i : i + size] for i in range(0, len(said), size))
  found = {'reasoning': '', 'answer': ''}
  for kind, piece in ask.marked(pieces):
    found[kind] += piece
  assert found == {'reasoning': reasoning, 'answer': answer}
  assert ask.split(said) == (reasoning, answer)


def test_the_oldest_turns_go_first_and_the_instruction_stays():
  turns = [{'role': 'system', 'content': 'xx'}]
  for i in range(3):
    turns += [
      {'role': 'user', 'content': f'q{i}'},
      {'role': 'assistant', 'content': f'a{i}'},
    ]
  turns.append({'role': 'user', 'content': 'now'})

  def count(turns):
    return sum(len(turn['content']) for turn in turns)

  kept = ask.fit_turns(turns, 1, count, 13)
  assert [x['content'] for x in kept] == ['xx', 'q1', 'a1', 'q2', 'a2', 'now']
  kept = ask.fit_turns(turns, 1, count, 5)
  assert [x['content'] for x in kept] == ['xx', 'now']
  with pytest.raises(ValueError, match='prompt of 5 tokens'):
    ask.fit_turns(turns, 1, count, 4)


def test_problems_in_memory_read_as_those_on_disk():
  examples = [
    datasets.Example(f'q{i}', f'{i}', 'r', {'x': [i]}) for i in range(3)
  ]
  held = datasets.of(examples)
  assert held.all('heldout') == examples == held.all('train')
  with pytest.raises(ValueError, match='no problems'):
    datasets.of([])
