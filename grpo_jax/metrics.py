"""What a step says about itself, and where it is written.

Means over tokens and completions as pure functions, for use under jit, and a
`Writer` for metrics.jsonl (one object a step), completions.jsonl and
TensorBoard. Names are `group/quantity`, in whole words.

Dimension key: P prompts, G completions each, T completion length.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
import math
import time
from types import MappingProxyType
from typing import IO, Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX

from grpo_jax import process
from grpo_jax.alarms import Alarm
from grpo_jax.rewards.host import Failure
from grpo_jax.types import Array, Rewards, Rollout

Metrics = dict[str, Array]


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of x where the mask is true; 0 where it is nowhere."""
  total = jnp.sum(jnp.where(mask, x, 0.0))
  return total / jnp.maximum(jnp.sum(mask), 1)


def describe(rollout: Rollout, rewards: Rewards) -> Metrics:
  """What a batch of scored completions looks like."""
  found: Metrics = {}
  for name, part_PG in rewards.parts.items():
    mean, std, unscored, equal = _statistics(part_PG)
    found |= {
      f'reward/{name}': mean,
      f'reward/{name}_std': std,
      f'reward/{name}_unscored': unscored,
      f'groups/degenerate_{name}': equal,
    }
  mean, std, unscored, equal = _statistics(rewards.total_PG)
  return found | {
    'reward/mean': mean,
    'reward/std': std,
    'reward/unscored': unscored,
    # Groups of equal rewards teach nothing; share of all groups.
    'groups/degenerate': equal,
    'rollout/length': jnp.mean(rollout.lengths_PG.astype(jnp.float32)),
    'rollout/length_max': jnp.max(rollout.lengths_PG).astype(jnp.float32),
    'rollout/truncated': jnp.mean(~rollout.ended_PG),
    # The mean surprise of sampled tokens estimates the policy's entropy.
    'rollout/entropy': masked_mean(-rollout.logps_PGT, rollout.actions_PGT),
  }


def off_policy(log_ratio_PGT: jax.Array, mask_PGT: jax.Array) -> Metrics:
  """Numbers of how far sampler and trainer are apart, for the metrics.

  effective_tokens     (sum w)^2 / (N sum w^2) over the N counted tokens with
                       w their ratio: the share of the sample that is left
  effective_sequences  the same over completions with tokens, w their product
  drift_mean           mean |log-ratio| of counted tokens, nats
  drift_max            the greatest, nats
  chi2                 mean w^2 - 1 over tokens, as verl's chi2_token
  """
  mask_PGT = mask_PGT != 0
  log_ratio_PGT = jnp.where(mask_PGT, log_ratio_PGT, 0.0)
  tokens = jnp.maximum(jnp.sum(mask_PGT), 1)
  drift_PGT = jnp.abs(log_ratio_PGT)
  bounded_PGT = jnp.clip(log_ratio_PGT, -20.0, 20.0)  # Its square is a float32.
  return {
    'effective_tokens': _effective(log_ratio_PGT, mask_PGT),
    'effective_sequences': _effective(
      jnp.sum(log_ratio_PGT, axis=-1), jnp.any(mask_PGT, axis=-1)
    ),
    'drift_mean': jnp.sum(drift_PGT) / tokens,
    'drift_max': jnp.max(drift_PGT),
    'chi2': jnp.sum(jnp.expm1(2.0 * bounded_PGT)) / tokens,
  }


def _effective(log_w, counted):
  """(sum w)^2 / (N sum w^2); 1 where nothing is counted."""
  log_w = jnp.where(counted, log_w, -jnp.inf)
  # The greatest weight becomes 1: nothing overflows, and shares stay.
  top = jnp.max(log_w)
  w = jnp.exp(log_w - jnp.where(jnp.isfinite(top), top, 0.0))
  total, squares = jnp.sum(w), jnp.sum(w**2)
  size = jnp.sum(counted)
  share = total**2 / jnp.maximum(size * squares, 1e-30)
  return jnp.where(size > 0, share, 1.0)


def _statistics(score_PG: jax.Array) -> tuple[jax.Array, ...]:
  """Mean, deviation, share without a score, share of groups without spread."""
  scored_PG = ~jnp.isnan(score_PG)
  mean = masked_mean(score_PG, scored_PG)
  variance = masked_mean(jnp.square(score_PG - mean), scored_PG)
  low_P = jnp.min(jnp.where(scored_PG, score_PG, jnp.inf), axis=1)
  high_P = jnp.max(jnp.where(scored_PG, score_PG, -jnp.inf), axis=1)
  unscored, equal = jnp.mean(~scored_PG), jnp.mean(low_P >= high_P)
  return mean, jnp.sqrt(variance), unscored, equal


