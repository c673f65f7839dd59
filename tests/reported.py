"""Made-up workdirs, as hard to show as real ones can be."""

from collections.abc import Iterator
import json
import pathlib
from typing import Any

import numpy as np

from grpo_jax.rewards import reflection

PRETRAINING = 20  # Steps, before which no RL step is.
WORDS = (
  'so the sum of these is then we have to add what remains and carry one over '
  'which gives first second number times plus minus equals again because if '
).split()

# What must never become HTML, break the script around it, or end a line.
HOSTILE = (
  '<img src=x onerror="document.title=\'broken\'">',
  '</script><script>document.title="broken"</script>',
  'one\u2028two\u2029three\x85four\r\nfive\x00six',
  'مرحبا بالعالم 123 <b>שלום</b>',
  '',
  '\ud800 half a pair {{data}} {{program}} <!-- ]]> &lt;',
  '<think>never closed, wait',
  '<think></think><answer></answer>',
  'x' * 4000,
)


def config(seed: int = 0, **changes) -> dict[str, Any]:
  """As much of a config.json as the report looks at."""
  found = {
    'seed': seed,
    'steps': 40,
    'pretrain': {'steps': PRETRAINING},
    'reward': {'answer': 1.0, 'format': 0.1, 'overlong': {'weight': 1.0}},
    'eval': {'right': 'answer', 'reasoned': 'format'},
    'optim': {'lr': 1e-4, 'schedule': 'constant'},
    'data': {'name': 'sums', 'knobs': {}},
  }
  return found | changes


def workdir(
  path: pathlib.Path,
  seed: int = 0,
  steps: int = 40,
  problems: int = 4,
  group: int = 8,
  words: int = 30,
  **changes,
) -> pathlib.Path:
  """A finished run with all files; every second step logs its completions.

  Problem p of a step is problem `step + p` of 30, so that they come again.
  """
  rng = np.random.default_rng(seed)
  path.mkdir(parents=True)
  c = config(seed, **{'steps': steps} | changes)
  (path / 'config.json').write_text(json.dumps(c))
  lines(path / 'metrics.jsonl', metrics(rng, steps))
  logged = range(2, steps + 1, 2)
  rows = (
    row
    for step in logged
    for p in range(problems)
    for row in completions(rng, step, (step + p) % 30, group, words)
  )
  lines(path / 'completions.jsonl', rows)
  (path / 'evaluations').mkdir()
  for when, share in (('before', 0.3), ('after', 0.8)):
    evaluation = evaluated(rng, 40, share)
    (path / 'evaluations' / f'{when}.json').write_text(json.dumps(evaluation))
  summary = {'seed': seed, 'seconds': 125.0}
  for name, before, after in (
    ('accuracy', 0.3, 0.8),
    ('reward', 0.35, 0.9),
    ('length', 17.0, 41.0),
    ('reasoning', 0.4, 1.0),
  ):
    summary |= {f'{name}_before': before, f'{name}_after': after}
  summary['accuracy_interval_after'] = [0.75, 0.85]
  (path / 'summary.json').write_text(json.dumps(summary))
  return path


def lines(path: pathlib.Path, rows) -> None:
  """As metrics.Writer does; a lone surrogate can only be escaped."""
  with path.open('w') as file:
    for row in rows:
      try:
        file.write(json.dumps(row, ensure_ascii=False) + '\n')
      except UnicodeEncodeError:
        file.write(json.dumps(row) + '\n')


