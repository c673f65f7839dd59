"""Rewards of users, good and bad, for the pools that the tests start."""

import asyncio
import decimal
import fractions
import math

import numpy as np


def length(completion, scale=1.0):
  return scale * len(completion.text)


def whole(completion):
  """All that a reward is told, in one number."""
  text = completion.prompt + completion.answer + completion.source
  return len(text) + sum(completion.token_ids) + completion.columns['extra']


def obey(completion):
  """Does what the completion says; its deeds are the result."""
  space = {'score': 1.0}
  exec(completion.text, space)
  return space['score']


RESULTS = {
  'one': 1,
  'true': True,
  'half': np.float32(0.5),
  'two': np.int64(2),
  'array': np.array(3.0),
  'fraction': fractions.Fraction(1, 4),
  'decimal': decimal.Decimal('0.125'),
  'none': None,
  'nan': math.nan,
  'inf': -math.inf,
  'text': '1.0',
  'bytes': b'1',
  'list': [1.0],
  'complex': 1j,
  'huge': 10**400,
  'arrays': np.ones(2),
  'class': float,
}


def returns(completion):
  return RESULTS[completion.text]


async def sleepy(completion):
  await asyncio.sleep(0.01)
  return 0.5


def trl_all(prompts, completions, completion_ids, **columns):
  """As written for TRL: everything is a list, and columns come by name."""
  assert columns['solution'] == columns['answer']
  assert columns['trainer_state'] is None
  columns['log_metric']('anything', 1.0)
  rows = zip(
    prompts, completions, completion_ids, columns['level'], strict=True
  )
  return [
    None if level is None else 100.0 * level + len(p) + len(c) + len(ids)
    for p, c, ids, level in rows
  ]


def trl_few(completions, solution, bonus=0.0):
  pairs = zip(completions, solution, strict=True)
  return [float(c == s) + bonus for c, s in pairs]


def trl_chat(prompts, completions, **_):
  assert prompts[0][0]['role'] == 'user'
  return [float(len(messages[0]['content'])) for messages in completions]


async def trl_async(completions, **_):
  await asyncio.sleep(0.01)
  return [float(len(c)) for c in completions]


def trl_rank(completions, **_):
  """Needs the whole group, and stumbles over one word."""
  if 'bad' in completions:
    raise RuntimeError('a bad word')
  ranked = sorted(completions, key=len)
  return [ranked.index(c) / len(ranked) for c in completions]


def trl_short(completions, **_):
  return [1.0] * (len(completions) - 1)


def verl_float(data_source, solution_str, ground_truth, extra_info):
  assert data_source == 'sums' and extra_info['index'] == 7
  return solution_str == ground_truth


def verl_dict(data_source, solution_str, ground_truth, extra_info=None):
  return {'score': float(ground_truth['target']), 'acc': True}


def broken():
  raise ImportError


NOT_CALLABLE_HERE = None


def obey_if_asked(completion):
  return obey(completion) if completion.columns['for'] == 'user' else None
