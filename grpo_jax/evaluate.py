"""How good a policy is on problems that it never trained on.

Completions come from the same `rollout` and are scored by the same `reward` as
in training. The noise depends on the problem, so that two checkpoints are
compared on the same problems with the same dice.

Dimension key: N problems, G completions of each.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
from typing import Any

from etils import epath
import numpy as np
import scipy.special

from grpo_jax import metrics, process, sharding
from grpo_jax.datasets import Example, math
from grpo_jax.types import Params, Prompts, Rewards, Rollout

METRICS = tuple(  # Of a step that is evaluated; see `measure`.
  f'eval/{name}'
  for name in ('accuracy', 'reasoning', 'reward', 'length', 'truncated')
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One row a problem, one column a completion."""

  correct_NG: np.ndarray  # Score of the part that tells what is right.
  reasoned_NG: np.ndarray  # Of the part that tells what reasons.
  reward_NG: np.ndarray  # The weighted sum that training maximises.
  lengths_NG: np.ndarray  # Tokens.
  ended_NG: np.ndarray
  texts: list[str]  # The first completion of each problem.
  prompts: Sequence[str] = ()  # The problems; files of earlier versions lack
  answers: Sequence[str] = ()  # them, and their answers.
  # What each completion answers, for votes; None where it does not.
  answers_NG: Sequence[Sequence[str | None]] | None = None
  # Part of the reward -> score_NG, of all there are.
  parts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def evaluate(
  sample: Callable[..., tuple[Rollout, Rewards]],
  params: Params,
  batches: Sequence[tuple[Prompts, Sequence[Example]]],
  seed: int,
  decode: Callable[[Sequence[int]], str],
  right: str = 'answer',
  reasoned: str = 'format',
  answers: Callable[[Rollout], list[list[str | None]]] | None = None,
) -> Evaluation:
  """Samples and scores.

  Args:
    sample: (params, prompts, seed, examples) -> (rollout, rewards), compiled.
    params: the policy's parameters.
    batches: prompts, and the examples that count: further rows are padding.
    seed: of the noise.
    decode: token ids to text.
    right: the part of the reward that tells whether an answer is right.
    reasoned: the part that tells whether there is a reasoning.
    answers: what completions answer, if there is to be a vote.
  """
  columns, texts, answers_NG = [], [], []
  problems: list[Example] = []
  parts = collections.defaultdict(list)
  for prompts, examples in batches:
    count = len(examples)
    scored = sample(params, prompts, seed, examples)
    if answers:
      answers_NG += answers(scored[0])[:count]
    rollout, rewards = sharding.to_host(scored)
    columns.append(
      [
        x[:count]
        for x in (
          rewards.parts[right],
          rewards.parts[reasoned],
          rewards.total_PG,
          rollout.lengths_PG,
          rollout.ended_PG,
        )
      ]
    )
    for name, score_PG in rewards.parts.items():
      parts[name].append(score_PG[:count])
    for tokens_T, length in zip(
      rollout.tokens_PGT[:count, 0], rollout.lengths_PG[:count, 0], strict=True
    ):
      texts.append(decode(tokens_T[:length].tolist()))
    problems.extend(examples)
  correct_NG, reasoned_NG, reward_NG, lengths_NG, ended_NG = (
    np.concatenate(x) for x in zip(*columns, strict=True)
  )
  return Evaluation(
    correct_NG,
    reasoned_NG,
    reward_NG,
    lengths_NG,
    ended_NG,
    texts,
    [example.prompt for example in problems],
    [example.answer for example in problems],
    answers_NG or None,
    {name: np.concatenate(x) for name, x in parts.items()},
  )


def pass_at_k(correct_NG: np.ndarray, k: int) -> np.ndarray:
  """Chance that one of k completions is right, for each of N problems.

  The unbiased estimate from G >= k completions (2107.03374): the share of the
  sets of k, of all that there are, which hold a right one.
  """
  G = correct_NG.shape[1]
  _check_k(k, G)
  wrong_N1 = np.sum(correct_NG != 1, axis=1)[:, None]
  drawn_K = np.arange(k)  # All k are wrong, one after the other.
  return 1 - np.prod(np.maximum(wrong_N1 - drawn_K, 0) / (G - drawn_K), axis=1)


def maj_at_k(
  correct_NG: np.ndarray,
  answers_NG: Sequence[Sequence[str | None]],
  k: int,
) -> np.ndarray:
  """Chance that the commonest answer of k completions is right.

  Self-consistency (2203.11171), as the exact mean over all sets of k of the G
  completions. Of answers that are equally common each wins as often, and that
  is its expected value; completions without an answer do not vote, and a set
  of them alone is wrong. An answer is as right as the mean of those who give
  it, which differ only where the reward looks at more than the answer.
  """
  _check_k(k, correct_NG.shape[1])
  rows = zip(correct_NG == 1, answers_NG, strict=True)
  return np.array([_vote(right_G, answers_G, k) for right_G, answers_G in rows])


def _check_k(k: int, G: int) -> None:
  if not 1 <= k <= G:
    raise ValueError(f'k={k} is not from 1 to {G}, the completions there are')


def _vote(right_G, answers_G, k: int) -> float:
  votes = collections.defaultdict(list)
  for right, given in zip(right_G, answers_G, strict=True):
    votes[given].append(right)
  silent = len(votes.pop(None, ()))
  counts = {given: len(rights) for given, rights in votes.items()}
  total = 0.0
  for given, rights in votes.items():
    if any(rights):
      others = [n for other, n in counts.items() if other != given]
      total += np.mean(rights) * _wins(len(rights), others, silent, k)
  return total


