"""Policies evaluated side by side.

  evaluate_path(path, values, data) -> Evaluated
  compare({path: evaluated, ...}, ks) -> report, which JSON can hold
  show(report)                          as a table

Dimension key: N problems, G completions of each.
"""

from collections.abc import Mapping, Sequence
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.table

from grpo_jax import (
  build,
  config,
  datasets,
  evaluate,
  metrics,
  opened,
  process,
  progress,
  sharding,
  train,
)


class Evaluated(NamedTuple):
  """A policy's answers, and how it was asked."""

  result: evaluate.Evaluation
  problems: list[str]  # Their prompts.
  how: dict[str, Any]


def evaluate_path(
  path: str, values: Mapping[str, Any], data: str = ''
) -> Evaluated:
  """Samples and scores.

  Args:
    path: of a policy; see opened.py.
    values: knobs of the config that are to differ.
    data: 'NAME:KNOB=VALUE,...' of a dataset; '' for the held-out problems of
      the run's own.

  Raises:
    ValueError, FileNotFoundError: in one line.
  """
  c, dataset = opened.configure(path), None
  if data:
    c.data.name, knobs, dataset = problems(data)
    c.data.knobs = config.ConfigDict(knobs)
  elif not config_of_a_run(path):
    raise ValueError(f'{path} has no data of its own: say --data NAME')
  opened.change(c, values)
  _fit_batch(c, dataset)
  progress.say(path)
  with tempfile.TemporaryDirectory() as scratch:
    run, params = opened.load(c, scratch, dataset)
    with jax.set_mesh(run.mesh):
      with progress.doing('compile'):
        samples = train.compile_sample(run)
        process.wait('compiled')  # A collective would not wait as long.
      try:
        with progress.doing('evaluation'):
          result = evaluate.evaluate(
            samples.sample,
            params,
            build.eval_batches(run),
            c.seed + 1,  # As training evaluates.
            run.tokenizer.decode,
            c.eval.right,
            c.eval.reasoned,
            lambda rolled: _answers(run, samples, rolled),
          )
      finally:
        samples.close()
    asked = [example.prompt for example in build.heldout(run)]
  how = {
    'data': c.data.name,
    'temperature': config.eval_temperature(c),
    'top_p': c.eval.top_p,
    'max_tokens': c.rollout.max_tokens,
    'samples': c.eval.samples,
    'right': c.eval.right,
    'seed': c.seed,
  }
  return Evaluated(result, asked, how)


def problems(data: str) -> tuple[str, dict[str, Any], datasets.Dataset]:
  """Name, knobs and problems of a dataset; `data` as in evaluate_path."""
  name, _, arg = data.partition(':')
  knobs = datasets.settings(name, {})
  if arg:
    knobs = config.parse_arg(arg, **knobs).to_dict()
  return name, knobs, datasets.to_evaluate(name, knobs)


def config_of_a_run(path: str) -> bool:
  return opened.initial.is_run(path)


def compare(
  found: Mapping[str, Evaluated], ks: Sequence[int] | None = None
) -> dict[str, Any]:
  """Numbers with 95% intervals, and differences to the first policy.

  `ks` are those of pass@k and maj@k; None is 1 and the completions there are.
  """
  names = list(found)
  each = {name: _scores(x.result, ks) for name, x in found.items()}
  report: dict[str, Any] = {'policies': {}}
  first = names[0]
  for name in names:
    entry = {'how': found[name].how, 'problems': len(found[name].problems)}
    entry['scores'] = {
      key: _interval(values_N) for key, values_N in each[name].items()
    }
    same = found[name].problems == found[first].problems
    if name != first and same:
      entry['difference'] = {
        key: _interval(values_N - each[first][key])
        for key, values_N in each[name].items()
        if key in each[first]
      }
    report['policies'][name] = entry
  return report


def show(report: Mapping[str, Any]) -> None:
  """A column a policy, and below what differs from the first."""
  policies = report['policies']
  table = rich.table.Table(title='Evaluation', title_justify='left')
  table.add_column()
  for name, entry in policies.items():
    table.add_column(f'{name}\n{entry["problems"]} problems', justify='right')
  first, *others = policies.values()
  keys = dict.fromkeys(key for x in policies.values() for key in x['scores'])
  for key in keys:
    cells = [_cell(x['scores'].get(key), key) for x in policies.values()]
    table.add_row(key, *cells)
  if others:
    table.add_section()
  for key in first['scores'] if others else ():
    cells = [_cell(x.get('difference', {}).get(key), key, '+') for x in others]
    table.add_row(f'{key}, difference', '', *cells)
  progress.console.print(table)


def _scores(e: evaluate.Evaluation, ks) -> dict[str, np.ndarray]:
  """Name -> values_N, one a problem."""
  G = e.correct_NG.shape[1]
  ks = sorted(set(ks or (1, G)))
  found = {f'pass@{k}': evaluate.pass_at_k(e.correct_NG, k) for k in ks}
  for k in ks:
    if k > 1 and e.answers_NG is not None:
      votes_N = evaluate.maj_at_k(e.correct_NG, e.answers_NG, k)
      found[f'maj@{k}'] = votes_N
  return found | {
    'reasons': (e.reasoned_NG == 1).mean(axis=1),
    'length': e.lengths_NG.mean(axis=1),
    'truncated': 1 - e.ended_NG.mean(axis=1),
    'unscored': np.isnan(e.correct_NG).mean(axis=1),  # They count as wrong.
  }


def _interval(values_N: np.ndarray) -> dict[str, Any]:
  interval = metrics.bootstrap(values_N)
  assert interval  # There is a problem at least.
  low, high = interval
  return {'mean': float(values_N.mean()), 'low': low, 'high': high}


def _cell(score: Mapping[str, float] | None, key: str, sign: str = '') -> str:
  if score is None:
    return '-'
  mean, low, high = score['mean'], score['low'], score['high']
  if key == 'length':
    return f'{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]'
  mean, low, high = 100 * mean, 100 * low, 100 * high
  return f'{mean:{sign}.1f}% [{low:{sign}.1f}, {high:{sign}.1f}]'


def _answers(run, samples, rolled) -> list[list[str | None]]:
  """As the reward reads them, or else as a reader would."""
  if samples.said:
    return evaluate.canonical(sharding.to_host(samples.said(rolled)))
  rolled = sharding.to_host(rolled)
  return [
    [
      evaluate.written_answer(run.tokenizer.decode(tokens_T[:length].tolist()))
      for tokens_T, length in zip(tokens_GT, lengths_G, strict=True)
    ]
    for tokens_GT, lengths_G in zip(
      rolled.tokens_PGT, rolled.lengths_PG, strict=True
    )
  ]


def _fit_batch(c, dataset) -> None:
  """Batches that the devices divide, no larger than there are problems."""
  devices = jax.device_count()
  if dataset is not None:
    c.eval.problems = min(c.eval.problems, dataset.size('heldout'))

  def up(size):
    return -(-size // devices) * devices

  # More than there are is as many as there are: batches are filled up.
  c.eval.problems = up(c.eval.problems)
  c.eval.batch = up(min(c.eval.batch, c.eval.problems))
  c.data.prompts = devices
