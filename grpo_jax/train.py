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
import functools
import itertools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax import (
  build,
  groups,
  initial,
  models,
  rollout,
  scoring,
  sharding,
)
from grpo_jax.rewards import host
from grpo_jax.types import Pairs, Params, Rewards, Rollout, TrainState


class Program(NamedTuple):
  """A jitted function, and the shapes and shardings that it is called with."""

  function: jax.stages.Wrapped
  arguments: tuple[Any, ...]
  mesh: jax.sharding.Mesh
  precision: str  # Of products: accelerators round float32 unless told not to.

  def lower(self) -> jax.stages.Lowered:
    with jax.set_mesh(self.mesh), jax.default_matmul_precision(self.precision):
      return self.function.lower(*self.arguments)


class News(NamedTuple):
  """What an iteration brings besides the state."""

  rollout: Rollout | None  # None in pre-training.
  rewards: Rewards | None
  metrics: dict[str, Any]
  failures: Sequence[host.Failure] = ()  # Of host rewards.


class Steps(NamedTuple):
  """Compiled functions. A state that goes in is gone: its memory is reused.

  Only host rewards look at the examples. `more` are further batches, as pairs
  of prompts and examples, for dynamic sampling.
  """

  pretrain: Callable  # (state, documents) -> state, metrics
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
  text = _like(run.text, _places(run))
  key = _like(jax.eval_shape(jax.random.key, 0), whole)

  def like_output(function, *arguments):
    return _like(jax.eval_shape(function, *arguments), rows)

  # name -> function, arguments, shardings of its outputs. States are donated.
  teacher: tuple = ()
  if run.teacher:
    teacher = (build.params_template(run.teacher, run.mesh),)
  found: dict[str, tuple] = {
    'start_rl': (f.start_rl, (first, *teacher), rl_out)
  }
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
  if f.said:
    tried = like_output(f.rollout_sample, rl.params, held_out, key)
    found['said'] = f.said, (tried, text), rows
  found['update'] = f.update, (rl, *scored), (rl_out, whole)
  found['look'] = f.look, (rl.history, *scored), whole
  found['merge'] = f.merge, (scored, scored), (rows, whole)
  if rl.history is not None:
    found['draw'] = f.draw, (rl.history, rl.step, key), whole
  return {name: _program(run, *parts) for name, parts in found.items()}


def _program(run: build.Run, function, arguments, outputs) -> Program:
  donated = 0 if isinstance(arguments[0], TrainState) else ()
  jitted = jax.jit(function, out_shardings=outputs, donate_argnums=donated)
  # float64 has no name among the precisions of products, and no need of one.
  precision = run.config.model.dtype.replace('float64', 'float32')
  return Program(jitted, arguments, run.mesh, precision)


def compile_steps(run: build.Run) -> Steps:
  """Compiles everything that a run executes, ahead of time."""
  c = run.config
  pool = scoring.open_pool(run)
  dynamic = c.dynamic.batches > 1
  names = ['rollout_sample', 'score_sample'] if pool else ['sample']
  names += ['pretrain'] * (run.documents is not None)
  if c.steps:
    if pool:
      names += ['rollout', 'score', 'update']
    elif c.fuse and not dynamic:
      names += ['iterate']
    else:
      names += ['rollout', 'reward', 'update']
    names += ['look', 'merge'] * dynamic
    names += ['draw'] * (c.curriculum.name != 'none')
    names += ['start_rl']
  p = _compile_or_close(run, names, pool)
  whole = sharding.replicated(run.mesh)
  rows = sharding.batch_sharding(run.mesh)
  make_key = jax.jit(jax.random.key, out_shardings=whole)
  text, key = put_text(run), make_key(c.seed)

  def pretrain(state, documents):
    return p['pretrain'](state, sharding.put(documents, rows))

  def start_rl(state):
    return p['start_rl'](state, *load_teacher(run))

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
      found = _fill(run, p, score, state, batches)
      state, rolled, scores, failures, numbers = found
    else:
      rolled, scores, failures, numbers = score(state, prompts, examples)
    clock = time.perf_counter()
    state, own = jax.block_until_ready(p['update'](state, rolled, scores))
    own |= numbers | {'time/update': time.perf_counter() - clock}
    return state, News(rolled, scores, own, failures)

  numbers = {}
  if 'iterate' in p:
    _, (*_, numbers) = p['iterate'].out_info
  elif 'update' in p:
    _, numbers = p['update'].out_info
  return Steps(
    pretrain=pretrain,
    start_rl=start_rl,
    draw=draw,
    iterate=iterate,
    sample=_sampler(run, pool, p),
    any_process=_any_process(run.mesh),
    metrics=sorted(numbers),
    close=pool.close if pool else lambda: None,
  )


