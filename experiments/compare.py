"""What the runs of a sweep have found, side by side: numbers and tables.

  found = summarize({'dapo': ['runs/sweep/dapo_0', 'runs/sweep/dapo_1'], ...})
  print(table(found))

Means are over the runs of a group, which differ in their seeds, and intervals
are 95% bootstrap intervals over these (metrics.bootstrap). Differences are to
the first group, seed by seed.

Dimension key: N seeds, K numbers.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import Any

import numpy as np

from grpo_jax import metrics

_NUMBERS = (  # Of summary.json.
  *('accuracy_before', 'accuracy_after', 'accuracy_gain'),
  *('reward_before', 'reward_after', 'reward_gain'),
  *('length_before', 'length_after', 'reasoning_before', 'reasoning_after'),
  'seconds',
)
_COLUMNS = {  # Of the tables: number -> title, format.
  'accuracy_before': ('accuracy before', '.1%'),
  'accuracy_after': ('after', '.1%'),
  'accuracy_gain': ('gain', '.1%'),
  'reward_after': ('reward', '.3f'),
  'length_after': ('length (tokens)', '.1f'),
  'reasoning_after': ('reasons', '.1%'),
  'seconds_per_step': ('seconds a step', '.2f'),
  'seconds': ('seconds', '.0f'),
}


def summarize(
  groups: Mapping[str, Sequence[str | os.PathLike]],
) -> dict[str, Any]:
  """What JSON can hold: 'seeds', 'settings' and 'differences'.

  The latter two are name of a group -> number -> its mean, interval and values,
  one a seed. One seed has no interval.

  Args:
    groups: workdirs of finished runs, one a seed.

  Raises:
    ValueError: a group has other seeds than the first.
  """
  rows = {name: _by_seed(runs) for name, runs in groups.items()}
  first, *others = rows
  seeds = sorted(rows[first])
  for name in others:
    if sorted(rows[name]) != seeds:
      raise ValueError(
        f'{name} has the seeds {sorted(rows[name])}, {first} has {seeds}'
      )

  numbers = (*_NUMBERS, 'seconds_per_step')
  values_NK = {
    name: np.array([[row[seed][x] for x in numbers] for seed in seeds], float)
    for name, row in rows.items()
  }
  less = {name: values_NK[name] - values_NK[first] for name in others}
  return {
    'seeds': seeds,
    'settings': {x: _scores(numbers, values_NK[x]) for x in rows},
    'differences': {x: _scores(numbers, less[x]) for x in others},
  }


def table(found: Mapping[str, Any]) -> str:
  """Markdown: the groups, the best one first, and what differs from the first.

  A last line says of how many seeds, and what their intervals are worth.
  """
  settings, differences = found['settings'], found['differences']
  best = sorted(settings, key=lambda x: -_mean(settings[x]['accuracy_after']))
  lines = _rows('setting', {name: settings[name] for name in best}, '')
  if differences:
    title = f'less {next(iter(settings))}, seed by seed'
    names = [name for name in best if name in differences]
    lines += ['', *_rows(title, {x: differences[x] for x in names}, '+')]
  return '\n'.join([*lines, '', _note(len(found['seeds']))]) + '\n'


def _by_seed(runs: Sequence[str | os.PathLike]) -> dict[int, dict[str, Any]]:
  rows = {}
  for run in map(pathlib.Path, runs):
    row = json.loads((run / 'summary.json').read_text())
    rows[row['seed']] = row | {'seconds_per_step': _seconds(run)}
  return rows


def _seconds(run: pathlib.Path) -> float:
  """Of an RL step, the median."""
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return float(np.median([x['time/step'] for x in rows if 'reward/mean' in x]))


def _scores(numbers: Sequence[str], values_NK: np.ndarray) -> dict[str, Any]:
  low_K, high_K = metrics.bootstrap(values_NK)
  found = {}
  for k, number in enumerate(numbers):
    mean, values = float(values_NK[:, k].mean()), values_NK[:, k].tolist()
    if np.isnan(mean):  # No completion of a run could be scored.
      mean, values = None, [None if np.isnan(x) else x for x in values]
    found[number] = {'mean': mean, 'values': values}
    if mean is not None and len(values) > 1:
      found[number]['interval'] = [float(low_K[k]), float(high_K[k])]
  return found


def _mean(score: Mapping[str, Any]) -> float:
  return -np.inf if score['mean'] is None else score['mean']


def _rows(title: str, groups: Mapping[str, Any], sign: str) -> list[str]:
  titles = [title, *(title for title, _ in _COLUMNS.values())]
  lines = [titles, ['---'] * len(titles)]
  for name, row in groups.items():
    lines.append([name])
    for number, (_, form) in _COLUMNS.items():
      plus = '+' if number.endswith('_gain') else sign
      lines[-1].append(_cell(row[number], plus + form))
  return [f'| {" | ".join(cells)} |' for cells in lines]


def _cell(score: Mapping[str, Any], form: str) -> str:
  if score['mean'] is None:
    return '-'
  text = f'{score["mean"]:{form}}'
  if 'interval' in score:
    low, high = score['interval']
    text += f' ({low:{form}} to {high:{form}})'
  return text


def _note(seeds: int) -> str:
  if seeds == 1:
    return 'One seed: no intervals, and nothing tells a difference from luck.'
  note = (
    f'Means over {seeds} seeds; in brackets 95% bootstrap intervals over them '
    '(percentiles of 10,000 resamples)'
  )
  if seeds < 4:
    note += ', which of so few seeds are from the lowest to the highest'
  return f'{note}, and too narrow.' if seeds < 10 else f'{note}.'
