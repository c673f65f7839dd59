"""The wheel holds all of grpo_jax and nothing else, and runs without the clone.

It is built from a copy of the clone, so that no build folder is left behind,
and read by an interpreter that sees no clone: -S leaves out what an editable
installation has put beside the packages.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import command
import pytest

_SKIPPED = shutil.ignore_patterns(
  '.*', '__pycache__', 'runs', 'build', '*.egg-info'
)
_USE = r"""
import importlib, json, pathlib, pkgutil, sys

sys.path += json.loads(sys.argv[1])
import grpo_jax
from grpo_jax import build, config, report

c = config.default()
c.tokenizer.vocab_size = 64
c.data.knobs = {'problems': 300}
run = build.build(c, 'run')
line = {'step': 1, 'time/elapsed': 1.0, 'reward/mean': 0.5}
(run.workdir / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
page = report.write(['run'])
print()
print(page, grpo_jax.__file__)
for info in pkgutil.walk_packages(grpo_jax.__path__, 'grpo_jax.'):
  print(importlib.import_module(info.name).__file__)
"""


def files(folder: pathlib.Path) -> set[str]:
  return {
    path.relative_to(folder.parent).as_posix()
    for path in folder.rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp('wheel')
  shutil.copytree(command.ROOT, folder / 'clone', ignore=_SKIPPED)
  build = 'from setuptools import build_meta as b; print(b.build_wheel(".."))'
  done = subprocess.run(
    [sys.executable, '-c', build],
    cwd=folder / 'clone',
    text=True,
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  (path,) = folder.glob('*.whl')
  return path


def test_the_wheel_has_every_file_of_the_package_and_no_others(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  package = {name for name in names if '.dist-info/' not in name}
  assert package == files(command.ROOT / 'grpo_jax')


@pytest.mark.slow
def test_the_wheel_builds_a_run_and_writes_a_report(wheel, tmp_path):
  zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
  packages = [sysconfig.get_path(name) for name in ('purelib', 'platlib')]
  places = [str(tmp_path / 'site'), *dict.fromkeys(packages)]
  done = subprocess.run(
    [sys.executable, '-I', '-S', '-c', _USE, json.dumps(places)],
    cwd=tmp_path,
    text=True,
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  page, *modules = done.stdout.rpartition('\n\n')[2].split()
  assert page == 'run/report.html' and (tmp_path / page).exists()
  ours = {x for x in files(command.ROOT / 'grpo_jax') if x.endswith('.py')}
  ours = {str(tmp_path / 'site' / name) for name in ours}
  assert {*modules} == ours
