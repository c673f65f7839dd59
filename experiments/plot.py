"""Draws the curves of runs: reward, its parts and length over RL steps.

  python experiments/plot.py --out curve.png runs/a runs/b

Thin lines are single steps, thick ones running means over 10. Needs
matplotlib: pip install -e '.[plot]'. A notebook calls draw(['runs/a']), and
sweep.py draw_groups({'dapo': ['runs/a', 'runs/b'], ...}).
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
import itertools
import json
import os
import pathlib

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np

from grpo_jax import metrics

_TITLES = (
  'mean reward',
  'share of right answers',
  'share that reasons in tags',
  'length (tokens)',
)
_WINDOW = 10  # Steps of the running mean.
_COLUMNS = 1000  # Steps whose resamples are in memory at one time.


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('runs', nargs='+', type=pathlib.Path)
  parser.add_argument('--out', required=True, type=pathlib.Path)
  args = parser.parse_args()
  draw(args.runs).savefig(args.out, dpi=110)
  print(args.out)


def draw(runs: Sequence[str | os.PathLike]) -> matplotlib.figure.Figure:
  """The curves of the runs in these workdirs, one panel a quantity."""
  figure, axes = plt.subplots(
    1, len(_TITLES), figsize=(12, 3), layout='constrained'
  )
  for run in map(pathlib.Path, runs):
    for axis, values in zip(axes, curves(run), strict=True):
      steps = np.arange(1, len(values) + 1)
      (line,) = axis.plot(steps, values, alpha=0.3, linewidth=0.8)
      axis.plot(steps, smooth(values), color=line.get_color(), label=run.name)
  _finish(axes)
  axes[0].legend()
  return figure


def draw_groups(
  groups: Mapping[str, Sequence[str | os.PathLike]], note: str = ''
) -> matplotlib.figure.Figure:
  """The mean over the runs of each group, and a band of its 95% interval.

  That is, at each step, the bootstrap interval over the runs; one run has none.
  Runs that are shorter than another one of their group end the mean there.
  """
  figure, axes = plt.subplots(2, 2, figsize=(12, 7), layout='constrained')
  styles = itertools.product(('-', '--', ':'), plt.get_cmap('tab10').colors)
  for (name, runs), (style, color) in zip(groups.items(), styles, strict=False):
    for axis, rows in zip(
      axes.flat, zip(*map(curves, runs), strict=True), strict=True
    ):
      length = min(map(len, rows))
      smooth_RS = np.stack([smooth(row)[:length] for row in rows])
      mean_S, steps = smooth_RS.mean(axis=0), np.arange(1, length + 1)
      axis.plot(steps, mean_S, style, color=color, label=name)
      if len(rows) > 1:
        low_S, high_S = band(smooth_RS)
        axis.fill_between(steps, low_S, high_S, color=color, alpha=0.15, lw=0)
  _finish(axes.flat)
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside right upper')
  words = f'running mean over {_WINDOW} steps'
  if any(len(runs) > 1 for runs in groups.values()):
    words += ', band: 95% bootstrap interval over seeds'
  figure.suptitle(f'{note}: {words}' if note else words, fontsize='medium')
  return figure


def band(values_RS: np.ndarray) -> np.ndarray:
  """The ends of the interval over runs, at each step: two rows of S."""
  pieces = range(0, values_RS.shape[1], _COLUMNS)
  return np.concatenate(
    [metrics.bootstrap(values_RS[:, i : i + _COLUMNS]) for i in pieces], axis=1
  )


def curves(run: str | os.PathLike) -> list[np.ndarray]:
  """What a run measured in its RL steps, one row a title."""
  run = pathlib.Path(run)
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  rows = [row for row in rows if 'reward/mean' in row]
  asked = json.loads((run / 'config.json').read_text())['eval']
  names = (
    'reward/mean',
    f'reward/{asked["right"]}',
    f'reward/{asked["reasoned"]}',
    'rollout/length',
  )
  return [np.array([row[name] for row in rows]) for name in names]


def smooth(values: np.ndarray) -> np.ndarray:
  """The running mean; at both ends over what there is."""
  kernel = np.ones(min(_WINDOW, len(values)))
  counts = np.convolve(np.ones_like(values), kernel, 'same')
  return np.convolve(values, kernel, 'same') / counts


def _finish(axes: Iterable[plt.Axes]) -> None:
  for axis, title in zip(axes, _TITLES, strict=True):
    axis.set(title=title, xlabel='RL step')
    axis.grid(alpha=0.3)


if __name__ == '__main__':
  main()
