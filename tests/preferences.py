"""Runs on a preference that is easy to see: completions with an `=` are better.

make_config(folder, **changes)   of a small reward model, on 8 devices
"""

import json
import random
import sys

sys.path.append('configs')
import quickstart  # noqa: E402

STEPS, ROWS = 40, 16


def write(path, pairs=600):
  """Digits, and the same kind with an = somewhere; also at the end of some."""
  rng, lines = random.Random(0), []

  def digits(most):
    return ''.join(rng.choices('0123456789', k=rng.randrange(most + 1)))

  for i in range(pairs):
    row = {
      'prompt': f'Start at {i % 10}: +{rng.randrange(1, 10)}. Last digit?',
      'chosen': f'{digits(4)}={digits(4)}',
      'rejected': digits(8),
    }
    lines.append(json.dumps(row) + '\n')
  path.write_text(''.join(lines))


def make_config(folder, **changes):
  path = folder / 'pairs.jsonl'
  if not path.exists():
    write(path)
  c = quickstart.get_config('smoke')
  c.model.unroll = False
  c.data.update(prompts=8, knobs={'problems': 100})
  c.pretrain.steps = 0
  c.preference.update(
    path=str(path), steps=STEPS, rows=ROWS, max_tokens=40, heldout=0.3
  )
  c.preference.optim.lr = 1e-2
  c.update_from_flattened_dict(changes)
  return c
