"""What the folders of a recipe say (see pipeline.py), as the page wants it.

The stages, and what each took from which, are there once. Each folder is a
seed: how far its stages are, the table over them, what each answers. A recipe
may be in progress: only recipe.json has to be there.
"""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from grpo_jax import pipeline
from grpo_jax.report import workdirs

_TAKES = ('start', 'data', 'teacher', 'judge')
Row = dict[str, Any]


def is_recipe(folder: str | os.PathLike) -> bool:
  return (epath.Path(folder) / pipeline.FILE).exists()


def read(recipes: Sequence[str | os.PathLike]) -> dict[str, Any]:
  """What workdirs.read returns of the stages with metrics, and 'recipe'.

  Runs of the same stage are one group. Raises ValueError for a folder without
  a recipe.json, and for recipes that differ in more than the seed.
  """
  folders = [epath.Path(folder) for folder in recipes]
  found = [_load(folder) for folder in folders]
  for folder, other in zip(folders, found, strict=True):
    if other | {'seed': 0} != found[0] | {'seed': 0}:
      raise ValueError(
        f'{folder} has another recipe than {folders[0]}: they may differ in '
        'their seed alone'
      )
  c = ConfigDict(found[0])
  seeds: list[Row] = []
  runs: list[Row] = []
  for folder, name, own in zip(
    folders, workdirs.names_of(folders), found, strict=True
  ):
    seed = _seed(c, folder) | {'name': name, 'seed': own['seed'], 'runs': {}}
    for stage in c.order:
      if (folder / stage / 'metrics.jsonl').exists():
        seed['runs'][stage] = len(runs)
        called = stage if len(folders) == 1 else f'{name}/{stage}'
        runs.append(workdirs.read_run(folder / stage) | {'name': called})
    seeds.append(seed)
  groups = []
  for stage in c.order:
    of = [seed['runs'][stage] for seed in seeds if stage in seed['runs']]
    if of:
      groups.append({'name': stage, 'runs': of})
  table = found[0]['table']
  recipe = {
    'stages': [_stage(c, name) for name in c.order],
    'seeds': seeds,
    'parts': _parts(
      table, [x for seed in seeds for x in seed['table'].values()]
    ),
    'marks': workdirs.marks_of(table),
    'phrases': workdirs.phrases_of(table),
  }
  return {'runs': runs, 'groups': groups, 'recipe': recipe}


def _load(folder: epath.Path) -> Row:
  if not is_recipe(folder):
    raise ValueError(
      f'{folder} has no {pipeline.FILE}: a page is of recipes, or of runs'
    )
  return json.loads((folder / pipeline.FILE).read_text())


def _stage(c: ConfigDict, name: str) -> Row:
  """A box of the diagram; 'from' has [stage, what it gave]."""
  own = c.stages[name]
  return {
    'name': name,
    'kind': own.kind,
    'what': pipeline.describe(c, name),
    'policy': bool(own.config.steps or own.config.pretrain.steps),
    'from': [
      [source, how]
      for how in _TAKES
      for source in filter(None, own[how].split(','))
    ],
  }


def _seed(c: ConfigDict, folder: epath.Path) -> Row:
  answers = {name: _answers(folder, name) for name in c.order}
  there = {name: found for name, found in answers.items() if found}
  problems = [found.pop('problems') for found in there.values()]
  return {
    'state': {name: _state(folder / name) for name in c.order},
    'table': _table(c, folder),
    'problems': problems[0] if problems else [],
    'answers': there,
  }


def _state(workdir: epath.Path) -> str:
  if (workdir / 'summary.json').exists():
    return 'done'
  return 'in progress' if workdir.exists() else 'not begun'


def _table(c: ConfigDict, folder: epath.Path) -> dict[str, Row]:
  """Rows of table.json, and of what was evaluated since it was written."""
  path = folder / f'{pipeline.TABLE}.json'
  rows = json.loads(path.read_text()) if path.exists() else []
  written = {row['stage'] for row in rows}
  rest = [name for name in c.order if name not in written]
  rows += pipeline.table(ConfigDict(c.to_dict() | {'order': rest}), str(folder))
  return {row['stage']: workdirs.finite(row) for row in rows}


def _answers(folder: epath.Path, name: str) -> Row | None:
  """Of each problem the first completion."""
  path = folder / pipeline.TABLE / name / 'evaluations' / 'after.json'
  e = workdirs.read_object(path)
  return e and {
    'problems': list(zip(e['prompts'], e['answers'], strict=True)),
    'text': e['texts'],
    'right': [workdirs.number(row[0]) for row in e['correct_NG']],
    'reasons': [int(row[0] == 1) for row in e['reasoned_NG']],
    'length': [workdirs.number(row[0]) for row in e['lengths_NG']],
    'cut': [int(not row[0]) for row in e['ended_NG']],
  }


def _parts(config: Mapping[str, Any], rows: Sequence[Row]) -> list[Row]:
  """The columns of the table, in words, and whether less is better."""
  found = {
    name: {'name': name, 'head': name, 'less': False}
    for row in rows
    for name in row['parts']
  }
  for name, file, knobs in workdirs.parts_of(config):
    if name not in found:
      continue
    if file == 'language':
      found[name]['head'] = 'readability'
    if file == 'reflection' and knobs.get('enough') is None:
      found[name]['head'] = 'reflection words'
    entry = config['reward'][name]
    weight = entry.get('weight', 1.0) if isinstance(entry, Mapping) else entry
    found[name]['less'] = weight < 0
  return list(found.values())
