r"""Compares algorithms: each from the same pre-trained weights, on many seeds.

  python experiments/sweep.py --config configs/quickstart.py \
      --algorithms grpo,dapo,gspo --seeds 0:3 --workdir runs/sweep

Pre-trains once a seed, then runs every algorithm from there, each in a workdir
of its own by experiments/train.py. What is done stays done: the same command
goes on where it was interrupted, and a longer list of algorithms adds to it.
--config.any.key=value changes all runs, and comes before what an algorithm
sets. It leaves sweep.json, table.md and figure.png; the figure needs
matplotlib: pip install -e '.[plot]'.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from absl import flags
import compare
from etils import epath
from ml_collections import ConfigDict, config_flags

from grpo_jax import algorithms, checkpoint, command
from grpo_jax import config as config_lib

_CONFIG = command.config_flag()
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the sweep.')
_ALGORITHMS = flags.DEFINE_string(
  'algorithms', None, 'Names of recipes (grpo_jax/recipes.py), with commas.'
)
_SEEDS = flags.DEFINE_string('seeds', '0:3', 'FIRST:END, or some with commas.')
_STEPS = flags.DEFINE_integer(
  'steps', None, "RL steps of each run, if not the config's.", lower_bound=1
)
_PARALLEL = flags.DEFINE_integer(
  'parallel', 1, 'Runs at one time, each on its share of cores.', lower_bound=1
)
_OURS = ('seed', 'algorithm', 'model.init')  # What no flag may set for all.


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of the sweep."""

  name: str
  workdir: pathlib.Path
  values: dict[str, Any]  # What differs from the sweep's config.

  def done(self) -> bool:
    return (self.workdir / 'summary.json').exists()


def main():
  names, seeds = _names(_ALGORITHMS.value), _seeds(_SEEDS.value)
  c, given = _CONFIG.value, command.given(_CONFIG)
  for key in _OURS:
    if key in given:
      raise ValueError(f'--config.{key} is what a sweep sets for each run')
  draw_groups = _drawing()
  workdir = pathlib.Path(_WORKDIR.value)
  pretrained, runs = plan(c, workdir, names, seeds, _STEPS.value)
  for run in (*pretrained, *(run for group in runs.values() for run in group)):
    _check(c, given, run)
  _raise(carry_out(pretrained, workdir, _PARALLEL.value), workdir)
  # Seed by seed, so that there is something to compare early on.
  order = [group[i] for i in range(len(seeds)) for group in runs.values()]
  failed = carry_out(order, workdir, _PARALLEL.value)
  groups = {
    name: [run.workdir for run in group]
    for name, group in runs.items()
    if all(run.done() for run in group)
  }
  if groups:
    found = compare.summarize(groups)
    text = compare.table(found)
    (workdir / 'sweep.json').write_text(json.dumps(found, indent=2) + '\n')
    (workdir / 'table.md').write_text(text)
    note = f'{_title()}, {len(seeds)} seed{"s" * (len(seeds) > 1)}'
    draw_groups(groups, note).savefig(workdir / 'figure.png', dpi=110)
    print(text)
    print(f'{workdir}/figure.png, table.md, sweep.json')
  _raise(failed, workdir)


def plan(
  c: ConfigDict,
  workdir: pathlib.Path,
  names: list[str],
  seeds: list[int],
  steps: int | None = None,
) -> tuple[list[Run], dict[str, list[Run]]]:
  """The pre-trainings, and for each algorithm its runs, one a seed."""
  pretrained, runs = [], {name: [] for name in names}
  for seed in seeds:
    start = {'seed': seed, 'steps': steps or c.steps}
    if c.pretrain.steps:
      first = workdir / f'pretrained_{seed}'
      # A run has an RL step at least, which no one looks at.
      values = {'seed': seed, 'steps': 1, 'checkpoint.keep': 2}
      pretrained.append(Run(first.name, first, values))
      init = first / 'checkpoints' / str(c.pretrain.steps)
      start |= {'pretrain.steps': 0, 'model.init': str(init)}
      if not c.tokenizer.path:
        start['tokenizer.path'] = str(first / 'tokenizer.model')
    for name in names:
      values = start | {'algorithm': name}
      runs[name].append(
        Run(f'{name}_{seed}', workdir / f'{name}_{seed}', values)
      )
  return pretrained, runs


