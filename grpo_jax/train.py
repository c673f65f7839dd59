"""From the pure functions of a run to programs on a mesh.

  compile_steps(run) -> Steps   the only place of jit, donation and shardings
  start(run) -> state           random weights, or those of a file

Everything is compiled ahead of time, so that a run shows when it compiles, and
never does so again. fit.py carries the steps out.
"""

from collections.abc import Callable
import concurrent.futures
import time
from typing import NamedTuple

import jax
import numpy as np

from grpo_jax import build, models, sharding, weights
from grpo_jax.types import TrainState


class Steps(NamedTuple):
  """Compiled functions. A state that goes in is gone: its memory is reused."""

  pretrain: Callable | None  # (state, documents) -> state, metrics
  start_rl: Callable  # (state) -> state
  iterate: Callable  # (state, prompts) -> state, (rollout, rewards, metrics)
  sample: Callable  # (params, prompts, key) -> rollout, rewards


def compile_steps(run: build.Run) -> Steps:
  """Compiles everything that a run executes, ahead of time."""
  c, f, text = run.config, build.functions(run), run.text
  whole = sharding.replicated(run.mesh)
  rows = sharding.batch_sharding(run.mesh)
  first, rl = build.templates(run)
  first_out, rl_out = _shardings(first), _shardings(rl)
  prompts = _like(build.train_batch(run, 0), rows)
  held_out = _like(build.eval_batches(run)[0][0], rows)
  key = jax.device_put(jax.random.key(c.seed), whole)

  # name -> function, arguments, shardings of its outputs. States are donated.
  programs = {
    'start_rl': (f.start_rl, (first,), rl_out),
    'sample': (f.sample, (rl.params, held_out, text, key), rows),
  }
  if run.documents is not None:
    documents = _like(build.pretrain_batch(run, 0), rows)
    programs['pretrain'] = f.pretrain, (first, documents), (first_out, whole)
  if c.fuse:
    outputs = rl_out, (rows, rows, whole)
    programs['iterate'] = f.iterate, (rl, prompts, text, key), outputs
  else:
    rolled = jax.eval_shape(f.rollout, rl.params, prompts, key)
    rolled = _like(rolled, rows)
    scores = _like(jax.eval_shape(f.reward, rolled, prompts, text), rows)
    programs['rollout'] = f.rollout, (rl.params, prompts, key), rows
    programs['reward'] = f.reward, (rolled, prompts, text), rows
    programs['update'] = f.update, (rl, rolled, scores), (rl_out, whole)
  p = _compile(programs)

  def put(batch):
    return jax.device_put(batch, rows)

  def pretrain(state, documents):
    return p['pretrain'](state, put(documents))

  def iterate(state, prompts):
    prompts = put(prompts)
    if c.fuse:
      return p['iterate'](state, prompts, text, key)
    return _apart(p, state, prompts, text, key)

  def sample(params, prompts, key):
    return p['sample'](params, put(prompts), text, jax.device_put(key, whole))

  return Steps(pretrain, p['start_rl'], iterate, sample)


def _compile(programs):
  """Compiles side by side: XLA uses one core for each program."""

  def lower(function, arguments, outputs):
    donated = 0 if isinstance(arguments[0], TrainState) else ()
    return jax.jit(
      function, out_shardings=outputs, donate_argnums=donated
    ).lower(*arguments)

  lowered = {name: lower(*program) for name, program in programs.items()}
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = pool.map(lambda x: x.compile(), lowered.values())
    return dict(zip(lowered, found, strict=True))


def _apart(programs, state, prompts, text, key):
  """`iterate` as three programs with a clock between them; same numbers."""
  clock = [time.perf_counter()]

  def timed(value):
    jax.block_until_ready(value)
    clock.append(time.perf_counter())
    return value

  key = jax.device_put(jax.random.fold_in(key, state.step), key.sharding)
  rolled = timed(programs['rollout'](state.params, prompts, key))
  scores = timed(programs['reward'](rolled, prompts, text))
  state, numbers = timed(programs['update'](state, rolled, scores))
  names = ('time/rollout', 'time/reward', 'time/update')
  numbers |= zip(names, np.diff(clock), strict=True)
  return state, (rolled, scores, numbers)


def start(run: build.Run) -> TrainState:
  """The state before the first step: random weights, or those of a file."""
  f, shardings = build.functions(run), _shardings(build.templates(run)[0])
  if run.config.model.init:
    params = weights.load_gguf(run.config.model.init, run.model)
    params = jax.device_put(params, shardings.params)
    return jax.jit(f.init, out_shardings=shardings, donate_argnums=0)(params)

  def from_scratch(key):
    return f.init(models.init_params(run.model, key))

  key = jax.random.key(run.config.seed)
  return jax.jit(from_scratch, out_shardings=shardings)(key)


def _shardings(template):
  return jax.tree.map(lambda x: x.sharding, template)


def _like(batch, sharding):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch
  )
