"""Is the completion its sections, each in its tags, and no more?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.types import Prompts, Rollout


def format(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  sections: Sequence[str] = ('think', 'answer'),
) -> jax.Array:
  """1 for <think>...</think><answer>...</answer> as the whole text, else 0.

  Each tag stands there once, in this order, with something other than
  whitespace inside of each pair and nothing else around the pairs. A completion
  that was cut off at the limit gets 0. `sections` names the pairs.
  """
  del prompts  # The right form does not depend on the question.
  P, G = rollout.lengths_PG.shape
  tokens_BT, lengths_B = text_lib.flat(rollout)

  found = text_lib.find(text, tags(sections=sections), tokens_BT, lengths_B)
  once_B = jnp.all(jnp.stack([tag.count_B for tag in found]) == 1, axis=0)
  edges_BK = jnp.stack([x for tag in found for x in tag[1:]], axis=1)
  ordered_B = jnp.all(jnp.diff(edges_BK, axis=1) >= 0, axis=1)

  # The edges cut the text into pieces: what is before <think>, the tag, the
  # thought, the tag, what is between, ... The last goes to the end of the text.
  end = jnp.iinfo(edges_BK.dtype).max
  edges_BK = jnp.pad(edges_BK, ((0, 0), (1, 0)))
  edges_BK = jnp.pad(edges_BK, ((0, 0), (0, 1)), constant_values=end)
  solids_BK = text_lib.solids(text, tokens_BT, lengths_B, edges_BK)
  filled_BK = jnp.diff(solids_BK, axis=1) > 0
  wanted_K = jnp.array([0, 1, 1, 1] * len(sections) + [0], bool)
  formed_B = once_B & ordered_B & jnp.all(filled_BK == wanted_K, axis=1)
  good_PG = formed_B.reshape(P, G) & rollout.ended_PG
  return good_PG.astype(jnp.float32)


def tags(*, sections: Sequence[str] = ('think', 'answer')) -> list[str]:
  return [f'<{end}{name}>' for name in sections for end in ('', '/')]
