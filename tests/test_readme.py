"""README's code runs as it stands there."""

import re

import command

from grpo_jax import advantages, config, datasets
from grpo_jax.losses import aggregate, kl, off_policy, policy, select
from grpo_jax.rewards import mix

README = (command.ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_the_loop_runs_unjitted(tmp_path):
  loop, *_ = BLOCKS
  code = loop.replace('runs/loop', str(tmp_path / 'loop'))
  done = command.run('-c', code)
  assert done.returncode == 0, done.stderr
  assert (
    len(re.findall(r'^reward [\d.]+ length [\d.]+$', done.stdout, re.M)) == 2
  )


def test_the_choice_of_an_algorithm_is_one():
  _, code, _ = BLOCKS
  c = config.default()
  exec(code, {'c': c})
  c.advantage, c.loss = map(config.ConfigDict, (c.advantage, c.loss))
  config.check(c)
  assert c.advantage.name == 'dr_grpo'


def test_the_tables_of_algorithms_name_all_variants_and_no_others():
  text = README.split('\n## Algorithms\n')[1].split('\n## ')[0]
  for section, module in {
    'advantage': advantages,
    'loss': policy,
    'select': select,
    'aggregate': aggregate,
    'kl': kl,
  }.items():
    table = text.split(f'| `c.{section}.name` ')[1].split('\n\n')[0]
    cells = re.findall(r'^\| (`[^|]*) \|', table, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r'\w+', cell)]
    assert sorted(named) == sorted(config.variants(module)), section
  for name in config.variants(off_policy):
    assert name == 'none' or f'`{name}`' in text


def test_the_mix_of_rewards_is_one():
  *_, code = BLOCKS
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
