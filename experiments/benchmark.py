"""Times an RL step and sets it against the machine's own limits.

  python experiments/benchmark.py --suite step --shape S1 --json out.json

Suites: `step` (the whole iteration as one program, and its parts), `rollout`,
`update`. Shapes: S1 and S2 are small models, S3 is SmolLM2-135M's; all have
random weights, fixed lengths (nothing ends early), float32, AdamW, and are on
policy. For S1 and S2 a CPU counts as two devices (process.cut_cpu). S1 and S3
sum their gradients in pieces, whose buffers glibc need not map afresh; with
tcmalloc preloaded S3 is faster in one (RESULTS.md). S0 is for the tests.

The floor is what the step would take if its matrix products ran at the rate
that this machine reaches on products of the same shapes in the same run, and
its weights, keys and values were read as fast as memory allows; counts.py says
what is counted. Machines are noisy: compare multiples of the floor, not
seconds.

  python experiments/benchmark.py --shape S1 \
      --against ../shared/bench/tunix_step.py --python peer/bin/python

runs another codebase's script in turn with ours (A B A B ...) and prints the
ratio of each pair. It may print JSON with `step_s_min` and `step_s_median`, or
a line `step s: [...]` with the seconds of every step, of which the first is
compilation.
"""

import argparse
import dataclasses
import json
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
import types

from grpo_jax import process

process.keep_memory()  # Before anything allocates.

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import rich.console  # noqa: E402
import rich.table  # noqa: E402

from grpo_jax import (  # noqa: E402
  build,
  config,
  counts,
  models,
  sharding,
  text,
  train,
)
from grpo_jax.types import Prompts  # noqa: E402

_WARM_UPS = 2


@dataclasses.dataclass(frozen=True)
class Shape:
  """A model, and the batch of a step."""

  prompts: int
  group_size: int
  prompt: int  # Tokens.
  completion: int  # Tokens.
  kl: float = 0.0
  variant: str = 'tiny'
  sizes: dict = dataclasses.field(default_factory=dict)
  microbatches: int = 1
  head_chunk: int = 8192
  cpu_devices: int = 1
  stages: int = 1


def _sizes(layers, width, heads, kv_heads, feed_forward, vocab_size):
  return dict(
    layers=layers,
    width=width,
    heads=heads,
    kv_heads=kv_heads,
    head_size=32,
    feed_forward=feed_forward,
    vocab_size=vocab_size,
  )


SHAPES = {
  'S0': Shape(2, 4, 8, 8, kl=0.04),
  'S1': Shape(
    8,
    8,
    64,
    128,
    kl=0.04,
    sizes=_sizes(4, 128, 4, 2, 512, 512),
    microbatches=2,
    cpu_devices=2,
    stages=4,
  ),
  'S2': Shape(
    8,
    8,
    32,
    64,
    sizes=_sizes(4, 256, 8, 4, 672, 259),
    cpu_devices=2,
    stages=4,
  ),
  'S3': Shape(4, 8, 64, 64, variant='smollm2_135m', microbatches=4, stages=2),
}
SUITES = {
  'step': ('iterate', 'rollout', 'reward', 'update'),
  'rollout': ('rollout',),
  'update': ('rollout', 'reward', 'update'),
}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--suite', choices=SUITES, default='step')
  parser.add_argument('--shape', choices=SHAPES, default='S1')
  parser.add_argument('--runs', type=int, default=5, help='after 2 warm-ups')
  parser.add_argument('--stages', type=int, help='config.rollout.stages')
  parser.add_argument(
    '--microbatches', type=int, help='config.updates.microbatches'
  )
  parser.add_argument('--completion', type=int, help='its tokens')
  parser.add_argument('--json', help='file for the numbers')
  parser.add_argument('--against', help="a peer's script, and its arguments")
  parser.add_argument('--python', default=sys.executable, help='to run it with')
  parser.add_argument('--pairs', type=int, default=3, help='runs of the peer')
  args = parser.parse_args()
  of_shape = 'stages', 'microbatches', 'completion'
  other = {x: vars(args)[x] for x in of_shape if vars(args)[x] is not None}
  if min(args.runs, args.pairs, *other.values()) < 1:
    positive = ', --'.join(['runs', 'pairs', *of_shape])
    parser.error(f'--{positive} must be at least 1')
  if args.against and args.suite != 'step':
    parser.error('--against compares whole steps: --suite step')

  shape = dataclasses.replace(SHAPES[args.shape], **other)
  process.cut_cpu(shape.cpu_devices)
  try:
    run = make_run(shape)
  except ValueError as e:
    parser.error(str(e))
  if args.against:
    result = against(Bench(run, ('iterate',)), args)
  else:
    result = measure(Bench(run, SUITES[args.suite]), args)
  result = {'shape': args.shape, 'suite': args.suite} | result
  if args.json:
    with open(args.json, 'w') as file:
      json.dump(result, file, indent=2)