def metrics(rng, steps: int) -> Iterator[dict[str, Any]]:
  for step in range(1, PRETRAINING + 1):
    yield {'step': step, 'loss': 3 / step, 'time/elapsed': 0.1 * step}
  for i in range(1, steps + 1):
    done = i / steps
    noise = 0.05 * rng.standard_normal()
    yield {
      'step': PRETRAINING + i,
      'reward/mean': 0.3 + 0.6 * done + noise,
      'reward/answer': min(1.0, max(0.0, 0.25 + 0.6 * done + noise)),
      'reward/format': 0.5 + 0.5 * done,
      'reward/overlong': -0.1 * done,
      'rollout/length': 20 + 20 * done + 30 * noise,
      'rollout/truncated': 0.05 * done,
      'rollout/entropy': 0.6 - 0.4 * done + noise / 5,
      'rollout/logp_drift': 10 ** (-5.5 + noise * 4),
      'groups/degenerate': done / 2,
      'policy/clip_fraction': 0.002,
      'kl/reference': None if i == 3 else 0.01 * done,
      'grad_norm': float('nan') if i == 5 else 0.5 + noise,
      'loss': 0.1,
      'time/rollout': 0.2 + noise / 10,
      'time/reward': 0.02,
      'time/update': 0.3,
      'time/step': 0.52,
      'time/elapsed': 2 + 0.55 * i + 0.002 * i**2,
      'time/tokens_per_second': 9000.0,
    }


