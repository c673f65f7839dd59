"""Host rewards: what happens between two compiled halves of an iteration.

A batch is sampled in pieces: while workers score one (rewards/host), the device
samples the next. Each process scores its own share of the prompts.

Dimension key: P prompts of a piece, or of all pieces; G completions of each.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import os
import time

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import numpy as np

from grpo_jax import build, config, sharding
from grpo_jax.datasets import Example
from grpo_jax.rewards import host, mix
from grpo_jax.types import Prompts, Rewards, Rollout


def specs(c: ConfigDict) -> list[host.Spec]:
  """What of the reward the host has to score."""
  parts = mix.parse(config.reward_mix(c))
  return [part.host for part in parts if part.host]


def open_pool(run: build.Run) -> host.Pool | None:
  """Starts the workers, if the reward has anything for them.

  Raises ValueError, in one line, for a reward that cannot work here.
  """
  wanted = specs(run.config)
  if not wanted:
    return None
  return host.Pool(wanted, run.config.host.workers or os.cpu_count())


def cut(prompts: Prompts, pieces: int) -> list[Prompts]:
  """Equal pieces of a batch, in order."""
  size = len(prompts.lengths_P) // pieces
  return [
    jax.tree.map(lambda x: x[i * size : (i + 1) * size], prompts)  # noqa: B023
    for i in range(pieces)
  ]


def like(c: ConfigDict, rolled: Sequence[Rollout], where) -> dict:
  """The shapes of what the host says of these pieces together."""
  P, G = rolled[0].lengths_PG.shape
  shape = len(rolled) * P, G
  score_PG = jax.ShapeDtypeStruct(shape, np.float32, sharding=where)
  return {spec.name: score_PG for spec in specs(c)}


def through_host(
  run: build.Run,
  pool: host.Pool,
  roll: Callable[[Prompts], Rollout],
  score: Callable[..., tuple[Rollout, Rewards]],
  pieces: Sequence[Prompts],
  examples: Sequence[Example],
) -> tuple[Rollout, Rewards, list[host.Failure], dict[str, float]]:
  """Samples and scores a batch, device and host side by side.

  Args:
    run: for its tokenizer.
    pool: the workers.
    roll: a piece -> its completions; compiled, returns before it is done.
    score: (pieces' completions, host scores) -> completions and rewards.
    pieces: the prompts.
    examples: those of all pieces; rows beyond the last are padding.

  Returns:
    completions, rewards, what this process could not score, and the clock:
    `time/rollout` until the last piece was sampled, `time/reward` from then
    on; `host/seconds` from the first submission to the last score, and
    `host/hidden`, the share of it in which the device sampled.
  """
  begun = time.perf_counter()
  rolled = [roll(piece) for piece in pieces]  # The device has no pause.
  pending, first = [], 0
  for part in rolled:
    some = examples[first : first + len(part.lengths_PG)]
    pending.append(_submit(pool, run, part, some))
    first += len(part.lengths_PG)
  sampled = time.perf_counter()
  scores, failures = _collect(pending)
  answered = time.perf_counter()
  rollout, rewards = jax.block_until_ready(score(tuple(rolled), scores))
  numbers = {
    'time/rollout': sampled - begun,
    'time/reward': time.perf_counter() - sampled,
    'host/seconds': answered - pending[0].begun,
    'host/hidden': (
      (sampled - pending[0].begun) / (answered - pending[0].begun)
    ),
    'host/failed': float(len(failures)),
  }
  if jax.process_count() > 1:
    gathered = multihost_utils.process_allgather(numbers)
    numbers = {name: x.mean() for name, x in gathered.items()}
    numbers['host/failed'] = gathered['host/failed'].sum()
  return rollout, rewards, failures, numbers


@dataclasses.dataclass(frozen=True)
class Pending:
  """A piece of a batch whose completions are with the workers."""

  shape: tuple[int, int]  # P, G.
  rows: np.ndarray  # The prompts that this process scores.
  future: concurrent.futures.Future
  begun: float  # time.perf_counter()


def _submit(pool, run, rolled, examples) -> Pending:
  """Waits for the completions of a piece and hands them over."""
  tokens_PGT, lengths_PG = sharding.to_host(
    (rolled.tokens_PGT, rolled.lengths_PG)
  )
  P, G = lengths_PG.shape
  shares = np.array_split(np.arange(len(examples)), jax.process_count())
  rows = shares[jax.process_index()]
  completions = [
    host.Completion(
      text=run.tokenizer.decode(ids),
      prompt=example.prompt,
      answer=example.answer,
      columns=dict(example.columns),
      source=example.columns.get('source', run.config.data.name),
      token_ids=tuple(ids),
    )
    for p in rows
    for example in [examples[p]]
    for ids in map(_written, tokens_PGT[p], lengths_PG[p])
  ]
  begun = time.perf_counter()
  return Pending((P, G), rows, pool.submit(completions, group_size=G), begun)


def _written(tokens_T, length) -> list[int]:
  return tokens_T[:length].tolist()


def _collect(pieces: Sequence[Pending]):
  """Scores of all pieces as every process needs them, and own failures."""
  scores, failures = {}, []
  for piece in pieces:
    outcome = piece.future.result()
    failures += outcome.failures
    for name, found in outcome.scores.items():
      score_PG = np.zeros(piece.shape, np.float32)  # 0: others score it.
      score_PG[piece.rows] = np.reshape(found, (-1, piece.shape[1]))
      scores.setdefault(name, []).append(score_PG)
  scores = {name: np.concatenate(found) for name, found in scores.items()}
  if jax.process_count() > 1:
    gathered = multihost_utils.process_allgather(scores)
    scores = {name: x.sum(axis=0) for name, x in gathered.items()}
  return scores, failures