def _check(c: ConfigDict, given: dict[str, Any], run: Run) -> None:
  """Raises, before anything runs, what the run itself would of its config."""
  c = c.copy_and_resolve_references().unlock()
  c.update_from_flattened_dict(run.values)
  try:
    c = algorithms.resolve(c, given)
    config_lib.check(c)
  except ValueError as e:
    raise ValueError(f'{run.name}: {e}') from None
  checkpoint.claim(epath.Path(run.workdir), c)


def carry_out(
  runs: list[Run], workdir: pathlib.Path, parallel: int
) -> list[str]:
  """Runs what is not done yet, and returns the names of those that failed.

  A sweep that is told to stop stops its runs.
  """
  (workdir / 'logs').mkdir(parents=True, exist_ok=True)
  slots, going, failed = queue.SimpleQueue(), set(), []
  stop = threading.Event()
  for slot in range(parallel):
    slots.put(slot)

  def one(run: Run):
    slot = slots.get()
    try:
      _one(run, workdir, slot, parallel, going, stop)
    except ValueError as e:
      if not stop.is_set():
        print(f'{run.name}: {e}', flush=True)
      failed.append(run.name)
    finally:
      slots.put(slot)

  before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  pool = concurrent.futures.ThreadPoolExecutor(parallel)
  try:
    for _ in pool.map(one, [run for run in runs if not run.done()]):
      pass
  except (KeyboardInterrupt, SystemExit):
    print('stopped: the same command goes on from here', flush=True)
    raise SystemExit(1) from None
  finally:
    stop.set()
    pool.shutdown(wait=False, cancel_futures=True)
    for process in list(going):  # They save what they have, and end.
      process.terminate()
    pool.shutdown()
    signal.signal(signal.SIGTERM, before)
  return failed


def _raise(failed: list[str], workdir: pathlib.Path) -> None:
  if failed:
    raise ValueError(
      f'{", ".join(failed)}: not done, see {workdir}/logs; the same command '
      'tries again'
    )


def _one(run, workdir, slot, parallel, going, stop) -> None:
  line = [
    sys.executable,
    str(pathlib.Path(__file__).with_name('train.py')),
    *command.words(),
    *(f'--config.{name}={value}' for name, value in run.values.items()),
    f'--workdir={run.workdir}',
  ]
  # Seeds share their programs: only the first of them compiles.
  cache = {'JAX_COMPILATION_CACHE_DIR': str(workdir.resolve() / 'compiled')}
  begun, path = time.monotonic(), workdir / 'logs' / f'{run.name}.log'
  with path.open('a') as log:
    print('$', *line, file=log, flush=True)
    process = subprocess.Popen(
      line, stdout=log, stderr=subprocess.STDOUT, env=cache | os.environ
    )
    going.add(process)
    if stop.is_set():  # Since it was started.
      process.terminate()
    if parallel > 1 and hasattr(os, 'sched_setaffinity'):
      cores = sorted(os.sched_getaffinity(0))
      os.sched_setaffinity(process.pid, cores[slot::parallel] or cores)
    process.wait()
    going.remove(process)
  if not run.done():
    last = path.read_text().strip().splitlines()[-1]
    raise ValueError(last.removeprefix('error: '))
  found = json.loads((run.workdir / 'summary.json').read_text())
  print(
    f'{run.name}: accuracy {found["accuracy_before"]:.1%} -> '
    f'{found["accuracy_after"]:.1%}, {time.monotonic() - begun:.0f} s',
    flush=True,
  )


def _names(text: str) -> list[str]:
  names = [name for name in text.split(',') if name]
  for name in names or ['']:
    algorithms.values(name)  # Raises for one that is not there.
  return _once('algorithms', names)


def _seeds(text: str) -> list[int]:
  try:
    first, colon, end = text.partition(':')
    if colon:
      seeds = list(range(int(first), int(end)))
    else:
      seeds = [int(x) for x in text.split(',')]
  except ValueError:
    raise ValueError(f'--seeds={text!r} is not like 0:3 or 0,5,7') from None
  if not seeds or min(seeds) < 0:
    raise ValueError(f'--seeds={text!r} must be one seed or more, from 0 on')
  return _once('seeds', seeds)


def _once(flag: str, values: list) -> list:
  for value in values:
    if values.count(value) > 1:
      raise ValueError(f'--{flag}: {value} is there twice')
  return values


def _drawing():
  try:
    import plot
  except ImportError as e:
    raise ValueError(f"the figure needs {e.name}: pip install '.[plot]'") from e
  return plot.draw_groups


def _title() -> str:
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  return pathlib.Path(path.partition(':')[0]).stem


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir', 'algorithms'])
  command.run(main)
