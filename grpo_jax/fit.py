"""Carries a run out: pre-train, evaluate, RL, evaluate.

  fit(config, workdir) -> summary

A run lives in its workdir alone: started again with the same command it goes on
from its last checkpoint. README says what it leaves there.
"""

from collections.abc import Callable
import dataclasses
import itertools
import json
import time
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import orbax.checkpoint as ocp

from grpo_jax import (
  build,
  checkpoint,
  evaluate,
  metrics,
  process,
  progress,
  train,
)
from grpo_jax.types import Rewards, Rollout, TrainState

News = tuple[Rollout | None, Rewards | None, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Session:
  """What the parts of a run share."""

  run: build.Run
  steps: train.Steps
  manager: ocp.CheckpointManager
  writer: metrics.Writer
  stop: process.Stop


def fit(config: ConfigDict, workdir: str) -> dict[str, Any] | None:
  """Carries a run out, from wherever it stands.

  Returns:
    what summary.json holds; None if a signal stopped the run before its end.

  Raises:
    ValueError, FileNotFoundError: in one line, before anything is compiled.
  """
  begun = time.monotonic()
  with process.stop_on_signal() as stop:
    run = build.build(config, workdir)
    if (run.workdir / 'summary.json').exists():
      progress.say(f'{run.workdir} holds a finished run: nothing is left to do')
      return _conclude(run)
    with jax.set_mesh(run.mesh):
      with progress.doing('compile'):
        steps = train.compile_steps(run)
      folder = run.workdir / 'checkpoints'
      manager = checkpoint.open_manager(folder, config.checkpoint.keep)
      state = resume(run, manager)
      writer = metrics.Writer(run.workdir, int(state.step), begun)
      try:
        return _carry_out(Session(run, steps, manager, writer, stop), state)
      finally:
        writer.close()
        manager.close()


def resume(run: build.Run, manager: ocp.CheckpointManager) -> TrainState:
  """The newest checkpoint, or the start."""
  step = manager.latest_step()
  if step is None:
    return train.start(run)
  progress.say(f'going on from step {step}')
  first, rl = build.templates(run)
  before_rl = step <= run.config.pretrain.steps
  return checkpoint.restore(manager, step, first if before_rl else rl)


def _carry_out(s: Session, state: TrainState) -> dict[str, Any] | None:
  run, c = s.run, s.run.config
  begin, end = c.pretrain.steps, c.pretrain.steps + c.steps

  def pretrain(state, i):
    state, numbers = s.steps.pretrain(state, build.pretrain_batch(run, i))
    return state, (None, None, numbers)

  def improve(state, i):
    return s.steps.iterate(state, build.train_batch(run, i - begin))

  state = _loop(s, 'pre-training', pretrain, state, 0, begin)
  if s.stop:
    return _stopped(s, state)
  _evaluate(s, 'before', state)
  if int(state.step) == begin:
    state = s.steps.start_rl(state)
  state = _loop(s, 'RL', improve, state, begin, end)
  if s.stop:
    return _stopped(s, state)
  _evaluate(s, 'after', state)
  return _conclude(run, s.writer.elapsed())


def _loop(
  s: Session,
  name: str,
  one_step: Callable[[TrainState, int], tuple[TrainState, News]],
  state: TrainState,
  first: int,
  last: int,
) -> TrainState:
  """Steps first to last, or what is left of them; saves at the end."""
  done = int(state.step)
  if done >= last:
    return state
  s.writer.tick()
  with progress.bar(
    name, last - first, done - first, s.run.config.log.every
  ) as advance:
    late = None  # Metrics are read a step late: the device never waits.
    for step in range(done + 1, last + 1):
      state, news = one_step(state, step - 1)
      if late:
        advance(step - 1 - first, note=_record(s, step - 1, late))
      late = news
      end = step == last or bool(s.stop)
      if end or step % s.run.config.checkpoint.every == 0:
        # What a checkpoint has behind it is written down before it.
        advance(step - first, note=_record(s, step, late))
        checkpoint.save(s.manager, state)
        late = None
      if end:
        break
  return state


def _record(s: Session, step: int, news: News) -> str:
  """Writes a step down; returns its line for the progress bar."""
  rollout, rewards, numbers = news
  numbers = s.writer.step(step, numbers, rollout)
  if rollout is None:
    return f'loss {numbers["loss"]:.3f}  {numbers["time/step"]:.2f} s/step'
  if step % s.run.config.log.completions_every == 0:
    s.writer.completions(_completions(s.run, step, rollout, rewards))
  return (
    f'reward {numbers["reward/mean"]:.2f}  '
    f'length {numbers["rollout/length"]:.0f}  '
    f'{numbers["time/step"]:.2f} s/step  '
    f'{numbers["time/tokens_per_second"]:,.0f} tokens/s'
  )


def _completions(run, step: int, rollout: Rollout, rewards: Rewards):
  """Rows for completions.jsonl: the groups of the step's first prompts."""
  c = run.config
  advantages_PG = build.choose('advantage', c)(rewards.total_PG)
  rollout, rewards, advantages_PG = jax.device_get(
    (rollout, rewards, advantages_PG)
  )
  examples = build.train_examples(run, step - 1 - c.pretrain.steps)
  for p, example in enumerate(examples[: c.log.prompts]):
    for g in range(c.rollout.group_size):
      length = rollout.lengths_PG[p, g]
      parts = {k: float(v[p, g]) for k, v in rewards.parts.items()}
      yield {
        'step': step,
        'prompt': example.prompt,
        'answer': example.answer,
        'sample': g,
        'text': run.tokenizer.decode(rollout.tokens_PGT[p, g, :length]),
        'length': int(length),
        'ended': bool(rollout.ended_PG[p, g]),
        'reward': float(rewards.total_PG[p, g]),
        'reward_parts': parts,
        'advantage': float(advantages_PG[p, g]),
      }


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
      jax.random.key(s.run.config.seed + 1),  # Not the dice of training.
      s.run.tokenizer.decode,
    )
  path.parent.mkdir(exist_ok=True)
  evaluate.save(result, path)


def _evaluation(run: build.Run, name: str) -> epath.Path:
  return run.workdir / 'evaluations' / f'{name}.json'


def _stopped(s: Session, state: TrainState) -> None:
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
  path.write_text(json.dumps(summary, indent=2) + '\n')

  progress.before_and_after(summary)
  shown = zip(build.heldout(run), after.texts, after.correct_NG, strict=True)
  for example, text, correct_G in itertools.islice(shown, 3):
    right = correct_G[0] == 1
    progress.completion(example.prompt, text, example.answer, right)
  progress.say(f'\n{seconds:.0f} seconds; everything is in {run.workdir}')
  return summary
