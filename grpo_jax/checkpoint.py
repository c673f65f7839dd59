"""Saves and restores a TrainState: atomic, asynchronous, the last n kept.

A checkpoint is whole or it is not there: Orbax writes to a temporary folder
and renames it. Each process writes what its devices hold, and arrays come back
into the sharding that is asked for, on any mesh and number of processes. Beside
the checkpoints a workdir holds the config that made it, and refuses another.
"""

from collections.abc import Callable, Mapping
import itertools
import json
import logging
import math
import sys
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from grpo_jax import process, progress
from grpo_jax.types import TrainState


def claim(workdir: epath.Path, config: ConfigDict) -> None:
  """Checks that a workdir is new or was made by this very config.

  Only the mesh may be another one, and what a CPU counts as: the run goes on
  there, equal to rounding.

  Raises:
    ValueError: naming what differs. Nothing is written.
  """
  path = workdir / 'config.json'
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'{workdir} is a file, not the folder of a run')
  if not path.exists():
    found = {x.name for x in workdir.iterdir()} if workdir.exists() else set()
    # What a run leaves that was refused, or killed before it wrote the config.
    if found - {'data', 'tokenizer.model', 'config.json.partial'}:
      raise ValueError(
        f'{workdir} holds files but no config.json: it is not the folder of '
        'a run; give an empty or a new one'
      )
    return
  theirs, ours = _flat(json.loads(path.read_text())), _flat(_plain(config))
  differing = [
    f'{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here'
    for name in sorted(theirs.keys() | ours.keys())
    if theirs.get(name) != ours.get(name)
    and not name.startswith(('mesh.', 'cpu_devices'))
  ]
  if differing:
    raise ValueError(
      f'{workdir} was made by a different config: {"; ".join(differing)}. '
      'Give another --workdir, or the same config to go on'
    )


def record(workdir: epath.Path, config: ConfigDict) -> None:
  """Writes config.json, if it is not there."""
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / 'config.json'
  if not path.exists():
    process.write(path, json.dumps(_plain(config), indent=2) + '\n')


def disown(workdir: epath.Path) -> None:
  """Takes `record` back, unless there are checkpoints."""
  if not (workdir / 'checkpoints').exists():
    (workdir / 'config.json').unlink(missing_ok=True)


def open_manager(
  folder: epath.Path, keep: int, best: str = ''
) -> ocp.CheckpointManager:
  """The checkpoints under a folder; close() waits for writes to end.

  Args:
    folder: made if it is not there.
    keep: how many of the newest stay.
    best: the metric whose greatest value keeps one more; '' keeps none.
  """
  folder = epath.Path(folder).resolve()
  _forget_unreadable_metrics(folder)

  def score(metrics):
    value = metrics.get(best, -math.inf)
    return value if math.isfinite(value) else -math.inf

  policies = [checkpoint_managers.LatestN(keep)]
  if best:
    policies.append(
      checkpoint_managers.BestN(
        get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
      )
    )
  options = ocp.CheckpointManagerOptions(
    preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
    # It chooses nothing here, but without it no metrics are written down.
    best_fn=score if best else None,
    cleanup_tmp_directories=True,
  )
  return ocp.CheckpointManager(folder, options=options)


def _forget_unreadable_metrics(folder: epath.Path) -> None:
  """With one of them damaged Orbax would not open the folder at all."""
  if process.is_lead():
    for path in folder.glob('*/metrics/metrics'):
      try:
        json.loads(path.read_text())
      except ValueError:
        progress.say(f'{path} cannot be read: it is no longer a best one')
        path.unlink()
  process.wait('metrics')


def save(
  manager: ocp.CheckpointManager,
  state: TrainState,
  metrics: Mapping[str, float] | None = None,
) -> None:
  """Starts to save the state under its step, if that is not there yet.

  `metrics` are those of the step; without any it is never the best.
  """
  step = int(state.step)
  if step not in manager.all_steps():
    # A copy: the next step is given the state's own buffers to write to.
    state = jax.tree.map(jnp.copy, state)
    manager.save(
      step,
      args=ocp.args.StandardSave(state),
      metrics=dict(metrics or {}),
    )


def restore(
  manager: ocp.CheckpointManager, step: int, template: TrainState
) -> TrainState:
  """The state of a step, in the template's shapes, dtypes and shardings.

  Of many processes each reads its own part and waits for no other.
  """
  # As manager.restore does, but for a barrier at its end: a process that could
  # read its part would wait there for one that could not.
  return ocp.StandardCheckpointHandler().restore(
    manager.directory / str(step) / 'default',
    args=ocp.args.StandardRestore(template),
  )


def restore_newest(
  manager: ocp.CheckpointManager, template: Callable[[int], TrainState]
) -> TrainState | None:
  """The newest state that can be read; None if there are no checkpoints.

  Newer ones that cannot be read are put aside, as <step>.unreadable. What is
  missing or cut short is noticed; numbers that were changed on the disk mostly
  are not, because Orbax keeps no checksums of them.

  Args:
    manager: of the checkpoints.
    template: step -> shapes, dtypes and shardings of its state.

  Raises:
    ValueError: there are checkpoints, and none of them can be read.
  """
  unreadable = {}
  hide_orphans()
  for step in sorted(manager.all_steps(), reverse=True):
    state = None
    try:
      state = restore(manager, step, template(step))
    except Exception as e:  # Whatever a damaged file makes Orbax raise.
      unreadable[step] = ' '.join(str(e).split())[:120] or type(e).__name__
    if _everywhere(state is not None):
      break
    unreadable.setdefault(step, 'another process could not read it')
    progress.say(
      f'the checkpoint of step {step} cannot be read: {unreadable[step]}'
    )
  else:
    if unreadable:
      raise ValueError(
        f'none of the checkpoints in {manager.directory} can be read; to begin '
        'anew give another --workdir'
      )
    return None
  if unreadable:
    if process.is_lead():
      for bad in unreadable:
        _put_aside(manager.directory / str(bad))
    process.wait('unreadable')
    manager.reload()
  progress.say(f'going on from step {step}')
  return state


def hide_orphans() -> None:
  """Of a checkpoint that cannot be read only the first error is heard.

  Orbax gives up at that one; each array that is still being read would then
  print a traceback because nobody waits for it, some of them much later.
  """
  logging.getLogger('asyncio').addFilter(_somebody_waits)
  hook = sys.unraisablehook

  def other(news):
    if str(news.exc_value) != 'Event loop is closed':
      hook(news)

  sys.unraisablehook = other


def _somebody_waits(record: logging.LogRecord) -> bool:
  return 'exception was never retrieved' not in record.getMessage()


def _put_aside(folder: epath.Path) -> None:
  """Renames it, so that its step can be saved anew."""
  for i in itertools.count(1):
    aside = folder.with_name(f'{folder.name}.unreadable' + f'.{i}' * (i > 1))
    if not aside.exists():
      folder.rename(aside)
      progress.say(f'it is kept as {aside}')
      return


def _everywhere(condition: bool) -> bool:
  """Whether it holds on every process."""
  return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def _plain(config: ConfigDict) -> dict:
  return json.loads(config.to_json(sort_keys=False))


def _flat(tree: dict, prefix: str = '') -> dict:
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat
