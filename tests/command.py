"""Runs experiments/ as a user would: one CPU device, a process of its own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def start(*arguments: str, cwd: pathlib.Path = ROOT) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=cwd,
    env=os.environ | {'COLUMNS': '100'},
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def run(
  *arguments: str, timeout: float = 300, cwd: pathlib.Path = ROOT
) -> subprocess.CompletedProcess:
  with start(*arguments, cwd=cwd) as process:
    try:
      out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      process.kill()
      raise
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train(config: str, workdir, *flags: str) -> list[str]:
  """The command line of a run."""
  return [
    'experiments/train.py',
    '--config',
    f'configs/{config}',
    '--workdir',
    str(workdir),
    *flags,
  ]
