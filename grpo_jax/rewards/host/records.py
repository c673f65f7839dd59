"""What goes into a pool of host rewards and what comes out of it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Completion:
  """What a host reward sees of one completion. It travels by pickle."""

  text: str  # The completion, decoded.
  prompt: str = ''  # The question.
  answer: str = ''  # The reference answer.
  # Whatever else the dataset says of the problem; JSON can say it.
  columns: dict[str, Any] = dataclasses.field(default_factory=dict)
  source: str = ''  # The name of the dataset.
  token_ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Spec:
  """One part of the mix."""

  name: str  # Its key in the scores and metrics.
  function: str  # 'maths', 'code', 'gym', or 'module:function'.
  signature: str = 'score'  # Of a 'module:function': 'score', 'trl', 'verl'.
  seconds: float = 5.0  # The deadline of one completion.
  knobs: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def grouped(self) -> bool:
    """Whether one call scores a whole group (TRL's signature only)."""
    return self.signature == 'trl' and bool(self.knobs.get('group'))


@dataclasses.dataclass(frozen=True)
class Failure:
  """A completion that a part could not score, though it should have."""

  part: str
  index: int  # Of the completion in the list that was submitted.
  # 'raised': an exception, or something that is not a number.
  # 'nan':    a number that is not finite.
  # 'hung':   no score within the deadline.
  # 'died':   the worker's process ended, or wrote something else than a score.
  kind: str
  detail: str  # One line.
  text: str  # The completion.


@dataclasses.dataclass
class Outcome:
  """Scores of the completions in their order; NaN is 'not scored'."""

  scores: dict[str, list[float]]
  failures: list[Failure]
