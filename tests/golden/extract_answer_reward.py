"""Takes the numbers that tests/test_answer_reward.py needs out of rewards.json.

  python tests/golden/extract_answer_reward.py rewards.json

rewards.json holds, among others, the scores that verl's own code gives to 226
completions. All rows are taken, with three of its graders of answers.
"""

import hashlib
import json
import pathlib
import sys


def main(path: pathlib.Path) -> None:
  source = json.loads(path.read_text())
  golden = {
    'origin': {
      'verl': '1dda039b9c6311889a9c9a26040677e1254814f9',
      'verl, math_dapo_2026_01_snapshot': (
        'b178a3cd56f58b2d502255daba591e92833930a7'
      ),
      'source_sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
    },
    'rows': [
      {
        'completion': row['completion'],
        'ground_truth': row['ground_truth'],
        'gsm8k_strict': row['verl']['gsm8k_strict'],
        'math_reward': row['verl']['math_reward'],
        'math_dapo': row['verl']['math_dapo_2026_01_snapshot']['score'],
        'math_dapo_strict_box': row['verl']['math_dapo_strict_box']['score'],
      }
      for row in source['rows']
    ],
  }
  target = pathlib.Path(__file__).with_name('answer_reward.json')
  target.write_text(json.dumps(golden, allow_nan=False, indent=0) + '\n')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
