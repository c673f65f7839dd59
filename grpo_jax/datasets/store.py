"""Examples on disk as ArrayRecord files: a TFDS builder, without TensorFlow.

The folder is `<folder>/<name>/<all knobs>/<version>`; knobs that are too long
for a file's name end in a digest of them all. TFDS writes beside it
and renames at the end: it is whole or it is not there.
"""

from collections.abc import Callable, Iterator
import hashlib
import json
from typing import Any
import urllib.parse

import numpy as np
import tensorflow_datasets as tfds

from grpo_jax.datasets import Example

_TICK = 500  # Examples between two calls of progress.
_LONGEST = 160  # Characters of a folder's name; file systems take 255.


# TFDS loads its classes when they are asked for; mypy does not see their base.
class Store(
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,  # type: ignore[call-arg]
):
  """Writes lists of examples; which, is said when it is built."""

  VERSION = tfds.core.Version('1.0.0')  # Replaced by that of the config.

  def __init__(self, name: str, splits=None, progress=None, **kwargs):
    self.name = name
    self.splits = splits  # () -> {split: [Example]}, called if needed.
    self.progress = progress
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      dict.fromkeys(Example._fields, np.str_)
    )
    return tfds.core.DatasetInfo(
      builder=self, features=features, disable_shuffling=True
    )

  def _split_generators(self, dl_manager):
    self.written = 0
    splits = self.splits()
    self.total = sum(map(len, splits.values()))
    return {
      name: self._generate_examples(examples)
      for name, examples in splits.items()
    }

  def _generate_examples(self, examples: list[Example]) -> Iterator:
    for key, example in enumerate(examples):
      columns = json.dumps(example.columns)
      yield key, example._asdict() | {'columns': columns}
      self.written += 1
      if self.progress and (
        self.written % _TICK == 0 or self.written == self.total
      ):
        self.progress(self.written, self.total)

  # TFDS has no switch for what these three would print.

  def _create_builder_config(self, builder_config, version=None):
    return builder_config

  def _log_download_bytes(self):
    pass

  def _log_download_done(self):
    pass


def store(
  name: str,
  version: str,
  knobs: dict[str, Any],
  splits: Callable[[], dict[str, list[Example]]],
  folder: str,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
  """Split -> its rows on disk, after generating them if they are not there."""
  tfds.disable_progress_bar()
  config = tfds.core.BuilderConfig(name=_folder(knobs), version=version)
  builder = Store(name, splits, progress, data_dir=folder, config=config)
  try:
    builder.download_and_prepare(file_format='array_record')
  except OSError:
    # If another process was first, its folder cannot be renamed over.
    builder = Store(name, data_dir=folder, config=config)
    if not builder.is_prepared():
      raise
  return builder.as_data_source()


def _folder(knobs: dict[str, Any]) -> str:
  text = ','.join(f'{knob}={value}' for knob, value in knobs.items())
  name = urllib.parse.quote(text, safe='=,+')
  if len(name) <= _LONGEST:
    return name
  return f'{name[:_LONGEST]},{hashlib.blake2b(text.encode()).hexdigest()[:16]}'
