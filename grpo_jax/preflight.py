"""What a run will look like, from one batch of the model as it is.

  preflight(config, workdir) -> Findings, printed as tables and in words

Most runs that learn nothing could have been known by their first batch: all
completions cut at the limit, no group with two different rewards, a part of the
reward that nobody earns. `warnings` says so in sentences. To add one, measure
it in `Findings`, and say there what it means and what to try.

Dimension key: P prompts, G completions of each.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import tempfile

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np
import rich.table

from grpo_jax import build, checkpoint, fit, progress, sharding, train
from grpo_jax import config as config_lib
from grpo_jax.rewards import host, mix
from grpo_jax.types import Rewards, Rollout

_BINS = 8  # Of a histogram.


@dataclasses.dataclass(frozen=True)
class Findings:
  """One batch, measured; lengths in tokens."""

  step: int  # Of the model that was looked at.
  untrained: bool  # Its weights are random.
  pretrain_steps: int
  prompt_lengths_P: np.ndarray
  max_prompt: int
  lengths_PG: np.ndarray
  ended_PG: np.ndarray  # bool
  max_tokens: int
  repeats_PG: np.ndarray  # bool: the text of an earlier one of its group.
  parts: Mapping[str, np.ndarray]  # Name -> score_PG.
  weights: Mapping[str, float]
  total_PG: np.ndarray
  failures: Mapping[str, int]  # Host reward, and how -> completions.


def preflight(config: ConfigDict, workdir: str | None = None) -> Findings:
  """Samples and scores a batch, and prints what it says of the run.

  Args:
    config: of the run that is meant.
    workdir: of a run that has begun: its model as it is by now. A new one, or
      None, is about the starting model, and nothing is left behind.

  Raises:
    ValueError, FileNotFoundError: as the run itself would.
  """
  with tempfile.TemporaryDirectory() as scratch:
    begun = None
    if workdir and (epath.Path(workdir) / 'config.json').exists():
      begun = workdir
    run = build.build(config, begun or scratch)
    with jax.set_mesh(run.mesh):
      state = train.start(run)
      if begun:
        c = config.checkpoint
        manager = checkpoint.open_manager(
          run.workdir / 'checkpoints', c.keep, c.best
        )
        state = fit.resume(run, manager)
        manager.close()
      with progress.doing('compile and sample'):
        news = train.next_batch(run, state)
        rollout, rewards = sharding.to_host((news.rollout, news.rewards))
    found = measure(run, int(state.step), rollout, rewards, news.failures)
    _show(found)
    _examples(run, rollout, rewards)
    for line in warnings(found) or ['Nothing here speaks against the run.']:
      progress.say(f'- {line}')
  return found


def measure(
  run: build.Run,
  step: int,
  rolled: Rollout,
  rewards: Rewards,
  failures: Sequence[host.Failure],
) -> Findings:
  """Turns a batch, as NumPy arrays, into numbers."""
  c = run.config
  parts = mix.parse(config_lib.reward_mix(c))
  kinds = [f'{x.part} {x.kind}' for x in failures]
  return Findings(
    step=step,
    untrained=not c.model.init and step == 0,
    pretrain_steps=c.pretrain.steps,
    prompt_lengths_P=rolled.prompts.lengths_P,
    max_prompt=c.data.max_prompt,
    lengths_PG=rolled.lengths_PG,
    ended_PG=rolled.ended_PG,
    max_tokens=c.rollout.max_tokens,
    repeats_PG=_repeats(rolled.tokens_PGT, rolled.lengths_PG),
    parts=rewards.parts,
    weights={part.name: part.weight for part in parts},
    total_PG=rewards.total_PG,
    failures={kind: kinds.count(kind) for kind in sorted(set(kinds))},
  )


def warnings(f: Findings) -> list[str]:
  """What will go wrong, in words; the gravest first."""
  found = []
  if f.untrained:
    found.append(
      f'This model is random and {f.pretrain_steps} steps of pre-training come '
      'first: give the --workdir of a run that has done them to see what RL '
      'starts from.'
      if f.pretrain_steps
      else 'This model is random (model.init is empty, pretrain.steps is 0): '
      'it has nothing that RL could select.'
    )
  cut = 1 - f.ended_PG.mean()
  if cut > 0.5:
    found.append(
      f'{cut:.0%} of completions are cut at {f.max_tokens} tokens: what comes '
      'after is never scored. Raise rollout.max_tokens, or ask for less.'
    )
  elif cut > 0.1:
    found.append(
      f'{cut:.0%} of completions are cut at {f.max_tokens} tokens '
      '(rollout.max_tokens).'
    )
  unscored = np.isnan(f.total_PG).mean()
  if unscored:
    found.append(f'{unscored:.0%} of completions have no reward at all.')
  for kind, count in f.failures.items():
    found.append(f'Host reward {kind} on {count} completions.')
  equal = _equal(f.total_PG).mean()
  if equal == 1:
    found.append(
      'No group has two different rewards: the first step teaches nothing. '
      'Take easier problems, worked examples (data.shots), or more completions '
      '(rollout.group_size).'
    )
  elif equal > 0.5:
    found.append(
      f'{equal:.0%} of groups have equal rewards and teach nothing: the batch '
      f'is as good as {np.sum(~_equal(f.total_PG))} prompts.'
    )
  for name, score_PG in f.parts.items():
    scored = score_PG[~np.isnan(score_PG)]
    if f.weights.get(name) and scored.size and np.ptp(scored) == 0:
      found.append(
        f'The reward {name!r} is {scored[0]:g} for every completion: it says '
        'nothing yet. If it is never earned it cannot be learnt.'
      )
    share = np.isnan(score_PG).mean()
    if f.weights.get(name) and 0 < share:
      found.append(f'The reward {name!r} leaves {share:.0%} unscored.')
  repeats = f.repeats_PG.mean()
  if repeats > 0.5:
    found.append(
      f'{repeats:.0%} of completions repeat another one of their group: raise '
      'rollout.temperature, or take problems with more to say.'
    )
  longest = f.prompt_lengths_P.max()
  if longest < f.max_prompt / 2:
    found.append(
      f'The longest of these prompts has {longest} tokens and room for '
      f'{f.max_prompt}: a smaller data.max_prompt is faster.'
    )
  return found


def _equal(score_PG: np.ndarray) -> np.ndarray:
  """Groups without two different scores."""
  low_P = np.min(np.where(np.isnan(score_PG), np.inf, score_PG), axis=1)
  high_P = np.max(np.where(np.isnan(score_PG), -np.inf, score_PG), axis=1)
  return low_P >= high_P


def _repeats(tokens_PGT: np.ndarray, lengths_PG: np.ndarray) -> np.ndarray:
  repeats_PG = np.zeros(lengths_PG.shape, bool)
  for p, (tokens_GT, lengths_G) in enumerate(
    zip(tokens_PGT, lengths_PG, strict=True)
  ):
    seen = set()
    for g, (row, length) in enumerate(zip(tokens_GT, lengths_G, strict=True)):
      text = tuple(row[:length].tolist())
      repeats_PG[p, g] = text in seen
      seen.add(text)
  return repeats_PG


def _show(f: Findings) -> None:
  P, G = f.total_PG.shape
  table = rich.table.Table(
    title=f'{P} prompts, {G} completions of each', title_justify='left'
  )
  table.add_column('reward')
  for heading in ('weight', 'mean', 'groups without spread'):
    table.add_column(heading, justify='right')
  table.add_column('least')
  table.add_column('histogram')
  table.add_column('greatest')
  rows = [*f.parts.items(), ('total', f.total_PG)]
  for name, score_PG in rows:
    scored = score_PG[~np.isnan(score_PG)]
    cells = ['-'] * 3
    if scored.size:
      cells = [f'{scored.min():g}', _bars(scored), f'{scored.max():g}']
    table.add_row(
      name,
      f'{f.weights[name]:g}' if name in f.weights else '',
      f'{scored.mean():.3f}' if scored.size else '-',
      f'{_equal(score_PG).mean():.0%}',
      *cells,
    )
  progress.console.print(table)
  for name, tokens, limit in (
    ('prompts', f.prompt_lengths_P, f.max_prompt),
    ('completions', f.lengths_PG, f.max_tokens),
  ):
    low, middle, high = np.percentile(tokens, [0, 50, 100]).astype(int)
    progress.say(
      f'tokens of {name}: {low} to {high}, half of them up to {middle}; '
      f'the limit is {limit}'
    )
  progress.say(f'completions cut at the limit: {1 - f.ended_PG.mean():.0%}')


def _bars(scores: np.ndarray) -> str:
  """A histogram in a line: how many from the least to the greatest."""
  counts, _ = np.histogram(scores, bins=_BINS)
  steps = ' ▁▂▃▄▅▆▇█'
  heights = np.ceil(counts / counts.max() * (len(steps) - 1)).astype(int)
  return ''.join(steps[height] for height in heights)


def _examples(run: build.Run, rolled: Rollout, rewards: Rewards) -> None:
  """The best and the worst completion, of two prompts, as the model wrote."""
  rows_P = rolled.prompts.rows_P
  assert rows_P is not None
  for p, example in enumerate(run.dataset.read('train', rows_P[:2])):
    score_G = np.nan_to_num(rewards.total_PG[p], nan=-np.inf)
    g = int(score_G.argmax() if p == 0 else score_G.argmin())
    length = rolled.lengths_PG[p, g]
    prompt_ids = rolled.prompts.tokens_PL[p, : rolled.prompts.lengths_P[p]]
    parts = ', '.join(
      f'{name} {score_PG[p, g]:g}' for name, score_PG in rewards.parts.items()
    )
    progress.say(f'\n[{"best" if p == 0 else "worst"} of its group; {parts}]')
    progress.say(f'prompt: {run.tokenizer.decode(prompt_ids.tolist())}')
    text = run.tokenizer.decode(rolled.tokens_PGT[p, g, :length].tolist())
    progress.say(f'completion: {text}')
    progress.say(f'reference: {example.answer}')
  progress.say('')
