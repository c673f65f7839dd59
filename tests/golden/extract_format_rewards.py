"""Takes the numbers of tests/test_format_rewards.py out of a larger file.

  python tests/golden/extract_format_rewards.py rewards.json

The file holds completions and what the code of TRL, open-r1 and others scores
them. All completions are kept, and of the scores those of their form.
"""

import json
import pathlib
import sys


def main(path: pathlib.Path) -> None:
  source = json.loads(path.read_text())
  golden = {
    'origin': {
      'trl': '1.16.0, trl.rewards: think_format_reward',
      'open_r1': (
        '1416fa0cf21595d2083b399a2a0bbddd7f6e9563, open_r1/rewards.py: '
        'format_reward, tag_count_reward, reasoning_steps_reward'
      ),
      'columns': [
        'completion',
        'trl think_format',
        'open_r1 format',
        'open_r1 tag_count',
        'open_r1 reasoning_steps',
      ],
    },
    'rows': [
      [
        row['completion'],
        row['trl']['think_format'],
        *(
          row['open_r1'][name]
          for name in ('format', 'tag_count', 'reasoning_steps')
        ),
      ]
      for row in source['rows']
    ],
  }
  target = pathlib.Path(__file__).parent / 'format_rewards.json'
  target.write_text(json.dumps(golden, indent=0) + '\n')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