def make_run(shape: Shape) -> build.Run:
  """A run without a workdir: random prompts, and a tokenizer of numbers."""
  c = config.default()
  c.model.update(variant=shape.variant, sizes=shape.sizes, unroll=True)
  c.data.update(prompts=shape.prompts, max_prompt=shape.prompt)
  c.rollout.update(
    group_size=shape.group_size,
    max_tokens=shape.completion,
    stages=shape.stages,
  )
  c.updates.update(microbatches=shape.microbatches, head_chunk=shape.head_chunk)
  c.kl.coef = shape.kl
  config.check(c)
  model = models.build(
    c.model.name, c.model.variant, unroll=c.model.unroll, **shape.sizes
  )
  V, L = model.vocab_size, shape.prompt

  def encode(examples, rows=None):
    rows = np.asarray(examples)
    P = len(rows)
    return Prompts(
      np.random.default_rng(rows[0]).integers(V, size=(P, L), dtype=np.int32),
      np.full(P, L, np.int32),
      rows.astype(np.uint32),
      np.zeros((P, 4), np.uint8),
      rows_P=rows.astype(np.int32),
    )

  return build.Run(
    config=c,
    workdir=None,
    mesh=sharding.make_mesh(c.mesh),
    model=model,
    # No token ends a completion: this one is never drawn.
    tokenizer=types.SimpleNamespace(eos_ids=(V,)),
    dataset=types.SimpleNamespace(
      batch=lambda split, size, seed, cursor: range(cursor, cursor + size),
      rows=lambda split, size, seed, cursor: np.arange(cursor, cursor + size),
      read=lambda split, rows: rows,
      size=lambda split: 1024,
    ),
    text=text.token_text([f'{i} '.encode() for i in range(V)]),
    encode=encode,
    documents=None,
  )


class Bench:
  """The compiled programs of a run, and what they are called with."""

  def __init__(self, run: build.Run, names: tuple[str, ...]):
    self.run, self.names = run, names
    whole = sharding.replicated(run.mesh)
    start = time.perf_counter()
    self.programs = train.compile_programs(run, names[:1])
    self.compile_s = time.perf_counter() - start
    self.programs |= train.compile_programs(run, [*names[1:], 'start_rl'])
    self.state = self.programs['start_rl'](train.start(run))
    self.text = train.put_text(run)
    self.key = jax.jit(jax.random.key, out_shardings=whole)(0)
    self.prompts = sharding.put(
      build.train_batch(run, 0), sharding.batch_sharding(run.mesh)
    )

  def once(self) -> dict[str, float]:
    """Runs every program once; name -> seconds."""
    seconds = {}

    def timed(name, *arguments):
      start = time.perf_counter()
      out = jax.block_until_ready(self.programs[name](*arguments))
      seconds[name] = time.perf_counter() - start
      return out

    if 'iterate' in self.names:
      self.state, _ = timed(
        'iterate', self.state, self.prompts, self.text, self.key
      )
    if 'rollout' in self.names:
      rolled = timed('rollout', self.state.params, self.prompts, self.key)
    if 'update' in self.names:
      scores = timed('reward', rolled, self.prompts, self.text)
      self.state, _ = timed('update', self.state, rolled, scores)
    return seconds


