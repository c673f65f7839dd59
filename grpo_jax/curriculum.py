"""How often a problem is drawn, by how often it was solved.

A function maps success_N, the share of right completions that is remembered of
each training problem (history.py), to weights from 0 to 1. The chance of a
problem to be drawn next is proportional to its weight. To add one, write it
here; it is chosen by `c.curriculum.name`, and takes its knobs from there.

Dimension key: N training problems.
"""

import jax
import jax.numpy as jnp


def none(success_N: jax.Array) -> jax.Array:
  """All the same. As a config it shuffles epochs, and nothing is remembered."""
  return jnp.ones_like(success_N)


def hard(success_N: jax.Array) -> jax.Array:
  """1 - success: what fails comes again (Kimi k1.5, arxiv.org/abs/2501.12599).

  Their prioritised sampling; the floor of ours is not in the paper.
  """
  return 1 - success_N


def middle(success_N: jax.Array) -> jax.Array:
  """success * (1 - success), times 4: where right and wrong both occur.

  It is the variance of a reward of 0 or 1, and so of what a group can tell.
  """
  return 4 * success_N * (1 - success_N)
