"""The scorer: the process in which rewards run, and how it answers.

In come pickles, at first how to begin (`work`), then (part, completions); out
goes one `pack`ed result for each. Nothing that it writes is ever unpickled.
"""

from collections.abc import Callable
import math
import os
import pickle
import resource
import socket
import struct

from grpo_jax.rewards.host import function

SCORED, RAISED = 0, 1
_HEADER = struct.Struct('<8sBHH')  # Key, status, scores, bytes of detail.


def work(fd: int) -> None:
  """Scores until the pool goes away."""
  connection = socket.socket(fileno=fd)
  stream = connection.makefile('rb')
  key, memory = pickle.load(stream)
  try:
    _limit(memory)
    scorers = [function.load(spec) for spec in pickle.load(stream)]
    connection.sendall(pack(key, SCORED, [], ''))
    me = os.getpid()
    while True:
      part, completions = pickle.load(stream)
      result = pack(key, *_judge(scorers[part], completions))
      if os.getpid() != me:
        os._exit(0)  # A reward forked; there is one answer only.
      connection.sendall(result)
  except EOFError:
    os._exit(0)
  except BaseException as error:
    connection.sendall(pack(key, RAISED, [], _describe(error)))
    os._exit(1)


def _limit(memory: int) -> None:
  os.setsid()
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  with open('/proc/self/oom_score_adj', 'w') as f:
    f.write('1000')  # If memory runs out, this process goes, not the run.


def pack(key: bytes, status: int, scores: list[float], detail: str) -> bytes:
  """One result; inf is a number that is not finite, NaN is None."""
  text = ' '.join(detail.split()).encode('utf-8', 'replace')[:500]
  header = _HEADER.pack(key, status, len(scores), len(text))
  return header + struct.pack(f'<{len(scores)}d', *scores) + text


def unpack(
  key: bytes, count: int, data: bytearray
) -> tuple[int, list[float], str] | None:
  """Takes one result of `count` scores off the front; None while it is cut.

  Raises:
    ValueError: something else than a result is there.
  """
  if len(data) < _HEADER.size:
    return None
  found, status, scores, size = _HEADER.unpack_from(data)
  if found != key or status > RAISED or scores != count or size > 500:
    raise ValueError('the worker wrote something else than a score')
  middle = _HEADER.size + 8 * scores
  if len(data) < middle + size:
    return None
  values = list(struct.unpack_from(f'<{scores}d', data, _HEADER.size))
  detail = data[middle : middle + size].decode('utf-8', 'replace')
  del data[: middle + size]
  return status, values, detail


def _judge(
  scorer: Callable[[list], list], completions: list
) -> tuple[int, list[float], str]:
  """Whatever the scorer does, short of ending the process, ends here."""
  try:
    scores = [_number(score) for score in scorer(completions)]
    if len(scores) != len(completions):
      raise ValueError(f'{len(scores)} scores for {len(completions)} texts')
    return SCORED, scores, ''
  except BaseException as error:
    return RAISED, [math.nan] * len(completions), _describe(error)


def _number(score) -> float:
  """NaN for None, inf for what is not finite, as `pack` has it."""
  if score is None:
    return math.nan
  # Not for text: float('1') would be taken.
  if not hasattr(score, '__float__') and not hasattr(score, '__index__'):
    raise TypeError(f'{score!r:.100} is not a number')
  value = float(score)
  return value if math.isfinite(value) else math.inf


def _describe(error: BaseException) -> str:
  try:
    return f'{type(error).__name__}: {error!s:.500}'
  except BaseException:  # Its __str__ raises.
    return type(error).__name__
