r"""Does a regular expression match the completion?

Other codebases let `re.match` find a format, with DOTALL and MULTILINE, where
`$` may be the end of any line. The same said of the whole text:

  TRL      think_format: <think> at the start, no other one, </think> later
  OPEN_R1  format: both pairs, with line breaks, and whatever comes in new lines

In a config, `c.reward = {'pattern': {'regex': pattern.OPEN_R1}}`.
"""

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.text import automata, reader
from grpo_jax.types import Prompts, Rollout

# ^<think>(?!.*<think>)(.*?)</think>.*$
TRL = r'<think>(?!.*<think>).*</think>.*'
# ^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$
OPEN_R1 = r'<think>\n.*\n</think>\n<answer>\n.*\n</answer>(\n.*)?'


def pattern(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  readers: dict[str, reader.Reader],
  regex: str = '',
) -> jax.Array:
  """1 where the regular expression matches the whole completion, else 0.

  text/automata.py says what it may have in it. Unlike in `format`, it does
  not matter whether the completion came to its end or was cut off.
  """
  del prompts, regex
  P, G = rollout.lengths_PG.shape
  tokens_BT, lengths_B = text_lib.flat(rollout)
  matches_B = reader.hits(readers['whole'], text, tokens_BT, lengths_B)
  return matches_B.reshape(P, G).astype(jnp.float32)


def reads(*, regex: str = '') -> dict[str, automata.Machine]:
  """Raises ValueError where no regular expression is given."""
  if not regex:
    raise ValueError(
      f'pattern: regex={regex!r} must be the regular expression that the whole '
      'completion is to match'
    )
  return {'whole': automata.whole(regex)}
