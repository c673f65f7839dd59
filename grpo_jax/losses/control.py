"""What follows the policy over time: coefficients, and the reference.

They live in TrainState (`coefs`, `reference`), so that a run goes on exactly.
A coefficient is moved once in an update, by (coefficient, what was measured).

The bonus of the entropy is Skywork-OR1's (arxiv.org/abs/2505.22312) as in TRL:
an update uses `gate` of coefficient and entropy, both of the update before, and
`entropy` gives the coefficient of the next. A target near the entropy that is
seen early in training holds it; TRL's default of 0.2 nats lets the bonus in
only when a policy has all but collapsed.
"""

import jax
import jax.numpy as jnp

from grpo_jax.types import Params


def stay(coef: jax.Array | float, measured: jax.Array | float):
  """The coefficient as it is, whatever was measured."""
  return coef


def kl(
  coef: jax.Array | float,
  kl: jax.Array | float,
  *,
  target: float = 0.1,
  horizon: float = 10_000,
  samples: float,
) -> jax.Array:
  """The coefficient for the next step (arxiv.org/abs/1909.08593, sec. 2.2).

  It grows where the KL lies above the target and shrinks where it lies below,
  by at most a fifth over `horizon` completions. A KL that is not a number
  leaves it as it is.

  Args:
    coef: of the step that was done.
    kl: measured in that step, in nats per token.
    target: the KL to hold, in the same unit.
    horizon: completions over which the coefficient moves.
    samples: completions of a step.
  """
  error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
  error = jnp.where(jnp.isnan(error), 0.0, error)
  return coef * (1.0 + error * samples / horizon)


def entropy(
  coef: jax.Array | float,
  entropy: jax.Array | float,
  *,
  target: float = 0.2,
  step: float = 0.005,
  low: float = 0.0,
  high: float = 1.0,
) -> jax.Array:
  """The coefficient for the next update.

  Args:
    coef: of the update that was done, whether or not its gate was open.
    entropy: token mean over that step's whole minibatch, in nats.
    target: the entropy to hold, in nats; at it the coefficient still grows.
    step: by how much the coefficient grows below the target, or shrinks above.
    low: least coefficient.
    high: greatest coefficient.
  """
  up, down = jnp.minimum(coef + step, high), jnp.maximum(coef - step, low)
  moved = jnp.where(entropy <= target, up, down)
  return jnp.where(jnp.isnan(entropy), coef, moved)


def gate(
  coef: jax.Array | float, entropy: jax.Array | float, *, target: float = 0.2
) -> jax.Array:
  """The coefficient that the loss is given: zero above the target.

  `entropy` is of the step before, as in TRL, where the paper has the step's
  own; before the first step it is infinite, so that the gate is shut.
  """
  return jnp.where(entropy <= target, coef, 0.0)


def reference(
  step: jax.Array,
  old: Params,
  params: Params,
  *,
  every: int,
  rate: float = 1.0,
  begin: int = 0,
) -> Params:
  """The reference moves to the policy, or a part of the way, now and then.

  A copy every 400 steps is DeepSeek-R1's (arxiv.org/abs/2501.12948), 0.6 of the
  way every 512 is TR-DPO's as in TRL (arxiv.org/abs/2404.09656), and a little
  of it every step an exponential moving average.

  Args:
    step: steps done, this one too.
    old: the reference as it is.
    params: the policy.
    every: steps between refreshments.
    rate: share of the way, 1 is a copy.
    begin: the step from which on they are counted.
  """

  def move():
    return jax.tree.map(
      lambda x, new: x + rate * (new - x) if rate < 1 else new, old, params
    )

  return jax.lax.cond((step - begin) % every == 0, move, lambda: old)
