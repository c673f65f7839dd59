"""Stages of training, each an ordinary run, each from what others left.

  c = pipeline.recipe(
    base=pipeline.stage('pretrain', config),
    zero=pipeline.stage('grpo', config, start='base'),
    samples=pipeline.stage('sample', config, start='zero'),
    cold=pipeline.stage('sft', config, start='base', data='samples'),
  )
  pipeline.carry_out(c, workdir)    every stage in <workdir>/<its name>

A stage is a config as experiments/train.py takes it, and what it takes from
earlier ones: `start` has its first weights, `data` the completions that it
imitates, `teacher` a policy to come near to. `configure` fills them in; all
else, down to the last knob, is the config's. A kind is a line of KINDS.

A stage that has a summary.json is done. One that was killed goes on where it
was: a recipe needs nothing but its folder.
"""

from collections.abc import Callable
import json
from typing import Any, NamedTuple

from etils import epath
import jax
from ml_collections import ConfigDict
import rich.box
import rich.table

from grpo_jax import (
  algorithms,
  evaluate,
  fit,
  fit_preference,
  initial,
  process,
  progress,
  rejection,
)
from grpo_jax import config as config_lib

FILE, TABLE = 'recipe.json', 'table'
Summary = dict[str, Any]


def recipe(table: ConfigDict | None = None, **stages: ConfigDict) -> ConfigDict:
  """Stages in the order in which they are carried out.

  `seed` will be that of all of them. A shorter `order` leaves stages out.

  Args:
    table: on whose held-out problems, and by whose reward, the policies of all
      stages are compared; by default nothing compares them.
    **stages: made by `stage`, by their names.
  """
  c = ConfigDict({'seed': 0, 'order': tuple(stages)})
  c.stages = ConfigDict(stages)
  c.table = ConfigDict()
  if table is not None:
    c.table = stage('evaluate', table).config
  return c


def stage(
  kind: str,
  config: ConfigDict,
  start: str = '',
  data: str = '',
  teacher: str = '',
  judge: str = '',
) -> ConfigDict:
  """A stage with a config of its own: a copy, in which all may be changed.

  Args:
    kind: one of KINDS.
    config: what to do. Steps that its kind does not have are set to 0.
    start: the earlier stage whose weights it begins with, which of an
      'evaluate' are those that it looked at; '' is model.init, or random ones.
    data: the earlier stages of kind 'sample' whose completions it imitates,
      with commas, '' is what the dataset itself would say; or, of a reward
      model, the one whose pairs it learns from.
    teacher: the earlier stage that a 'distill' comes near to, in what it writes
      itself.
    judge: the earlier 'reward_model' that the reward of that name asks.
  """
  own = config.copy_and_resolve_references().unlock()
  phases = KINDS[kind].phases if kind in KINDS else ()
  if 'rl' not in phases:
    own.steps = 0
  if 'pretrain' not in phases:
    own.pretrain.steps = 0
  if kind == 'distill':  # The reverse KL to the teacher, and nothing else.
    own.kl.update(name='k1_plus', coef=1.0, where='loss', target=0.0)
    own.reference.update(every=0, rate=1.0)
    own.alarms.degenerate.action = 'off'  # No group has an advantage.
    own.reward = {
      part: _as_dict(x) | {'weight': 0.0} for part, x in own.reward.items()
    }
  taken = {'start': start, 'data': data, 'teacher': teacher, 'judge': judge}
  return ConfigDict({'kind': kind, 'config': own} | taken)


def but(config: ConfigDict, **changes: Any) -> ConfigDict:
  """A copy in which some knobs are others: but(c, steps=8, data__prompts=4).

  Two underscores stand for the dot of data.prompts; a dictionary replaces what
  was there.
  """
  own = config.copy_and_resolve_references().unlock()
  for name, value in changes.items():
    *path, last = name.split('__')
    node = own
    for part in path:
      node = node[part]
    node[last] = ConfigDict(value) if isinstance(value, dict) else value
  return own


def _as_dict(entry: float | ConfigDict) -> dict:
  """A part of a reward with its knobs."""
  return entry.to_dict() if isinstance(entry, ConfigDict) else {'weight': entry}


def check(c: ConfigDict, workdir: str) -> None:
  """Raises ValueError, naming the stage, for what cannot work."""
  if not c.order:
    raise ValueError('order=(): there is no stage')
  for name in c.order:
    if name not in c.stages:
      raise ValueError(
        f'order has {name!r}, which is not one of {", ".join(c.stages)}'
      )
    try:
      _check(c, name)
      config_lib.check(algorithms.resolve(configure(c, name, workdir)))
    except ValueError as e:
      raise ValueError(f'stages.{name}: {e}') from None


