"""The quickstart with a host reward besides, for test_processes.py."""

import sys

sys.path.append('configs')
import quickstart  # noqa: E402


def get_config(arg: str = ''):
  c = quickstart.get_config(arg)
  c.reward = {
    'answer': 1.0,
    'short': {'function': 'mine:brevity', 'per_token': 0.01},
    'bad': {'function': 'mine:fragile', 'seconds': 0.5, 'weight': 0.0},
  }
  c.host.workers = 1
  return c
