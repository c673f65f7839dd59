"""Problems to train on: written once by TFDS, then read in any order.

A dataset file, `datasets/<name>.py`, has one public function,

  examples(**knobs) -> iterator of Example

which is pure: the same knobs give the same problems (randomness comes from a
knob `seed`; what a knob `path` names is read, and counts by its content).
Beside it stands `VERSION`, to be raised whenever the same knobs begin to give
other problems; and `key(prompt)`, where the words of a prompt in any order do
not tell whether two problems are the same. To add a dataset, write that file;
choose it by `c.data.name = '<name>'`.

`load` drops repeated problems, splits the rest into 'train' and 'heldout' and
keeps them under a folder named after all knobs, so that changed ones generate
anew. `Dataset.batch` is pure too: what step 700 trains on is known without
the 699 before, and each process of many can ask for its own slice. It is `rows`
and then `read`, for those who choose the rows otherwise (history.py). Several
datasets at a time: `c.data.name = 'mixture'`, see mixture.py.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import pkgutil
import re
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.datasets import local

SPLITS = ('train', 'heldout')


class Example(NamedTuple):
  """A problem, its right answer, and one way to reach it."""

  prompt: str
  answer: str
  reasoning: str = ''  # Empty where the dataset knows no way.
  columns: dict[str, Any] = {}  # What else a reward has to know, as JSON.
  split: str = ''  # One of SPLITS by the dataset's own word; '' leaves it open.

  @property
  def id(self) -> int:
    """A uint32 that names the prompt, in any process and on any machine."""
    return _hash32(self.prompt)

  def __hash__(self):
    return self.id  # A dict among the fields would have none.


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Random access to the examples of each split."""

  sources: dict[str, Any]  # Split -> rows of TFDS, read from disk on demand.

  def size(self, split: str) -> int:
    return len(self.sources[split])

  def batch(
    self, split: str, size: int, seed: int, cursor: int
  ) -> list[Example]:
    """Examples cursor .. cursor + size - 1 of an endless shuffled sequence."""
    return self.read(split, self.rows(split, size, seed, cursor))

  def rows(self, split: str, size: int, seed: int, cursor: int) -> np.ndarray:
    """Where the examples of that batch stand in the file."""
    return draw(self.size(split), size, seed, cursor)

  def read(self, split: str, rows: np.ndarray) -> list[Example]:
    """The examples that stand there."""
    return [
      _example({key: text.decode() for key, text in row.items()})
      for row in self.sources[split].__getitems__(rows.tolist())
    ]

  def all(self, split: str) -> list[Example]:
    """Every example once, in the order of the file."""
    return self.read(split, np.arange(self.size(split)))


def _example(fields: dict[str, str]) -> Example:
  return Example(**fields | {'columns': json.loads(fields['columns'])})


def load(
  name: str,
  folder: str,
  heldout: float = 0.05,
  progress: Callable[[int, int], None] | None = None,
  **knobs,
) -> Dataset:
  """The dataset `datasets/<name>.py`, generated if `folder` lacks it.

  `heldout` is the share of problems kept from training where the dataset has
  no split of its own. `progress(done, total)` is called now and then while
  problems are written. Raises ValueError for a dataset, knob or share that does
  not exist.
  """
  if not 0 < heldout < 1:
    raise ValueError(f'heldout={heldout} is not a share between 0 and 1')
  if hasattr(find(name), 'mix'):
    return find(name).mix(folder, heldout, progress, knobs)
  from grpo_jax.datasets import store  # TFDS, only where there is data to keep.

  sources = store.store(
    name,
    find(name).VERSION,
    {'heldout': heldout} | settings(name, knobs),
    lambda: generate(name, heldout, knobs),
    folder,
    progress,
  )
  return Dataset(sources)


def to_evaluate(name: str, knobs: dict[str, Any]) -> Dataset:
  """All problems of a dataset, or of its own test split if it has one.

  Each is there once, in memory, and in both splits. Raises ValueError for a
  dataset or knob that does not exist.
  """
  if not hasattr(find(name), 'examples'):
    raise ValueError(
      f'data.name={name!r} is none to evaluate on, but a mixture'
    )
  settings(name, knobs)
  every = {x.prompt: x for x in find(name).examples(**knobs)}
  tests = {k: x for k, x in every.items() if x.split == 'heldout'}
  return of(list((tests or every).values()))


