"""Takes what tests/test_length_rewards.py needs out of rewards.json.

  python tests/golden/extract_length_rewards.py rewards.json

rewards.json holds the scores that TRL and open-r1, run unchanged, give to 226
completions, whose `completion_ids` are of SmolLM2-135M-Instruct's tokenizer.
All rows are taken; `right` is what the same code base's own grader says, and
null where it cannot read the reference answer.
"""

import hashlib
import json
import pathlib
import sys

TRL = ('soft_overlong_', 'cosine_', 'repetition_')
OPEN_R1 = ('len_', 'cosine_')


def main(path: pathlib.Path) -> None:
  source = json.loads(path.read_text())
  rows = source['rows']
  trl, open_r1 = rows[0]['trl'], rows[0]['open_r1']
  golden = {
    'origin': {
      'TRL': '1.16.0',
      'open-r1': '1416fa0cf21595d2083b399a2a0bbddd7f6e9563',
      'math-verify': '0.9.0',
      'tokenizer': source['hyper']['tokenizer_for_completion_ids'],
      'source_sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
    },
    'ids': [row['completion_ids'] for row in rows],
    'characters': [row['n_chars'] for row in rows],
    'trl': {'right': [row['trl']['accuracy'] for row in rows]}
    | {
      name: [row['trl'][name] for row in rows]
      for name in trl
      if name.startswith(TRL)
    },
    'open_r1': {'right': [row['open_r1']['accuracy'] for row in rows]}
    | {
      name: [row['open_r1'][name] for row in rows]
      for name in open_r1
      if name.startswith(OPEN_R1)
    },
  }
  target = pathlib.Path(__file__).with_name('length_rewards.json')
  target.write_text(json.dumps(golden, allow_nan=False) + '\n')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