class Writer:
  """Appends to the files of a run's workdir, from a step on.

  Lines after that step are cut: a run that goes on writes them again.
  """

  def __init__(
    self,
    workdir: epath.Path | None,
    step: int,
    begun: float,
    measure: Callable[[dict[str, float]], dict[str, float]] = lambda _: {},
  ):
    """Opens the files.

    Args:
      workdir: where they are; None keeps the clock and writes nothing, for
        processes that are not the lead.
      step: the last that was done.
      begun: the time.monotonic() at which this session began.
      measure: what else to say of an RL step, from its numbers so far.
    """
    self._measure = measure
    self._begun, self._last = begun, time.monotonic()
    self._earlier, self._files = 0.0, None
    self._workdir = workdir
    if workdir is None:
      return
    lines = _cut(workdir / 'metrics.jsonl', step)
    self._earlier = lines[-1]['time/elapsed'] if lines else 0.0
    for name in ('completions', 'failures', 'alarms'):
      _cut(workdir / f'{name}.jsonl', step)
    self._files = _Files(
      (workdir / 'metrics.jsonl').open('a'),
      (workdir / 'completions.jsonl').open('a'),
      tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1
      ),
    )

  def tick(self) -> None:
    """Steps begin now: what came before is not the first one's time."""
    self._last = time.monotonic()

  def elapsed(self) -> float:
    """Seconds that the run took so far, all its sessions together."""
    return self._earlier + time.monotonic() - self._begun

  def step(
    self,
    step: int,
    numbers: Metrics,
    rollout: Rollout | None = None,
    evaluated: Mapping[str, float] = MappingProxyType({}),
  ) -> dict[str, float]:
    """Writes one step's line and returns it; waits for the device.

    Adds the times, and what was `evaluated` at this step, whose time is not the
    step's. A number that is not finite is written as null.
    """
    numbers = {k: float(v) for k, v in jax.device_get(numbers).items()}
    now = time.monotonic()
    parts = [v for k, v in numbers.items() if k.startswith('time/')]
    between = now - self._last - evaluated.get('time/evaluation', 0.0)
    numbers['time/step'] = sum(parts) if parts else between
    numbers['time/elapsed'] = self.elapsed()
    self._last = now
    if rollout is not None:
      tokens = numbers['rollout/length'] * rollout.lengths_PG.size
      rate = tokens / numbers['time/step']
      numbers['time/tokens_per_second'] = rate
      numbers |= self._measure(numbers)
    numbers |= evaluated
    if self._files:
      finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
      self._files.metrics.write(json.dumps({'step': step} | finite) + '\n')
      self._files.metrics.flush()
      for name, value in numbers.items():
        self._files.board.add_scalar(name, value, step)
    return numbers

  def completions(self, rows: Iterable[dict[str, Any]]) -> None:
    if self._files:
      for row in rows:
        line = json.dumps(row, ensure_ascii=False)
        self._files.completions.write(line + '\n')
      self._files.completions.flush()

  def failures(self, step: int, found: Sequence[Failure]) -> None:
    """Completions that a host reward could not score, and why."""
    rows = [{'step': step} | dataclasses.asdict(failure) for failure in found]
    self._append('failures.jsonl', rows)

  def alarms(self, found: Sequence[Alarm]) -> None:
    self._append('alarms.jsonl', [dataclasses.asdict(alarm) for alarm in found])

  def _append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """To a file that most runs do not have."""
    if self._workdir is not None and rows:
      with (self._workdir / name).open('a') as file:
        for row in rows:
          file.write(json.dumps(row, ensure_ascii=False) + '\n')

  def flush(self) -> None:
    """What was written so far outlives this process."""
    if self._files:
      self._files.board.flush()

  def close(self) -> None:
    for file in self._files or ():
      file.close()


class _Files(NamedTuple):
  metrics: IO[str]
  completions: IO[str]
  board: tensorboardX.SummaryWriter


class Trace:
  """A profiler trace of the third to the fifth step of a session.

  To be looked at with `tensorboard --logdir` or ui.perfetto.dev.
  """

  def __init__(self, folder: epath.Path | None, steps: int):
    """Without a folder it records nothing; of few steps, the last."""
    self._folder, self._begun, self._on = folder, 0, False
    self._first = min(3, steps)

  def before_step(self, state: Any) -> None:
    """`state` is what the step will be given."""
    self._begun += 1
    if self._folder is not None and self._begun == self._first:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(self._folder))
      self._on = True
    if self._begun == self._first + 3:
      self.close(state)

  def close(self, state: Any) -> None:
    if self._on:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._on = False


def read(path: epath.Path, step: int) -> list[dict[str, Any]]:
  """The lines up to a step, without a last one that was not finished."""
  kept = []
  # Not splitlines(): text that a model wrote may hold U+2028 and the like.
  for line in path.read_text().split('\n')[:-1] if path.exists() else []:
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      break
    if row['step'] <= step:
      kept.append(row)
  return kept


def _cut(path: epath.Path, step: int) -> list[dict[str, Any]]:
  """Drops the lines after a step, and a last one that was not finished."""
  kept = read(path, step)
  if path.exists():
    lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in kept]
    process.write(path, ''.join(lines))
  return kept


def bootstrap(
  scores_N: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
  """95% confidence interval of the mean of N scores; None if there are none.

  The percentiles of the means of resamples (Efron, 1979). Scores may have more
  axes: the ends are arrays then, of the same resamples throughout. Of less than
  four scores it is their range, and of ten it held the mean of a normal
  distribution 90 times in 100, of five 84 times.
  """
  rng = np.random.default_rng(seed)
  N = len(scores_N)
  if not N:
    return None
  means = [
    scores_N[rng.integers(N, size=N)].mean(axis=0) for _ in range(resamples)
  ]
  low, high = np.percentile(means, [2.5, 97.5], axis=0)
  return (low, high) if low.ndim else (float(low), float(high))
