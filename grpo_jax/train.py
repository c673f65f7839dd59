"""From the pure functions of a run to programs on a mesh.

  programs(run) -> {name: Program}  the only place of jit, donation, shardings
  compile_steps(run) -> Steps       those that a run executes, compiled
  start(run) -> state               random weights, or those of a file or a run

Everything is compiled ahead of time, so that a run shows when it compiles, and
never does so again. fit.py carries the steps out; a benchmark or a plan takes
single programs, also for devices that are not there.
"""

from collections.abc import Callable, Iterable, Sequence
import concurrent.futures
import itertools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax import build, groups, initial, models, scoring, sharding
from grpo_jax.rewards import host
from grpo_jax.types import Rewards, Rollout, TrainState


class Program(NamedTuple):
  """A jitted function, and the shapes and shardings that it is called with."""

  function: Callable
  arguments: tuple[Any, ...]
  mesh: jax.sharding.Mesh
  precision: str  # Of products: accelerators round float32 unless told not to.

  def lower(self) -> jax.stages.Lowered:
    with jax.set_mesh(self.mesh), jax.default_matmul_precision(self.precision):
      return self.function.lower(*self.arguments)


class News(NamedTuple):
  """What an iteration brings besides the state."""

  rollout: Rollout
  rewards: Rewards
  metrics: dict[str, Any]
  failures: Sequence[host.Failure] = ()  # Of host rewards.


class Steps(NamedTuple):
  """Compiled functions. A state that goes in is gone: its memory is reused.

  Only host rewards look at the examples. `more` are further batches, as pairs
  of prompts and examples, for dynamic sampling.
  """

  pretrain: Callable | None  # (state, documents) -> state, metrics
  start_rl: Callable  # (state) -> state
  draw: Callable  # (state, RL steps done) -> rows of the step's batches
  iterate: Callable  # (state, prompts, examples, more=()) -> state, News
  sample: Callable  # (params, prompts, seed, examples) -> rollout, rewards
  any_process: Callable  # (condition) -> whether it holds on one of them
  metrics: list[str]  # Names of what an iteration measures.
  close: Callable  # () -> None; ends the workers of host rewards


def programs(run: build.Run) -> dict[str, Program]:
  """All programs of a run; nothing is traced or compiled yet.

  The devices of its mesh need not be there: those of a topology do as well.
  """
  f = build.functions(run)
  whole = sharding.replicated(run.mesh)
  rows = sharding.batch_sharding(run.mesh)
  first, rl = build.templates(run)
  first_out, rl_out = _shardings(first), _shardings(rl)
  prompts = _like(build.train_batch(run, 0), rows)
  held_out = _like(build.eval_batches(run)[0][0], rows)
  text = _like(run.text, whole)
  key = _like(jax.eval_shape(jax.random.key, 0), whole)

  def like_output(function, *arguments):
    return _like(jax.eval_shape(function, *arguments), rows)

  # name -> function, arguments, shardings of its outputs. States are donated.
  found = {'start_rl': (f.start_rl, (first,), rl_out)}
  if run.documents is not None:
    documents = _like(build.pretrain_batch(run, 0), rows)
    found['pretrain'] = f.pretrain, (first, documents), (first_out, whole)
  if scoring.specs(run.config):  # The host stands between the programs.
    pieces = run.config.host.pieces
    piece = _like(scoring.cut(build.train_batch(run, 0), pieces)[0], rows)

    def by_host(name, roll, score, prompts, pieces):
      found[f'rollout{name}'] = roll, (rl.params, prompts, key), rows
      rolled = (like_output(roll, rl.params, prompts, key),) * pieces
      hosted = scoring.like(run.config, rolled, rows)
      found[f'score{name}'] = score, (rolled, text, hosted), rows
      return like_output(score, rolled, text, hosted)

    by_host('_sample', f.rollout_sample, f.score_sample, held_out, 1)
    scored = by_host('', f.rollout, f.score, piece, pieces)
  else:
    rolled = like_output(f.rollout, rl.params, prompts, key)
    scored = rolled, like_output(f.reward, rolled, prompts, text)
    iterated = rl_out, (rows, rows, whole)
    found |= {
      'sample': (f.sample, (rl.params, held_out, text, key), rows),
      'iterate': (f.iterate, (rl, prompts, text, key), iterated),
      'rollout': (f.rollout, (rl.params, prompts, key), rows),
      'reward': (f.reward, (rolled, prompts, text), rows),
    }
  found['update'] = f.update, (rl, *scored), (rl_out, whole)
  found['look'] = f.look, (rl.history, *scored), whole
  found['merge'] = f.merge, (scored, scored), (rows, whole)
  if rl.history is not None:
    found['draw'] = f.draw, (rl.history, rl.step, key), whole
  # float64 has no name among the precisions of products, and no need of one.
  precision = run.config.model.dtype.replace('float64', 'float32')

  def program(function, arguments, outputs):
    donated = 0 if isinstance(arguments[0], TrainState) else ()
    jitted = jax.jit(function, out_shardings=outputs, donate_argnums=donated)
    return Program(jitted, arguments, run.mesh, precision)

  return {name: program(*parts) for name, parts in found.items()}


