r"""Compares settings of a config, each on many seeds.

  python experiments/sweep.py --config configs/quickstart.py \
      --algorithms grpo,dapo,gspo --seeds 0:3 --workdir runs/sweep

  python experiments/sweep.py --config configs/quickstart.py --seeds 0:5 \
      --set optim.lr=1e-4,3e-4 --set rollout.group_size=8,16 --workdir runs/lr

--set KEY=A,B runs --config.KEY=A and --config.KEY=B; of several all
combinations are run, and --algorithms grpo,dapo is --set algorithm=grpo,dapo.
No comma within brackets divides, nor one behind a backslash:
--set "lora.targets=('q','v'),('q','k','v','o')". With --seeds alone the config
itself is run. --config.any.key=value changes all runs, and comes before what an
algorithm sets.

Runs begin with the same pre-trained weights of their seed; where --set changes
what these depend on (model, data, pretrain ...) there are some for each change.
Each run has a workdir of its own, like grpo_0 or optim.lr=1e-4_0, and is made
by experiments/train.py. What is done stays done: the same command goes on where
it was interrupted, and longer lists add to it. It leaves sweep.json, table.md
and figure.png, with intervals over the seeds (compare.py); the figure needs
matplotlib: pip install -e '.[plot]'.
"""

from collections.abc import Collection, Sequence
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time

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
_SET = flags.DEFINE_multi_string(
  'set', [], 'KEY=A,B: values of a knob; may be given several times.'
)
_SEEDS = flags.DEFINE_string('seeds', '0:3', 'FIRST:END, or some with commas.')
_STEPS = flags.DEFINE_integer(
  'steps', None, "RL steps of each run, if not the config's.", lower_bound=1
)
_PARALLEL = flags.DEFINE_integer(
  'parallel', 1, 'Runs at one time, each on its share of cores.', lower_bound=1
)
# Of these no pre-trained weights depend, so that settings share them; what is
# not here makes some of its own.
_RL_ALONE = (
  *('steps', 'fuse', 'algorithm', 'curriculum', 'rollout', 'reward', 'host'),
  *('dynamic', 'truncated', 'advantage', 'loss', 'select', 'off_policy'),
  *('aggregate', 'kl', 'reference', 'entropy', 'offload', 'updates', 'optim'),
  *('eval', 'alarms', 'log', 'checkpoint', 'data.prompts'),
)

