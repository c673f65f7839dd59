"""Draws the curves of runs: reward, its parts and length over RL steps.

  python experiments/plot.py --out curve.png runs/a runs/b

Thin lines are single steps, thick ones running means over 10. Needs
matplotlib: pip install -e '.[plot]'. A notebook calls draw(['runs/a']).
"""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np

_TITLES = (
  'mean reward',
  'share of right answers',
  'share that reasons in tags',
  'length (tokens)',
)
_WINDOW = 10  # Steps of the running mean.


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
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if 'reward/mean' in row]
    steps = np.arange(1, len(rows) + 1)
    asked = json.loads((run / 'config.json').read_text())['eval']
    names = (
      'reward/mean',
      f'reward/{asked["right"]}',
      f'reward/{asked["reasoned"]}',
      'rollout/length',
    )
    for axis, name in zip(axes, names, strict=True):
      values = np.array([row[name] for row in rows])
      (line,) = axis.plot(steps, values, alpha=0.3, linewidth=0.8)
      kernel = np.ones(min(_WINDOW, len(values)))
      counts = np.convolve(np.ones_like(values), kernel, 'same')
      smooth = np.convolve(values, kernel, 'same') / counts
      axis.plot(steps, smooth, color=line.get_color(), label=run.name)
  for axis, title in zip(axes, _TITLES, strict=True):
    axis.set(title=title, xlabel='RL step')
    axis.grid(alpha=0.3)
  axes[0].legend()
  return figure


if __name__ == '__main__':
  main()