def _any_process(mesh: jax.sharding.Mesh) -> Callable:
  any_true = jax.jit(jax.numpy.any, out_shardings=sharding.replicated(mesh))

  def any_process(condition):
    if jax.process_count() == 1:
      return condition
    return any_true(sharding.put_own(bool(condition), mesh))

  return any_process


class Preference(NamedTuple):
  """The training of a reward model, compiled."""

  start: Callable  # () -> state
  update: Callable  # (state, pairs) -> state, metrics; the old state is gone
  leads: Callable  # (params, pairs) -> lead_P
  any_process: Callable  # (condition) -> whether it holds on one of them


def preference_programs(run: build.Run, pairs: Pairs) -> dict[str, Program]:
  """Those that train a reward model on such batches of pairs."""
  f, rows = build.preference(run), sharding.batch_sharding(run.mesh)
  whole, pairs = sharding.replicated(run.mesh), _like(pairs, rows)
  updated = _shardings(f.template), whole
  return {
    'update': _program(run, f.update, (f.template, pairs), updated),
    'leads': _program(run, f.leads, (f.template.params, pairs), rows),
  }


def compile_preference(run: build.Run, pairs: Pairs) -> Preference:
  """Compiles all that trains a reward model, ahead of time."""
  p = _compile(preference_programs(run, pairs))
  rows = sharding.batch_sharding(run.mesh)
  return Preference(
    start=lambda: start_preference(run),
    update=lambda state, x: p['update'](state, sharding.put(x, rows)),
    leads=lambda params, x: p['leads'](params, sharding.put(x, rows)),
    any_process=_any_process(run.mesh),
  )


class Stream(NamedTuple):
  """A rollout of one completion, token by token; compiled for each shape."""

  begin: Callable  # (params, prompts, key) -> fixed, loop
  advance: Callable  # (fixed, loop) -> loop; the old one is gone
  max_tokens: int


def stream(run: build.Run, temperature: float, top_p: float) -> Stream:
  """Programs for a person who waits; see ask.stream."""
  c, T = run.config, run.config.rollout.max_tokens
  layout = sharding.param_shardings(run.model, sharding.ROLLOUT, run.mesh)
  how = dict(
    model=run.model,
    stop_ids=run.tokenizer.eos_ids,
    temperature=temperature,
    top_p=top_p,
  )

  def begin(params, prompts, key):
    params = jax.tree.map(lambda w: w.astype(c.model.dtype), params)
    params = jax.lax.with_sharding_constraint(params, layout)
    return rollout.begin(
      params, prompts, key, group_size=1, max_tokens=T, **how
    )

  def advance(fixed, loop):
    return rollout.advance(fixed, loop, **how)

  return Stream(jax.jit(begin), jax.jit(advance, donate_argnums=1), T)


class Samples(NamedTuple):
  """What an evaluation needs of a run, compiled."""

  sample: Callable  # (params, prompts, seed, examples) -> rollout, rewards
  said: Callable | None  # (rollout) -> arrays of rewards.answer.said
  close: Callable  # () -> None; ends the workers of host rewards


def compile_sample(run: build.Run) -> Samples:
  """Compiles only what evaluates a policy."""
  pool = scoring.open_pool(run)
  names = ['rollout_sample', 'score_sample'] if pool else ['sample']
  names += ['said'] * (build.functions(run).said is not None)
  p = _compile_or_close(run, names, pool)
  text = put_text(run)
  said = (lambda rolled: p['said'](rolled, text)) if 'said' in p else None
  return Samples(
    _sampler(run, pool, p), said, pool.close if pool else lambda: None
  )


