"""Carries out a run that trains a reward model on preferences.

  fit(config, workdir) -> summary      with config.preference.path

The run starts from a policy (model.init), of which it keeps all but the head,
and lives in its workdir as any other: fit.py has the loop of both, and says
what that leaves there. What comes out is for the reward 'reward_model'.
"""

import contextlib
import itertools
import json
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from grpo_jax import (
  alarms,
  build,
  checkpoint,
  datasets,
  metrics,
  opened,
  process,
  progress,
  sharding,
  train,
)
from grpo_jax import config as config_lib
from grpo_jax import fit as fit_lib
from grpo_jax.datasets import pairs as pairs_lib
from grpo_jax.types import Pairs, TrainState


def fit(config: ConfigDict, workdir: str) -> dict[str, Any] | None:
  """Carries it out, from wherever it stands.

  Of many processes all call it with the same arguments, as fit.fit.

  Returns:
    what summary.json holds: among others the share of held-out pairs whose
    better text scores more, before and after; None if a signal stopped it.

  Raises:
    ValueError, FileNotFoundError: in one line, before anything is compiled.
  """
  begun = time.monotonic()
  if not process.is_lead():
    progress.console.quiet = True
  with contextlib.ExitStack() as stack, process.stop_on_signal() as stop:
    run = build.build(config, workdir)
    summary = run.workdir / 'summary.json'
    if summary.exists():
      progress.say(f'{run.workdir} holds a finished run: nothing is left to do')
      return json.loads(summary.read_text())
    pairs = _read(run)
    stack.enter_context(jax.set_mesh(run.mesh))
    with progress.doing('compile'):
      steps = train.compile_preference(run, _batch(run, pairs['train'], 0))
      process.wait('compiled')
    manager = checkpoint.open_manager(
      run.workdir / 'checkpoints', run.config.checkpoint.keep
    )
    template = build.preference(run).template
    state = checkpoint.restore_newest(manager, lambda step: template)
    state = steps.start() if state is None else state
    folder = run.workdir if process.is_lead() else None
    writer = metrics.Writer(folder, int(state.step), begun)
    stack.callback(writer.close)
    session = fit_lib.Session(
      run,
      steps,
      manager,
      writer,
      alarms.Watch(config_lib.alarms(run.config)),
      stop,
      metrics.Trace(None, 0),
    )
    found = _carry_out(session, state, pairs)
    manager.close()
    return found


def _read(run: build.Run) -> dict[str, Pairs]:
  """The pairs of each split, put and encoded as in RL."""
  c, tokenizer = run.config, run.tokenizer

  def encode(prompt: str, completion: str) -> list[int]:
    ids = opened.to_ids(c, tokenizer, prompt) + tokenizer.encode(completion)
    return [*ids, tokenizer.eos_ids[0]]

  found, left_out = pairs_lib.load(
    c.preference.path,
    encode,
    max_tokens=c.preference.max_tokens,
    heldout=c.preference.heldout,
  )
  sizes = [f'{len(x.lengths_P2)} {split}' for split, x in found.items()]
  line = f'pairs: {", ".join(sizes)}'
  if left_out:
    line += f'; {left_out} longer than {c.preference.max_tokens} tokens'
  progress.say(line)
  return found


def _batch(run: build.Run, pairs: Pairs, step: int) -> Pairs:
  """Those of a step, counted from 0."""
  size, n = run.config.preference.rows, len(pairs.lengths_P2)
  rows = datasets.draw(n, size, run.config.seed, step * size)
  return pairs_lib.take(pairs, rows)


def _carry_out(
  s: fit_lib.Session, state: TrainState, pairs: dict[str, Pairs]
) -> dict[str, Any] | None:
  run, c = s.run, s.run.config.preference

  def learn(state, i):
    state, numbers = s.steps.update(state, _batch(run, pairs['train'], i))
    return state, train.News(None, None, numbers)

  before = _evaluated(s, 'before', state, pairs['heldout'])
  state, stopped = fit_lib.loop(s, 'preferences', learn, state, 0, c.steps)
  if stopped:
    fit_lib.say_stopped(s, state)
    return None
  after = _evaluated(s, 'after', state, pairs['heldout'])
  # A summary says that all is done: the last checkpoint has to be there.
  s.manager.wait_until_finished()
  summary = {
    'seed': run.config.seed,
    'seconds': s.writer.elapsed(),
    'train_pairs': len(pairs['train'].lengths_P2),
    'heldout_pairs': len(pairs['heldout'].lengths_P2),
  }
  for when, numbers in (('before', before), ('after', after)):
    summary |= {f'{name}_{when}': x for name, x in numbers.items()}
  if process.is_lead():
    path = run.workdir / 'summary.json'
    process.write(path, json.dumps(summary, indent=2) + '\n')
  progress.say(
    f'held-out pairs in the right order: {before["pair_accuracy"]:.1%} before, '
    f'{after["pair_accuracy"]:.1%} after\n'
    f'{summary["seconds"]:.0f} seconds; everything is in {run.workdir}'
  )
  return summary


def _evaluated(
  s: fit_lib.Session, when: str, state: TrainState, pairs: Pairs
) -> dict[str, Any]:
  """Of all held-out pairs; a run that goes on keeps what it found before."""
  path = s.run.workdir / 'evaluations' / f'pairs_{when}.json'
  if path.exists():
    return json.loads(path.read_text())
  size, n = s.run.config.preference.rows, len(pairs.lengths_P2)
  found = []
  with progress.doing(f'evaluation {when}'):
    for first in range(0, n, size):
      rows = range(first, min(first + size, n))
      filled = [*itertools.islice(itertools.cycle(rows), size)]
      lead_P = s.steps.leads(state.params, pairs_lib.take(pairs, filled))
      found.append(sharding.to_host(lead_P)[: len(rows)])
  lead_N = np.concatenate(found)
  right_N = (lead_N > 0).astype(float)
  numbers = {
    'pair_accuracy': float(right_N.mean()),
    'pair_accuracy_interval': metrics.bootstrap(right_N),
    'pair_lead': float(lead_N.mean()),
  }
  if process.is_lead():
    path.parent.mkdir(exist_ok=True)
    process.write(path, json.dumps(numbers, indent=2) + '\n')
  process.wait(when)
  return numbers
