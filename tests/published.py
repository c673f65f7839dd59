"""The tiny checkpoints of tests/golden/models, and what the reference gave."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np

from grpo_jax import models, sharding, weights

FOLDER = pathlib.Path(__file__).parent / 'golden'
NAMES = (
  'llama_untied llama_tied_llama3rope qwen2 qwen3 gemma3 gemma3_linear8'
).split()


@dataclasses.dataclass(frozen=True)
class Published:
  """A checkpoint and its golden numbers; see golden/extract_models.py."""

  model: models.Model
  params: dict
  rows: list[np.ndarray]  # Token ids without padding.
  golden: dict[str, np.ndarray]  # Padded on the left.
  told: dict


@functools.cache
def published(name: str) -> Published:
  folder = FOLDER / 'models' / name
  family, sizes = weights.architecture(folder)
  model = models.build(family, '', **sizes)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  where = sharding.param_shardings(model, sharding.TRAIN, mesh)
  params = weights.load(folder, model, where)
  arrays = np.load(FOLDER / 'models.npz')
  prefix = f'{name}.'
  golden = {
    key.removeprefix(prefix): arrays[key]
    for key in arrays
    if key.startswith(prefix)
  }
  rows = [
    ids[mask] for ids, mask in zip(golden['ids'], golden['mask'], strict=True)
  ]
  return Published(model, params, rows, golden, json.loads(str(golden['json'])))
