"""Questions to a policy: streamed answers, groups with their rewards, chats.

  stream(policy, ids, ...) -> the completion's text, piece by piece
  group(run, params, ...) -> completions with rewards, the best one first
  split(text) -> reasoning, answer
  fit_turns(turns, count, room) -> turns without the oldest

A streamed completion is the one that `rollout` samples with the same seed: the
tokens come from the same two functions, one at a time. Prompts and completions
are padded to powers of two, so that a chat compiles nothing anew as it grows,
but for its next doubling.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from grpo_jax import build, evaluate, opened, records, sharding, train
from grpo_jax.datasets import Example
from grpo_jax.types import Params, Prompts

Chat = list[dict[str, str]]


def stream(
  run: build.Run,
  params: Params,
  programs: train.Stream,
  ids: Sequence[int],
  seed: int = 0,
  prompt_id: int = 0,
) -> Iterator[int]:
  """Token ids of a completion as they are sampled, the stop token too.

  Args:
    run: with the policy's model and mesh.
    params: its parameters.
    programs: train.stream(run, ...).
    ids: the prompt.
    seed: of the noise.
    prompt_id: names the prompt in the noise, as Example.id does.
  """
  L = padded(len(ids))
  tokens_PL = np.zeros((1, L), np.int32)
  tokens_PL[0, : len(ids)] = ids
  prompts = Prompts(
    tokens_PL,
    np.array([len(ids)], np.int32),
    np.array([prompt_id], np.uint32),
    np.zeros((1, 1), np.uint8),
  )
  with jax.set_mesh(run.mesh):
    fixed, loop = programs.begin(params, prompts, jax.random.key(seed))
    for t in range(programs.max_tokens):
      if t:
        loop = programs.advance(fixed, loop)
      token, done = int(loop.tokens_BT[0, t]), bool(loop.done_B[0])
      yield token
      if done:
        return


def padded(length: int) -> int:
  """The next power of two, at least 16."""
  return max(16, 1 << (length - 1).bit_length())


def text(token_bytes: Sequence[bytes], ids: Iterable[int]) -> Iterator[str]:
  """Text of tokens; a character that is cut waits for its other bytes."""
  decoder = codecs.getincrementaldecoder('utf-8')('replace')
  for i in ids:
    yield decoder.decode(token_bytes[i] if i < len(token_bytes) else b'')
  yield decoder.decode(b'', final=True)


def split(said: str) -> tuple[str, str]:
  """The reasoning and the answer of a completion, without their tags.

  What is thought stands before </think>, or in an open <think>; without either
  all is answer.
  """
  thought, closing, rest = said.partition('</think>')
  if not closing:
    before, opening, thought = said.partition('<think>')
    if not opening:
      thought, rest = '', said
    else:
      rest = before
  thought = thought.strip().removeprefix('<think>').strip()
  rest = rest.replace('<answer>', '').replace('</answer>', '')
  return thought, rest.strip()


def marked(pieces: Iterator[str]) -> Iterator[tuple[str, str]]:
  """('reasoning' or 'answer', piece) of a stream; tags themselves are dropped.

  What may be the beginning of a tag is held back until it is clear.
  """
  kind, held = 'answer', ''
  for piece in pieces:
    held += piece
    while True:
      at = held.find('<')
      if at < 0:
        at = len(held)
      if at:
        yield kind, held[:at]
        held = held[at:]
      tag = next((x for x in _TAGS if held.startswith(x)), None)
      if tag:
        kind, held = _TAGS[tag], held[len(tag) :]
      elif held and not any(x.startswith(held) for x in _TAGS):
        yield kind, held[0]  # No tag after all.
        held = held[1:]
      else:
        break
  if held:
    yield kind, held


_TAGS = {  # -> what stands behind it.
  '<think>': 'reasoning',
  '</think>': 'answer',
  '<answer>': 'answer',
  '</answer>': 'answer',
}


def fit_turns(
  turns: Chat, fixed: int, count: Callable[[Chat], int], room: int
) -> Chat:
  """Without the oldest questions and their answers, as far as needed.

  Args:
    turns: the last is the question.
    fixed: so many turns at the start stay: instruction and worked examples.
    count: tokens of a prompt of these turns.
    room: tokens that it may have.

  Raises:
    ValueError: the question alone is longer.
  """
  turns = list(turns)
  while (tokens := count(turns)) > room:
    if len(turns) - fixed < 3:
      check_room(tokens, room)
    del turns[fixed : fixed + 2]
  return turns


def check_room(tokens: int, room: int) -> None:
  """Raises ValueError for a prompt that is longer."""
  if tokens > room:
    raise ValueError(
      f'this question is a prompt of {tokens} tokens; there is room for '
      f'{room} (--context less --max-tokens)'
    )


def group(
  run: build.Run, params: Params, samples: train.Samples, example: Example
) -> list[dict[str, Any]]:
  """Completions of one question with rewards; the greatest advantage first."""
  with jax.set_mesh(run.mesh):
    rollout, rewards = sharding.to_host(
      samples.sample(params, run.encode([example]), run.config.seed, [example])
    )
  advantages_PG = records.advantages(run, rollout, rewards)
  found = []
  for g, length in enumerate(rollout.lengths_PG[0]):
    said = run.tokenizer.decode(rollout.tokens_PGT[0, g, :length].tolist())
    reasoning, answer = split(said)
    found.append(
      {
        'sample': g,
        'text': said,
        'reasoning': reasoning,
        'answer': answer,
        'tokens': int(length),
        'ended': bool(rollout.ended_PG[0, g]),
        'reward': evaluate.or_none(rewards.total_PG[0, g]),
        'reward_parts': {
          name: evaluate.or_none(score_PG[0, g])
          for name, score_PG in rewards.parts.items()
        },
        'advantage': evaluate.or_none(advantages_PG[0, g]),
      }
    )
  worst = float('-inf')
  return sorted(
    found,
    key=lambda x: worst if x['advantage'] is None else x['advantage'],
    reverse=True,
  )


def open_policy(c: ConfigDict, folder: str, example: Example, n: int):
  """Run and parameters to ask one question, or several in turn."""
  c.mesh.update(data=1, tensor=-1)  # There is one prompt.
  c.data.prompts = 1
  c.eval.update(problems=1, batch=1, samples=n)
  return opened.load(c, folder, opened.datasets.of([example]))
