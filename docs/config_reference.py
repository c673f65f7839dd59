"""Writes docs/config.md, every knob with its default, from grpo_jax/config.py.

  python docs/config_reference.py

What is said of a knob is its comment there; tests/test_docs.py fails where the
page is not what this writes.
"""

from collections.abc import Callable
import inspect
import pathlib
import re

from ml_collections import ConfigDict

from grpo_jax import config

PAGE = pathlib.Path(__file__).parent / 'config.md'

_HEAD = """\
# Every knob

Written by `python docs/config_reference.py` from
[config.py](../grpo_jax/config.py). A file in configs/ states what differs; the
command line changes it once more: `--config.optim.lr=3e-6`. Sections that begin
with `name` choose a function; its own knobs stand beside the name:
`--config.loss.clip_high=0.28`.
"""


def main():
  PAGE.write_text(page())
  print(PAGE)


def page() -> str:
  """The page as Markdown: a table of the top level, and one a section."""
  values, words = config.default(), comments()
  names = [
    name
    for name in words
    if not name.startswith('alarms.') and _is_section(values, name)
  ]
  return '\n'.join(
    [_HEAD, *(_table(name, values, words) for name in ('', *names))]
  )


def _table(section: str, values: ConfigDict, words: dict[str, str]) -> str:
  knobs = _at(values, section)
  lines = [f'## {section}', ''] if section else []
  if words.get(section):
    lines += [words[section], '']
  lines += ['| knob | default | |', '| --- | --- | --- |']
  order = list(words)
  names = [f'{section}.{name}' if section else name for name in knobs]
  for name in sorted(names, key=lambda x: _place(order, x)):
    value = _at(values, name)
    if section == 'alarms':
      lines += _alarm(name, value, words)
    elif not _is_section(values, name):
      # All optimizers have the same knobs as that of RL.
      said = words.get(name, words.get(_optim(name), ''))
      lines.append(_row(name, value, said))
  if section in config.CHOICES:
    lines += ['', f'`{section}.name` and the knobs that come with it:', '']
    lines += map(_choice, config.variants(config.CHOICES[section]).values())
  return '\n'.join(lines) + '\n'


def _row(name: str, value, said: str) -> str:
  shown = value.to_dict() if isinstance(value, ConfigDict) else value
  return f'| `{name}` | `{shown!r}` | {said} |'


def _alarm(name: str, knobs: ConfigDict, words: dict[str, str]) -> list[str]:
  """Its bound, of which the comment is, and what all alarms have."""
  bound = 'above' if 'above' in knobs else 'below'
  said = {bound: words[name]}
  return [
    _row(
      f'{name}.{knob}',
      knobs[knob],
      said.get(knob, words.get(f'alarms.*.{knob}')),
    )
    for knob in (bound, 'steps', 'action')
  ]


def _choice(function: Callable) -> str:
  """A line on a function: its first words, and its knobs with defaults."""
  parameters = inspect.signature(function).parameters.values()
  knobs = [
    f'`{p.name}={p.default!r}`' for p in parameters if p.default is not p.empty
  ]
  (said, *_) = inspect.getdoc(function).split('\n\n')
  said = ' '.join(said.split())
  return f'- `{function.__name__}` {", ".join(knobs)}: {said}'.replace(
    ' :', ':'
  )


def _is_section(values: ConfigDict, name: str) -> bool:
  value = _at(values, name)
  return isinstance(value, ConfigDict) and len(value) > 0


def _at(values: ConfigDict, name: str):
  for part in filter(None, name.split('.')):
    values = values[part]
  return values


def _place(order: list[str], name: str) -> int:
  """Names first, then as config.py has it."""
  name = _optim(name)
  if name.endswith('.name'):
    return -1
  return order.index(name) if name in order else len(order)


def _optim(name: str) -> str:
  """pretrain.optim.lr -> optim.lr; other names as they are."""
  _, found, knob = name.rpartition('optim.')
  return found + knob


def comments() -> dict[str, str]:
  """Knob or section -> the comment on it, in the order of config.py."""
  found = {}
  for function, knob, prefix in (
    (config.default, r'  c\.([\w.]+)(?: = |\.update\()', ''),
    (config._optim, r'    (\w+)=', 'optim.'),
    (config._alarm, r'      (\w+)=', 'alarms.*.'),
  ):
    name = None
    for line in inspect.getsource(function).splitlines():
      if match := re.match(knob, line):
        name = prefix + match[1]
        found.setdefault(name, '')
      _, mark, said = line.partition('# ')
      if name and mark:
        said = said.replace('|', r'\|').replace('<', '&lt;')
        found[name] = f'{found[name]} {said}'.strip()
  return found


if __name__ == '__main__':
  main()
