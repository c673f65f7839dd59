"""What a config says of the parts of a reward, and their weighted sum.

A part is its weight, or a mapping with any of

  weight   of its score in the total; 1 if it is not given
  clip     (low, high): the score is cut to these bounds first
  scale    what the score is multiplied by, after `shift` is added
  shift
  gate     name of another part: where that one is below `open`, this is 0
  open     see gate; 1 if it is not given
  right    name of the part that tells right completions from wrong ones, for
           parts that ask; 'answer' if it is not given
  only     'column=value', or with more values 'column=one|two': problems with
           another there, or without that column, are not scored (NaN): rules
           for some, a model for others
  file     which file it is, if not that of its name: one file, two parts

and the knobs of its function. A part of rewards/host is scored on the host, and
so is a function of yours, which takes these besides its own knobs:

  function   'module:function'
  signature  'score', 'trl' or 'verl'; see host/function.py
  seconds    its deadline for one completion

What becomes of a score, in this order:

  score -> clip -> + shift -> * scale -> gate -> * weight -> sum

The metrics show the score as the part gave it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib
import inspect
import math
import pkgutil
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.datasets import Example
from grpo_jax.rewards.host import Spec
from grpo_jax.rewards.host.function import BUILT_IN

_PACKAGE = 'grpo_jax.rewards'
_FILLED = ('right_PG', 'reference_PN', 'readers', 'scorer', 'scores')
_COMMON = ('clip', 'shift', 'scale', 'gate', 'open', 'right', 'only')
_HOST = ('signature', 'seconds')


@dataclasses.dataclass(frozen=True)
class Part:
  """One part of the mix, with what its file offers."""

  name: str
  weight: float = 1.0
  function: Callable[..., jax.Array] | None = None  # None: see `host`.
  knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  takes: Sequence[str] = ()  # Keywords of the function that are not knobs.
  tags: Callable | None = None
  reads: Callable | None = None
  reference: Callable | None = None
  host: Spec | None = None  # How the host scores it.
  clip: tuple[float, float] | None = None
  shift: float = 0.0
  scale: float = 1.0
  gate: str = ''
  open: float = 1.0
  right: str = 'answer'
  only: str = ''

  def scores(self, example: Example) -> bool:
    """Whether a problem is one of those that `only` names."""
    column, _, values = self.only.partition('=')
    own = str(example.columns.get(column))
    return not self.only or own in values.split('|')


def parse(mix: Mapping[str, Any]) -> list[Part]:
  """The parts: after all others those that look at their scores, and then those
  that ask which completions are right.

  Raises ValueError, in one line, for a part, knob or bound that does not exist.
  """
  parts = [_part(name, entry) for name, entry in mix.items()]
  asking = [part for part in parts if 'right_PG' in part.takes]
  for part in parts:
    if part.gate and (part.gate not in mix or part.gate == part.name):
      raise ValueError(
        f'reward.{part.name}.gate={part.gate!r} is not another of the parts '
        f'{", ".join(mix)}'
      )
  known = [part.name for part in parts if part not in asking]
  for part in asking:
    if part.right not in known:
      raise ValueError(
        f'reward.{part.name}.right={part.right!r} is not one of the parts '
        f'{", ".join(known)}: give it the weight 0 if it is to count nothing'
      )
  looking = [part for part in parts if 'scores' in part.takes]
  plain = [part for part in parts if part not in asking + looking]
  for part in looking:
    for name in part.knobs.get('parts', ()):
      if name not in [other.name for other in plain]:
        raise ValueError(
          f'reward.{part.name}.parts has {name!r}, which is not one of '
          f'{", ".join(other.name for other in plain)}'
        )
  return plain + looking + asking


def total(scores: Mapping[str, jax.Array], parts: Sequence[Part]) -> jax.Array:
  """The weighted sum of the shaped scores, of whatever shape they are.

  A NaN leaves that part out for that completion, and so does the NaN of its
  gate. Where every part that has a weight is NaN, so is the total.
  """
  shaped = shape(scores, parts)
  weights = {part.name: part.weight for part in parts}
  weighted = [weights[name] * score for name, score in shaped.items()]
  if not weighted:  # A teacher says what is good, and not the reward.
    return jnp.zeros_like(next(iter(scores.values())))
  stacked = jnp.stack(weighted)
  unscored = jnp.all(jnp.isnan(stacked), axis=0)
  return jnp.where(unscored, jnp.nan, jnp.nansum(stacked, axis=0))


def shape(
  scores: Mapping[str, jax.Array], parts: Sequence[Part]
) -> dict[str, jax.Array]:
  """Scores of the parts with a weight, in bounds, to scale, behind gates."""
  shaped = {}
  for part in parts:
    if part.weight:
      score = scores[part.name]
      if part.clip is not None:
        score = jnp.clip(score, *part.clip)
      score = (score + part.shift) * part.scale
      if part.gate:
        gate = scores[part.gate]
        score = jnp.where(gate < part.open, 0.0, score)
        score = jnp.where(jnp.isnan(gate), jnp.nan, score)
      shaped[part.name] = score
  return shaped


def load(name: str):
  """The module of `rewards/<name>.py`; ValueError lists the known ones."""
  known = names()
  if name not in known:
    raise ValueError(f'no reward {name!r}; there are {", ".join(known)}')
  return importlib.import_module(f'{_PACKAGE}.{name}')


def names() -> list[str]:
  """All parts that there are, those of the device first."""
  package = importlib.import_module(_PACKAGE)
  found = [info.name for info in pkgutil.iter_modules(package.__path__)]
  return [
    name
    for name in found
    if callable(
      getattr(importlib.import_module(f'{_PACKAGE}.{name}'), name, None)
    )
  ] + [*BUILT_IN]


def _part(name: str, entry: float | Mapping[str, Any]) -> Part:
  knobs: dict[str, Any] = {'weight': entry}
  if isinstance(entry, Mapping):
    knobs = dict(entry)
  file = knobs.pop('file', name)
  common = {key: knobs.pop(key) for key in _COMMON if key in knobs}
  common |= {'name': name, 'weight': knobs.pop('weight', 1.0)}
  for key in ('weight', 'shift', 'scale', 'open'):
    value = common.get(key, 0.0)
    if not isinstance(value, int | float) or not math.isfinite(value):
      raise ValueError(f'reward.{name}.{key}={value!r} must be a number')
  for key in ('gate', 'right', 'only'):
    if not isinstance(common.get(key, ''), str):
      raise ValueError(f'reward.{name}.{key}={common[key]!r} must be a name')
  only = common.get('only')
  if only and not all(only.partition('=')):
    raise ValueError(f"reward.{name}.only={only!r} must be 'column=value'")
  clip = common.get('clip')
  if clip is not None and not _is_range(clip):
    raise ValueError(f'reward.{name}.clip={clip!r} must be (low, high)')
  if 'function' in knobs or file in BUILT_IN:
    function = knobs.pop('function', file)
    how = {key: knobs.pop(key) for key in _HOST if key in knobs}
    return Part(**common, host=Spec(name, function, knobs=knobs, **how))

  module = load(file)
  function = getattr(module, file)
  keywords = [
    p.name
    for p in inspect.signature(function).parameters.values()
    if p.kind is p.KEYWORD_ONLY
  ]
  own = [key for key in keywords if key not in _FILLED]
  for knob in knobs:
    if knob not in own:
      raise ValueError(
        f'reward.{name}.{knob}: {file!r} does not take it; it takes weight, '
        f'file, {", ".join([*_COMMON, *own])}'
      )
  return Part(
    **common,
    function=function,
    knobs=knobs,
    takes=[key for key in keywords if key in _FILLED],
    tags=getattr(module, 'tags', None),
    reads=getattr(module, 'reads', None),
    reference=getattr(module, 'reference', None),
  )


def _is_range(clip: Any) -> bool:
  try:
    low, high = clip
    return low <= high
  except (TypeError, ValueError):
    return False
