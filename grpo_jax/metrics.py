"""What a step says about itself, and where it is written.

Means over tokens and completions as pure functions, for use under jit, and a
`Writer` for metrics.jsonl (one object a step), completions.jsonl and
TensorBoard. Names are `group/quantity`, in whole words.

Dimension key: P prompts, G completions each, T completion length.
"""

from collections.abc import Iterable
import json
import math
import time
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX

from grpo_jax.types import Rewards, Rollout

Metrics = dict[str, jax.Array]


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of x where the mask is true; 0 where it is nowhere."""
  total = jnp.sum(jnp.where(mask, x, 0.0))
  return total / jnp.maximum(jnp.sum(mask), 1)


def describe(rollout: Rollout, rewards: Rewards) -> Metrics:
  """What a batch of scored completions looks like."""
  total_PG = rewards.total_PG
  scored_PG = ~jnp.isnan(total_PG)
  low_P = jnp.min(jnp.where(scored_PG, total_PG, jnp.inf), axis=1)
  high_P = jnp.max(jnp.where(scored_PG, total_PG, -jnp.inf), axis=1)
  parts = {
    f'reward/{name}': masked_mean(part_PG, ~jnp.isnan(part_PG))
    for name, part_PG in rewards.parts.items()
  }
  return parts | {
    'reward/mean': masked_mean(total_PG, scored_PG),
    'reward/unscored': jnp.mean(~scored_PG),
    # Groups of equal rewards teach nothing; share of all groups.
    'groups/degenerate': jnp.mean(low_P >= high_P),
    'rollout/length': jnp.mean(rollout.lengths_PG.astype(jnp.float32)),
    'rollout/length_max': jnp.max(rollout.lengths_PG).astype(jnp.float32),
    'rollout/truncated': jnp.mean(~rollout.ended_PG),
    # The mean surprise of sampled tokens estimates the policy's entropy.
    'rollout/entropy': masked_mean(-rollout.logps_PGT, rollout.actions_PGT),
  }


class Writer:
  """Appends to the files of a run's workdir, from a step on.

  Lines after that step are cut: a run that goes on writes them again.
  """

  def __init__(self, workdir: epath.Path, step: int, begun: float):
    """`begun` is the time.monotonic() at which this session began."""
    self._step, self._begun, self._last = step, begun, time.monotonic()
    lines = _cut(workdir / 'metrics.jsonl', step)
    self._earlier = lines[-1]['time/elapsed'] if lines else 0.0
    _cut(workdir / 'completions.jsonl', step)
    self._metrics = (workdir / 'metrics.jsonl').open('a')
    self._completions = (workdir / 'completions.jsonl').open('a')
    self._board = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=step + 1
    )

  def tick(self) -> None:
    """Steps begin now: what came before is not the first one's time."""
    self._last = time.monotonic()

  def elapsed(self) -> float:
    """Seconds that the run took so far, all its sessions together."""
    return self._earlier + time.monotonic() - self._begun

  def step(
    self, step: int, numbers: Metrics, rollout: Rollout | None = None
  ) -> dict[str, float]:
    """Writes one step's line and returns it; waits for the device.

    Adds the times. A number that is not finite is written as null.
    """
    numbers = {k: float(v) for k, v in jax.device_get(numbers).items()}
    now = time.monotonic()
    parts = [v for k, v in numbers.items() if k.startswith('time/')]
    numbers['time/step'] = sum(parts) if parts else now - self._last
    numbers['time/elapsed'] = self.elapsed()
    self._last = now
    if rollout is not None:
      tokens = numbers['rollout/length'] * rollout.lengths_PG.size
      rate = tokens / numbers['time/step']
      numbers['time/tokens_per_second'] = rate
    finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    self._metrics.write(json.dumps({'step': step} | finite) + '\n')
    self._metrics.flush()
    for name, value in numbers.items():
      self._board.add_scalar(name, value, step)
    return numbers

  def completions(self, rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
      self._completions.write(json.dumps(row, ensure_ascii=False) + '\n')
    self._completions.flush()

  def close(self) -> None:
    for file in (self._metrics, self._completions, self._board):
      file.close()


def _cut(path: epath.Path, step: int) -> list[dict[str, Any]]:
  """Drops the lines after a step, and a last one that was not finished."""
  kept = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      break
    if row['step'] <= step:
      kept.append(row)
  if path.exists():
    lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in kept]
    path.write_text(''.join(lines))
  return kept


def bootstrap(
  scores_N: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
  """95% confidence interval of the mean of N scores; None if there are none."""
  rng = np.random.default_rng(seed)
  N = len(scores_N)
  if not N:
    return None
  means = [scores_N[rng.integers(N, size=N)].mean() for _ in range(resamples)]
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)
