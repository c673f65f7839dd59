"""GSM8K: 8,792 problems of grade-school mathematics (arxiv.org/abs/2110.14168).

Its test problems are held out. Without `path` they come through TFDS, which
downloads them once and keeps them for all runs. With it they are read from a
folder with the published train.jsonl and test.jsonl, which
github.com/openai/grade-school-math has in grade_school_math/data, or with the
.parquet files of huggingface.co/datasets/openai/gsm8k:

  hf download openai/gsm8k --repo-type dataset --local-dir gsm8k

An answer is what follows '####', without its commas; the reasoning is what
stands before, without the <<48/2=24>> of its calculator.
"""

from collections.abc import Iterator
import re
import urllib.request

from grpo_jax.datasets import Example, local

VERSION = '1.0.0'

_URL = (
  'https://raw.githubusercontent.com/openai/grade-school-math/master/'
  'grade_school_math/data/'
)
_FOLDER = None  # Where TFDS keeps it for all runs; None is its own choice.
_SECONDS = 10  # TFDS itself tries for minutes before it says 'no network'.


def examples(path: str = '') -> Iterator[Example]:
  """Train and test problems; raises ValueError saying how to fetch them."""
  for place, row, side in _files(path) if path else _tfds():
    solution = local.text(row, 'answer', place)
    reasoning, mark, answer = solution.rpartition('####')
    if not mark:
      raise ValueError(f"{place}: no '####' in the answer {solution[-40:]!r}")
    yield Example(
      prompt=local.text(row, 'question', place).strip(),
      answer=answer.strip().replace(',', ''),
      reasoning=re.sub(r'<<.*?>>', '', reasoning).strip(),
      split=side,
    )


def _files(path: str) -> Iterator[tuple[str, dict[str, str], str]]:
  found = local.sides(path)
  if not found:
    raise ValueError(_fetch(f'path={path!r} has no .jsonl or .parquet file'))
  for file, side in found:
    for place, row in local.rows(file):
      yield place, row, side


def _tfds() -> Iterator[tuple[str, dict[str, str], str]]:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.text.gsm8k import gsm8k  # noqa: F401, registers it.

  builder = tfds.builder('gsm8k', data_dir=_FOLDER, file_format='array_record')
  if not builder.is_prepared():
    try:
      urllib.request.urlopen(_URL + 'test.jsonl', timeout=_SECONDS).close()
      tfds.disable_progress_bar()
      builder.download_and_prepare()
    except OSError as error:
      raise ValueError(_fetch(f'no download ({error})')) from None
  for name, side in (('train', 'train'), ('test', 'heldout')):
    for number, row in enumerate(builder.as_data_source(name), 1):
      fields = {column: text.decode() for column, text in row.items()}
      yield f'gsm8k of TFDS, {name} problem {number}', fields, side


def _fetch(why: str) -> str:
  return (
    f'gsm8k: {why}; fetch {_URL}train.jsonl and test.jsonl into a folder and '
    "name it with data.knobs = {'path': FOLDER}"
  )