def completions(
  rng, step: int, problem: int, group: int, words: int
) -> Iterator[dict[str, Any]]:
  """One group; sample 0 of the first steps is hostile."""
  rewards = []
  rows = []
  for sample in range(group):
    right = rng.random() < 0.3 + 0.01 * step
    answer = str(problem + 7) if right else str(int(rng.integers(9)))
    said = rng.choice(WORDS, words).tolist()
    if rng.random() < 0.02 * step:
      at = int(rng.integers(words))
      said[at] = str(rng.choice(reflection.PHRASES[:6])) + ','
    text = f'<think>{" ".join(said)}</think><answer>{answer}</answer>'
    cut = rng.random() < 0.06
    if cut:
      text = text[: len(text) // 2]
    if sample == 0 and step % 2 == 0 and step // 2 <= len(HOSTILE):
      text = HOSTILE[step // 2 - 1]
    parts = {
      'answer': float(right and not cut),
      'format': float(not cut),
      'overlong': -0.25 if cut else 0.0,
    }
    if sample == 3 and step == 2:
      parts['answer'] = None
    rewards.append(
      None
      if parts['answer'] is None
      else parts['answer'] + 0.1 * parts['format'] + parts['overlong']
    )
    rows.append((text, cut, parts))
  known = [x for x in rewards if x is not None]
  mean, std = np.mean(known), np.std(known) + 1e-6
  for sample, (text, cut, parts) in enumerate(rows):
    reward = rewards[sample]
    yield {
      'step': PRETRAINING + step,
      'prompt': f'What is {problem} + 7?',
      'answer': str(problem + 7),
      'sample': sample,
      'text': text,
      'length': len(text) // 4,
      'ended': not cut,
      'reward': reward,
      'reward_parts': parts,
      'advantage': 0.0 if reward is None else float((reward - mean) / std),
    }


def evaluated(rng, problems: int, share: float) -> dict[str, Any]:
  right = rng.random(problems) < share
  return {
    'correct_NG': [[float(x)] for x in right],
    'reasoned_NG': [[float('nan')]] * problems,
    'reward_NG': [[float(x)] for x in right],
    'lengths_NG': [[30]] * problems,
    'ended_NG': [[True]] * problems,
    'texts': [
      f'<think>{n} + 3</think><answer>{n + 3 if x else 0}</answer>'
      for n, x in enumerate(right)
    ],
    'prompts': [f'What is {n} + 3?' for n in range(problems)],
    'answers': [str(n + 3) for n in range(problems)],
  }


# Name, kind, and what it takes: start, data, teacher, judge. R1's, in short.
STAGES = (
  ('base', 'pretrain', {}),
  ('r1_zero', 'grpo', {'start': 'base'}),
  ('zero_said', 'sample', {'start': 'r1_zero'}),
  ('cold_start', 'sft', {'start': 'base', 'data': 'zero_said'}),
  ('rl_1', 'grpo', {'start': 'cold_start'}),
  ('rl_1_said', 'sample', {'start': 'rl_1'}),
  ('base_told', 'sample', {'start': 'base'}),
  ('sft', 'sft', {'start': 'base', 'data': 'rl_1_said,base_told'}),
  ('helpful', 'reward_model', {'start': 'sft', 'data': 'base_told'}),
  ('rl_2', 'grpo', {'start': 'sft', 'judge': 'helpful'}),
  ('student', 'pretrain', {}),
  ('on_policy', 'distill', {'start': 'student', 'teacher': 'rl_2'}),
)
POLICIES = ('pretrain', 'sft', 'grpo', 'distill')


def recipe(
  path: pathlib.Path,
  seed: int = 0,
  done: int = len(STAGES),
  problems: int = 6,
  **changes,
) -> pathlib.Path:
  """The folder of a recipe whose first stages are done, the next one begun.

  Of policy number i (from 0, with the seed added) the first i + 1 problems of
  the table are right. The base does not reason, nor does anybody on problem 1.
  """
  path.mkdir(parents=True)
  reward = {
    'answer': 1.0,
    'format': 0.1,
    'language': {'weight': 0.2},
    'reflection': {'weight': 0.0, 'phrases': ['wait']},
    'long': {'file': 'overlong', 'weight': -1.0},
  }
  whole = {'seed': seed, 'order': [], 'stages': {}, 'table': {}} | changes
  for name, kind, takes in STAGES:
    rl, pretrained = kind in POLICIES[2:], kind in POLICIES[:2]
    own = config(reward=reward, steps=8 if rl else 0)
    own['pretrain'] = {'steps': 4 if pretrained else 0}
    own['model'] = {'init': ''}
    given = dict.fromkeys(('start', 'data', 'teacher', 'judge'), '')
    whole['stages'][name] = {'kind': kind, 'config': own, **given, **takes}
    whole['order'].append(name)
  whole['table'] = config(reward=reward)
  (path / 'recipe.json').write_text(json.dumps(whole))
  policies = 0
  for i, (name, kind, _) in enumerate(STAGES[: done + 1]):
    own = whole['stages'][name]['config']
    folder = path / name
    if kind in POLICIES[2:]:
      workdir(folder, seed + i, steps=8, group=4, words=12, reward=reward)
      if i == done:
        (folder / 'summary.json').unlink()
    else:
      folder.mkdir()
      (folder / 'config.json').write_text(json.dumps(own))
      if kind in POLICIES:
        rows = [{'step': step, 'loss': 2.0 / step} for step in range(1, 5)]
        lines(folder / 'metrics.jsonl', rows)
      if i < done:
        (folder / 'summary.json').write_text('{"seconds": 3.0}')
    if i < done and kind in POLICIES:
      evaluation = answered(policies, problems, seed)
      at = path / 'table' / name / 'evaluations'
      at.mkdir(parents=True)
      (at / 'after.json').write_text(json.dumps(evaluation))
      policies += 1
  return path


def answered(place: int, problems: int, seed: int = 0) -> dict[str, Any]:
  """What a stage answers in the table; to the last problem what is HOSTILE."""
  right = [float(n <= place + seed) for n in range(problems)]
  direct = [place == 0 or n == 1 for n in range(problems)]
  texts = [
    ('' if d else f'<think>so {n} + 3 is, wait</think>')
    + f'<answer>{n + 3 if x else 0}</answer>'
    for n, (x, d) in enumerate(zip(right, direct, strict=True))
  ]
  texts[-1] = HOSTILE[place % len(HOSTILE)]
  column = {
    'language': [0.5 + place / 20] * problems,
    'reflection': [float(not d) for d in direct],
    'long': [0.1 * place] * problems,
    'format': [float(not d) for d in direct],
    'answer': right,
  }
  column['language'][0] = float('nan')  # It says nothing.
  return {
    'correct_NG': [[x] for x in right],
    'reasoned_NG': [[float(not d)] for d in direct],
    'reward_NG': [[x] for x in right],
    'lengths_NG': [[10 + place]] * problems,
    'ended_NG': [[n != 4] for n in range(problems)],
    'texts': texts,
    'prompts': [f'What is {n} + 3?' for n in range(problems)],
    'answers': [str(n + 3) for n in range(problems)],
    'parts': {name: [[x] for x in xs] for name, xs in column.items()},
  }