def measure(bench: Bench, args) -> dict:
  """Times the programs and the machine, and prints the table."""
  start = time.perf_counter()
  bench.once()
  first = bench.compile_s + time.perf_counter() - start
  for _ in range(_WARM_UPS - 1):
    bench.once()
  # The machine before, between and after: its best is its limit.
  limits = [_limits(bench.run)]
  times = []
  for i in range(args.runs):
    times.append(bench.once())
    if i == args.runs // 2:
      limits.append(_limits(bench.run))
  limits.append(_limits(bench.run))
  limits = {k: max(x[k] for x in limits) for k in limits[0]}
  floors = _floors(bench.run, limits)

  result = {}
  names = {'iterate': 'step'} | {n: n for n in bench.names if n != 'iterate'}
  for program in bench.names:
    name, seconds = names[program], [x[program] for x in times]
    result[f'{name}_s_min'] = min(seconds)
    result[f'{name}_s_median'] = statistics.median(seconds)
  result |= limits | {f'{name}_floor_s': x for name, x in floors.items()}
  result['floor_s'] = floors['step']
  c = bench.run.config
  tokens = c.data.prompts * c.rollout.group_size * c.rollout.max_tokens
  slowest = result[f'{names[bench.names[0]]}_s_min']
  result |= {
    'tokens_per_s': tokens / slowest,
    'compile_s': bench.compile_s,
    'first_s': first,
    'peak_memory_gb': _peak_memory(),
    'parameters': models.param_count(bench.run.model),
    'devices': bench.run.mesh.size,
    'runs': args.runs,
  }
  _show(args.shape, [names[x] for x in bench.names], result)
  return result


def _limits(run: build.Run) -> dict[str, float]:
  """What this machine reaches now: products of these shapes, and reading."""
  table = {
    '/'.join(str(x.key) for x in path): row.shape[-2:]
    for path, row in jax.tree_util.tree_leaves_with_path(
      models.abstract_params(run.model)
    )
  }
  D, F = table['layers/gate']
  c = run.config
  rows = c.data.prompts * c.rollout.group_size
  return {
    'matmul_gflops': _product_rate(rows * c.rollout.max_tokens, D, F),
    'thin_matmul_gflops': _product_rate(rows, D, F),
    'read_gbps': _read_rate(),
  }


def _product_rate(rows: int, D: int, F: int) -> float:
  """Gigaflop/s of (rows, D) @ (D, F) and back, the better of two libraries.

  XLA's is not always the best that the machine can do: for 64 rows NumPy's
  product (OpenBLAS) was up to twice as fast.
  """
  x = np.ones((rows, D), np.float32)
  pairs = [
    (np.full((D, F), 1e-3, np.float32), np.full((F, D), 1e-3, np.float32))
    for _ in range(4)
  ]
  operations = 4 * 2 * 2 * rows * D * F

  def chain(x, pairs):
    for into, back in pairs:
      x = (x @ into) @ back
    return x

  compiled = jax.jit(chain)
  device = jax.device_put((x, pairs), jax.devices()[0])
  seconds = min(
    _best(lambda: jax.block_until_ready(compiled(*device)), 0.15),
    _best(lambda: chain(x, pairs), 0.15),
  )
  return operations / seconds / 1e9


def _read_rate() -> float:
  """Gigabytes a second that a sum over 256 MB is fed with."""
  x = jnp.ones(2**26, jnp.float32)
  compiled = jax.jit(jnp.sum)
  return x.nbytes / _best(lambda: compiled(x).block_until_ready(), 0.2) / 1e9


def _best(call, budget: float) -> float:
  """The shortest of the calls that fit the budget in seconds, 3 at least."""
  call()
  times = []
  end = time.perf_counter() + budget
  while len(times) < 3 or time.perf_counter() < end:
    start = time.perf_counter()
    call()
    times.append(time.perf_counter() - start)
  return min(times)


def _floors(run: build.Run, limits: dict[str, float]) -> dict[str, float]:
  c = run.config
  needed = counts.step(
    run.model,
    prompts=c.data.prompts,
    group_size=c.rollout.group_size,
    prompt_tokens=c.data.max_prompt,
    completion_tokens=c.rollout.max_tokens,
    reference=bool(c.kl.coef),
  )
  rollout = max(
    needed.rollout / limits['thin_matmul_gflops'] / 1e9,
    needed.rollout_bytes / limits['read_gbps'] / 1e9,
  )
  update = needed.update / limits['matmul_gflops'] / 1e9
  return {'step': rollout + update, 'rollout': rollout, 'update': update}


