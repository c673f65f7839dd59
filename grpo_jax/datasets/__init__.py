"""Problems to train on: written once by TFDS, then read in any order.

A dataset file, `datasets/<name>.py`, has one public function,

  examples(**knobs) -> iterator of Example

which is pure: the same knobs give the same problems (randomness comes from a
knob `seed`). Beside it stands `VERSION`, to be raised whenever the same knobs
begin to give other problems. To add a dataset, write that file; choose it by
`c.data.name = '<name>'`.

`load` drops repeated problems, splits the rest into 'train' and 'heldout' and
keeps them under a folder named after all knobs, so that changed ones generate
anew. `Dataset.batch` is pure too: what step 700 trains on is known without
the 699 before, and each process of many can ask for its own slice.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import hashlib
import importlib
import inspect
import pkgutil
import re
from typing import Any, NamedTuple

import numpy as np

SPLITS = ('train', 'heldout')


class Example(NamedTuple):
  """A problem, its right answer, and one way to reach it."""

  prompt: str
  answer: str
  reasoning: str

  @property
  def id(self) -> int:
    """A uint32 that names the prompt, in any process and on any machine."""
    return _hash32(self.prompt)


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
    rows = draw(self.size(split), size, seed, cursor)
    return self._read(split, rows.tolist())

  def all(self, split: str) -> list[Example]:
    """Every example once, in the order of the file."""
    return self._read(split, list(range(self.size(split))))

  def _read(self, split: str, rows: list[int]) -> list[Example]:
    fields = self.sources[split].__getitems__(rows)
    return [
      Example(**{key: text.decode() for key, text in row.items()})
      for row in fields
    ]


def load(
  name: str,
  folder: str,
  heldout: float = 0.05,
  progress: Callable[[int, int], None] | None = None,
  **knobs,
) -> Dataset:
  """The dataset `datasets/<name>.py`, generated if `folder` lacks it.

  `heldout` is the share of problems kept from training. `progress(done,
  total)` is called now and then while problems are written. Raises ValueError
  for a dataset, knob or share that does not exist.
  """
  module = find(name)
  defaults = inspect.signature(module.examples).parameters
  for knob in knobs:
    if knob not in defaults:
      raise ValueError(
        f'dataset {name} has no knob {knob!r}; it has {", ".join(defaults)}'
      )
  if not 0 < heldout < 1:
    raise ValueError(f'heldout={heldout} is not a share between 0 and 1')
  from grpo_jax.datasets import store  # TFDS, only where there is data to keep.

  settings = {knob: p.default for knob, p in defaults.items()} | knobs
  sources = store.store(
    name,
    module.VERSION,
    {'heldout': heldout} | settings,
    lambda: split(module.examples(**settings), heldout),
    folder,
    progress,
  )
  return Dataset(sources)


def split(
  examples: Iterable[Example], heldout: float
) -> dict[str, list[Example]]:
  """Each problem once, in the split that its own text decides.

  The words of the prompt count, their order does not: 34 + 5 and 5 + 34 never
  stand on two sides. No other knob moves a problem, so that what was held out
  stays so when more are generated. Raises ValueError if a split is empty.
  """
  splits = {name: {} for name in SPLITS}
  for example in examples:
    words = ' '.join(sorted(re.findall(r'\w+', example.prompt)))
    name = 'heldout' if _hash32(words) < heldout * 2**32 else 'train'
    splits[name].setdefault(example.prompt, example)
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
  modules = {
    info.name: f'{__name__}.{info.name}'
    for info in pkgutil.iter_modules(__path__)
  }
  if name in modules:
    module = importlib.import_module(modules[name])
    if hasattr(module, 'examples'):
      return module
  known = [
    key
    for key, path in modules.items()
    if hasattr(importlib.import_module(path), 'examples')
  ]
  raise ValueError(f'no dataset {name!r}; there are {", ".join(known)}')
