"""Command lines of experiments/: every error is one line, never a traceback.

config = command.config_flag()
command.run(main)      # main() may raise one of ERRORS
command.given(config)  # what the command line says of it: name -> value
command.words()        # the same as words, for another command line
command.changed(c, w)  # what c would be with more of them
command.guard(main)    # where argparse reads the command line
"""

import ast
from collections.abc import Callable, Mapping
import difflib
import os
import runpy
import sys
from typing import Any, NoReturn

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


def changed(
  config: ConfigDict, values: Mapping[str, str]
) -> tuple[ConfigDict, dict[str, Any]]:
  """A config with more --config.any.key=value, here by any.key.

  Returns it, locked, and the values as they were read. Raises ValueError for
  what a command line would refuse; the config that goes in stays as it is.
  """
  line = ['', *(f'--config.{name}={text}' for name, text in values.items())]
  config, own = config.copy_and_resolve_references(), flags.FlagValues()
  try:
    flag = config_flags.DEFINE_config_dict(
      'config', config, flag_values=own, sys_argv=line
    )
    own(line)
  except (AttributeError, KeyError):  # As in _parse.
    raise ValueError(_unknown_key(config, line)) from None
  except (flags.Error, TypeError, ValueError) as e:
    raise ValueError(_last_line(e)) from None
  return flag.value, dict(config_flags.get_override_values(own['config']))


def run(main: Callable[[], None]) -> None:
  """Parses the flags, calls main and turns bad input into one line."""

  def checked(argv):
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file.
    if len(argv) > 1:
      _fail(f'unexpected argument {argv[1]!r}')
    _guarded(main)

  app.run(checked, flags_parser=_parse)


def guard(main: Callable[[], None]) -> None:
  """The same for a command line that argparse reads."""
  logging.set_verbosity(logging.WARNING)
  _guarded(main)


def _guarded(main: Callable[[], None]) -> None:
  try:
    main()
  except ERRORS as e:
    _fail(str(e))
  except (Exception, KeyboardInterrupt) as e:
    if jax.distributed.is_initialized() and jax.process_count() > 1:
      process.leave(e)
    raise


def literal(text: str) -> Any:
  """1e-3, [1, 2] or {'answer': 1.0} as Python has it; other words as text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _parse(argv: list[str]) -> list[str]:
  file = _path(argv).partition(':')[0]
  if file and not os.path.isfile(file):
    _fail(f'no config file {file!r}')
  sys.path.append(os.path.dirname(file))  # Configs may import one another.
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError):  # What config_flags raises.
    path, _, argument = _path(argv).partition(':')
    _fail(_unknown_key(runpy.run_path(path)['get_config'](argument), argv))
  except (flags.Error, TypeError) as e:
    missing = [
      line.split(': ')[-1]
      for line in str(e).splitlines()
      if 'must have a value other than None' in line
    ]
    _fail('; '.join(missing) or _last_line(e))


def _last_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[-1].removeprefix('ValueError: ')


def _path(argv: list[str]) -> str:
  """What --config says."""
  for i, word in enumerate(argv):
    name, equals, value = word.partition('=')
    if name in ('--config', '-config'):
      return value if equals else ''.join(argv[i + 1 : i + 2])
  return ''


def _unknown_key(config: ConfigDict, argv: list[str]) -> str:
  """Finds the key that the config lacks, and those that it has there."""
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


def _fail(message: str) -> NoReturn:
  one_line = ' '.join(message.split())
  print(f'error: {one_line}', file=sys.stderr)
  raise SystemExit(1)
