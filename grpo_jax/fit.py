"""Carries a run out: pre-train or fine-tune, evaluate, RL, evaluate.

  fit(config, workdir) -> summary

A run lives in its workdir alone: started again with the same command it goes on
from its last checkpoint. README says what it leaves there.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import itertools
import json
import time
from types import MappingProxyType
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import orbax.checkpoint as ocp

from grpo_jax import (
  alarms,
  build,
  checkpoint,
  counts,
  evaluate,
  metrics,
  process,
  progress,
  records,
  sharding,
  train,
)
from grpo_jax import config as config_lib
from grpo_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Session:
  """What the parts of a run share."""

  run: build.Run
  steps: Any  # train.Steps or train.Preference.
  manager: ocp.CheckpointManager
  writer: metrics.Writer
  watch: alarms.Watch
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
  if not process.is_lead():
    progress.console.quiet = True
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
      evaluated = evaluate.METRICS if config.eval.every else ()
      _check_best(run, [*steps.metrics, *evaluated])
      manager = checkpoint.open_manager(
        run.workdir / 'checkpoints',
        config.checkpoint.keep,
        config.checkpoint.best,
      )
      state = resume(run, manager)
      step = int(state.step)
      lines = metrics.read(run.workdir / 'metrics.jsonl', step)
      watch = alarms.Watch(config_lib.alarms(config), lines)
      folder = run.workdir if process.is_lead() else None
      writer = metrics.Writer(
        folder, step, begun, functools.partial(_utilisation, run)
      )
      try:
        left = config.pretrain.steps + config.steps - step
        trace = metrics.Trace(
          run.workdir / 'profile' if profile else None, min(left, config.steps)
        )
        session = Session(run, steps, manager, writer, watch, stop, trace)
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
  if name and name not in known and run.config.steps:
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

  kind = 'fine-tuning' if c.model.init else 'pre-training'
  state, stopped = loop(s, kind, pretrain, state, 0, begin)
  if stopped:
    say_stopped(s, state)
    return None
  if c.steps:
    _evaluate(s, 'before', state)
    if int(state.step) == begin:
      state = s.steps.start_rl(state)
    state, stopped = loop(s, 'RL', improve, state, begin, end, c.eval.every)
    s.trace.close(state)
    if stopped:
      say_stopped(s, state)
      return None
  _evaluate(s, 'after', state)
  # A summary says that all is done: the last checkpoint has to be there.
  s.manager.wait_until_finished()
  return _conclude(run, s.writer.elapsed())


def loop(
  s: Session,
  name: str,
  one_step: Callable[[TrainState, int], tuple[TrainState, train.News]],
  state: TrainState,
  first: int,
  last: int,
  evaluate_every: int = 0,
) -> tuple[TrainState, bool]:
  """Steps first to last, or what is left of them; saves at the end.

  Every so many steps, and at the last, held-out problems are evaluated.

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
      best = s.run.config.checkpoint.best
      evaluated = {}
      if evaluate_every and (
        step == last or (step - first) % evaluate_every == 0
      ):
        evaluated = _evaluated(s, state, news, step == last)
      due = end or step % s.run.config.checkpoint.every == 0
      if due or evaluated:
        # What a checkpoint has behind it is written down before it.
        numbers, note = _record(s, step, late, evaluated)
        advance(step - first, note=note)
        late = None
      if due or best in evaluated:
        s.writer.flush()
        score = {best: numbers[best]} if best in numbers else None
        checkpoint.save(s.manager, state, score)
      if end:
        break
  return state, bool(asked)


def _evaluated(
  s: Session, state: TrainState, news: train.News, last: bool
) -> dict[str, float]:
  """Metrics of held-out problems, and the time that they took."""
  jax.block_until_ready(news.metrics)  # The step itself is not part of it.
  begun = time.monotonic()
  result = _sample(s, state)
  if last:
    _keep(s, 'after', result)
  numbers = evaluate.measure(result)
  return numbers | {'time/evaluation': time.monotonic() - begun}