def configure(c: ConfigDict, name: str, workdir: str) -> ConfigDict:
  """The config of a stage, with what it takes from others filled in."""
  own, folder = c.stages[name], epath.Path(workdir)
  found = own.config.copy_and_resolve_references().unlock()
  found.seed = c.seed
  if own.start:
    found.model.init = _weights(c, own.start, folder)
    found.tokenizer.path = _tokenizer(c, own.start, folder)
  elif name != c.order[0] and not found.tokenizer.path and not found.model.init:
    # Weights that begin at random read what the first stage learnt to read.
    found.tokenizer.path = _tokenizer(c, c.order[0], folder)
  if own.teacher:
    found.reference.init = _weights(c, own.teacher, folder)
  if own.judge:
    part = _as_dict(found.reward.get('reward_model', 1.0))
    part['init'] = str(folder / own.judge)
    found.reward = found.reward.to_dict() | {'reward_model': part}
  if own.data and own.kind == 'reward_model':
    found.preference.path = str(folder / own.data / rejection.PAIRS)
  elif own.data:
    files = [folder / source / rejection.FILE for source in own.data.split(',')]
    found.pretrain.files = tuple(map(str, files))
  return found


def carry_out(c: ConfigDict, workdir: str) -> dict[str, Summary] | None:
  """All stages in their order, from wherever the recipe stands.

  Returns:
    the summary of each; None if a signal stopped one of them.

  Raises:
    ValueError: what `check` raises, before anything is done; or a stage, and
      those before it stay.
  """
  check(c, workdir)
  folder = epath.Path(workdir)
  if process.is_lead():
    folder.mkdir(parents=True, exist_ok=True)
    process.write(folder / FILE, c.to_json(sort_keys=False))
  summaries = {}
  with process.stop_on_signal() as stop:
    for i, name in enumerate(c.order, 1):
      own, path = c.stages[name], folder / name / 'summary.json'
      if not path.exists():
        said = describe(c, name)
        progress.say(f'\nstage {i} of {len(c.order)}: {name} ({said})')
        run = KINDS[own.kind].carry_out
        if run(configure(c, name, workdir).lock(), str(folder / name)) is None:
          return None
      summaries[name] = json.loads(path.read_text())
      if c.table and _is_compared(own) and not _compare(c, name, workdir):
        return None
      # A signal after the last step of a stage leaves that stage done.
      if stop and jax.process_count() == 1 and name != c.order[-1]:
        progress.say(f'stopped after {name}: the same command goes on')
        return None
  if c.table and (rows := table(c, workdir)):
    show(rows)
    if process.is_lead():
      process.write(folder / f'{TABLE}.json', json.dumps(rows, indent=2) + '\n')
  return summaries


def _compare(c: ConfigDict, name: str, workdir: str) -> bool:
  """Evaluates the policy of a stage on the problems of the table."""
  own = configure(c, name, workdir)
  found = c.table.copy_and_resolve_references().unlock()
  found.seed, found.model = c.seed, own.model
  found.model.init = _weights(c, name, epath.Path(workdir))
  found.tokenizer.path = _tokenizer(c, name, epath.Path(workdir))
  folder = epath.Path(workdir) / TABLE / name
  if (folder / 'summary.json').exists():
    return True
  with progress.quiet():
    return fit.fit(found.lock(), str(folder)) is not None


def table(c: ConfigDict, workdir: str) -> list[dict[str, Any]]:
  """A row for each stage with a policy: what it is, and means over completions.

  A score that is not there counts neither way: the language of a completion
  that says nothing is none.
  """
  rows = []
  for name in c.order:
    path = epath.Path(workdir) / TABLE / name / 'evaluations' / 'after.json'
    if path.exists():
      e = evaluate.load(path)
      found = evaluate.summarize(e)
      keys = ('accuracy', 'accuracy_interval', 'reasoning', 'length')
      parts = {
        part: evaluate.mean_score(x)
        for part, x in e.parts.items()
        if part != c.table.eval.right  # That is the accuracy.
      }
      rows.append(
        {'stage': name, 'what': describe(c, name)}
        | {key: found[key] for key in keys}
        | {'parts': parts}
      )
  return rows


def show(rows: list[dict[str, Any]]) -> None:
  """Prints the table."""
  grid = rich.table.Table(
    title='Stages',
    title_justify='left',
    box=rich.box.SIMPLE,
    padding=(0, 1, 0, 0),
  )
  parts = list(rows[0]['parts'])
  grid.add_column('', no_wrap=True)
  for header in ('accuracy', 'reasons', 'length', *parts):
    grid.add_column(header, justify='right', no_wrap=True)
  for row in rows:
    low, high = row['accuracy_interval']
    scores = (row['parts'][part] for part in parts)
    grid.add_row(
      row['stage'],
      f'{row["accuracy"]:.1%} ±{50 * (high - low):.1f}',
      f'{row["reasoning"]:.1%}',
      f'{row["length"]:.1f}',
      *('-' if x is None else f'{x:.2f}' for x in scores),
    )
  progress.console.print(grid)


