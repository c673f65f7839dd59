"""What a run writes down of a batch: completions in words, or all its arrays.

Both take rollout and rewards as NumPy arrays (sharding.to_host).

Dimension key: P prompts, G completions each, T completion length.
"""

from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from grpo_jax import batch, build, evaluate, inputs, process
from grpo_jax.types import Rewards, Rollout


def completions(
  run: build.Run, step: int, rollout: Rollout, rewards: Rewards
) -> Iterator[dict[str, Any]]:
  """Rows for completions.jsonl: the groups of the step's first prompts."""
  c = run.config
  advantages_PG = advantages(run, rollout, rewards)
  rows_P = rollout.prompts.rows_P
  assert rows_P is not None
  shown = run.dataset.read('train', rows_P[: c.log.prompts])
  for p, example in enumerate(shown):
    for g in range(c.rollout.group_size):
      length = rollout.lengths_PG[p, g]
      parts = {k: evaluate.or_none(v[p, g]) for k, v in rewards.parts.items()}
      yield {
        'step': step,
        'prompt': example.prompt,
        'answer': example.answer,
        'sample': g,
        'text': run.tokenizer.decode(rollout.tokens_PGT[p, g, :length]),
        'length': int(length),
        'ended': bool(rollout.ended_PG[p, g]),
        'reward': evaluate.or_none(rewards.total_PG[p, g]),
        'reward_parts': parts,
        'advantage': evaluate.or_none(advantages_PG[p, g]),
      }


def advantages(run: build.Run, rollout: Rollout, rewards: Rewards):
  """Of completions; NaN where only the update itself can tell.

  The KL in a reward, which it knows too, is left out.
  """
  advantage = build.choose('advantage', run.config)
  wants = inputs.asks(advantage)
  if {'logps_PGT', 'squares_PGT', 'correction_PGT'}.intersection(wants):
    return np.full(rewards.total_PG.shape, np.nan)
  rollout, rewards, more = batch.part_greedy(wants, rollout, rewards)
  found_PGT = batch.compare(advantage, rollout, rewards, **more)
  mask_PGT = rollout.actions_PGT
  lengths_PG = np.maximum(np.sum(mask_PGT, axis=-1), 1)
  return np.sum(np.where(mask_PGT, found_PGT, 0.0), axis=-1) / lengths_PG


def give_up(
  run: build.Run, step: int, rollout: Rollout, rewards: Rewards
) -> NoReturn:
  """Saves the batch whose gradient was not taken, and ends the run."""
  path = run.workdir / f'not_finite_{step}.npz'
  if process.is_lead():
    leaves = jax.tree_util.tree_leaves_with_path((rollout, rewards))
    names = [
      jax.tree_util.keystr(at[1:], simple=True, separator='.')
      for at, _ in leaves
    ]
    with path.open('wb') as file:
      np.savez(file, **dict(zip(names, (x for _, x in leaves), strict=True)))
  raise FloatingPointError(
    f'step {step}: {run.config.updates.max_skipped} optimizer steps in a row '
    f'(updates.max_skipped) were not taken, because loss or gradient was not '
    f"finite, or beyond the bound of an alarm whose action is 'skip'; the "
    f'batch is in {path}'
  )