def _sampler(run, pool, p) -> Callable:
  """(params, prompts, seed, examples) -> rollout, rewards of an evaluation."""
  whole = sharding.replicated(run.mesh)
  make_key = jax.jit(jax.random.key, out_shardings=whole)
  text = put_text(run)

  def sample(params, prompts, seed, examples):
    if pool is None:
      prompts = sharding.put(prompts, sharding.batch_sharding(run.mesh))
      return p['sample'](params, prompts, text, make_key(seed))
    asked = params, prompts, make_key(seed), examples
    return _through_host(run, pool, p, text, *asked, '_sample')[:2]

  return sample


def _compile_or_close(run, names, pool) -> dict[str, jax.stages.Compiled]:
  """compile_programs, whose failure ends the workers of host rewards."""
  try:
    return compile_programs(run, names)
  except BaseException:
    if pool:
      pool.close()
    raise


def compile_programs(
  run: build.Run, names: Iterable[str]
) -> dict[str, jax.stages.Compiled]:
  """Compiles side by side: XLA uses one core for each program."""
  all_programs = programs(run)
  return _compile({name: all_programs[name] for name in names})


def _compile(programs: dict[str, Program]) -> dict[str, jax.stages.Compiled]:
  lowered = {name: program.lower() for name, program in programs.items()}
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
  text = put_text(run)
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
    rolled, scores, failures, numbers = scored
    return News(rolled, scores, numbers, failures)
  finally:
    if pool:
      pool.close()


def load_teacher(run: build.Run) -> tuple:
  """The parameters in c.reference.init, as start_rl takes them."""
  if run.teacher is None:
    return ()
  layout = sharding.param_shardings(run.teacher, sharding.TRAIN, run.mesh)
  return (initial.load(run.config.reference.init, run.teacher, layout),)


def start(run: build.Run) -> TrainState:
  """The state before the first step: random weights, or c.model.init."""
  f, shardings = build.functions(run), _shardings(build.templates(run)[0])
  if run.config.model.init:
    params = _loaded(run)
    return jax.jit(f.init, out_shardings=shardings, donate_argnums=0)(params)

  def from_scratch(seed):
    return f.init(models.init_params(run.model, jax.random.key(seed)))

  return jax.jit(from_scratch, out_shardings=shardings)(run.config.seed)


def start_preference(run: build.Run) -> TrainState:
  """The state of a reward model before the first step: a policy's weights."""
  f, seed = build.preference(run), run.config.seed
  if run.config.model.init:
    params = _loaded(run)
  else:
    layout = sharding.param_shardings(run.model, sharding.TRAIN, run.mesh)
    make = functools.partial(models.init_params, run.model)
    params = jax.jit(make, out_shardings=layout)(jax.random.key(seed))
  kept = {name: w for name, w in params.items() if name in f.template.params}
  begin = jax.jit(
    f.init, out_shardings=_shardings(f.template), donate_argnums=0
  )
  return begin(kept, seed)


def _loaded(run: build.Run) -> Params:
  """The weights of c.model.init."""
  c = run.config
  layout = sharding.param_shardings(run.model, sharding.TRAIN, run.mesh)
  return initial.load(c.model.init, run.model, layout, c.seed)


def _shardings(template):
  return jax.tree.map(lambda x: x.sharding, template)


def put_text(run: build.Run):
  """run.text on the mesh, as the programs want it."""
  return sharding.put(run.text, _places(run))


def _places(run: build.Run):
  """Of run.text: tables are whole on each device, reward models in parts."""
  whole = sharding.replicated(run.mesh)
  places = jax.tree.map(lambda _: whole, run.text)
  return places.replace(
    scorers=jax.tree.map(lambda x: x.sharding, run.text.scorers)
  )


def _like(tree, shardings):
  """`shardings` is one for all, or a tree of them."""
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )
