"""Saves and restores a TrainState: atomic, asynchronous, the last n kept.

A checkpoint is whole or it is not there: Orbax writes to a temporary folder
and renames it. Arrays come back into the sharding that is asked for. Beside the
checkpoints a workdir holds the config that made it, and refuses another.
"""

import json

from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import orbax.checkpoint as ocp

from grpo_jax.types import TrainState


def claim(workdir: epath.Path, config: ConfigDict) -> None:
  """Checks that a workdir is new or was made by this very config.

  Raises:
    ValueError: naming what differs. Nothing is written.
  """
  path = workdir / 'config.json'
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'{workdir} is a file, not the folder of a run')
  if not path.exists():
    found = {x.name for x in workdir.iterdir()} if workdir.exists() else set()
    if found - {'data'}:  # A run that was refused may have left its problems.
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
  ]
  if differing:
    raise ValueError(
      f'{workdir} was made by a different config: {"; ".join(differing)}. '
      'Give another --workdir, or the same config to go on'
    )


def record(workdir: epath.Path, config: ConfigDict) -> None:
  """Writes config.json."""
  workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps(_plain(config), indent=2)
  (workdir / 'config.json').write_text(text + '\n')


def open_manager(folder: epath.Path, keep: int) -> ocp.CheckpointManager:
  """The checkpoints under a folder; close() waits for writes to end."""
  options = ocp.CheckpointManagerOptions(max_to_keep=keep)
  return ocp.CheckpointManager(epath.Path(folder).resolve(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState) -> None:
  """Starts to save the state under its step, if that is not there yet."""
  step = int(state.step)
  if step not in manager.all_steps():
    # A copy: the next step is given the state's own buffers to write to.
    state = jax.tree.map(jnp.copy, state)
    manager.save(step, args=ocp.args.StandardSave(state))


def restore(
  manager: ocp.CheckpointManager, step: int, template: TrainState
) -> TrainState:
  """The state of a step, in the template's shapes, dtypes and shardings."""
  return manager.restore(step, args=ocp.args.StandardRestore(template))


def _plain(config: ConfigDict) -> dict:
  return json.loads(config.to_json(sort_keys=False))


def _flat(tree: dict, prefix: str = '') -> dict:
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat
