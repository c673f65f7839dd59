"""Carries a run out: pre-train, evaluate, RL, evaluate.

  fit(config, workdir) -> summary

A run lives in its workdir alone: started again with the same command it goes on
from its last checkpoint. README says what it leaves there.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import time
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp

from grpo_jax import (
  batch,
  build,
  checkpoint,
  counts,
  evaluate,
  inputs,
  metrics,
  process,
  progress,
  sharding,
  train,
)
from grpo_jax.types import Rewards, Rollout, TrainState


@dataclasses.dataclass(frozen=True)
class Session:
  """What the parts of a run share."""

  run: build.Run
  steps: train.Steps
  manager: ocp.CheckpointManager
  writer: metrics.Writer
  stop: process.Stop
  trace: metrics.Trace


def fit(
  config: ConfigDict, workdir: str, profile: bool = False
) -> dict[str, Any] | None:
  """Carries a run out, from wherever it stands.

  One of many processes (process.join) does its part: all of them call this
  with the same arguments, and the lead alone prints and writes.

  Args:
    config: what to do; see config.py.
    workdir: the folder of the run, which all processes see.
    profile: writes a trace of some RL steps to <workdir>/profile.

  Returns:
    what summary.json holds; None if a signal stopped the run before its end.

  Raises:
    ValueError, FileNotFoundError: in one line, before anything is compiled.
  """
  begun = time.monotonic()
  progress.console.quiet = not process.is_lead()
  if jax.process_count() > 1:
    progress.say(
      f'{jax.process_count()} processes, {jax.device_count()} devices'
    )
  with contextlib.ExitStack() as stack, process.stop_on_signal() as stop:
    run = build.build(config, workdir)
    config = run.config  # With its algorithm in it.
    if (run.workdir / 'summary.json').exists():
      progress.say(f'{run.workdir} holds a finished run: nothing is left to do')
      return _conclude(run)
    with jax.set_mesh(run.mesh):
      with progress.doing('compile'):
        steps = train.compile_steps(run)
        stack.callback(steps.close)
        process.wait('compiled')  # A collective would not wait as long.
      _check_best(run, steps.metrics)
      manager = checkpoint.open_manager(
        run.workdir / 'checkpoints',
        config.checkpoint.keep,
        config.checkpoint.best,
      )
      state = resume(run, manager)
      folder = run.workdir if process.is_lead() else None
      writer = metrics.Writer(
        folder, int(state.step), begun, functools.partial(_utilisation, run)
      )
      try:
        left = config.pretrain.steps + config.steps - int(state.step)
        trace = metrics.Trace(
          run.workdir / 'profile' if profile else None, min(left, config.steps)
        )
        session = Session(run, steps, manager, writer, stop, trace)
        summary = _carry_out(session, state)
        manager.close()  # Waits for the last checkpoint, and for the others.
        return summary
      finally:
        writer.close()


def resume(run: build.Run, manager: ocp.CheckpointManager) -> TrainState:
  """The newest checkpoint, or the start."""
  first, rl = build.templates(run)
  begin = run.config.pretrain.steps
  state = checkpoint.restore_newest(
    manager, lambda step: first if step <= begin else rl
  )
  return train.start(run) if state is None else state


def _check_best(run: build.Run, known: Sequence[str]) -> None:
  name = run.config.checkpoint.best
  if name and name not in known:
    if process.is_lead():  # Or the workdir would refuse the right name.
      checkpoint.disown(run.workdir)
    raise ValueError(
      f'checkpoint.best={name!r} is not a metric; there are {", ".join(known)}'
    )


def _carry_out(s: Session, state: TrainState) -> dict[str, Any] | None:
  run, c = s.run, s.run.config
  begin, end = c.pretrain.steps, c.pretrain.steps + c.steps

  def pretrain(state, i):
    state, numbers = s.steps.pretrain(state, build.pretrain_batch(run, i))
    return state, train.News(None, None, numbers)

  def improve(state, i):
    s.trace.before_step(state)
    first, *others = s.steps.draw(state, i - begin)
    more = (build.own_batch(run, rows_P) for rows_P in others)
    return s.steps.iterate(state, *build.own_batch(run, first), more)

  state, stopped = _loop(s, 'pre-training', pretrain, state, 0, begin)
  if stopped:
    return _stopped(s, state)
  _evaluate(s, 'before', state)
  if int(state.step) == begin:
    state = s.steps.start_rl(state)
  state, stopped = _loop(s, 'RL', improve, state, begin, end)
  s.trace.close(state)
  if stopped:
    return _stopped(s, state)
  _evaluate(s, 'after', state)
  # A summary says that all is done: the last checkpoint has to be there.
  s.manager.wait_until_finished()
  return _conclude(run, s.writer.elapsed())


def _loop(
  s: Session,
  name: str,
  one_step: Callable[[TrainState, int], tuple[TrainState, train.News]],
  state: TrainState,
  first: int,
  last: int,
) -> tuple[TrainState, bool]:
  """Steps first to last, or what is left of them; saves at the end.

  Returns the state, and whether the run was asked to stop.
  """
  done = int(state.step)
  if done >= last:
    return state, False
  s.writer.tick()
  with progress.bar(
    name, last - first, done - first, s.run.config.log.every
  ) as advance:
    late = None  # Metrics are read a step late: the device never waits.
    for step in range(done + 1, last + 1):
      asked = s.steps.any_process(s.stop)
      state, news = one_step(state, step - 1)
      if late:
        _, note = _record(s, step - 1, late)
        advance(step - 1 - first, note=note)
      late = news
      end = step == last or bool(asked)
      if end or step % s.run.config.checkpoint.every == 0:
        # What a checkpoint has behind it is written down before it.
        numbers, note = _record(s, step, late)
        advance(step - first, note=note)
        s.writer.flush()
        best = s.run.config.checkpoint.best
        score = {best: numbers[best]} if best in numbers else None
        checkpoint.save(s.manager, state, score)
        late = None
      if end:
        break
  return state, bool(asked)


def _record(s: Session, step: int, news: train.News) -> tuple[dict, str]:
  """Writes a step down; returns its numbers, and a line for the bar."""
  rollout, rewards, numbers, failures = news
  numbers = s.writer.step(step, numbers, rollout)
  s.writer.failures(step, failures)
  if (
    numbers.get('update/skipped_in_a_row', 0)
    >= s.run.config.updates.max_skipped
  ):
    _give_up(s.run, step, rollout, rewards)
  if rollout is None:
    note = f'loss {numbers["loss"]:.3f}  {numbers["time/step"]:.2f} s/step'
    return numbers, note
  if step % s.run.config.log.completions_every == 0:
    rollout, rewards = sharding.to_host((rollout, rewards))
    s.writer.completions(_completions(s.run, step, rollout, rewards))
  note = (
    f'reward {numbers["reward/mean"]:.2f}  '
    f'length {numbers["rollout/length"]:.0f}  '
    f'{numbers["time/step"]:.2f} s/step  '
    f'{numbers["time/tokens_per_second"]:,.0f} tokens/s'
  )
  return numbers, note


def _give_up(run: build.Run, step: int, rollout: Rollout, rewards: Rewards):
  """Saves the batch whose gradient is not finite, and ends the run."""
  path = run.workdir / f'not_finite_{step}.npz'
  rollout, rewards = sharding.to_host((rollout, rewards))
  if process.is_lead():
    leaves = jax.tree_util.tree_leaves_with_path((rollout, rewards))
    names = [
      jax.tree_util.keystr(at[1:], simple=True, separator='.')
      for at, _ in leaves
    ]
    with path.open('wb') as file:
      np.savez(file, **dict(zip(names, (x for _, x in leaves), strict=True)))
  raise FloatingPointError(
    f'step {step}: {run.config.updates.max_skipped} optimizer steps in a row '
    f'(updates.max_skipped) had a loss or gradient that is not finite; none '
    f'was taken, and the batch is in {path}'
  )


def _utilisation(run: build.Run, numbers: dict[str, float]) -> dict[str, float]:
  """MFU and memory, where the backend tells."""
  c = run.config
  return counts.utilisation(
    run.model,
    run.mesh.devices.flatten(),
    numbers,
    dtype=c.model.dtype,
    seconds=numbers['time/step'],
    prompts=c.data.prompts,
    group_size=c.rollout.group_size,
    reference=bool(c.kl.coef),
    passes=c.updates.passes,
  )


def _completions(run, step: int, rollout: Rollout, rewards: Rewards):
  """Rows for completions.jsonl: the groups of the step's first prompts."""
  c = run.config
  advantages_PG = _advantages(run, rollout, rewards)
  rows_P = rollout.prompts.rows_P[: c.log.prompts]
  for p, example in enumerate(run.dataset.read('train', rows_P)):
    for g in range(c.rollout.group_size):
      length = rollout.lengths_PG[p, g]
      parts = {k: _or_none(v[p, g]) for k, v in rewards.parts.items()}
      yield {
        'step': step,
        'prompt': example.prompt,
        'answer': example.answer,
        'sample': g,
        'text': run.tokenizer.decode(rollout.tokens_PGT[p, g, :length]),
        'length': int(length),
        'ended': bool(rollout.ended_PG[p, g]),
        'reward': _or_none(rewards.total_PG[p, g]),
        'reward_parts': parts,
        'advantage': _or_none(advantages_PG[p, g]),
      }


