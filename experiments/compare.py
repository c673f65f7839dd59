"""What the runs of a sweep have found, side by side: numbers and a table.

  found = summarize({'dapo': ['runs/sweep/dapo_0', 'runs/sweep/dapo_1'], ...})
  print(table(found))

Intervals are over the runs of a group, which differ in their seeds: 95%, from
Student's t, so that three runs make them wide.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import Any

import numpy as np
import scipy.stats

BEFORE = 'before RL'
_NUMBERS = ('accuracy', 'reward', 'length', 'reasoning')  # Of summary.json.


def summarize(
  groups: Mapping[str, Sequence[str | os.PathLike]],
) -> dict[str, dict[str, Any]]:
  """Name of a group -> number -> its mean, interval and values.

  Args:
    groups: workdirs of finished runs. Those of the first group say what was
      before RL, which is the same for the others where they began alike.
  """
  groups = {
    name: list(map(pathlib.Path, runs)) for name, runs in groups.items()
  }

  def collect(runs, when):
    rows = [json.loads((run / 'summary.json').read_text()) for run in runs]
    return {
      number: _over_runs([row[f'{number}_{when}'] for row in rows])
      for number in _NUMBERS
    }

  found = {BEFORE: collect(next(iter(groups.values())), 'before')}
  for name, runs in groups.items():
    found[name] = collect(runs, 'after')
    found[name]['seconds_per_step'] = _over_runs(list(map(_seconds, runs)))
  return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """Markdown: what was before RL, then the groups, the best one first."""
  names = sorted(
    found.keys() - {BEFORE}, key=lambda name: -found[name]['accuracy']['mean']
  )
  count = len(found[BEFORE]['accuracy']['values'])
  lines = [
    f'| algorithm | accuracy ({count} seed{"s" * (count > 1)}) | reward '
    '| length (tokens) '
    '| reasons | seconds a step |',
    '| --- | --- | --- | --- | --- | --- |',
  ]
  for name in (BEFORE, *names):
    row = found[name]
    seconds = row.get('seconds_per_step')
    cells = (
      name,
      _percent(row['accuracy']),
      f'{row["reward"]["mean"]:.3f}',
      f'{row["length"]["mean"]:.1f}',
      f'{row["reasoning"]["mean"]:.1%}',
      f'{seconds["mean"]:.2f}' if seconds else '',
    )
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def _over_runs(values: list[float]) -> dict[str, Any]:
  x, n = np.array(values), len(values)
  found = {'mean': float(x.mean()), 'values': values}
  if n > 1:  # One run alone has no interval.
    half = scipy.stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n)
    found['interval'] = [float(x.mean() - half), float(x.mean() + half)]
  return found


def _seconds(run: pathlib.Path) -> float:
  """Of an RL step, the median."""
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return float(np.median([x['time/step'] for x in rows if 'reward/mean' in x]))


def _percent(share: Mapping[str, Any]) -> str:
  text = f'{share["mean"]:.1%}'
  if 'interval' in share:
    low, high = np.clip(share['interval'], 0, 1)
    text += f' ({100 * low:.1f} to {100 * high:.1f})'
  return text
