r"""MATH: 12,500 competition problems of Hendrycks (arxiv.org/abs/2103.03874).

They are read from files that `path` names, since TFDS does not have them:

  hf download EleutherAI/hendrycks_math --repo-type dataset --local-dir math

The original folder does as well (train/algebra/1.json), and any .jsonl,
.json or .parquet with the columns problem and solution; the problems of test
files are held out. An answer is what the last \boxed{} of the solution holds,
as it is written there. The columns hold 'level' (1 to 5; 0 is not known) and
'subject'.
"""

from collections.abc import Iterator
import re
from typing import Any

from grpo_jax.datasets import Example, local

VERSION = '1.0.0'


def examples(path: str = '') -> Iterator[Example]:
  """Train and test problems; raises ValueError saying how to fetch them."""
  found = local.sides(path) if path else []
  if not found:
    raise ValueError(
      f'math: path={path!r} has no {", ".join(local.SUFFIXES)} file; run `hf '
      'download EleutherAI/hendrycks_math --repo-type dataset --local-dir '
      "math` and set data.knobs = {'path': 'math'}"
    )
  for file, side in found:
    for place, row in local.rows(file):
      solution = local.text(row, 'solution', place)
      answer = boxed(solution)
      if answer is None:
        raise ValueError(f'{place}: no \\boxed in the solution')
      yield Example(
        prompt=local.text(row, 'problem', place).strip(),
        answer=answer,
        reasoning=solution.strip(),
        columns={'level': _level(row), 'subject': _subject(row)},
        split=side,
      )


def boxed(text: str) -> str | None:
  r"""What the last \boxed{...} or \fbox{...} holds; None if there is none.

  Braces within are kept, \boxed{\frac{1}{2}} and \boxed{\{1, 2\}} are whole,
  and so is the short form \boxed 5.
  """
  start = max(text.rfind(r'\boxed'), text.rfind(r'\fbox'))
  if start < 0:
    return None
  rest = text[start:].removeprefix(r'\boxed').removeprefix(r'\fbox').lstrip()
  if not rest.startswith('{'):
    return re.split(r'[$\s]', rest, maxsplit=1)[0] or None
  depth = 0
  for brace in re.finditer(r'\\.|[{}]', rest, re.DOTALL):
    depth += {'{': 1, '}': -1}.get(brace[0], 0)  # '\{' opens nothing.
    if depth == 0:
      return rest[1 : brace.start()].strip()
  return None


def _level(row: dict[str, Any]) -> int:
  """5 of 'Level 5'; some editions have the number, a few rows 'Level ?'."""
  digits = re.findall(r'\d', str(row.get('level', '')))
  return int(digits[0]) if digits else 0


def _subject(row: dict[str, Any]) -> str:
  return str(row.get('subject') or row.get('type') or '')
