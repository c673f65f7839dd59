"""docs/change_one_thing.md, followed to the letter in a copy of the clone."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import command
import pytest

pytestmark = pytest.mark.slow

PAGE = command.ROOT / 'docs' / 'change_one_thing.md'
IDEAS = dict(
  re.findall(r'^## (.+?)\n(.*?)(?=^## |\Z)', PAGE.read_text(), re.M | re.S)
)


@pytest.fixture
def clone(tmp_path):
  for folder in ('configs', 'experiments', 'grpo_jax'):
    shutil.copytree(command.ROOT / folder, tmp_path / folder)
  return tmp_path


def follow(idea: str, clone):
  """Makes the files, runs the commands; the lines of metrics.jsonl."""
  for code in re.findall(r'```python\n(.*?)```', IDEAS[idea], re.DOTALL):
    first, body = code.split('\n', 1)
    *end, name = first.removeprefix('# ').rsplit(' ', 1)
    path = clone / name
    assert path.exists() == (end == ['at the end of']), first
    with path.open('a') as file:
      file.write(body)
  (line,) = re.findall(r'```bash\n(.*?)\n```', IDEAS[idea], re.DOTALL)
  words = shlex.split(line)
  assert words[0] == 'python'
  done = subprocess.run(
    [sys.executable, *words[1:]],
    cwd=clone,
    env=os.environ | {'PYTHONPATH': str(clone)},
    text=True,
    capture_output=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return clone / words[-1]


def lines(path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def last(workdir) -> dict:
  return lines(workdir / 'metrics.jsonl')[-1]


def test_a_reward(clone):
  workdir = follow('A reward', clone)
  assert 0 < last(workdir)['reward/brevity'] <= 1
  for row in lines(workdir / 'completions.jsonl'):
    over = max(row['length'] - 4, 0)
    assert row['reward_parts']['brevity'] == pytest.approx(1 / (1 + over))


def test_a_loss(clone):
  workdir = follow('A loss', clone)
  assert last(workdir)['policy/price'] > 0


def test_a_dataset(clone):
  workdir = follow('A dataset', clone)
  rows = lines(workdir / 'completions.jsonl')
  for row in rows:
    (n,) = re.fullmatch(r'Is (\d+) odd\?', row['prompt']).groups()
    assert row['answer'] == ('odd' if int(n) % 2 else 'even')
  assert rows


@pytest.mark.parametrize(
  'idea,name', [('A model', 'primer'), ('A flax.nnx module', 'module')]
)
def test_a_model(clone, idea, name):
  workdir = follow(idea, clone)
  assert (
    json.loads((workdir / 'config.json').read_text())['model']['name'] == name
  )
  first, *_ = lines(workdir / 'metrics.jsonl')  # Of pre-training.
  assert first['grad_norm'] > 0
  # What was sampled is as likely to the update.
  assert last(workdir)['rollout/logp_drift'] < 1e-4


def test_no_idea_is_left_out():
  assert set(IDEAS) == {
    'A reward',
    'A loss',
    'A dataset',
    'A model',
    'A flax.nnx module',
  }