def of(examples: Iterable[Example]) -> Dataset:
  """These problems, in both splits."""
  rows = _Rows(
    {
      'prompt': example.prompt.encode(),
      'answer': example.answer.encode(),
      'reasoning': example.reasoning.encode(),
      'columns': json.dumps(example.columns).encode(),
    }
    for example in examples
  )
  if not rows:
    raise ValueError('there are no problems')
  return Dataset(dict.fromkeys(SPLITS, rows))


class _Rows(list):
  """Rows in memory with the face of those on disk."""

  def __getitems__(self, places: list[int]) -> list[dict[str, bytes]]:
    return [self[i] for i in places]


def generate(
  name: str, heldout: float, knobs: dict[str, Any]
) -> dict[str, list[Example]]:
  """The problems of a dataset by split, before anything is stored."""
  return split(find(name).examples(**knobs), heldout, key(name))


def key(name: str) -> Callable[[str], str]:
  """What makes two prompts of a dataset the same problem; see `words`."""
  return getattr(find(name), 'key', words)


def settings(name: str, knobs: dict[str, Any]) -> dict[str, Any]:
  """All that decides what a dataset holds: its knobs, and its files' content.

  Raises ValueError for a knob that it does not have.
  """
  defaults = inspect.signature(find(name).examples).parameters
  for knob in knobs:
    if knob not in defaults:
      raise ValueError(
        f'dataset {name} has no knob {knob!r}; it has {", ".join(defaults)}'
      )
  found = {knob: p.default for knob, p in defaults.items()} | knobs
  if found.get('path'):
    found['content'] = local.digest(found['path'])
  return found


def words(prompt: str) -> str:
  """The words of a prompt, sorted: 34 + 5 and 5 + 34 have the same."""
  return ' '.join(sorted(re.findall(r'\w+', prompt)))


def split(
  examples: Iterable[Example],
  heldout: float,
  key: Callable[[str], str] = words,
) -> dict[str, list[Example]]:
  """Each problem once, in the split that it names or that its `key` decides.

  Prompts with the same key never stand on two sides, and no other knob moves
  one, so that what was held out stays so when more are generated. Where a
  dataset with a split of its own has a problem on both sides, it is held out.
  Raises ValueError if a split is empty.
  """
  splits: dict[str, dict[str, Example]] = {name: {} for name in SPLITS}
  for example in examples:
    name = example.split
    if not name:
      below = _hash32(key(example.prompt)) < heldout * 2**32
      name = 'heldout' if below else 'train'
    splits[name].setdefault(example.prompt, example)
  kept = {key(prompt) for prompt in splits['heldout']}
  splits['train'] = {
    prompt: example
    for prompt, example in splits['train'].items()
    if key(prompt) not in kept
  }
  for name, found in splits.items():
    if not found:
      total = sum(map(len, splits.values()))
      raise ValueError(f'heldout={heldout} of {total} leaves no {name} problem')
  return {name: list(found.values()) for name, found in splits.items()}


def draw(n: int, size: int, seed: int, cursor: int) -> np.ndarray:
  """Indices cursor .. cursor + size - 1 of endless permutations of range(n).

  n=3: 2 0 1 | 0 1 2 | 2 1 0 | ...: each epoch holds every index once.
  """
  epochs, places = np.divmod(int(cursor) + np.arange(size), n)
  indices = np.zeros(size, np.int64)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    indices[here] = _permutation(n, seed, int(epoch))[places[here]]
  return indices


@functools.lru_cache(maxsize=16)  # Steps of one epoch share it.
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(n)


def _hash32(text: str) -> int:
  digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
  return int.from_bytes(digest, 'little')


def find(name: str):
  """The module of a dataset; ValueError lists the known ones."""
  files = [info.name for info in pkgutil.iter_modules(__path__)]
  if name in files:
    module = importlib.import_module(f'{__name__}.{name}')
    if _gives(module):
      return module
  raise ValueError(f'no dataset {name!r}; there are {", ".join(names())}')


def names() -> list[str]:
  """All datasets that there are."""
  files = [info.name for info in pkgutil.iter_modules(__path__)]
  return [
    name
    for name in files
    if _gives(importlib.import_module(f'{__name__}.{name}'))
  ]


def _gives(module) -> bool:
  """Whether it is a dataset or the mixture of some, not a helper of theirs."""
  return hasattr(module, 'examples') or hasattr(module, 'mix')
