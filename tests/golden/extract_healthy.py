"""Writes healthy_<name>.jsonl.gz: the metrics of a run that learns.

  python experiments/train.py --config configs/quickstart.py \
      --workdir runs/quickstart
  python tests/golden/extract_healthy.py runs/quickstart COMMIT

The first line says where they are from; then comes a line for each RL step,
without the times. tests/test_alarms.py wants to hear nothing of them.
"""

import gzip
import json
import pathlib
import sys


def main():
  workdir = pathlib.Path(sys.argv[1])
  rows = [
    {k: x for k, x in row.items() if not k.startswith('time/')}
    for row in map(json.loads, (workdir / 'metrics.jsonl').open())
    if 'rollout/length' in row
  ]
  origin = {
    'command': 'python experiments/train.py '
    f'--config configs/{workdir.name}.py --workdir runs/{workdir.name}',
    'commit': sys.argv[2],
    'rl_steps': len(rows),
  }
  out = pathlib.Path(__file__).parent / f'healthy_{workdir.name}.jsonl.gz'
  lines = ''.join(json.dumps(row) + '\n' for row in [origin, *rows])
  out.write_bytes(gzip.compress(lines.encode(), mtime=0))
  print(out)


if __name__ == '__main__':
  main()