def _advantages(run: build.Run, rollout: Rollout, rewards: Rewards):
  """Of completions; NaN where only the update itself can tell.

  The KL in a reward, which it knows too, is left out.
  """
  advantage = build.choose('advantage', run.config)
  wants = inputs.asks(advantage)
  if {'logps_PGT', 'squares_PGT', 'correction_PGT'}.intersection(wants):
    return np.full(rewards.total_PG.shape, np.nan)
  rollout, rewards, more = batch.part_greedy(wants, rollout, rewards)
  found_PGT = batch.compare(advantage, rollout, rewards, **more)
  mask_PGT = rollout.actions_PGT
  lengths_PG = np.maximum(np.sum(mask_PGT, axis=-1), 1)
  return np.sum(np.where(mask_PGT, found_PGT, 0.0), axis=-1) / lengths_PG


def _or_none(score) -> float | None:
  """JSON has no NaN."""
  return None if math.isnan(score) else float(score)


def _evaluate(s: Session, name: str, state: TrainState) -> None:
  """Held-out problems; a run that goes on keeps what it found before."""
  path = _evaluation(s.run, name)
  if path.exists():
    return
  with progress.doing(f'evaluation {name} RL'):
    result = evaluate.evaluate(
      s.steps.sample,
      state.params,
      build.eval_batches(s.run),
      s.run.config.seed + 1,  # Not the dice of training.
      s.run.tokenizer.decode,
      s.run.config.eval.right,
      s.run.config.eval.reasoned,
    )
  if process.is_lead():
    path.parent.mkdir(exist_ok=True)
    evaluate.save(result, path)
  process.wait(name)