def _peak_memory() -> float:
  """Gigabytes: of the device where it tells, else of this process."""
  stats = jax.devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use'] / 1e9
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


_console = rich.console.Console(
  highlight=False, width=None if sys.stdout.isatty() else 100
)


def _show(shape: str, names: list[str], r: dict) -> None:
  table = rich.table.Table(
    title=f'{shape}: {r["parameters"] / 1e6:.2f}M parameters',
    title_justify='left',
  )
  for column in ('', 'min', 'median', 'floor', 'x floor'):
    table.add_column(column, justify='right' if column else 'left')
  for name in names:
    floor = r.get(f'{name}_floor_s')
    table.add_row(
      name,
      f'{r[f"{name}_s_min"]:.4f} s',
      f'{r[f"{name}_s_median"]:.4f} s',
      f'{floor:.4f} s' if floor else '-',
      f'{r[f"{name}_s_min"] / floor:.2f}' if floor else '-',
    )
  _console.print(table)
  _console.print(
    f'{r["tokens_per_s"]:,.0f} completion tokens/s; compiled in '
    f'{r["compile_s"]:.1f} s, first result after {r["first_s"]:.1f} s; '
    f'peak memory {r["peak_memory_gb"]:.2f} GB',
    soft_wrap=True,
  )
  _console.print(
    f'machine: {r["matmul_gflops"]:.0f} gigaflop/s on thick products, '
    f'{r["thin_matmul_gflops"]:.0f} on thin ones, reads '
    f'{r["read_gbps"]:.0f} GB/s',
    soft_wrap=True,
  )


def against(bench: Bench, args) -> dict:
  """Ours and the peer's in turn; the peer's seconds over ours."""
  pairs = []
  for i in range(args.pairs):
    for _ in range(_WARM_UPS):
      bench.once()
    ours = [bench.once()['iterate'] for _ in range(args.runs)]
    process.give_back_memory()  # SmolLM2 keeps 14 GB.
    theirs = run_peer(args.against, args.python)
    rate = _limits(bench.run)['matmul_gflops']
    ours = {'min': min(ours), 'median': statistics.median(ours)}
    pairs.append({'ours': ours, 'theirs': theirs, 'matmul_gflops': rate})
    _console.print(
      f'pair {i + 1}: ours {ours["min"]:.3f} s (median {ours["median"]:.3f}), '
      f'theirs {theirs["min"]:.3f} s (median {theirs["median"]:.3f}); '
      f'{theirs["min"] / ours["min"]:.2f} times as long '
      f'({theirs["median"] / ours["median"]:.2f}); machine at '
      f'{rate:.0f} gigaflop/s',
      soft_wrap=True,
    )
  return {
    'pairs': pairs,
    'ratio_min': [_ratio(pair, 'min') for pair in pairs],
    'ratio_median': [_ratio(pair, 'median') for pair in pairs],
  }


def _ratio(pair: dict, which: str) -> float:
  return pair['theirs'][which] / pair['ours'][which]


def run_peer(command: str, python: str) -> dict[str, float]:
  """Runs a script and finds its seconds per step.

  Exits with the end of what it said if there are none.
  """
  done = subprocess.run(
    [python, *shlex.split(command)], capture_output=True, text=True
  )
  for line in reversed(done.stdout.splitlines()):
    if line.startswith('{') and 'step_s_median' in line:
      found = json.loads(line)
      return {'min': found['step_s_min'], 'median': found['step_s_median']}
    steps = re.match(r'step s: \[(.*)\]', line)
    if steps:
      seconds = [float(x) for x in steps[1].split(',')][_WARM_UPS - 1 :]
      return {'min': min(seconds), 'median': statistics.median(seconds)}
  said = (done.stdout + done.stderr).strip().splitlines()[-1:]
  sys.exit(f'error: {command} gave no seconds per step: {" ".join(said)}')


if __name__ == '__main__':
  main()
