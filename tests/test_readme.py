"""README's code runs as it stands there."""

import re

import command

from grpo_jax import config, datasets
from grpo_jax.rewards import mix

README = (command.ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_the_loop_runs_unjitted(tmp_path):
  loop, _ = BLOCKS
  code = loop.replace('runs/loop', str(tmp_path / 'loop'))
  done = command.run('-c', code)
  assert done.returncode == 0, done.stderr
  assert (
    len(re.findall(r'^reward [\d.]+ length [\d.]+$', done.stdout, re.M)) == 2
  )


def test_the_mix_of_rewards_is_one():
  _, code = BLOCKS
  c = config.default()
  exec(code, {'c': c})
  config.check(c)
  assert len(c.reward) == 4


def test_the_tables_of_readme_name_all_rewards_and_datasets_and_no_others():
  def names(heading):
    text = README.split(f'\n## {heading}\n')[1].split('\n## ')[0]
    cells = re.findall(r'^\| (`[^|]*) \|', text, re.MULTILINE)
    return sorted(name for cell in cells for name in re.findall(r'\w+', cell))

  assert names('Rewards') == sorted(mix.names())
  assert names('Data') == sorted(datasets.names())


def test_every_file_that_readme_links_to_exists():
  for path in re.findall(r'\]\(([^)#:]+)\)', README):
    assert (command.ROOT / path).exists(), path
