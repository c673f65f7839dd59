"""Is the reasoning in the language that it should be in?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.text import reader, utf8
from grpo_jax.text import words as words_lib
from grpo_jax.types import Prompts, Rollout


def language(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  readers: dict[str, reader.Reader],
  scripts: Sequence[str] = ('latin',),
  words: Sequence[str] = (),
) -> jax.Array:
  """The share of the reasoning's words that are of the target language.

  The language consistency reward of the R1 paper (arXiv 2501.12948), which does
  not say how it tells a language; no other codebase has it. Here a word is of
  the target language if it is written in one of the `scripts` of
  words.SCRIPTS. To tell languages of one script apart, list `words`: then
  these alone are of the target language, all others are not, and `scripts` do
  not matter.

  Digits and signs are no words, but the x and the \\frac of a formula are Latin
  ones. A character of Han or kana is a word of its own. Where the reasoning,
  which text.reasoning finds, has no words, the score is NaN: saying nothing is
  not to be the surest way to be consistent.
  """
  del prompts, scripts
  P, G = rollout.lengths_PG.shape
  tokens_BT, lengths_B = text_lib.flat(rollout)
  part_B2 = text_lib.reasoning(text, tokens_BT, lengths_B)
  target_B, other_B = (
    reader.hits(readers[name], text, tokens_BT, lengths_B, part_B2)
    for name in ('target', 'other')
  )
  all_B = other_B if words else target_B + other_B
  share_B = target_B / jnp.maximum(all_B, 1)
  return jnp.where(all_B > 0, share_B, jnp.nan).reshape(P, G)


def reads(
  *, scripts: Sequence[str] = ('latin',), words: Sequence[str] = ()
) -> dict[str, utf8.Machine]:
  """With a list, the words of all scripts are read beside those of the list.

  Raises ValueError for no script, an unknown one, or what is not one word.
  """
  if not scripts:
    raise ValueError(
      f'language: scripts={scripts!r} must be some of '
      f'{", ".join(words_lib.SCRIPTS)}'
    )
  if words:
    target, others = words_lib.listed(words), tuple(words_lib.SCRIPTS)
  else:
    target = words_lib.words(tuple(scripts))
    others = tuple(x for x in words_lib.SCRIPTS if x not in scripts)
  return {'target': target, 'other': words_lib.words(others)}
