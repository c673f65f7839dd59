"""What a person sees of a run: bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import sys
import time
from typing import Any

import rich.console
import rich.progress
import rich.table
import rich.text

# Wide enough for tables where there is no terminal to ask. A notebook is none,
# though it asks for colours: there a bar would be hundreds of lines.
_TERMINAL = sys.stdout.isatty()
console = rich.console.Console(
  highlight=False,
  width=None if _TERMINAL else 100,
  force_terminal=_TERMINAL,
  force_jupyter=False,
)


@contextlib.contextmanager
def bar(name: str, total: int = 0, done: int = 0, every: float = 5.0):
  """Yields advance(done, total=0, note=''), to be called when there is news.

  On a terminal it moves a bar with the time left and the note; elsewhere it
  prints a line every `every` seconds, and the last one.
  """
  if not console.is_terminal:
    yield _lines(name, total, done, every)
    return
  columns = (
    rich.progress.TextColumn('{task.description:<12}'),
    rich.progress.BarColumn(bar_width=24),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(compact=True),
    rich.progress.TextColumn('{task.fields[note]}'),
  )
  with rich.progress.Progress(*columns, console=console) as bars:
    task = bars.add_task(name, total=total or None, completed=done, note='')

    def advance(done: int, total: int = total, note: str = ''):
      bars.update(task, completed=done, total=total, note=note)

    yield advance


def _lines(name: str, total: int, first: int, every: float) -> Callable:
  start = last = time.monotonic()

  def advance(done: int, total: int = total, note: str = ''):
    nonlocal last
    now = time.monotonic()
    if done < total and now - last < every:
      return
    last = now
    left = (now - start) / max(done - first, 1) * (total - done)
    clock = f'{left:.0f} s left' if done < total else f'{now - start:.0f} s'
    say(f'{name}: {done}/{total}, {clock}{", " * bool(note)}{note}')

  return advance


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Nothing is printed meanwhile."""
  before, console.quiet = console.quiet, True
  try:
    yield
  finally:
    console.quiet = before


def say(line: str) -> None:
  """A line of its own, above the bar if there is one."""
  console.print(line, soft_wrap=True, markup=False)


@contextlib.contextmanager
def doing(name: str) -> Iterator[None]:
  """Something that cannot say how far it is, and how long it took."""
  start = time.monotonic()
  if console.is_terminal:
    with console.status(name):
      yield
  else:
    yield
  say(f'{name}: {time.monotonic() - start:.1f} s')


def before_and_after(
  summary: dict[str, Any], names: Sequence[str] = ('before', 'after')
) -> None:
  """The table at the end of a run; one without RL has nothing before it."""
  table = rich.table.Table(title='Held-out problems', title_justify='left')
  table.add_column()
  for name in names:
    style = 'bold' if name == 'after' else None
    header = name if len(names) > 1 else ''
    table.add_column(header, justify='right', style=style)
  for label, name, unit in (
    ('accuracy', 'accuracy', '%'),
    ('  of answers with reasoning', 'accuracy_reasoned', '%'),
    ('  of answers without', 'accuracy_direct', '%'),
    ('completions that reason', 'reasoning', '%'),
    ('length in tokens', 'length', ''),
    ('reward', 'reward', ''),
  ):
    cells = [summary[f'{name}_{when}'] for when in names]
    table.add_row(label, *(_cell(value, unit) for value in cells))
  console.print(table)


def _cell(value: float | None, unit: str) -> str:
  if value is None:  # Of no completion at all.
    return '-'
  return f'{100 * value:.1f}%' if unit == '%' else f'{value:.2f}'


def completion(prompt: str, text: str, answer: str, right: bool) -> None:
  """A completion with its reasoning set apart from its answer."""
  thought, closing, rest = text.partition('</think>')
  if not closing:
    thought, rest = '', text
  given = rest.strip().removeprefix('<answer>').removesuffix('</answer>')
  lines = rich.text.Text()
  lines.append(f'\n{prompt}\n', style='bold')
  if thought:
    thought = thought.strip().removeprefix('<think>')
    lines.append('  thinks   ').append(f'{thought}\n', style='italic dim')
  lines.append('  answers  ').append(given, style='bold cyan')
  verdict = 'right' if right else f'wrong, it is {answer}'
  lines.append(f'  ({verdict})', style='green' if right else 'red')
  console.print(lines, soft_wrap=True)