def _evaluation(run: build.Run, name: str) -> epath.Path:
  return run.workdir / 'evaluations' / f'{name}.json'


def _stopped(s: Session, state: TrainState) -> None:
  s.manager.wait_until_finished()
  progress.say(
    f'stopped and saved at step {int(state.step)}: the same command goes on '
    'from here'
  )


def _conclude(run: build.Run, seconds: float | None = None) -> dict[str, Any]:
  """The table, three completions and summary.json."""
  before, after = (
    evaluate.load(_evaluation(run, name)) for name in ('before', 'after')
  )
  path = run.workdir / 'summary.json'
  if seconds is None:
    seconds = json.loads(path.read_text())['seconds']
  summary = {'seed': run.config.seed, 'seconds': seconds}
  for when, result in (('before', before), ('after', after)):
    for name, value in evaluate.summarize(result).items():
      summary[f'{name}_{when}'] = value
  summary |= evaluate.gain(before, after)
  if process.is_lead():
    process.write(path, json.dumps(summary, indent=2) + '\n')

  progress.before_and_after(summary)
  shown = zip(build.heldout(run), after.texts, after.correct_NG, strict=True)
  for example, text, correct_G in itertools.islice(shown, 3):
    right = correct_G[0] == 1
    progress.completion(example.prompt, text, example.answer, right)
  progress.say(f'\n{seconds:.0f} seconds; everything is in {run.workdir}')
  return summary