def _record(
  s: Session,
  step: int,
  news: train.News,
  evaluated: Mapping[str, float] = MappingProxyType({}),
) -> tuple[dict, str]:
  """Writes a step down; returns its numbers, and a line for the bar."""
  rollout, rewards, numbers, failures = news
  numbers = s.writer.step(step, numbers, rollout, evaluated)
  s.writer.failures(step, failures)
  _sound(s, s.watch(step, numbers))
  if (
    numbers.get('update/skipped_in_a_row', 0)
    >= s.run.config.updates.max_skipped
  ):
    records.give_up(s.run, step, *sharding.to_host((rollout, rewards)))
  if rollout is None:
    note = f'loss {numbers["loss"]:.3f}  {numbers["time/step"]:.2f} s/step'
    return numbers, note
  if step % s.run.config.log.completions_every == 0:
    rollout, rewards = sharding.to_host((rollout, rewards))
    s.writer.completions(records.completions(s.run, step, rollout, rewards))
  note = (
    f'reward {numbers["reward/mean"]:.2f}  '
    f'length {numbers["rollout/length"]:.0f}  '
    f'{numbers["time/step"]:.2f} s/step  '
    f'{numbers["time/tokens_per_second"]:,.0f} tokens/s'
  )
  if evaluated:
    note += f'  held-out {numbers["eval/accuracy"]:.1%}'
  return numbers, note


def _sound(s: Session, found: Sequence[alarms.Alarm]) -> None:
  """Says alarms and writes them down; carries out what they ask for."""
  s.writer.alarms(found)
  for alarm in found:
    progress.say(f'alarm, step {alarm.step}, {alarm.name}: {alarm.sentence}')
    if alarm.action == 'stop':  # As a signal would; all processes agree on it.
      s.stop.asked = True
      s.stop.reason = f' by the alarm {alarm.name}'


def _utilisation(run: build.Run, numbers: dict[str, float]) -> dict[str, float]:
  """MFU and memory, where the backend tells."""
  c = run.config
  return counts.utilisation(
    run.model,
    list(run.mesh.devices.flat),
    numbers,
    dtype=c.model.dtype,
    seconds=numbers['time/step'],
    prompts=c.data.prompts,
    group_size=c.rollout.group_size,
    reference=bool(c.kl.coef),
    passes=c.updates.passes,
  )


def _evaluate(s: Session, name: str, state: TrainState) -> None:
  """Held-out problems; a run that goes on keeps what it found before."""
  if _evaluation(s.run, name).exists():
    return
  when = f' {name} RL' if s.run.config.steps else ''
  with progress.doing(f'evaluation{when}'):
    _keep(s, name, _sample(s, state))


def _sample(s: Session, state: TrainState) -> evaluate.Evaluation:
  return evaluate.evaluate(
    s.steps.sample,
    state.params,
    build.eval_batches(s.run),
    s.run.config.seed + 1,  # Not the dice of training.
    s.run.tokenizer.decode,
    s.run.config.eval.right,
    s.run.config.eval.reasoned,
  )


def _keep(s: Session, name: str, result: evaluate.Evaluation) -> None:
  path = _evaluation(s.run, name)
  if process.is_lead():
    path.parent.mkdir(exist_ok=True)
    evaluate.save(result, path)
  process.wait(name)


def _evaluation(run: build.Run, name: str) -> epath.Path:
  return run.workdir / 'evaluations' / f'{name}.json'


def say_stopped(s: Session, state: TrainState) -> None:
  s.manager.wait_until_finished()
  progress.say(
    f'stopped{s.stop.reason} and saved at step {int(state.step)}: the same '
    'command goes on from here'
  )


def _conclude(run: build.Run, seconds: float | None = None) -> dict[str, Any]:
  """The table, three completions and summary.json."""
  names = ('before', 'after') if run.config.steps else ('after',)
  found = {name: evaluate.load(_evaluation(run, name)) for name in names}
  after = found['after']
  path = run.workdir / 'summary.json'
  if seconds is None:
    seconds = json.loads(path.read_text())['seconds']
  summary = {'seed': run.config.seed, 'seconds': seconds}
  for when, result in found.items():
    for name, value in evaluate.summarize(result).items():
      summary[f'{name}_{when}'] = value
  if 'before' in found:
    summary |= evaluate.gain(found['before'], after)
  if process.is_lead():
    process.write(path, json.dumps(summary, indent=2) + '\n')

  progress.before_and_after(summary, names)
  shown = zip(build.heldout(run), after.texts, after.correct_NG, strict=True)
  for example, text, correct_G in itertools.islice(shown, 3):
    right = correct_G[0] == 1
    progress.completion(example.prompt, text, example.answer, right)
  progress.say(f'\n{seconds:.0f} seconds; everything is in {run.workdir}')
  return summary
