"""README's section on asking and evaluating: its commands run as they stand."""

import json
import re
import shlex
import subprocess
import sys

import command
import pytest

TEXT = (command.ROOT / 'README.md').read_text()
SECTION = TEXT.split('\n## Ask and evaluate\n')[1].split('\n## ')[0]
COMMANDS = re.findall(r'^python (.*)$', SECTION, re.MULTILINE)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('ask') / 'quickstart'
  done = command.run(*command.train('quickstart.py:smoke', workdir))
  assert done.returncode == 0, done.stderr
  return workdir


def run(line, workdir, *more):
  words = shlex.split(line.replace('runs/quickstart', str(workdir)))
  words = [str(workdir / x) if x == 'out.json' else x for x in words]
  return command.run(*words, *more)


@pytest.mark.parametrize('line', COMMANDS)
def test_commands_of_readme_work(line, workdir):
  done = run(line, workdir)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() and '\x1b' not in done.stdout
  if 'evaluate' in line:
    found = json.loads((workdir / 'out.json').read_text())
    (policy,) = found['policies'].values()
    assert {'pass@1', 'pass@8', 'maj@8'} <= policy['scores'].keys()


@pytest.mark.slow
def test_a_chat_without_a_chat_template_asks_each_question_by_itself(workdir):
  question = 'Start at 8: -1 -2 +3 -1. Last digit?'
  long = f'Start at 1:{40 * " +1"}. Last digit?'
  done = subprocess.run(
    [sys.executable, 'experiments/sample.py', '--workdir', workdir],
    input=f'{question}\nho\n{long}\n{question}\n/quit\n',
    cwd=command.ROOT,
    text=True,
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  how, first, letters, room, again, end = done.stdout.split('> ')
  assert how == 'each question is asked by itself; /quit or Ctrl-D ends\n'
  assert first.strip() and first == again
  assert letters.startswith('the tokenizer has no token for the characters')
  assert re.match(r'this question is a prompt of \d+ tokens; there is', room)
  assert not end


def test_json_is_all_that_is_printed(workdir):
  done = run(COMMANDS[1], workdir, '--json')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  advantages = [x['advantage'] for x in found['completions']]
  assert len(advantages) == 8
  assert advantages == sorted(advantages, reverse=True)


def test_a_question_may_have_no_answer_that_is_known(workdir):
  line = 'experiments/sample.py --workdir runs/quickstart "Last digit?" --n 2'
  done = run(line, workdir, '--json')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found['answer'] is None
  assert [x['reward_parts']['answer'] for x in found['completions']] == 2 * [
    None
  ]


def test_what_is_no_policy_is_told_in_one_line(tmp_path):
  done = run('experiments/sample.py --workdir runs/quickstart hi', tmp_path)
  assert done.returncode == 1
  assert re.fullmatch(r'error: [^\n]*\n', done.stderr)
