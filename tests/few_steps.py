"""Runs of a few steps whose rewards are known, for groups and curriculum.

scored()                      in it, `answer` is `parity` and costs nothing
make_config(**changes)        of a small run on 8 devices
compiled(c, folder)           -> run, steps
walk(run, steps, state, ...)  -> state and news, as fit does it
"""

import contextlib
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from grpo_jax import build, config, train
from grpo_jax.rewards import mix

sys.path.append('configs')
import quickstart  # noqa: E402

P, G, T = 8, 4, 12


def parity(rollout, prompts, text):
  """Right is an even first token; of every third prompt nothing is."""
  del text
  even_PG = rollout.tokens_PGT[..., 0] % 2 == 0
  hopeless_P1 = (prompts.ids_P % 3 == 0)[:, None]
  return jnp.where(hopeless_P1, 0.0, even_PG).astype(jnp.float32)


@contextlib.contextmanager
def scored(answer=parity):
  with pytest.MonkeyPatch.context() as patch:
    file = types.SimpleNamespace(answer=answer, format=answer)
    patch.setattr(mix, 'load', lambda name: file)
    yield


def make_config(**changes):
  c = quickstart.get_config('smoke')
  c.reward = {'answer': 1.0}
  c.eval.reasoned = 'answer'
  c.data.prompts = P
  c.data.knobs.problems = 100
  c.rollout.update(group_size=G, max_tokens=T)
  c.model.unroll = False
  c.pretrain.steps = 0
  c.optim.lr = 1e-2
  c.update_from_flattened_dict(changes)
  config.check(c)
  return c


def compiled(c, folder, devices=8):
  run = build.build(c, str(folder), jax.devices()[:devices])
  with jax.set_mesh(run.mesh):
    return run, train.compile_steps(run)


def begin(run, steps):
  with jax.set_mesh(run.mesh):
    return steps.start_rl(train.start(run))


def walk(run, steps, state, last):
  """RL steps up to one, and the news of each."""
  news = []
  with jax.set_mesh(run.mesh):
    for done in range(int(state.step), last):
      first, *others = steps.draw(state, done)
      more = (build.own_batch(run, rows_P) for rows_P in others)
      state, new = steps.iterate(state, *build.own_batch(run, first), more)
      news.append(jax.device_get(new))
  return state, news


def copy(tree):
  """Of what the next step will write over."""
  return jax.tree.map(jnp.copy, tree)