def compile_steps(run: build.Run) -> Steps:
  """Compiles everything that a run executes, ahead of time."""
  c = run.config
  pool = scoring.open_pool(run)
  dynamic = c.dynamic.batches > 1
  if pool:
    names = ['rollout', 'score', 'update', 'rollout_sample', 'score_sample']
  elif c.fuse and not dynamic:
    names = ['iterate', 'sample']
  else:
    names = ['rollout', 'reward', 'update', 'sample']
  names += ['look', 'merge'] * dynamic
  names += ['draw'] * (c.curriculum.name != 'none')
  names += ['start_rl', *(['pretrain'] if run.documents is not None else [])]
  try:
    p = compile_programs(run, names)
  except BaseException:
    if pool:
      pool.close()
    raise
  whole = sharding.replicated(run.mesh)
  rows = sharding.batch_sharding(run.mesh)
  make_key = jax.jit(jax.random.key, out_shardings=whole)
  text, key = sharding.put(run.text, whole), make_key(c.seed)

  def pretrain(state, documents):
    return p['pretrain'](state, sharding.put(documents, rows))

  def draw(state, done):
    return _draw(run, p, state, done, key)

  def score(state, prompts, examples, batch=0):
    """completions, rewards, failures, numbers: by two programs, or the host."""
    now = build.roll_key(key, state.step, batch)
    now = jax.device_put(now, key.sharding)
    if pool is None:
      prompts = sharding.put(prompts, rows)
      return _on_device(p, text, state.params, prompts, now)
    return _through_host(
      run, pool, p, text, state.params, prompts, now, examples
    )

  def iterate(state, prompts, examples, more=()):
    if 'iterate' in p:
      prompts = sharding.put(prompts, rows)
      state, news = p['iterate'](state, prompts, text, key)
      return state, News(*news)
    if dynamic:
      batches = itertools.chain([(prompts, examples)], more)
      state, *scored, failures, numbers = _fill(run, p, score, state, batches)
    else:
      *scored, failures, numbers = score(state, prompts, examples)
    clock = time.perf_counter()
    state, own = jax.block_until_ready(p['update'](state, *scored))
    own |= numbers | {'time/update': time.perf_counter() - clock}
    return state, News(*scored, own, failures)

  def sample(params, prompts, seed, examples):
    if pool is None:
      prompts = sharding.put(prompts, rows)
      return p['sample'](params, prompts, text, make_key(seed))
    asked = params, prompts, make_key(seed), examples
    return _through_host(run, pool, p, text, *asked, '_sample')[:2]

  def any_process(condition):
    if jax.process_count() == 1:
      return condition
    return any_true(sharding.put_own(bool(condition), run.mesh))

  any_true = jax.jit(jax.numpy.any, out_shardings=whole)
  if 'iterate' in p:
    _, (*_, numbers) = p['iterate'].out_info
  else:
    _, numbers = p['update'].out_info
  return Steps(
    pretrain=pretrain,
    start_rl=p['start_rl'],
    draw=draw,
    iterate=iterate,
    sample=sample,
    any_process=any_process,
    metrics=sorted(numbers),
    close=pool.close if pool else lambda: None,
  )


def compile_programs(
  run: build.Run, names: Iterable[str]
) -> dict[str, jax.stages.Compiled]:
  """Compiles side by side: XLA uses one core for each program."""
  all_programs = programs(run)
  lowered = {name: all_programs[name].lower() for name in names}
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = pool.map(lambda x: x.compile(), lowered.values())
    return dict(zip(lowered, found, strict=True))


def _draw(run, p, state, done, key) -> np.ndarray:
  """Rows of an RL step's problems: a batch, and those it may sample besides.

  A curriculum and dynamic sampling wait for the step before, because it tells
  what comes next; without them it is known anyway.
  """
  c = run.config
  if 'draw' in p:
    rows = np.asarray(p['draw'](state.history, state.step, key))
  elif c.dynamic.batches > 1:
    rows = build.train_rows(run, int(state.cursor), c.dynamic.batches)
  else:
    rows = build.train_rows(run, done * c.data.prompts)
  return rows.reshape(c.dynamic.batches, c.data.prompts)


