"""Schedules against their formulas, and which weights decay."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import models, optim

MODEL = models.build(
  'llama', 'tiny', layers=1, width=8, head_size=4, vocab_size=8, tied=False
)


def ones():
  return models.map_table(lambda row: jnp.ones(row.shape), MODEL)


def steps_of(optimizer, grads, params, count):
  """What each of the first `count` updates adds."""
  state, found = optimizer.init(params), []
  run = jax.jit(optimizer.update)
  for _ in range(count):
    updates, state = run(grads, state, params)
    params = optax.apply_updates(params, updates)
    found.append(updates)
  return found


def rates(count=10, **knobs):
  """The learning rates, from SGD on a gradient of one."""
  sgd = optim.make(name='sgd', b1=0.0, clip_norm=None, **knobs)
  one = {'w': jnp.ones(())}
  return [-float(x['w']) for x in steps_of(sgd, one, one, count)]


def rate_loop(step, schedule, lr, steps, warmup=0, final=0.1):
  if step < warmup:
    return lr * step / warmup
  share = min((step - warmup) / max(steps - warmup, 1), 1)
  if schedule == 'linear':
    return lr + (lr * final - lr) * share
  if schedule == 'cosine':
    swing = (1 + math.cos(math.pi * share)) / 2
    return lr * (final + (1 - final) * swing)
  return lr


@pytest.mark.parametrize('schedule', ['constant', 'linear', 'cosine'])
@pytest.mark.parametrize('warmup', [0, 1, 4])
def test_the_learning_rate_follows_its_formula(schedule, warmup):
  knobs = dict(schedule=schedule, lr=0.3, steps=8, warmup=warmup, final=0.2)
  expected = [rate_loop(step, **knobs) for step in range(10)]
  np.testing.assert_allclose(rates(**knobs), expected, rtol=1e-5, atol=1e-8)


def test_a_run_that_is_all_warm_up_is_fine():
  knobs = dict(schedule='cosine', lr=0.3, steps=4, warmup=6)
  expected = [rate_loop(step, **knobs) for step in range(7)]
  np.testing.assert_allclose(rates(7, **knobs), expected, rtol=1e-5, atol=1e-8)


def test_weights_decay_and_norms_do_not():
  adamw = optim.make(lr=0.1, steps=5, weight_decay=0.5)
  [updates] = steps_of(adamw, jax.tree.map(jnp.zeros_like, ones()), ones(), 1)
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    name = path[-1].key
    expected = 0.0 if 'norm' in name else -0.1 * 0.5
    np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=name)
  names = set(updates['layers']) | set(updates)
  assert {'attn_norm', 'mlp_norm', 'final_norm', 'embed', 'unembed'} <= names


def test_adamw_takes_the_steps_of_its_formula():
  b1, b2, eps, lr = 0.8, 0.9, 1e-3, 0.1
  adamw = optim.make(lr=lr, steps=5, b1=b1, b2=b2, eps=eps, clip_norm=None)
  weight, m, v = {'w': jnp.ones(())}, 0.0, 0.0
  state, run = adamw.init(weight), jax.jit(adamw.update)
  for step, grad in enumerate([0.7, -0.2, 1.5, 0.1], start=1):
    update, state = run({'w': jnp.float32(grad)}, state, weight)
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad**2
    scale = math.sqrt(v / (1 - b2**step)) + eps
    expected = -lr * (m / (1 - b1**step)) / scale
    np.testing.assert_allclose(update['w'], expected, rtol=1e-5)


def test_sgd_has_the_momentum_of_b1():
  sgd = optim.make(name='sgd', lr=0.1, steps=5, b1=0.5, clip_norm=None)
  one = {'w': jnp.ones(())}
  found = [float(x['w']) for x in steps_of(sgd, one, one, 3)]
  np.testing.assert_allclose(found, [-0.1, -0.15, -0.175], rtol=1e-6)


@pytest.mark.parametrize('clip_norm,expected', [(1.0, 0.6), (None, 6.0)])
def test_gradients_are_clipped_to_their_global_norm(clip_norm, expected):
  sgd = optim.make(name='sgd', lr=1.0, steps=5, b1=0.0, clip_norm=clip_norm)
  grads = {'a': jnp.float32(6.0), 'b': jnp.float32(8.0)}
  [updates] = steps_of(sgd, grads, grads, 1)
  np.testing.assert_allclose(updates['a'], -expected, rtol=1e-6)


@pytest.mark.parametrize(
  'knobs,message',
  [
    ({'name': 'adam'}, "optim.name='adam' is not 'adamw' or 'sgd'"),
    (
      {'schedule': 'step'},
      "optim.schedule='step' is not 'constant', 'linear' or 'cosine'",
    ),
  ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(knobs, message):
  with pytest.raises(ValueError) as error:
    optim.make(lr=1.0, steps=1, **knobs)
  assert str(error.value) == message
