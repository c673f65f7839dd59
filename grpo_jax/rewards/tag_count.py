"""How many of the tags stand there once? Partial credit for the format."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.types import Prompts, Rollout

# The tags that open-r1 counts.
OPEN_R1 = ('<think>\n', '\n</think>\n', '\n<answer>\n', '\n</answer>')


def tag_count(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  tags: Sequence[str] = text_lib.TAGS,
) -> jax.Array:
  """The share of the tags that the completion has exactly once each.

  Their order does not matter. With `tags` OPEN_R1 it is open-r1's tag_count,
  where the line breaks belong to the tags; the default ones have none.
  """
  del prompts
  P, G = rollout.lengths_PG.shape
  tokens_BT, lengths_B = text_lib.flat(rollout)
  found = text_lib.find(text, tags, tokens_BT, lengths_B)
  once_BK = jnp.stack([tag.count_B == 1 for tag in found], axis=1)
  return jnp.mean(once_BK, axis=1, dtype=jnp.float32).reshape(P, G)


def tags(*, tags: Sequence[str] = text_lib.TAGS) -> Sequence[str]:
  """Raises ValueError where there is nothing to look for."""
  if not tags or '' in tags or isinstance(tags, str):
    raise ValueError(f'tag_count: tags={tags!r} must be texts in a list')
  return tags
