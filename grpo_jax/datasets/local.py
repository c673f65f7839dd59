"""Files of the user's own: which a knob `path` names, and the rows in them.

A path is a file, a folder (all that lies in it, at any depth) or a pattern like
`data/*.jsonl`. Rows come from .jsonl (one object a line), .json (one object in
all) and .parquet.
"""

from collections.abc import Iterator, Sequence
import glob
import hashlib
import json
import pathlib
from typing import Any

SUFFIXES = ('.jsonl', '.json', '.parquet')


def files(path: str) -> list[pathlib.Path]:
  """The files that a path names, sorted; none if it names nothing."""
  place = pathlib.Path(path).expanduser()
  if place.is_dir():
    found = place.rglob('*')
  else:
    found = map(pathlib.Path, glob.glob(str(place), recursive=True))
  return sorted(x for x in found if x.suffix in SUFFIXES and x.is_file())


def digest(path: str) -> str:
  """Names the content of all the files, so that a changed one is noticed."""
  total = hashlib.blake2b(digest_size=8)
  for file in files(path):
    content = hashlib.blake2b(file.read_bytes()).hexdigest()
    total.update(f'{file} {content}\n'.encode())
  return total.hexdigest()


def rows(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """('FILE, line N', row) of each row; raises ValueError with such a place."""
  if file.suffix == '.parquet':
    for number, row in enumerate(_parquet(file), 1):
      yield f'{file}, row {number}', row
  elif file.suffix == '.json':
    yield str(file), _object(file.read_bytes(), str(file))
  else:
    with file.open('rb') as lines:
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield (place := f'{file}, line {number}'), _object(line, place)


def completions(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
  """The 'prompt' and 'completion' of each row; ValueError where there is none.

  Raises FileNotFoundError for a path that names no file.
  """
  for path in paths:
    found = files(path)
    if not found:
      raise FileNotFoundError(f'pretrain.files: {path!r} names no file')
    for file in found:
      for place, row in rows(file):
        yield text(row, 'prompt', place), text(row, 'completion', place)


def sides(path: str) -> list[tuple[pathlib.Path, str]]:
  """The files of a path, each with the split that its names tell.

  That is the official one of train.jsonl and test.jsonl, or of the folders
  train/ and test/; '' for all, if there are not both.
  """
  found = [(file, _side(file)) for file in files(path)]
  if {'train', 'heldout'} <= {side for _, side in found}:
    return found
  return [(file, '') for file, _ in found]


def text(row: dict[str, Any], column: str, place: str) -> str:
  """A column as text; ValueError names the place and the columns there are."""
  if row.get(column) is None:
    raise ValueError(
      f'{place}: no column {column!r}; there are {", ".join(row)}'
    )
  value = row[column]
  return value if isinstance(value, str) else json.dumps(value)


def _side(file: pathlib.Path) -> str:
  if file.stem.startswith(('train', 'test')):
    return 'train' if file.stem.startswith('train') else 'heldout'
  for folder in file.parents:  # The nearest first.
    if folder.name in ('train', 'test'):
      return 'train' if folder.name == 'train' else 'heldout'
  return ''


def _object(line: bytes, place: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except ValueError as error:
    raise ValueError(f'{place}: not JSON: {error}') from None
  if not isinstance(row, dict):
    raise ValueError(f'{place}: {str(row)[:40]!r} is not an object')
  return row


def _parquet(file: pathlib.Path) -> Iterator[dict[str, Any]]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise ValueError(f'{file} needs: pip install pyarrow') from None
  try:
    for batch in parquet.ParquetFile(file).iter_batches():
      yield from batch.to_pylist()
  except pyarrow.ArrowInvalid as error:
    raise ValueError(f'{file}: not Parquet: {error}') from None
