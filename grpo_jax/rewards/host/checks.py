"""What can be refused before a worker is started."""

from collections.abc import Sequence
import importlib.util
import math

from grpo_jax.rewards.host import function, sandbox
from grpo_jax.rewards.host.records import Spec

# Reward: the module that it imports, and the package that brings the module.
_NEEDS = {
  'maths': ('math_verify', 'math-verify'),
  'gym': ('reasoning_gym', 'reasoning-gym'),
}


def check_all(specs: Sequence[Spec], workers: int) -> None:
  """Raises ValueError, in one line, for what a pool cannot work with."""
  if workers < 1:
    raise ValueError(f'{workers} workers; a pool has at least 1')
  names = [spec.name for spec in specs]
  twice = {name for name in names if names.count(name) > 1}
  if twice:
    raise ValueError(f'two host rewards have the name {min(twice)!r}')
  for spec in specs:
    check(spec)


def check(spec: Spec) -> None:
  """Raises ValueError for what can be refused without importing anything.

  What is left is found by the workers when they start: that a function is
  there, and that it takes its knobs.
  """
  where = f'host reward {spec.name!r}'
  if not 0 < spec.seconds < math.inf:
    raise ValueError(f'{where}: seconds {spec.seconds}; a deadline is above 0')
  if spec.signature not in function.SIGNATURES:
    known = ', '.join(function.SIGNATURES)
    raise ValueError(
      f'{where}: no signature {spec.signature!r}; there are {known}'
    )
  if spec.function not in function.BUILT_IN:
    _check_own(spec, where)
  elif spec.signature != 'score':
    raise ValueError(f'{where}: {spec.function!r} has no signature to choose')
  if spec.function in _NEEDS:
    module, package = _NEEDS[spec.function]
    if not importlib.util.find_spec(module):
      raise ValueError(f'{where} needs {package}: pip install {package}')
  if spec.function == 'code' and not spec.knobs.get('unsafe'):
    try:
      sandbox.mode()
    except OSError as error:
      raise ValueError(f'{where}: {error}') from error


def _check_own(spec: Spec, where: str) -> None:
  module, _, name = spec.function.partition(':')
  if not module or not name:
    known = ', '.join(function.BUILT_IN)
    raise ValueError(
      f'{where}: no function {spec.function!r}; there are {known}, and '
      "'module:function' of your own"
    )
  top = module.partition('.')[0]
  if not importlib.util.find_spec(top):
    raise ValueError(f'{where}: no module {top!r} on the path of Python')
