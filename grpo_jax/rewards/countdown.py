"""Does the equation reach the target with the given numbers?"""

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.text import expressions, spans, values
from grpo_jax.types import Prompts, Rollout


def countdown(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  reference_PN: jax.Array,
  tag: str = 'answer',
  last: bool = False,
  all_numbers: bool = True,
  equals: bool = False,
  partial: float = 0.0,
  size: int = 64,
) -> jax.Array:
  """1 for an expression of the given numbers, once each, that is the target.

  It is the text of the only <tag>...</tag>, or with `last` of the last pair,
  and what text/expressions.py takes. Without `all_numbers` some may be left
  out. With `equals`, '= target' may follow. What is an expression and no more
  gets `partial`. More than `size` bytes, and what is too deep or large to be
  exact but has the right numbers, cannot be scored.

  TinyZero's reward with `last` and partial=0.1, exact where that one evaluates
  Python (2**3, 7//2) in floats and takes any text in the tags for an equation.
  """
  del prompts
  P, G = rollout.lengths_PG.shape
  given = text, *text_lib.flat(rollout)
  reference_BN = jnp.repeat(reference_PN, G, axis=0)
  target_B, numbers_BN = reference_BN[:, 0], reference_BN[:, 1:]
  target = values.Value(
    target_B, jnp.ones_like(target_B), *[jnp.ones(P * G, bool)] * 2
  )
  span = spans.between(*given, tag, last)
  bytes_BC, size_B = spans.read(*given, span, size)
  stated_B = jnp.ones(P * G, bool)
  if equals:
    signs_BC = jnp.cumsum(bytes_BC == ord('='), axis=1)
    first_BC = (signs_BC == 1) & (bytes_BC == ord('='))
    right_BC = jnp.where((signs_BC > 0) & ~first_BC, bytes_BC, ord(' '))
    bytes_BC = jnp.where(signs_BC > 0, 0, bytes_BC).astype(jnp.uint8)
    stated_B = values.same(values.number(right_BC.astype(jnp.uint8)), target)
    stated_B |= signs_BC[:, -1] == 0
  value = expressions.expression(bytes_BC)
  formed_B = span.found_B & value.valid_B & stated_B
  allowed_B = formed_B & _uses(bytes_BC, numbers_BN, all_numbers)
  score_B = jnp.where(formed_B, partial, 0.0)
  score_B = jnp.where(allowed_B & values.same(value, target), 1.0, score_B)
  unknown_B = (allowed_B & ~value.exact_B) | (span.found_B & (size_B > size))
  return jnp.where(unknown_B, jnp.nan, score_B).reshape(P, G)


def reference(example, tokenizer, **knobs) -> list[int]:
  """The target and the numbers.

  Raises ValueError for a problem that has none.
  """
  del tokenizer, knobs
  for name in ('target', 'numbers'):
    if name not in example.columns:
      raise ValueError(
        f'countdown: the data has no column {name!r}; it has '
        f'{", ".join(example.columns) or "none"}'
      )
  return [example.columns['target'], *example.columns['numbers']]


def tags(*, tag: str = 'answer', **knobs) -> tuple[str, str]:
  del knobs
  return spans.pair(tag)


def _uses(bytes_BC, numbers_BN, all_numbers):
  """Whether no number stands there more often than it was given."""
  N = numbers_BN.shape[1]
  used_BN, count_B = expressions.literals(bytes_BC, N)
  used_BNN = used_BN[:, :, None] == used_BN[:, None, :]
  given_BNN = used_BN[:, :, None] == numbers_BN[:, None, :]
  often_BN = jnp.sum(used_BNN, axis=2) > jnp.sum(given_BNN, axis=2)
  few_B = ~jnp.any(often_BN & (used_BN != -1), axis=1)
  total_B = jnp.sum(numbers_BN >= 0, axis=1)
  return few_B & (count_B == total_B if all_numbers else count_B <= total_B)