def describe(c: ConfigDict, name: str) -> str:
  """In words: 'sft of base on samples'."""
  own = c.stages[name]
  of = own.start or own.config.model.init
  return (
    own.kind
    + (f' of {of}' if of else '')
    + (f' on {" and ".join(own.data.split(","))}' if own.data else '')
    + (f' towards {own.teacher}' if own.teacher else '')
    + (f', judged by {own.judge}' if own.judge else '')
  )


class Kind(NamedTuple):
  """What carries a stage out, and what its config has to say."""

  carry_out: Callable[[ConfigDict, str], Summary | None]
  phases: tuple[str, ...]  # Of a run: 'pretrain', 'rl', or none of them.
  weights: bool = False  # Whether it cannot begin with random ones.
  data: bool = False  # Whether it can imitate completions.
  teacher: bool = False  # Whether it needs one.
  policy: bool = True  # Whether others can begin with its weights.


KINDS = {
  'pretrain': Kind(fit.fit, ('pretrain',), data=True),
  'sft': Kind(fit.fit, ('pretrain',), data=True),
  'grpo': Kind(fit.fit, ('rl',)),
  'distill': Kind(fit.fit, ('rl',), weights=True, teacher=True),
  'reward_model': Kind(
    fit_preference.fit, (), weights=True, data=True, policy=False
  ),
  'sample': Kind(rejection.sample, (), weights=True, policy=False),
  'evaluate': Kind(fit.fit, (), weights=True),
}


def _check(c: ConfigDict, name: str) -> None:
  own = c.stages[name]
  if own.kind not in KINDS:
    raise ValueError(f'kind={own.kind!r} is not one of {", ".join(KINDS)}')
  kind = KINDS[own.kind]
  earlier = {}
  for other in c.order[: c.order.index(name)]:
    earlier[other] = c.stages[other].kind
  policies = [x for x, k in earlier.items() if KINDS[k].policy]
  if own.start and own.start not in policies:
    raise ValueError(
      f'start={own.start!r} is not an earlier stage with weights: '
      f'{", ".join(policies) or "there is none"}'
    )
  if kind.weights and not (own.start or own.config.model.init):
    raise ValueError(f'{own.kind!r} needs a start, or config.model.init')
  if own.data and not kind.data:
    raise ValueError(f'data={own.data!r}: {own.kind!r} imitates nothing')
  if bool(own.teacher) != kind.teacher:
    needs = 'needs one' if kind.teacher else 'has none'
    raise ValueError(f'teacher={own.teacher!r}: {own.kind!r} {needs}')
  if own.teacher and own.teacher not in policies:
    raise ValueError(
      f'teacher={own.teacher!r} is not an earlier stage with weights: '
      f'{", ".join(policies)}'
    )
  judges = [x for x, k in earlier.items() if k == 'reward_model']
  if own.judge and own.judge not in judges:
    raise ValueError(
      f"judge={own.judge!r} is not an earlier stage of kind 'reward_model': "
      f'{", ".join(judges) or "there is none"}'
    )
  if own.kind == 'reward_model' and (not own.data or ',' in own.data):
    raise ValueError(f'data={own.data!r}: one stage has the pairs')
  sampled = [x for x, k in earlier.items() if k == 'sample']
  for source in filter(None, own.data.split(',')):
    if source not in sampled:
      raise ValueError(
        f'data={own.data!r}: {source!r} is not an earlier stage of kind '
        f"'sample': {', '.join(sampled) or 'there is none'}"
      )
  wanted = {'pretrain': own.config.pretrain.steps, 'rl': own.config.steps}
  for phase, steps in wanted.items():
    if bool(steps) != (phase in kind.phases):
      knob = 'steps' if phase == 'rl' else 'pretrain.steps'
      need = 'at least 1' if phase in kind.phases else '0'
      raise ValueError(f'config.{knob}={steps}: {own.kind!r} has {need}')


def _is_compared(stage: ConfigDict) -> bool:
  """Whether the table has a row for it: a policy that no other stage made."""
  kind = KINDS[stage.kind]
  return kind.policy and bool(kind.phases or not stage.start)


def _weights(c: ConfigDict, name: str, folder: epath.Path) -> str:
  """What model.init says for the policy of a stage."""
  own = c.stages[name]
  if KINDS[own.kind].phases:
    return str(folder / name)
  return _weights(c, own.start, folder) if own.start else own.config.model.init


def _tokenizer(c: ConfigDict, name: str, folder: epath.Path) -> str:
  """What the first of its ancestors reads and writes."""
  own = c.stages[name]
  if own.start:
    return _tokenizer(c, own.start, folder)
  path = own.config.tokenizer.path or own.config.model.init
  if not path and name != c.order[0]:
    return _tokenizer(c, c.order[0], folder)
  if not path:
    return str(folder / name / 'tokenizer.model')
  return initial.tokenizer(path) if initial.is_run(path) else path