def _wins(own: int, others: Sequence[int], silent: int, k: int) -> float:
  """Chance that an answer with `own` votes wins in a set of k completions.

  Counts the sets: a polynomial's coefficient z^i y^t is how many there are of i
  completions in which t other answers are as common as this one.
  """
  choose = scipy.special.comb
  won = 0.0
  for m in range(1, min(own, k) + 1):  # Its votes.
    rest = k - m
    sets_IT = np.zeros((rest + 1, rest // m + 1))
    drawn = np.arange(min(silent, rest) + 1)
    sets_IT[drawn, 0] = choose(silent, drawn)
    for n in others:
      longer_IT = np.zeros_like(sets_IT)
      for i in range(min(n, m, rest) + 1):
        ways = choose(n, i) * sets_IT[: rest + 1 - i]
        if i < m:
          longer_IT[i:] += ways
        else:
          longer_IT[i:, 1:] += ways[:, :-1]
      sets_IT = longer_IT
    ties_T = np.arange(sets_IT.shape[1])
    won += choose(own, m) * np.sum(sets_IT[rest] / (1 + ties_T))
  return won / choose(own + sum(others) + silent, k)


def canonical(said: Mapping[str, np.ndarray]) -> list[list[str | None]]:
  """Answers as text from the arrays of rewards.answer.said."""
  P, G = said['known_PG'].shape

  def one(p, g):
    if not said['known_PG'][p, g]:
      return None
    over, under = said['ratio_PG2'][p, g].tolist()
    if under:
      return f'{over}/{under}' if under != 1 else f'{over}'
    return (
      bytes(said['bytes_PGC'][p, g]).rstrip(b'\0').decode('utf-8', 'replace')
    )

  return [[one(p, g) for g in range(G)] for p in range(P)]


def written_answer(text: str) -> str | None:
  """For rewards that do not say what they read: a box, or <answer> tags."""
  found = math.boxed(text)
  if found is None and '<answer>' in text:
    found = text.rpartition('<answer>')[2].partition('</answer>')[0]
  return None if found is None else ' '.join(found.split())


def measure(e: Evaluation) -> dict[str, float]:
  """Metrics of a step: means over all completions, NaN of none."""
  reward = _mean(_scored_mean(e.reward_NG))
  found = (
    (e.correct_NG == 1).mean(),
    (e.reasoned_NG == 1).mean(),
    float('nan') if reward is None else reward,
    e.lengths_NG.mean(),
    1 - e.ended_NG.mean(),
  )
  return dict(zip(METRICS, map(float, found), strict=True))


def summarize(e: Evaluation) -> dict[str, Any]:
  """Shares over all completions; the interval is over problems (bootstrap)."""
  right, reasoned = e.correct_NG == 1, e.reasoned_NG == 1
  reward_N = _scored_mean(e.reward_NG)

  def share(of, where):
    return float(of[where].mean()) if where.any() else None

  return {
    'accuracy': float(right.mean()),
    'accuracy_interval': metrics.bootstrap(right.mean(axis=1)),
    'accuracy_reasoned': share(right, reasoned),
    'accuracy_direct': share(right, ~reasoned),
    'reasoning': float(reasoned.mean()),
    'length': float(e.lengths_NG.mean()),
    'reward': _mean(reward_N),
    'reward_interval': metrics.bootstrap(reward_N),
    'truncated': float(1 - e.ended_NG.mean()),
  }


def gain(before: Evaluation, after: Evaluation) -> dict[str, Any]:
  """What training changed, paired by problem (95% bootstrap intervals)."""
  right = (after.correct_NG == 1).mean(axis=1)
  right -= (before.correct_NG == 1).mean(axis=1)
  reward = _scored_mean(after.reward_NG, before.reward_NG)
  reward -= _scored_mean(before.reward_NG, after.reward_NG)
  return {
    'accuracy_gain': float(right.mean()),
    'accuracy_gain_interval': metrics.bootstrap(right),
    'reward_gain': _mean(reward),
    'reward_gain_interval': metrics.bootstrap(reward),
  }


def _scored_mean(reward_NG: np.ndarray, *others_NG: np.ndarray) -> np.ndarray:
  """Each problem's mean, without those that have no score here or there."""
  known_N = np.all(
    [(~np.isnan(x)).any(axis=1) for x in (reward_NG, *others_NG)], axis=0
  )
  return np.nanmean(reward_NG[known_N], axis=1)


def _mean(values_N: np.ndarray) -> float | None:
  return float(values_N.mean()) if len(values_N) else None


def mean_score(score_NG: np.ndarray) -> float | None:
  """Of the completions that have one; None if there are none."""
  known = score_NG[~np.isnan(score_NG)]
  return float(known.mean()) if known.size else None


def or_none(score: float) -> float | None:
  """JSON has no NaN."""
  return None if np.isnan(score) else float(score)


def save(e: Evaluation, path: epath.Path) -> None:
  """As JSON, so that a run that goes on need not sample it again."""
  fields = dataclasses.asdict(e)
  process.write(path, json.dumps(_plain(fields)))


def _plain(value):
  if isinstance(value, Mapping):
    return {name: _plain(x) for name, x in value.items() if x is not None}
  return value.tolist() if isinstance(value, np.ndarray) else value


def load(path: epath.Path) -> Evaluation:
  fields: dict[str, Any] = json.loads(path.read_text())
  parts = {name: np.array(x) for name, x in fields.pop('parts', {}).items()}
  answers_NG = fields.pop('answers_NG', None)  # Texts, or None.
  fields = {
    name: np.array(value) if name.endswith('_NG') else value
    for name, value in fields.items()
  }
  return Evaluation(**fields, answers_NG=answers_NG, parts=parts)
