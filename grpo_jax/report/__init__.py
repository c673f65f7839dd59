"""One self-contained HTML page of runs: what they did, and what they said.

  report.write(['runs/a', 'runs/b'], 'report.html') -> its path

The page holds what workdirs.py, or for the folder of a recipe recipes.py,
reads, as compressed JSON, the style and the program that draws it, and nothing
else: it opens from a disk, without a network. Its files are read in this order:

  page.html       the skeleton
  page.css        colours, light and dark, and the layout
  dom.js          elements and numbers; text never becomes HTML
  curves.js       what is drawn; to add a chart, add a line to `charts`
  completions.js  the groups of a step, one completion, the search
  recipe.js       of a recipe's stages: the diagram, the table, the answers
  page.js         the other sections, and the start

Nothing here starts a backend of JAX, so that a run may hold the accelerator
while somebody looks at it.
"""

import base64
from collections.abc import Sequence
import gzip
import importlib.resources
import json
import os
import time

from etils import epath

from grpo_jax.report import recipes, workdirs

_PROGRAM = ('dom.js', 'curves.js', 'completions.js', 'recipe.js', 'page.js')


def write(
  runs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None
) -> epath.Path:
  """Writes the page of the runs in these workdirs and returns its path.

  Or of a recipe's folder, or those of several seeds of it. Without `out` it is
  report.html in the folder, or of several in the one that holds them all.
  Raises ValueError for a folder that is neither a run's nor a recipe's, for
  recipes beside runs, and for recipes that are not the same.
  """
  read = recipes.read if any(map(recipes.is_recipe, runs)) else workdirs.read
  out = epath.Path(out) if out else _beside(runs)
  page = _file('page.html')
  for name, text in (
    ('style', _file('page.css')),
    ('program', '\n'.join(map(_file, _PROGRAM))),
    ('data', _pack(read(runs) | {'written': time.time()})),
  ):
    page = page.replace(f'{{{{{name}}}}}', text)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(page)
  return out


def _beside(runs: Sequence[str | os.PathLike]) -> epath.Path:
  folders = [f'{os.fspath(run).rstrip("/")}/' for run in runs]
  common = os.path.dirname(os.path.commonprefix(folders))
  return epath.Path(common) / 'report.html'


def _file(name: str) -> str:
  return importlib.resources.files(__name__).joinpath(name).read_text()


def _pack(data) -> str:
  """Base64 has no character that means anything to HTML, whatever is in it."""
  text = json.dumps(data, allow_nan=False, separators=(',', ':'))
  packed = gzip.compress(text.encode(), compresslevel=6)
  return base64.b64encode(packed).decode()
