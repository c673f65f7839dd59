"""Several datasets at a time, each with its share of every batch.

  c.data.name = 'mixture'
  c.data.knobs = {
    'sums': {'weight': 2.0, 'digits': '2+1'},
    'hard': {'weight': 1.0, 'name': 'countdown', 'numbers_max': 6},
  }

A key is the name of a dataset, or a name of your own with the dataset's under
'name'; 'weight' (1 if left out) says how often its turn comes, and the rest are
its knobs. The column 'source' of every problem holds the key.

Turns come in blocks of equal shares, shuffled: weights 2 and 1 give blocks of
three, a a b | a b a | b a a. What stands where follows from seed and position,
and each source goes through its own problems epoch by epoch. A problem that is
held out in one source is in no source's training split.
"""

from collections.abc import Callable
import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from grpo_jax import datasets
from grpo_jax.datasets import Dataset, Example

VERSION = '1.0.0'

_BLOCK = 1000  # Turns of a block at the most: shares are exact to a thousandth.


@dataclasses.dataclass(frozen=True)
class Mixture:
  """The same face as Dataset."""

  sources: tuple[Dataset, ...]
  block: tuple[int, ...]  # How many turns of a block each source has.

  def size(self, split: str) -> int:
    """Examples of a sequence before any source has to begin again."""
    sizes = [source.size(split) for source in self.sources]
    blocks = min(n // k for n, k in zip(sizes, self.block, strict=True))
    return max(blocks * sum(self.block), min(sizes))

  def batch(
    self, split: str, size: int, seed: int, cursor: int
  ) -> list[Example]:
    """Examples cursor .. cursor + size - 1 of an endless shuffled sequence."""
    return self.read(split, self.rows(split, size, seed, cursor))

  def rows(self, split: str, size: int, seed: int, cursor: int) -> np.ndarray:
    """Where the examples of that batch stand, one source after the other."""
    first, skipped = divmod(cursor, sum(self.block))
    turns = _turns(self.block, seed, first, skipped + size)
    before = np.bincount(turns[:skipped], minlength=len(self.block))
    before += first * np.array(self.block)
    turns = turns[skipped:]
    rows = np.zeros(size, np.int64)
    for i, source in enumerate(self.sources):
      count, start = int(np.sum(turns == i)), int(before[i])
      rows[turns == i] = source.rows(split, count, seed, start)
    return rows + self._starts(split)[turns]

  def read(self, split: str, rows: np.ndarray) -> list[Example]:
    """The examples that stand there."""
    starts = self._starts(split)
    homes = np.searchsorted(starts, rows, side='right') - 1
    given = [
      iter(source.read(split, rows[homes == i] - starts[i]))
      for i, source in enumerate(self.sources)
    ]
    return [next(given[home]) for home in homes]

  def all(self, split: str) -> list[Example]:
    """Every example once, the sources in turn while they last."""
    columns = itertools.zip_longest(*(s.all(split) for s in self.sources))
    return [example for row in columns for example in row if example]

  def _starts(self, split: str) -> np.ndarray:
    """The row of each source's first example."""
    sizes = [source.size(split) for source in self.sources]
    return np.cumsum([0, *sizes[:-1]])


class Source(NamedTuple):
  """A dataset with its knobs, and how often its turn comes."""

  name: str
  weight: float
  knobs: dict[str, Any]


def mix(
  folder: str,
  heldout: float,
  progress: Callable[[int, int], None] | None,
  knobs: dict[str, dict[str, Any]],
) -> Mixture:
  """Generates or reads the sources; see datasets.load."""
  from grpo_jax.datasets import store

  if not knobs:
    raise ValueError('a mixture needs data.knobs = {DATASET: {...}, ...}')
  sources = {key: _source(key, value) for key, value in knobs.items()}
  block = shares({key: source.weight for key, source in sources.items()})
  settings = {
    key: (
      source.name,
      datasets.find(source.name).VERSION,
      datasets.settings(source.name, source.knobs),
    )
    for key, source in sources.items()
  }
  rows = store.store(
    'mixture',
    VERSION,
    {'heldout': heldout} | settings,
    lambda: _splits(sources, heldout),
    folder,
    progress,
  )
  return Mixture(
    tuple(
      Dataset({split: rows[f'{split}_{i}'] for split in datasets.SPLITS})
      for i in range(len(sources))
    ),
    block,
  )


def shares(weights: dict[str, float]) -> tuple[int, ...]:
  """Turns of a block: whole numbers as near to the weights as a block allows.

  The smallest block that fits best is taken: 2.0 and 1.0 are (2, 1).
  """
  wanted = np.array(list(weights.values()))
  wanted = wanted / wanted.sum()
  sizes = np.arange(len(weights), _BLOCK + 1)
  counts = np.rint(sizes[:, None] * wanted).astype(int)
  errors = np.abs(counts / sizes[:, None] - wanted).max(axis=1)
  errors[counts.min(axis=1) == 0] = np.inf
  errors[counts.sum(axis=1) != sizes] = np.inf
  if errors.min() == np.inf:
    raise ValueError(
      f'mixture: the weights {weights} differ by more than {_BLOCK} to 1'
    )
  return tuple(counts[errors <= errors.min() + 1e-9][0].tolist())


def _turns(
  block: tuple[int, ...], seed: int, first: int, count: int
) -> np.ndarray:
  """The source of each position, from the block `first` on."""
  ordered = np.repeat(np.arange(len(block)), block)
  blocks = range(first, first - (-count // len(ordered)))
  shuffled = [
    np.random.default_rng([seed, number]).permutation(ordered)
    for number in blocks
  ]
  return np.concatenate([*shuffled, ordered[:0]])[:count]


def _source(key: str, value: Any) -> Source:
  if not isinstance(value, dict):
    raise ValueError(f'mixture: {key}={value!r} must be a dict of its knobs')
  knobs = dict(value)
  weight = knobs.pop('weight', 1.0)
  name = knobs.pop('name', key)
  if not weight > 0:
    raise ValueError(f'mixture: weight={weight} of {key} must be above 0')
  if name == 'mixture':
    raise ValueError(f'mixture: {key} is a mixture itself; name its datasets')
  return Source(name, weight, knobs)


def _splits(
  sources: dict[str, Source], heldout: float
) -> dict[str, list[Example]]:
  """'train_0', 'heldout_0', 'train_1', ...: every problem once, on one side."""
  found = {}
  # What makes problems the same -> which ones are held out.
  kept: dict[Callable, set[str]] = {}
  for key, source in sources.items():
    try:
      found[key] = datasets.generate(source.name, heldout, source.knobs)
    except ValueError as error:
      raise ValueError(f'mixture: {key}: {error}') from None
    same = datasets.key(source.name)
    prompts = [example.prompt for example in found[key]['heldout']]
    kept.setdefault(same, set()).update(map(same, prompts))

  splits, seen = {}, set()
  for i, (key, split) in enumerate(itertools.product(found, datasets.SPLITS)):
    fresh = []
    for example in found[key][split]:
      prompt = example.prompt
      leaks = split == 'train' and any(
        same(prompt) in prompts for same, prompts in kept.items()
      )
      if prompt not in seen and not leaks:
        seen.add(prompt)
        columns = example.columns | {'source': key}
        fresh.append(example._replace(columns=columns))
    if not fresh:
      raise ValueError(
        f'mixture: {key} has no {split} problem that the others leave to it'
      )
    splits[f'{split}_{i // len(datasets.SPLITS)}'] = fresh
  return splits