def _on_device(p, text, params, prompts, key):
  """Samples and scores with a program for each; as `iterate` does in one."""
  clock = [time.perf_counter()]

  def timed(value):
    jax.block_until_ready(value)
    clock.append(time.perf_counter())
    return value

  rolled = timed(p['rollout'](params, prompts, key))
  scores = timed(p['reward'](rolled, prompts, text))
  names = ('time/rollout', 'time/reward')
  return rolled, scores, [], dict(zip(names, np.diff(clock), strict=True))


def _fill(run, p, score, state, batches):
  """Samples and scores until enough groups differ; see groups.fill.

  Returns the state with the history of all that was sampled, and the cursor
  behind it but for the batch that the update will add; and what `score` does.
  """
  c, begun = run.config, time.perf_counter()
  known, failures, numbers = state.history, [], []

  def sample(batch):
    nonlocal known
    prompts, examples = next(batches)
    *scored, failed, spent = score(state, prompts, examples, batch)
    known, count, more = p['look'](known, *scored)
    failures.extend(failed)
    numbers.append(spent | jax.device_get(more))
    return tuple(scored), count

  scored, sampled = groups.fill(
    sample,
    p['merge'],
    wanted=c.data.prompts,
    batches=c.dynamic.batches,
  )
  thrown = (sampled - 1) * c.data.prompts
  cursor = np.int32(int(state.cursor) + thrown)
  cursor = sharding.put(cursor, state.cursor.sharding)
  found = groups.total(numbers)
  found |= {'groups/batches': sampled, 'groups/thrown_away': thrown}
  timed = found['time/rollout'] + found['time/reward']
  found['time/groups'] = time.perf_counter() - begun - timed
  return state.replace(history=known, cursor=cursor), *scored, failures, found


def _through_host(run, pool, p, text, params, prompts, key, examples, name=''):
  """Samples and scores with the programs of this name; see scoring.py."""
  rows = sharding.batch_sharding(run.mesh)
  pieces = 1 if name else run.config.host.pieces

  def roll(piece):
    return p[f'rollout{name}'](params, sharding.put(piece, rows), key)

  def score(rolled, hosted):
    return p[f'score{name}'](rolled, text, sharding.put(hosted, rows))

  pieces = scoring.cut(prompts, pieces)
  return scoring.through_host(run, pool, roll, score, pieces, examples)


def next_batch(run: build.Run, state: TrainState) -> News:
  """What the next RL step samples, and how it scores; nothing is learnt."""
  c, whole = run.config, sharding.replicated(run.mesh)
  text = sharding.put(run.text, whole)
  key = jax.jit(jax.random.key, out_shardings=whole)(c.seed)
  done = max(0, int(state.step) - c.pretrain.steps)
  if not done:  # RL begins with the first problem, and knows of none.
    begin = jax.jit(lambda: build.new_history(run), out_shardings=whole)
    state = state.replace(cursor=np.int32(0), history=begin())
  names = ['draw'] * (c.curriculum.name != 'none')
  pool = scoring.open_pool(run)
  try:
    names += ['rollout', 'score' if pool else 'reward']
    p = compile_programs(run, names)
    rows_P = _draw(run, p, state, done, key)[0]
    prompts, examples = build.own_batch(run, rows_P)
    key = jax.device_put(build.roll_key(key, state.step), whole)
    if pool is None:
      prompts = sharding.put(prompts, sharding.batch_sharding(run.mesh))
      scored = _on_device(p, text, state.params, prompts, key)
    else:
      scored = _through_host(
        run, pool, p, text, state.params, prompts, key, examples
      )
    *scored, failures, numbers = scored
    return News(*scored, numbers, failures)
  finally:
    if pool:
      pool.close()


def start(run: build.Run) -> TrainState:
  """The state before the first step: random weights, or c.model.init."""
  f, shardings = build.functions(run), _shardings(build.templates(run)[0])
  if run.config.model.init:
    params = initial.load(run.config.model.init, run.model, shardings.params)
    return jax.jit(f.init, out_shardings=shardings, donate_argnums=0)(params)

  def from_scratch(seed):
    return f.init(models.init_params(run.model, jax.random.key(seed)))

  return jax.jit(from_scratch, out_shardings=shardings)(run.config.seed)


def _shardings(template):
  return jax.tree.map(lambda x: x.sharding, template)


def _like(batch, sharding):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch
  )
