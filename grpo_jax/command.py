"""Command lines of experiments/: every error is one line, never a traceback.

config = command.config_flag()
command.run(main)      # main() may raise one of ERRORS
command.given(config)  # what the command line says of it: name -> value
command.words()        # the same as words, for another command line
"""

from collections.abc import Callable
import difflib
import os
import runpy
import sys
from typing import Any

from absl import app, flags, logging
import jax
from ml_collections import ConfigDict, config_flags

from grpo_jax import process

# They say all in one line; others are defects, and have a traceback.
ERRORS = (ValueError, FileNotFoundError, FloatingPointError)


def config_flag() -> flags.FlagHolder:
  """--config FILE[:argument], and --config.any.key=value to change it."""
  return config_flags.DEFINE_config_file('config', None, 'A file in configs/.')


def given(config: flags.FlagHolder) -> dict[str, Any]:
  """Values that --config.any.key=value flags have set, by any.key."""
  return dict(config_flags.get_override_values(flags.FLAGS[config.name]))


def words() -> list[str]:
  """--config and its values, as they stand on the command line."""
  found, wanted = [], False
  for word in sys.argv[1:]:
    name = word.lstrip('-').partition('=')[0]
    if word.startswith('-'):
      about = name.partition('.')[0] in ('config', 'noconfig')
      wanted = about and '=' not in word
    else:  # The value of the word before it, if that has none.
      about, wanted = wanted, False
    found += [word] if about else []
  return found


def run(main: Callable[[], None]) -> None:
  """Parses the flags, calls main and turns bad input into one line."""

  def checked(argv):
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file.
    if len(argv) > 1:
      _fail(f'unexpected argument {argv[1]!r}')
    try:
      main()
    except ERRORS as e:
      _fail(str(e))
    except (Exception, KeyboardInterrupt) as e:
      if jax.distributed.is_initialized() and jax.process_count() > 1:
        process.leave(e)
      raise

  app.run(checked, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  file = _path(argv).partition(':')[0]
  if file and not os.path.isfile(file):
    _fail(f'no config file {file!r}')
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError):  # What config_flags raises.
    _fail(_unknown_key(argv))
  except (flags.Error, TypeError) as e:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    missing = [x for x in lines if 'must have a value other than None' in x]
    if missing:
      _fail('; '.join(x.split(': ')[-1] for x in missing))
    _fail(lines[-1].removeprefix('ValueError: '))


def _path(argv: list[str]) -> str:
  """What --config says."""
  for i, word in enumerate(argv):
    name, equals, value = word.partition('=')
    if name in ('--config', '-config'):
      return value if equals else ''.join(argv[i + 1 : i + 2])
  return ''


def _unknown_key(argv: list[str]) -> str:
  """Finds the key that the config lacks, and those that it has there."""
  path, _, argument = _path(argv).partition(':')
  config = runpy.run_path(path)['get_config'](argument)
  for word in argv:
    if not word.startswith('--config.'):
      continue
    node, where = config, 'config'
    for name in word.partition('=')[0].split('.')[1:]:
      known = list(node) if isinstance(node, ConfigDict) else []
      if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean {near[0]!r}? ' if near else ''
        there = f'it has {", ".join(known)}' if known else 'it is a value'
        return f'{word}: no key {name!r} in {where}: {hint}{there}'
      node, where = node[name], f'{where}.{name}'
  return 'a --config.<key>=<value> cannot be set'


def _fail(message: str) -> None:
  one_line = ' '.join(message.split())
  print(f'error: {one_line}', file=sys.stderr)
  raise SystemExit(1)
