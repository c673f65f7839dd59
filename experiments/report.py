"""Writes one HTML page of runs: curves, completions, alarms, configs.

  python experiments/report.py runs/a runs/b --out report.html
  python experiments/report.py runs/r1

The page needs no network and opens from a disk. Runs that differ in their seed
alone are drawn as one, with a band. Without --out it is report.html in the
workdir, or of several in the folder that holds them. A notebook calls
report.write(['runs/a'], 'report.html').

The folder of a recipe (experiments/r1.py) is shown with all its stages: what
came from what, the table over them, what each answers to the same problems,
reflection words through all of its RL. Of several seeds the table has means.
"""

import argparse

from grpo_jax import report


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    'runs', nargs='+', help='workdirs, or folders of a recipe'
  )
  parser.add_argument('--out', help='the file that is written')
  args = parser.parse_args()
  try:
    path = report.write(args.runs, args.out)
  except (ValueError, FileNotFoundError) as e:
    parser.exit(1, f'error: {e}\n')
  print(path)


if __name__ == '__main__':
  main()
