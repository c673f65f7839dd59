"""Puts a published algorithm into a config.

  apply(c, 'dapo')        at once; what is assigned afterwards overrides it
  c = resolve(c, given)   for c.algorithm = 'dapo', when all else is assigned

What an algorithm sets is in recipes.py. Its numbers of scale (learning rate,
batch, lengths) stay out unless apply is told scale=True.

A recipe says in how many minibatches a batch is cut, which may hold hundreds of
prompts there. Here it is cut into so many, or into as many as leave each of
them four groups: 4 instead of 16 with the quickstart's 16 prompts.
"""

from collections.abc import Collection
import copy
import inspect
from typing import Any

from ml_collections import ConfigDict

from grpo_jax import config as config_lib
from grpo_jax import recipes

# What a recipe does not name.
OFF: dict[str, Any] = {
  'select': {'name': 'all_tokens'},
  'off_policy': {'name': 'none'},
  'kl': {
    'name': 'k3',
    'coef': 0.0,
    'where': 'loss',
    'target': 0.0,
    'horizon': 10_000,
  },
  'reference': {'every': 0, 'rate': 1.0},
  'entropy': {
    'coef': 0.0,
    'target': 0.0,
    'step': 0.005,
    'low': 0.0,
    'high': 1.0,
  },
  'truncated': 'count',
  'dynamic': {'batches': 1},
  'curriculum': {'name': 'none'},
  'updates': {'passes': 1, 'minibatches': 1},
}
# Sections with the knobs of a function in them: those of another one go.
_WHOLE = ('advantage', 'loss', 'select', 'off_policy', 'aggregate', 'kl')
_LEAST_GROUPS = 4  # Of a minibatch.


def names() -> list[str]:
  """Of all recipes, as they stand in the file."""
  return [
    name
    for name, value in vars(recipes).items()
    if inspect.isfunction(value) and not name.startswith('_')
  ]


def values(name: str, scale: bool = False) -> dict[str, Any]:
  """All that a recipe sets: section -> values, with what is off.

  Raises ValueError for a name that is not there, listing those that are.
  """
  if name not in names():
    raise ValueError(f'algorithm={name!r} is not one of {", ".join(names())}')
  found = copy.deepcopy(OFF)
  recipe = getattr(recipes, name)()
  for section, value in (recipe.pop('scale', {}) if scale else {}).items():
    found[section] = value
  recipe.pop('scale', None)
  for section, value in recipe.items():
    below = found.get(section)
    found[section] = below | value if isinstance(below, dict) else value
  return found


def apply(c: ConfigDict, name: str, scale: bool = False) -> None:
  """Puts an algorithm into a config, in place; '' does nothing.

  It replaces what another one has set. Sections that name a function are
  replaced whole, of others the keys that a recipe may set.

  Args:
    c: a config with the sections of config.default(); data.prompts and
      updates.microbatches have to be known by now.
    name: of a recipe.
    scale: the paper's learning rate, batch and lengths too.

  Raises:
    ValueError: there is no such recipe.
  """
  if not name:
    return
  for section, value in values(name, scale).items():
    whole = section in _WHOLE or not isinstance(value, dict)
    c[section] = value if whole else c[section].to_dict() | value
  _fit_minibatches(c)
  c.algorithm = c.resolved = name


def resolve(c: ConfigDict, given: Collection[str] = ()) -> ConfigDict:
  """The config with c.algorithm put under what is not config.default()'s.

  What was changed stays, and so does what was given, be it the default's value.
  Where the loss, advantage, selection ... is another than the default's, it
  stays with its knobs. A config in which the algorithm is already, or which
  asks for none, comes back as it is.

  Args:
    c: a config, perhaps locked; it is not changed.
    given: names of values that were set by hand, such as 'loss.clip_high'.

  Raises:
    ValueError: there is no such recipe, or another one is in the config.
  """
  if c.algorithm == c.resolved:
    return c
  if c.resolved:
    raise ValueError(
      f'algorithm={c.algorithm!r}: the config already has the values of '
      f'{c.resolved!r} (from :algorithm={c.resolved} or algorithms.apply)'
    )
  base, found = config_lib.default(), c.copy_and_resolve_references().unlock()
  by_hand = {}
  for section, value in values(c.algorithm).items():
    by_hand[section] = _by_hand(section, c[section], base[section], given)
    found[section] = _under(section, value, c[section], by_hand[section])
  if 'minibatches' not in by_hand['updates']:
    _fit_minibatches(found)
  found.resolved = found.algorithm
  return found.lock() if c.is_locked else found


def _by_hand(section: str, ours, base, given: Collection[str]):
  """What was changed or given: keys and values, or whether it was."""
  if not isinstance(base, ConfigDict):
    return ours != base or section in given
  return {
    key: x
    for key, x in ours.to_dict().items()
    if key not in base or x != base[key] or f'{section}.{key}' in given
  }


def _under(section: str, value, ours, by_hand):
  """A recipe's value of a section, with what was set by hand on top."""
  if not isinstance(value, dict):
    return ours if by_hand else value
  ours = ours.to_dict()
  if section not in _WHOLE:
    return ours | value | by_hand
  if 'name' not in by_hand:
    return value | by_hand
  # Another function: the recipe's knobs are not its.
  shared = OFF['kl'].keys() - {'name'} if section == 'kl' else set()
  below = {key: x for key, x in value.items() if key in shared}
  return ours | below | by_hand


def _fit_minibatches(c: ConfigDict) -> None:
  """As many as asked for, or as leave each of them a few groups."""
  P = c.data.prompts // c.updates.microbatches
  wanted = range(c.updates.minibatches, 0, -1)
  fit = (n for n in wanted if P % n == 0 and P // n >= _LEAST_GROUPS)
  c.updates.minibatches = next(fit, 1)
