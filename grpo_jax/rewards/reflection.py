"""How often does the reasoning stop to look back at itself?"""

from collections.abc import Sequence
import re

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.text import automata, reader
from grpo_jax.types import Prompts, Rollout

PHRASES = (
  'wait',
  'hmm',
  'actually',
  'alternatively',
  'let me check',
  'let me verify',
  'let me reconsider',
  'let me rethink',
  'let me think again',
  'double-check',
  'double check',
  'check again',
  'on second thought',
  'that is not right',
  "that's not right",
  'I made a mistake',
)


def reflection(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  readers: dict[str, reader.Reader],
  phrases: Sequence[str] = PHRASES,
  enough: float | None = None,
) -> jax.Array:
  """The number n of phrases in the reasoning, or with `enough` min(1, n / it).

  Small letters or capitals, as whole words, and any whitespace between them.
  The R1 paper (arXiv 2501.12948) watches such words become more frequent; the
  list is ours. With weight 0 this is a metric. With a weight, set `enough`, or
  'wait' is all that the model will say. Reasoning is what text.reasoning finds:
  the whole completion where it has no think tags.
  """
  del prompts, phrases
  P, G = rollout.lengths_PG.shape
  tokens_BT, lengths_B = text_lib.flat(rollout)
  part_B2 = text_lib.reasoning(text, tokens_BT, lengths_B)
  count_B = reader.hits(readers['phrases'], text, tokens_BT, lengths_B, part_B2)
  count_PG = count_B.reshape(P, G).astype(jnp.float32)
  return count_PG if enough is None else jnp.minimum(1.0, count_PG / enough)


def reads(
  *, phrases: Sequence[str] = PHRASES, enough: float | None = None
) -> dict[str, automata.Machine]:
  """Raises ValueError for a bound that is not positive, or no phrases."""
  if enough is not None and not enough > 0:
    raise ValueError(f'reflection: enough={enough} must be above 0, or None')
  listed = phrases and not isinstance(phrases, str)
  if not listed or not all(phrase.split() for phrase in phrases):
    raise ValueError(f'reflection: phrases={phrases!r} must be texts in a list')
  words = [map(re.escape, phrase.split()) for phrase in phrases]
  regex = '|'.join(r'\s+'.join(phrase) for phrase in words)
  return {'phrases': automata.count(f'(?i:{regex})', as_words=True)}
