"""Problems of your own, from JSONL or Parquet files.

  c.data.name = 'files'
  c.data.knobs = {'path': 'mine/*.jsonl', 'prompt': 'question'}

`path` is a file, a folder or a pattern (see local.py); the other knobs name
columns. Whatever else a row has goes into the columns of its Example, where
rewards find it. A file that changes is read anew.
"""

from collections.abc import Iterator
import json

from grpo_jax.datasets import Example, local

VERSION = '1.0.0'

_SIDES = {
  'train': 'train',
  'heldout': 'heldout',
  'test': 'heldout',
  'validation': 'heldout',
}


def examples(
  path: str = '',
  prompt: str = 'prompt',
  answer: str = 'answer',
  reasoning: str = '',
  split: str = '',
) -> Iterator[Example]:
  """The rows of all files, in the order of their names.

  Without a column of reasoning there is none to imitate, and without one that
  tells the split (train, or heldout, test, validation) the share of
  `c.data.heldout` is kept from training. Raises ValueError naming the file and
  the line that is wrong.
  """
  found = local.files(path) if path else []
  if not found:
    raise ValueError(
      f'files: path={path!r} names no {", ".join(local.SUFFIXES)} file'
    )
  taken = {prompt, answer, reasoning, split}
  for file in found:
    for place, row in local.rows(file):
      rest = {column: row[column] for column in row if column not in taken}
      yield Example(
        prompt=local.text(row, prompt, place),
        answer=local.text(row, answer, place),
        reasoning=local.text(row, reasoning, place) if reasoning else '',
        # Dates and the like, which Parquet knows and JSON does not, as text.
        columns=json.loads(json.dumps(rest, default=str)),
        split=_side(local.text(row, split, place), place) if split else '',
      )


def _side(value: str, place: str) -> str:
  if value not in _SIDES:
    raise ValueError(f'{place}: split {value!r} is not of {", ".join(_SIDES)}')
  return _SIDES[value]