Setting = dict[str, str]  # Knob -> value, as on a command line.


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of the sweep."""

  name: str
  workdir: pathlib.Path
  values: Setting  # What differs from the sweep's config.

  def done(self) -> bool:
    return (self.workdir / 'summary.json').exists()


def main():
  c, given = _CONFIG.value, command.given(_CONFIG)
  words = list(_SET.value)
  if _ALGORITHMS.value is not None:
    words.insert(0, f'algorithm={_ALGORITHMS.value}')
  axes = parse(c, words)
  ours = {'seed', *axes} | ({'steps'} if _STEPS.value else set())
  for key in given:
    if key in ours:
      raise ValueError(f'--config.{key} is what a sweep sets for each run')
  if _STEPS.value and 'steps' in axes:
    raise ValueError('--steps and --set steps=...: give one of them')
  seeds = _seeds(_SEEDS.value)
  draw_groups = _drawing()
  workdir = pathlib.Path(_WORKDIR.value)
  pretrained, runs = plan(c, workdir, settings(axes), seeds, _STEPS.value)
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


def parse(c: ConfigDict, words: Sequence[str]) -> dict[str, list[str]]:
  """Knob -> its values, of words like 'optim.lr=1e-4,3e-4'.

  Raises ValueError for what --config.KEY=VALUE would refuse, and for a knob or
  a value that is there twice.
  """
  axes = {}
  for word in words:
    key, equals, text = word.partition('=')
    if not (key and equals):
      raise ValueError(f'--set {word}: it is not like loss.clip_high=0.2,0.28')
    if key in axes:
      raise ValueError(f'{key} is set twice: give all of its values at once')
    if key == 'seed':
      raise ValueError(f'--set {word}: that is what --seeds is for')
    axes[key] = divide(text)
    if key == 'algorithm':
      for name in axes[key]:
        algorithms.values(name)  # Raises for one that is not there.
    read = [command.changed(c, {key: x})[1][key] for x in axes[key]]
    for i, value in enumerate(read):
      if value in read[:i]:
        raise ValueError(f'{key}: {axes[key][i]} is there twice')
  return axes


def divide(text: str) -> list[str]:
  r"""At commas that are not in brackets: 'a,(b,c),d\,e' -> a (b,c) d,e."""
  parts, depth = [''], 0
  for piece in re.findall(r'\\,|.', text, re.DOTALL):
    if piece == ',' and not depth:
      parts.append('')
      continue
    depth = max(0, depth + (piece in '([{') - (piece in ')]}'))
    parts[-1] += piece.removeprefix('\\') if len(piece) == 2 else piece
  return parts


def settings(axes: dict[str, list[str]]) -> dict[str, Setting]:
  """All combinations, by their names; without any knob the config itself."""
  rows = itertools.product(*axes.values())
  found = [dict(zip(axes, row, strict=True)) for row in rows]
  return {_name(x) if x else 'config': x for x in found}


def _name(setting: Setting, *first: str) -> str:
  """Of a folder; what is not safe or too long in one ends in a hash of it."""
  words = [
    value if key == 'algorithm' else f'{key}={value}'
    for key, value in setting.items()
  ]
  name = ','.join([*first, *words])
  safe = re.sub(r'[^\w.,=+-]+', '-', name, flags=re.ASCII)[:100]
  if safe == name:
    return name
  return f'{safe}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}'


def plan(
  c: ConfigDict,
  workdir: pathlib.Path,
  named: dict[str, Setting],
  seeds: list[int],
  steps: int | None = None,
) -> tuple[list[Run], dict[str, list[Run]]]:
  """The pre-trainings, and for each setting its runs, one a seed.

  Settings that do not differ in what pre-training depends on share one.
  """
  pretrained, runs = {}, {name: [] for name in named}
  for seed, (name, setting) in itertools.product(seeds, named.items()):
    values = setting | {'seed': f'{seed}'}
    values |= {'steps': f'{steps}'} if steps else {}
    before = {key: x for key, x in setting.items() if not _rl_alone(key)}
    start, _ = command.changed(c, before)
    if start.pretrain.steps:
      first = workdir / f'{_name(before, "pretrained")}_{seed}'
      asked = {'seed': f'{seed}', 'steps': '0'}
      pretrained[first.name] = Run(first.name, first, before | asked)
      init = first / 'checkpoints' / str(start.pretrain.steps)
      values |= {'pretrain.steps': '0', 'model.init': str(init)}
      if not start.tokenizer.path:
        values['tokenizer.path'] = str(first / 'tokenizer.model')
    run = f'{name}_{seed}'
    runs[name].append(Run(run, workdir / run, values))
  return list(pretrained.values()), runs


def _rl_alone(key: str) -> bool:
  return any(key == x or key.startswith(f'{x}.') for x in _RL_ALONE)


def _check(c: ConfigDict, given: Collection[str], run: Run) -> None:
  """Raises, before anything runs, what the run itself would of its config."""
  try:
    c, more = command.changed(c, run.values)
    c = algorithms.resolve(c, {*given, *more})
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
  accuracies = (found.get(f'accuracy_{when}') for when in ('before', 'after'))
  said = ' -> '.join(f'{x:.1%}' for x in accuracies if x is not None)
  seconds = time.monotonic() - begun
  print(f'{run.name}: accuracy {said}, {seconds:.0f} s', flush=True)


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
  for seed in seeds:
    if seeds.count(seed) > 1:
      raise ValueError(f'--seeds: {seed} is there twice')
  return seeds


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
  flags.mark_flags_as_required(['config', 'workdir'])
  command.run(main)
