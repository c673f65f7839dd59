"""Picks the scores that TRL gave to answers which math-verify judges.

  python tests/golden/extract_maths.py FOLDER

FOLDER holds rewards.json, recorded by running TRL 1.16.0 (Apache-2.0) with
math-verify 0.9.0, latex2sympy2_extended 1.11.0 and sympy 1.14.0. Writes
maths.json beside this file:

  rows    completion, solution, and the scores of `COLUMNS`; null: left out
  origin  versions, and sha256 of the source file
"""

import hashlib
import json
import pathlib
import sys

# accuracy_reward, reasoning_accuracy_reward, and the latter with the delimiters
# </answer> and </think>, in this order.
COLUMNS = ('accuracy', 'reasoning_accuracy', 'reasoning_accuracy_delims')
VERSIONS = ('trl', 'math_verify', 'latex2sympy2_extended', 'sympy')


def main() -> None:
  data = (pathlib.Path(sys.argv[1]) / 'rewards.json').read_bytes()
  recorded = json.loads(data)
  rows = [
    {name: row[name] for name in ('completion', 'solution')}
    | {name: row['trl'][name] for name in COLUMNS}
    for row in recorded['rows']
  ]
  origin = {name: recorded['general'][name] for name in VERSIONS}
  origin['rewards.json'] = hashlib.sha256(data).hexdigest()
  target = pathlib.Path(__file__).with_name('maths.json')
  text = json.dumps({'origin': origin, 'rows': rows}, indent=0)
  target.write_text(text + '\n')


if __name__ == '__main__':
  main()
