"""Host rewards as a user would write them, for test_scoring.py."""

import time


def brevity(completion, per_token=1.0):
  """Shorter is better; counts tokens."""
  return -per_token * len(completion.token_ids)


def fragile(completion):
  """Hangs for one kind of completion and breaks for another."""
  kind = len(completion.token_ids) % 4
  if kind == 3:
    time.sleep(60)
  if kind == 1:
    raise RuntimeError('no idea')
  return None if kind == 2 else 1.0


def slow(completion, delay=0.05):
  time.sleep(delay)
  return float(len(completion.text))


def of_trl(prompts, completions, answer, **columns):
  return [float(completion.count(answer[0])) for completion in completions]


def of_verl(data_source, solution_str, ground_truth, extra_info=None):
  return {'score': float(ground_truth in solution_str), 'source': data_source}


def odd_or_none(completion):
  """Of two problems in three nothing is worth anything."""
  hopeless = sum(completion.prompt.encode()) % 3
  return 0.0 if hopeless else float(completion.token_ids[0] % 2)
