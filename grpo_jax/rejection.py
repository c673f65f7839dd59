"""Rejection sampling: what a policy says best, to be imitated.

  sample(config, workdir) -> summary

For each of some training problems the policy in model.init writes
eval.samples completions. Those that end and pass all bounds of sample.least are
left, each text once, and the sample.keep best of them go into samples.jsonl,
which is what pretrain.files reads. R1's paper (2501.12948) makes its cold
start and its 800,000 fine-tuning samples this way. With sample.margin the best
and the worst of a problem go into pairs.jsonl, for preference.path.

A batch is written down when it is done, so that a sampling that was killed goes
on there: the same command gives the same samples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import json
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from grpo_jax import (
  build,
  evaluate,
  initial,
  process,
  progress,
  sharding,
  train,
)
from grpo_jax.datasets import Example
from grpo_jax.types import Rewards, Rollout

FILE, PAIRS = 'samples.jsonl', 'pairs.jsonl'
Row = dict[str, Any]
_DICE = 2  # Added to the seed: neither training's noise nor evaluation's.


def sample(config: ConfigDict, workdir: str) -> dict[str, Any] | None:
  """Samples from wherever it stands.

  Returns:
    what summary.json holds: problems, completions, how many were kept, and how
    many were left out for which reason; None if a signal stopped it.

  Raises:
    ValueError, FileNotFoundError: in one line, before anything is compiled.
  """
  if not config.model.init:
    raise ValueError("model.init='' is no policy to sample from")
  run = build.build(config, workdir)
  done = run.workdir / 'summary.json'
  if done.exists():
    return json.loads(done.read_text())
  with jax.set_mesh(run.mesh), process.stop_on_signal() as stop:
    batches = build.sample_batches(run, problems(run))
    layout = sharding.param_shardings(run.model, sharding.TRAIN, run.mesh)
    params = initial.load(run.config.model.init, run.model, layout)
    with progress.doing('compile'):
      steps = train.compile_sample(run)
    try:
      with progress.bar('sampling', len(batches)) as advance:
        for i, (prompts, examples) in enumerate(batches):
          if stop and jax.process_count() == 1:
            return None
          if not _batch(run, i).exists():
            seed = run.config.seed + _DICE
            scored = steps.sample(params, prompts, seed, examples)
            said = candidates(run, examples, *sharding.to_host(scored))
            rows, pairs, counts = select(run.config, said)
            found = {'rows': rows, 'pairs': pairs, 'counts': counts}
            _write(_batch(run, i), found)
          advance(i + 1)
    finally:
      steps.close()
    process.wait('sampled')
  return _conclude(run, len(batches))


def problems(run: build.Run) -> list[Example]:
  """Of the training split: the same ones each time, none twice."""
  count = min(run.config.sample.problems, run.dataset.size('train'))
  return run.dataset.batch('train', count, run.config.seed, 0)


def candidates(
  run: build.Run,
  examples: Sequence[Example],
  rollout: Rollout,
  rewards: Rewards,
) -> list[list[Row]]:
  """The completions of each problem, as rows of the files.

  Args:
    run: for its tokenizer.
    examples: the first rows of the batch, which count.
    rollout: their completions, on the host.
    rewards: of these.
  """

  def row(p: int, g: int) -> Row:
    length = int(rollout.lengths_PG[p, g])
    tokens = rollout.tokens_PGT[p, g, :length].tolist()
    parts = {
      name: evaluate.or_none(x[p, g]) for name, x in rewards.parts.items()
    }
    return {
      'prompt': examples[p].prompt,
      'completion': run.tokenizer.decode(tokens),
      'answer': examples[p].answer,
      'length': length,
      'ended': bool(rollout.ended_PG[p, g]),
      'reward': evaluate.or_none(rewards.total_PG[p, g]),
      'reward_parts': parts,
    }

  G = rollout.lengths_PG.shape[1]
  return [[row(p, g) for g in range(G)] for p in range(len(examples))]


def select(
  c: ConfigDict, groups: Sequence[Sequence[Row]]
) -> tuple[list[Row], list[Row], dict[str, int]]:
  """What is kept, the pairs, and how many are left out for which reason."""
  bounds = c.sample.least.to_dict() or {c.eval.right: 1.0}
  rows: list[Row] = []
  pairs: list[Row] = []
  counts: Counter[str] = Counter()
  for group in groups:
    passed: dict[str, Row] = {}
    for row in group:
      reason = _reason(row, bounds)
      if not reason and row['completion'] in passed:
        reason = 'repeated'
      counts[reason or 'passed'] += 1
      if not reason:
        passed[row['completion']] = row
    rows += sorted(passed.values(), key=_order)[: c.sample.keep]
    scored = sorted((x for x in group if x['reward'] is not None), key=_order)
    if c.sample.margin and scored:
      best, worst = scored[0], scored[-1]
      if best['reward'] - worst['reward'] >= c.sample.margin:
        pairs.append(
          {
            'prompt': best['prompt'],
            'chosen': best['completion'],
            'rejected': worst['completion'],
          }
        )
  return rows, pairs, dict(counts)


def _order(row: Row) -> tuple[float, int]:
  """The greatest reward first, and of equal ones the shortest."""
  return -(row['reward'] or 0.0), row['length']


def _reason(row: Row, bounds: Mapping[str, float]) -> str:
  """Why a completion is left out, if it is; an unscored part passes none."""
  if not row['ended']:
    return 'truncated'
  for name, least in bounds.items():
    score = row['reward_parts'][name]
    if score is None or score < least:
      return name
  return ''


def _conclude(run: build.Run, batches: int) -> dict[str, Any]:
  """samples.jsonl, summary.json and a line for the person."""
  rows: list[Row] = []
  pairs: list[Row] = []
  counts: Counter[str] = Counter()
  for i in range(batches):
    found = json.loads(_batch(run, i).read_text())
    rows += found['rows']
    pairs += found['pairs']
    counts.update(found['counts'])
  if not rows and not pairs:
    raise ValueError(
      f'{run.workdir}: of {sum(counts.values())} completions none was kept: '
      f'{dict(counts)}'
    )
  summary = {
    'problems': len(problems(run)),
    'solved': len({row['prompt'] for row in rows}),
    'sampled': sum(counts.values()),
    'kept': len(rows),
    'pairs': len(pairs),
    'length': float(
      np.mean([row['length'] for row in rows or [{'length': 0}]])
    ),
    'reasons': dict(counts),
  }
  if process.is_lead():
    for name, lines in ((FILE, rows), (PAIRS, pairs)):
      text = ''.join(f'{json.dumps(row)}\n' for row in lines)
      process.write(run.workdir / name, text)
    process.write(
      run.workdir / 'summary.json', json.dumps(summary, indent=2) + '\n'
    )
  process.wait('samples')
  line = (
    f'kept {summary["kept"]} of {summary["sampled"]} completions, for '
    f'{summary["solved"]} of {summary["problems"]} problems'
  )
  progress.say(line + (f'; {len(pairs)} pairs' if pairs else ''))
  return summary


def _batch(run: build.Run, i: int) -> epath.Path:
  return run.workdir / 'samples' / f'{i:05}.json'


def _write(path: epath.Path, found: Mapping[str, Any]) -> None:
  if process.is_lead():
    path.parent.mkdir(exist_ok=True)
    process.write(path, json.dumps(found))
