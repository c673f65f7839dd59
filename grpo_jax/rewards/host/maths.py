"""Symbolic maths: is the completion's answer equal to the reference?"""

from collections.abc import Sequence
import functools
import logging
import re
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import (
  ExprExtractionConfig,
  LatexExtractionConfig,
  parse,
  verify,
)

from grpo_jax.rewards.host.records import Completion

# They warn that their timeouts are off. These are made of SIGALRM and fail in
# silence in some places; here the deadline of the pool takes their part.
for _name in ('math_verify.parser', 'math_verify.grader'):
  logging.getLogger(_name).setLevel(logging.ERROR)

_LATEX = LatexExtractionConfig(
  normalization_config=NormalizationConfig(units=True),
  boxed_match_priority=0,
  try_extract_without_anchor=False,
)
# What tells math-verify where maths begins, and words that are none.
_MARKED = re.compile(r'(?<!\\)(\$|\\[(\[])|\\boxed|\\fbox')
_PROSE = re.compile(r'[^\W\d_]{2,} [^\W\d_]{2,}')


def maths(
  completion: Completion,
  after: Sequence[str] = (),
  plain: bool = False,
) -> float | None:
  r"""1 if math-verify finds the two equal, else 0; None without a reference.

  As TRL's accuracy_reward: the reference is LaTeX or a plain expression, and
  where it cannot be parsed the completion is left out. Unlike there, LaTeX
  needs no dollar signs: of 3\sqrt{13}, as datasets have it, TRL would read the
  3, and of p - q nothing. The answer has to be LaTeX, \boxed{} before others;
  with `plain` it may be an expression too.
  With `after`, as TRL's reasoning_accuracy_reward, only the text behind the
  last one of the first delimiter that occurs is read, and a completion without
  any of them gets 0.
  """
  text = completion.text
  if after:
    found = [delimiter for delimiter in after if delimiter in text]
    if not found:
      return 0.0
    text = text.rpartition(found[0])[2]
  gold = _gold(completion.answer)
  if not gold:
    return None
  config = [_LATEX, ExprExtractionConfig()] if plain else [_LATEX]
  answer = parse(
    text, config, extraction_mode='first_match', parsing_timeout=None
  )
  return float(verify(gold, answer, timeout_seconds=None))


@functools.lru_cache(1024)
def _gold(answer: str) -> list[Any]:
  """The completions of a group share their reference."""
  bare = not _MARKED.search(answer)
  if bare and ('\\' in answer or not _PROSE.search(answer)):
    if found := parse(f'${answer}$', parsing_timeout=None):
      return found
  return parse(answer, parsing_timeout=None)
