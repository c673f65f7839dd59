"""Host rewards: what happens between two compiled halves of an iteration.

A batch is sampled in pieces: while workers score one (rewards/host), the device
samples the next. Each process scores the prompts that its devices hold.

Dimension key: P prompts of a piece, or of all pieces; G completions of each.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import json
import os
import time

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import numpy as np

from grpo_jax import build, config
from grpo_jax.datasets import Example
from grpo_jax.rewards import host, mix
from grpo_jax.types import Prompts, Rewards, Rollout

KINDS = ('raised', 'nan', 'hung', 'died')  # Of failures; see rewards/host.


@dataclasses.dataclass(frozen=True)
class Pending:
  """A piece of a batch whose completions are with the workers."""

  shape: tuple[int, int]  # P, G.
  rows: np.ndarray  # The prompts that this process scores.
  future: concurrent.futures.Future
  begun: float  # time.perf_counter()


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
  workers = run.config.host.workers or len(os.sched_getaffinity(0))
  return host.Pool(wanted, workers)


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
    completions, rewards, what could not be scored, and the clock:
    `time/rollout` until the last piece was sampled, `time/reward` from then
    on; `host/seconds` from the first submission to the last score, and
    `host/hidden`, the share of it in which the device sampled. `host/hung`
    and the like count the failures of each kind; a run that goes on repeats
    what it would have done if no deadline was hit.
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
  spent = answered - pending[0].begun
  numbers = {
    'time/rollout': sampled - begun,
    'time/reward': time.perf_counter() - sampled,
    'host/seconds': spent,
    'host/hidden': (sampled - pending[0].begun) / spent,
  }
  if jax.process_count() > 1:
    numbers, failures = _share(numbers, failures)
  for kind in KINDS:
    count = sum(failure.kind == kind for failure in failures)
    numbers[f'host/{kind}'] = float(count)
  return rollout, rewards, failures, numbers


def _submit(pool, run, rolled, examples) -> Pending:
  """Waits for this process's completions of a piece and hands them over."""
  rows, tokens_PGT = _own(rolled.tokens_PGT)
  _, lengths_PG = _own(rolled.lengths_PG)
  kept = rows < len(examples)  # Others are padding.
  rows = rows[kept]
  completions = [
    host.Completion(
      text=run.tokenizer.decode(ids),
      prompt=example.prompt,
      answer=example.answer,
      columns=dict(example.columns),
      source=example.columns.get('source', run.config.data.name),
      token_ids=tuple(ids),
    )
    for p, tokens_GT, lengths_G in zip(
      rows, tokens_PGT[kept], lengths_PG[kept], strict=True
    )
    for example in [examples[p]]
    for ids in map(_written, tokens_GT, lengths_G)
  ]
  begun = time.perf_counter()
  P, G = rolled.lengths_PG.shape
  return Pending((P, G), rows, pool.submit(completions, group_size=G), begun)


def _own(x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
  """Rows that this process holds, each held by one process, and their numbers.

  No collective: that would wait in line behind the next piece's rollout.
  """
  shards = [shard for shard in x.addressable_shards if shard.replica_id == 0]
  rows = [np.arange(len(x))[shard.index[0]] for shard in shards]
  if not rows:
    return np.zeros(0, int), np.zeros((0, *x.shape[1:]), x.dtype)
  rows = np.concatenate(rows)
  values = np.concatenate([np.asarray(shard.data) for shard in shards])
  order = np.argsort(rows)
  return rows[order], values[order]


def _written(tokens_T, length) -> list[int]:
  return tokens_T[:length].tolist()


def _collect(pieces: Sequence[Pending]):
  """Scores of all pieces as every process needs them, and own failures."""
  parts: dict[str, list[np.ndarray]] = {}
  failures: list[host.Failure] = []
  for piece in pieces:
    outcome = piece.future.result()
    failures += outcome.failures
    for name, found in outcome.scores.items():
      score_PG = np.zeros(piece.shape, np.float32)  # 0: others score it.
      score_PG[piece.rows] = np.reshape(found, (-1, piece.shape[1]))
      parts.setdefault(name, []).append(score_PG)
  scores = {name: np.concatenate(found) for name, found in parts.items()}
  if jax.process_count() > 1:
    gathered = multihost_utils.process_allgather(scores)
    scores = {name: x.sum(axis=0) for name, x in gathered.items()}
  return scores, failures


def _share(numbers, failures):
  """The mean of all processes' clocks, and the failures of all of them."""
  told = json.dumps([dataclasses.asdict(failure) for failure in failures])
  told = np.frombuffer(told.encode(), np.uint8)
  clocks, sizes = multihost_utils.process_allgather((numbers, len(told)))
  padded = np.pad(told, (0, int(sizes.max()) - len(told)))
  everything = multihost_utils.process_allgather(padded)
  failures = [
    host.Failure(**fields)
    for row, size in zip(everything, sizes, strict=True)
    for fields in json.loads(row[: int(size)].tobytes())
  ]
  return {name: float(x.mean()) for name, x in clocks.items()}, failures
