"""Does the reasoning use the operations that the problem calls for?"""

from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.datasets import Example
from grpo_jax.text import automata, reader
from grpo_jax.types import Prompts, Rollout

# Name of an operation -> a regular expression of the ways to write it.
PATTERNS = MappingProxyType(
  {
    'sqrt': r'√|sqrt|[Ss]quare root|\^\(?1/2',
    'plus_minus': r'±|\\pm|\+/?[-−]|[Pp]lus[ -](or[ -])?minus',
    'fraction': r'\\[dt]?frac|[\d)]\s?/|/\s?[\d(]|÷|[Dd]ivided by',
    'discriminant': r'[Dd]iscriminant|Δ|\\Delta|b(\^2|²|\*\*2)\s?[-−]\s?4',
    'square': r'²|\^\{?2|\*\*2|[Ss]quared',
    'factor': r'[Ff]actor|\)\s?[*·×]?\s?\(',
  }
)


def operations(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  readers: dict[str, reader.Reader],
  reference_PN: jax.Array,
  patterns: Mapping[str, str] = PATTERNS,
) -> jax.Array:
  r"""The share of a problem's operations that stand in the reasoning.

  A problem names them in its column 'operations', ['sqrt', 'plus_minus'] say,
  and each is there if its pattern is found. To add one, set
  `patterns={**PATTERNS, 'log': r'\\log'}`; each costs a pass over the tokens. A
  problem that names none is not scored: NaN. Reasoning is what text.reasoning
  finds. No other codebase has this; whether an operation is used well, it does
  not see.
  """
  del prompts
  P, G = rollout.lengths_PG.shape
  tokens_BT, lengths_B = text_lib.flat(rollout)
  part_B2 = text_lib.reasoning(text, tokens_BT, lengths_B)
  found_BK = jnp.stack(
    [
      reader.hits(readers[name], text, tokens_BT, lengths_B, part_B2) > 0
      for name in sorted(patterns)
    ],
    axis=1,
  )
  found_PGK = found_BK.reshape(P, G, -1)
  K = found_PGK.shape[-1]
  named_PK = jnp.any(reference_PN[:, :, None] == jnp.arange(K), axis=1)
  found_PG = jnp.sum(found_PGK & named_PK[:, None], axis=-1)
  named_P1 = jnp.sum(named_PK, axis=-1, keepdims=True)
  share_PG = found_PG / jnp.maximum(named_P1, 1)
  return jnp.where(named_P1 > 0, share_PG, jnp.nan)


def reference(
  example: Example, tokenizer, *, patterns: Mapping[str, str] = PATTERNS
) -> list[int]:
  """Where the problem's operations are among the names, in alphabetic order."""
  del tokenizer
  known = sorted(patterns)
  named = example.columns.get('operations', ())
  for name in named:
    if name not in known:
      raise ValueError(
        f'operations: {name!r} in {example.prompt[:40]!r} is not one of '
        f'{", ".join(known)}'
      )
  return [known.index(name) for name in named]


def reads(
  *, patterns: Mapping[str, str] = PATTERNS
) -> dict[str, automata.Machine]:
  """Raises ValueError where there are no patterns."""
  if not patterns:
    raise ValueError(f'operations: patterns={patterns!r} has no operations')
  return {name: automata.count(regex) for name, regex in patterns.items()}
