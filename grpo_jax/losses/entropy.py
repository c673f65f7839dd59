"""Entropy control: a bonus whose coefficient follows the entropy.

Skywork-OR1 (arxiv.org/abs/2505.22312) as in TRL: one number is kept between
optimizer steps, and it moves by `step` towards more or less exploration. The
loss of a step has -gate(coef, entropy) * mean entropy, where both are of the
step before; then `adapt` gives the coefficient for the next.

Set the target near the entropy that is seen early in training. TRL's default
of 0.2 nats lets the bonus in only when a policy has all but collapsed.
"""

import jax
import jax.numpy as jnp


def adapt(
  coef: jax.Array | float,
  entropy: jax.Array | float,
  *,
  target: float = 0.2,
  step: float = 0.005,
  low: float = 0.0,
  high: float = 1.0,
) -> jax.Array:
  """The coefficient for the next optimizer step.

  Args:
    coef: of the step that was done, whether or not its gate was open.
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
