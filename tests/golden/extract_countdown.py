"""Copies the countdown strings and what three code bases score them.

  python tests/golden/extract_countdown.py FOLDER

FOLDER holds rewards.json, recorded by running TinyZero, nano-aha-moment and
GRPO-Zero on the same strings. Writes countdown.json beside this file: its
records, and their origin (commits, and the sha256 of the source file).
"""

import hashlib
import json
import pathlib
import sys

COMMITS = ('tinyzero', 'nano_aha_moment', 'grpo_zero')


def main(folder: str):
  path = pathlib.Path(folder) / 'rewards.json'
  data = json.loads(path.read_text())
  origin = {name: data['general'][name] for name in COMMITS}
  origin['rewards.json'] = hashlib.sha256(path.read_bytes()).hexdigest()
  lines = [json.dumps(record) for record in data['countdown']]
  text = ',\n'.join(lines)
  target = pathlib.Path(__file__).parent / 'countdown.json'
  target.write_text(
    f'{{"origin": {json.dumps(origin)},\n"records": [\n{text}\n]}}\n'
  )


if __name__ == '__main__':
  main(sys.argv[1])
