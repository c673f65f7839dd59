"""Is the text between the answer tags the reference answer?"""

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.types import Prompts, Rollout


def answer(
  rollout: Rollout, prompts: Prompts, text: text_lib.TokenText
) -> jax.Array:
  """1 for exactly one <answer>...</answer> that holds the reference, else 0.

  Whitespace around the answer does not count; everything else does, byte by
  byte.
  """
  P, G, T = rollout.tokens_PGT.shape
  tokens_BT = rollout.tokens_PGT.reshape(P * G, T)
  lengths_B = rollout.lengths_PG.reshape(P * G)
  reference_BC = jnp.repeat(prompts.answers_PC, G, axis=0)
  C = reference_BC.shape[1]

  opening, closing = text_lib.find(
    text, ('<answer>', '</answer>'), tokens_BT, lengths_B
  )
  single_B = (opening.count_B == 1) & (closing.count_B == 1)
  ordered_B = opening.end_B <= closing.start_B
  start_B, end_B = text_lib.trim(
    text, tokens_BT, lengths_B, opening.end_B, closing.start_B
  )
  given_BC, _ = text_lib.span(text, tokens_BT, lengths_B, start_B, end_B, C)
  # The lengths too: '7\0' is padded to the same bytes as '7'. They also tell
  # an answer apart that goes on beyond the C bytes that were read.
  size_B = jnp.max(jnp.where(reference_BC > 0, jnp.arange(1, C + 1), 0), axis=1)
  equal_B = jnp.all(given_BC == reference_BC, axis=1)
  equal_B &= end_B - start_B == size_B
  right_B = single_B & ordered_B & equal_B
  return right_B.reshape(P, G).astype(jnp.float32)
