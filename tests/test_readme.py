"""README's code runs as it stands there."""

import re

import command

README = (command.ROOT / 'README.md').read_text()


def test_the_loop_runs_unjitted(tmp_path):
  (code,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  code = code.replace('runs/loop', str(tmp_path / 'loop'))
  done = command.run('-c', code)
  assert done.returncode == 0, done.stderr
  assert (
    len(re.findall(r'^reward [\d.]+ length [\d.]+$', done.stdout, re.M)) == 2
  )


def test_every_file_that_readme_links_to_exists():
  for path in re.findall(r'\]\(([^)#:]+)\)', README):
    assert (command.ROOT / path).exists(), path
