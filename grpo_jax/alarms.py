"""Says in words when a run goes wrong.

  judge(past, step, numbers, knobs) -> (past, alarms)

Each alarm is a row of ALARMS: what is measured, and a sentence that says what
it means and what to try; its bound and its action are in c.alarms. To add one,
write a row here, its knobs in config.py and a line in README.

What is measured comes from the numbers of metrics.jsonl alone, which all
processes have: they come to the same verdict, and so does a run that goes on,
after it has been told of the steps before. An alarm is heard once, and again
when its number has been within bounds for ten steps. A number that is not there
is not judged, and one that is not finite is out of bounds.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
from typing import NamedTuple

_LONG, _SHORT = 60, 10  # Steps that are remembered, and of a mean.
_QUIET = 10  # Steps within bounds until an alarm may be heard again.

Row = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Alarm:
  """A line of alarms.jsonl."""

  step: int
  name: str
  value: float | None  # None: not finite.
  threshold: float
  sentence: str
  action: str  # 'warn', 'skip' or 'stop'.


class Count(NamedTuple):
  """How it stands with one alarm."""

  beyond: int = 0  # Steps in a row,
  within: int = 0  # and steps in a row.
  sounding: bool = False


class Evaluation(NamedTuple):
  step: int
  accuracy: float
  reward: float  # In training, the mean of the last steps.


@dataclasses.dataclass(frozen=True)
class Past:
  """What of the steps so far is needed to judge the next ones."""

  rows: tuple[Row, ...] = ()  # The newest is the last.
  best: Evaluation | None = None
  counts: Mapping[str, Count] = dataclasses.field(default_factory=dict)


def judge(
  past: Past,
  step: int,
  numbers: Mapping[str, float | None],
  knobs: Mapping[str, Mapping],
) -> tuple[Past, list[Alarm]]:
  """The past of the next step, and the alarms that are to be heard now.

  Args:
    past: of the step.
    step: its number.
    numbers: its metrics; null in metrics.jsonl is what was not finite.
    knobs: `config.alarms`.
  """
  if 'rollout/length' not in numbers:  # Pre-training.
    return past, []
  row = {k: math.nan if x is None else x for k, x in numbers.items()}
  past = dataclasses.replace(past, rows=(*past.rows, row)[-_LONG:])
  found, counts = [], dict(past.counts)
  for name, (measure, sentence) in ALARMS.items():
    above = knobs[name].get('above', math.inf)
    below = knobs[name].get('below', -math.inf)
    action, steps = knobs[name]['action'], knobs[name]['steps']
    value = measure(past)
    if value is None or action == 'off':
      continue
    is_within = below <= value <= above  # Not so if it is not a number.
    counts[name], heard = _count(counts.get(name, Count()), is_within, steps)
    if heard:
      said = sentence.format(
        value=value, steps=steps, since=past.best and past.best.step
      )
      shown = value if math.isfinite(value) else None
      bound = above if math.isfinite(above) else below
      said += _ACTIONS[action]
      found.append(Alarm(step, name, shown, bound, said, action))
  best = past.best
  if 'eval/accuracy' in row:
    now = Evaluation(step, row['eval/accuracy'], _reward(past.rows))
    best = max(best or now, now, key=lambda x: x.accuracy)
  return dataclasses.replace(past, counts=counts, best=best), found


class Watch:
  """Judges one step after the other."""

  def __init__(
    self, knobs: Mapping[str, Mapping], rows: Iterable[Mapping] = ()
  ):
    """`rows` are those of metrics.jsonl up to the first step to judge."""
    self._knobs, self._past = knobs, Past()
    for row in rows:
      self(row['step'], row)

  def __call__(
    self, step: int, numbers: Mapping[str, float | None]
  ) -> list[Alarm]:
    self._past, found = judge(self._past, step, numbers, self._knobs)
    return found


def _count(count: Count, is_within: bool, steps: int) -> tuple[Count, bool]:
  """Counts on; whether the alarm is to be heard now."""
  beyond = 0 if is_within else count.beyond + 1
  within = count.within + 1 if is_within else 0
  sounding = count.sounding and within < _QUIET
  heard = beyond >= steps and not sounding
  return Count(beyond, within, sounding or heard), heard


def _number(name: str) -> Callable[[Past], float | None]:
  return lambda past: past.rows[-1].get(name)


def _growth(past: Past) -> float | None:
  """Length of a few steps, in that of the first few that are remembered."""
  lengths = [row['rollout/length'] for row in past.rows]
  if len(lengths) < 2 * _SHORT:
    return None
  return _mean(lengths[-_SHORT:]) / _mean(lengths[:_SHORT])


def _loss_of_accuracy(past: Past) -> float | None:
  """Since the best evaluation, 0 where the reward does not rise besides."""
  accuracy = past.rows[-1].get('eval/accuracy')
  if accuracy is None or past.best is None:
    return None
  rises = _reward(past.rows) > past.best.reward
  return past.best.accuracy - accuracy if rises else 0.0


def _reward(rows: tuple[Row, ...]) -> float:
  """Of the last steps, before groups were chosen by their rewards."""
  return _mean(
    row.get('groups/reward_sampled', row['reward/mean'])
    for row in rows[-_SHORT:]
  )


def _mean(values: Iterable[float]) -> float:
  values = list(values)
  return math.fsum(values) / len(values)


_ACTIONS = {
  'warn': '',
  'skip': ' Such a step is not taken.',
  'stop': ' The run is saved and stops.',
}

# Name -> what is measured, and what it means.
ALARMS: dict[str, tuple[Callable[[Past], float | None], str]] = {
  'drift': (
    _number('rollout/logp_drift'),
    'A token is {value:.2g} nats more or less likely to the trainer than to '
    'the sampler: what is learnt from is what another policy wrote. In '
    'bfloat16 try model.dtype=float32 for some steps, or weigh tokens by '
    'off_policy; in float32 look for where the model decodes differently from '
    'how it trains.',
  ),
  'duplicates': (
    _number('rollout/repeats'),
    'Problems that come again are answered as they were before, in {value:.0%} '
    'more of them than chance would have it: the sampler throws the same dice. '
    'Look where its key comes from; it has to change from step to step.',
  ),
  'degenerate': (
    _number('groups/degenerate'),
    'For {steps} steps no group had two different rewards: nothing was learnt. '
    'If the reward is high, the problems are solved; if it is low, take easier '
    'ones, worked examples (data.shots), a greater rollout.group_size or '
    'dynamic.batches.',
  ),
  'truncated': (
    _number('rollout/truncated'),
    '{value:.0%} of completions are cut before their end, and scored without '
    'an answer: the policy learns to be short. Raise rollout.max_tokens, or '
    "set truncated='mask', or a soft penalty (the reward overlong).",
  ),
  'entropy': (
    _number('rollout/entropy'),
    'The policy has no doubt left ({value:.1g} nats a token): the completions '
    'of a group are the same, and none can be better. If that is too soon, try '
    'a smaller optim.lr, a greater loss.clip_high (0.28), entropy.coef, a KL '
    '(kl.coef) or a higher rollout.temperature.',
  ),
  'ratio': (
    _number('policy/log_ratio_max'),
    'A token is {value:.3g} nats more or less likely than when it was sampled: '
    'the policy has moved so far in one step that its batch says little of it. '
    'Try a smaller optim.lr, fewer updates.passes or updates.minibatches, or a '
    "bounded ratio (loss.name='dual_clip', 'two_sided').",
  ),
  'gradient': (
    _number('grad_norm_max'),
    'The norm of the gradient is {value:.3g} before it is clipped. Once may be '
    'a bad batch; if it comes again, try a smaller optim.lr, optim.warmup or a '
    'smaller optim.clip_norm, and look at what the completions of this step '
    'were rewarded for.',
  ),
  'length': (
    _growth,
    'Completions are {value:.1f} times as long as 50 steps before. If held-out '
    'accuracy does not rise with them, it is length that earns the reward: '
    'look at its parts, and try the rewards overlong and repetition, or '
    "aggregate.name='constant_length'.",
  ),
  'hacking': (
    _loss_of_accuracy,
    'Held-out accuracy is {value:.1%} below that of step {since}, and the '
    'training reward has risen: what is rewarded is not what is meant. Read '
    'completions with a high reward, gate or lower the parts that are earned '
    'without being right, and go back to the best checkpoint '
    "(checkpoint.best='eval/accuracy').",
  ),
}
