"""What the files of a workdir say, as the page wants it: plain lists and dicts.

A run may be in progress, and files may be missing or end in the middle of a
line: what can be read is read, and the rest is counted. Steps are counted as RL
steps from here on: the first one is 1, pre-training ended at 0.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import json
import math
import os
import re
from typing import Any

from etils import epath

from grpo_jax.rewards import reflection

_FAILURES = 50  # That are shown; the others are counted.
Row = dict[str, Any]


def read(runs: Sequence[str | os.PathLike]) -> dict[str, Any]:
  """All that the page knows; raises ValueError for what is not a workdir."""
  folders = [epath.Path(run) for run in runs]
  found = [read_run(folder) for folder in folders]
  for run, name in zip(found, names_of(folders), strict=True):
    run['name'] = name
  return {'runs': found, 'groups': _groups(found)}


def read_run(workdir: epath.Path) -> dict[str, Any]:
  config = read_object(workdir / 'config.json')
  if config is None and not (workdir / 'metrics.jsonl').exists():
    raise ValueError(
      f'{workdir} is not the workdir of a run: it has neither config.json nor '
      'metrics.jsonl'
    )
  config = config or {}
  begin = config.get('pretrain', {}).get('steps') or 0
  damaged = {}

  def lines(name):
    rows, damaged[name] = _lines(workdir / name)
    for row in rows:
      row['step'] -= begin
    return rows

  rows = lines('metrics.jsonl')
  asked = config.get('eval', {})
  phrases = phrases_of(config)
  return {
    'seed': config.get('seed'),
    'config': flat(config),
    'right': asked.get('right', 'answer'),
    'parts': list(config.get('reward', {})),
    'marks': marks_of(config),
    'phrases': phrases,
    'steps': config.get('steps'),
    'metrics': _columns([row for row in rows if 'reward/mean' in row]),
    'pretraining': _columns(
      [
        row | {'step': row['step'] + begin}
        for row in rows
        if 'reward/mean' not in row
      ]
    ),
    'summary': finite(read_object(workdir / 'summary.json')),
    'watched': 'alarms' in config,
    'alarms': finite(lines('alarms.jsonl')),
    'failures': _failures(lines('failures.jsonl')),
    'completions': _completions(
      lines('completions.jsonl'), marks_of(config)['think'], phrases
    ),
    'heldout': _heldout(workdir / 'evaluations'),
    'damaged': {name: count for name, count in damaged.items() if count},
  }


def read_object(path: epath.Path) -> Row | None:
  """A JSON object; None where there is none, or one that is being written."""
  try:
    found = json.loads(path.read_text())
  except (FileNotFoundError, json.JSONDecodeError):
    return None
  return found if isinstance(found, dict) else None


def _lines(path: epath.Path) -> tuple[list[Row], int]:
  """The rows of a JSONL file, and how many lines were none.

  A last line without its end is being written, and no defect.
  """
  if not path.exists():
    return [], 0
  # Not splitlines(): text that a model wrote may hold U+2028 and the like.
  *lines, rest = path.read_text().split('\n')
  rows, bad = [], 0
  for line in [*lines, *([rest] if rest.endswith('}') else [])]:
    try:
      row = json.loads(line)
      rows.append(row | {'step': int(row['step'])})
    except (ValueError, KeyError, TypeError):
      bad += 1
  return rows, bad


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """optim: {lr: 1} -> optim.lr: 1."""
  found: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      found |= flat(value, f'{prefix}{name}.')
    else:
      found[prefix + name] = finite(value)
  return found


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
  names = dict.fromkeys(name for row in rows for name in row)
  names.pop('step', None)
  return {
    'step': [row['step'] for row in rows],
    'values': {
      name: [number(row.get(name)) for row in rows] for name in sorted(names)
    },
  }


def number(value: Any) -> float | None:
  """Six digits: enough to draw; None for what is no finite number."""
  try:
    value = float(value)
  except (TypeError, ValueError):
    return None
  return float(f'{value:.6g}') if math.isfinite(value) else None


def finite(value: Any) -> Any:
  """Without NaN and infinities, which JSON does not have."""
  if isinstance(value, Mapping):
    return {name: finite(x) for name, x in value.items()}
  if isinstance(value, list | tuple):
    return [finite(x) for x in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _completions(
  rows: Sequence[Row], think: tuple[str, str], phrases: Sequence[str]
) -> dict[str, Any]:
  """Columns over completions, and the groups that they stand in.

  `groups` has [step, problem, first row, rows]; `said` row -> the phrases that
  its reasoning says, one after the other.
  """
  problems: dict[tuple[str, str], int] = {}
  groups, last = [], None
  for i, row in enumerate(rows):
    key = str(row.get('prompt', '')), str(row.get('answer', ''))
    problem = problems.setdefault(key, len(problems))
    sample = row.get('sample', 0)
    # A problem may be there twice in a step: then samples begin anew.
    if last is None or (row['step'], key) != last[:2] or sample <= last[2]:
      groups.append([row['step'], problem, i, 0])
    groups[-1][3] += 1
    last = row['step'], key, sample
  texts = [str(row.get('text', '')) for row in rows]
  parts = dict.fromkeys(
    name for row in rows for name in row.get('reward_parts') or {}
  )
  said = reflections(texts, think, phrases)
  return {
    'problems': [list(key) for key in problems],
    'groups': groups,
    'sample': [row.get('sample', 0) for row in rows],
    'text': texts,
    'length': [number(row.get('length')) for row in rows],
    'cut': [int(row.get('ended') is False) for row in rows],
    'reward': [number(row.get('reward')) for row in rows],
    'advantage': [number(row.get('advantage')) for row in rows],
    'parts': {
      name: [number((row.get('reward_parts') or {}).get(name)) for row in rows]
      for name in parts
    },
    'said': {str(i): found for i, found in enumerate(said) if found},
  }


def reflections(
  texts: Sequence[str], think: tuple[str, str], phrases: Sequence[str]
) -> list[list[int]]:
  """Which phrases the reasoning of each text says, by their place in the list.

  As rewards/reflection.py counts them.
  """
  words = [map(re.escape, phrase.split()) for phrase in phrases]
  either = '|'.join('(' + r'\s+'.join(phrase) + ')' for phrase in words)
  flags = re.IGNORECASE | re.ASCII
  pattern = re.compile(rf'(?<!\w)(?:{either})(?!\w)', flags)
  found = []
  for text in texts:
    opening, closing = (text.find(tag) for tag in think)
    start = opening + len(think[0]) if opening >= 0 else 0
    end = closing if closing >= start else len(text)
    said = (m.lastindex for m in pattern.finditer(text, start, end))
    found.append([number - 1 for number in said if number])
  return found


def phrases_of(config: Mapping[str, Any]) -> list[str]:
  for _, file, knobs in parts_of(config):
    if file == 'reflection' and knobs.get('phrases'):
      return list(knobs['phrases'])
  return list(reflection.PHRASES)


def marks_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """The tags around the reasoning, and where the answer is looked for."""
  think, answer = 'think', {'where': 'tags', 'tag': 'answer'}
  for name, file, knobs in parts_of(config):
    if file == 'format' and knobs.get('sections'):
      think = knobs['sections'][0]
    if name == config.get('eval', {}).get('right', 'answer'):
      answer |= {key: knobs[key] for key in answer if key in knobs}
  return {'think': [f'<{think}>', f'</{think}>'], 'answer': answer}


def parts_of(config: Mapping[str, Any]) -> list[tuple[str, str, Row]]:
  """Name, file and knobs of the parts of the reward."""
  found = []
  for name, entry in config.get('reward', {}).items():
    knobs = entry if isinstance(entry, Mapping) else {}
    found.append((name, knobs.get('file', name), dict(knobs)))
  return found


def _failures(rows: Sequence[Row]) -> dict[str, Any]:
  counts = Counter((row.get('part'), row.get('kind')) for row in rows)
  return {
    'counts': [[*key, count] for key, count in counts.most_common()],
    'last': finite(rows[-_FAILURES:]),
  }


def _heldout(folder: epath.Path) -> dict[str, Any] | None:
  """Problem by problem the first completion, before and after RL."""
  found: dict[str, Any] = {}
  for when in ('before', 'after'):
    e = read_object(folder / f'{when}.json')
    if e is None:
      continue
    found[when] = {
      'text': e['texts'],
      'right': [number(row[0]) for row in e['correct_NG']],
      'length': [number(row[0]) for row in e['lengths_NG']],
      'cut': [int(not row[0]) for row in e['ended_NG']],
    }
    found['problems'] = [
      list(problem)
      for problem in zip(
        e.get('prompts', ()), e.get('answers', ()), strict=True
      )
    ]
  return found or None


def names_of(folders: Sequence[epath.Path]) -> list[str]:
  """As much of the ends of the paths as tells them apart."""
  parts = [os.path.abspath(folder).split(os.sep) for folder in folders]
  for depth in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(part[-depth:]) for part in parts]
    if len(set(names)) == len(names):
      return names
  return [f'{name} ({i})' for i, name in enumerate(names, 1)]  # One run twice.


def _groups(runs: Sequence[Row]) -> list[dict[str, Any]]:
  """Runs whose configs differ in nothing but the seed, and a name for them."""
  found: dict[str, list[int]] = {}
  for i, run in enumerate(runs):
    found.setdefault(_without_seed(run), []).append(i)
  groups = []
  for members in found.values():
    names = [runs[i]['name'] for i in members]
    name = names[0]
    if len(names) > 1:
      name = os.path.commonprefix(names).rstrip('_-. /').removesuffix('seed')
      name = name.rstrip('_-. /') or names[0]
    groups.append({'name': name, 'runs': members})
  return groups


def _without_seed(run: Row) -> str:
  """The config as a text. A run without one is like no other.

  Runs of a sweep begin with pretrained_<seed>: that is no difference either.
  """
  if not run['config']:
    return run['name']
  seed = re.compile(rf'(?<=_){run["seed"]}(?=/|$)')
  return json.dumps(
    {
      key: seed.sub('SEED', value) if isinstance(value, str) else value
      for key, value in run['config'].items()
      if key != 'seed'
    },
    sort_keys=True,
  )
