"""Does the completion go step by step?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.text import automata, reader
from grpo_jax.types import Prompts, Rollout

PATTERNS = (
  r'Step \d+:',
  r'^\d+\.',
  r'\n-',
  r'\n\*',
  'First,',
  'Second,',
  'Next,',
  'Finally,',
)


def reasoning_steps(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  readers: dict[str, reader.Reader],
  patterns: Sequence[str] = PATTERNS,
  enough: float = 3,
) -> jax.Array:
  """min(1, n / enough), n matches of any of the patterns in the completion.

  The defaults are open-r1's reasoning_steps_reward, save that `\\d` is 0 to 9
  here and any decimal digit there. As there, a pattern that begins with `^` is
  found at the very start of the completion, and not at the start of a line.
  """
  del prompts, patterns
  P, G = rollout.lengths_PG.shape
  tokens_BT, lengths_B = text_lib.flat(rollout)
  steps_B = sum(
    reader.hits(found, text, tokens_BT, lengths_B) for found in readers.values()
  )
  return jnp.minimum(1.0, steps_B / enough).reshape(P, G)


def reads(
  *, patterns: Sequence[str] = PATTERNS, enough: float = 3
) -> dict[str, automata.Machine]:
  """Raises ValueError for a bound that is not positive, or no patterns."""
  if not enough > 0:
    raise ValueError(f'reasoning_steps: enough={enough} must be above 0')
  if not patterns or isinstance(patterns, str):
    raise ValueError(
      f'reasoning_steps: patterns={patterns!r} must be regular expressions in '
      'a list'
    )
  machines = {}
  if anywhere := [regex for regex in patterns if not regex.startswith('^')]:
    machines['anywhere'] = automata.count('|'.join(anywhere))
  if first := [regex[1:] for regex in patterns if regex.startswith('^')]:
    machines['start'] = automata.whole(f'({"|".join(first)}).*')
  return machines
