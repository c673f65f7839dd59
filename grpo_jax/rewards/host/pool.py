"""The pool: worker processes, a thread for each, and a line of tasks.

A thread takes a few tasks at a time, as many as its worker needs milliseconds
for, and counts the deadline from one result to the next. When it passes, or
when the worker is lost, that one completion is written off, what was sent
behind it goes back to the head of the line, and a new worker is started.
"""

import collections
from collections.abc import Sequence
import concurrent.futures
import dataclasses
import math
import pickle
import threading
import time

from grpo_jax.rewards.host import checks, process, scorer
from grpo_jax.rewards.host.records import Completion, Failure, Outcome, Spec

# What is sent at once: the seconds that it takes, the tasks and the bytes. It
# has to fit a socket's buffer while the worker is busy with the first of it.
_AHEAD_SECONDS, _AHEAD_TASKS, _AHEAD_BYTES = 0.02, 64, 2**16
_CLOSED = 'the pool of host rewards is closed'


class Pool:
  """Scores completions in worker processes that can be killed."""

  def __init__(
    self, specs: Sequence[Spec], workers: int, memory_gib: float = 4.0
  ):
    """Starts the workers; each of them may map `memory_gib` of memory.

    Raises:
      ValueError: one line that says what cannot work.
    """
    checks.check_all(specs, workers)
    self._specs = tuple(specs)
    self._memory_gib = memory_gib
    self._pace = [math.inf] * len(specs)  # Seconds of one task.
    self._tasks: collections.deque[_Task] = collections.deque()
    self._changed = threading.Condition()
    self._closed = False
    self._nursery = process.open_nursery(self._specs)
    self._workers: list[process.Worker | None] = [None] * workers
    ready: list[concurrent.futures.Future[None]] = [
      concurrent.futures.Future() for _ in range(workers)
    ]
    self._threads = [
      threading.Thread(target=self._serve, args=[i, ready[i]], daemon=True)
      for i in range(workers)
    ]
    for thread in self._threads:
      thread.start()
    errors = [each.exception() for each in ready if each.exception()]
    if errors:
      self.close()
      raise ValueError(str(errors[0])) from errors[0]

  def submit(
    self, completions: Sequence[Completion], group_size: int = 1
  ) -> concurrent.futures.Future[Outcome]:
    """Returns at once. Completions of a group stand next to each other."""
    completions = tuple(completions)
    B = len(completions)
    if group_size < 1 or B % group_size:
      raise ValueError(f'{B} completions are not groups of {group_size}')
    scores = {spec.name: [math.nan] * B for spec in self._specs}
    job = _Job(completions, Outcome(scores, []), B * len(scores))
    job.future.set_running_or_notify_cancel()  # It cannot be cancelled.
    tasks = []
    for part, spec in enumerate(self._specs):
      size = group_size if spec.grouped else 1
      spans = [range(first, first + size) for first in range(0, B, size)]
      tasks += [_Task(job, part, span) for span in spans]
    with self._changed:
      if self._closed:
        raise RuntimeError(_CLOSED)
      self._tasks.extend(tasks)
      self._changed.notify_all()
    if not tasks:
      job.future.set_result(job.outcome)
    return job.future

  def close(self) -> None:
    """Ends all processes; what is still waited for raises RuntimeError."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
      workers = [each for each in self._workers if each]
    for each in workers:
      process.let_go(each)
    for thread in self._threads:
      thread.join()
    process.close_nursery(self._nursery)
    for job in {id(task.job): task.job for task in self._tasks}.values():
      job.future.set_exception(RuntimeError(_CLOSED))
    self._tasks.clear()

  def __enter__(self) -> 'Pool':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _serve(self, i: int, ready: concurrent.futures.Future[None]) -> None:
    """What thread i does: everything with worker i."""
    try:
      self._replace(i)
    except Exception as error:
      return ready.set_exception(error)
    ready.set_result(None)
    while chunk := self._take():
      todo = collections.deque(chunk)
      try:
        self._score(i, todo)
      except TimeoutError as error:
        self._lose(i, todo, 'hung', str(error))
      except Exception as error:  # Whatever it is, it costs one completion.
        self._lose(i, todo, 'died', str(error))
      with self._changed:
        self._tasks.extendleft(reversed(todo))
        self._changed.notify_all()
    self._end(i)

  def _take(self) -> list['_Task']:
    """The next tasks, all of one part; none when the pool is closed."""
    with self._changed:
      self._changed.wait_for(lambda: self._tasks or self._closed)
      if self._closed:
        return []
      chunk = [self._tasks.popleft()]
      part = chunk[0].part
      most = min(_AHEAD_TASKS, _AHEAD_SECONDS / self._pace[part])
      while self._tasks and len(chunk) < most and self._tasks[0].part == part:
        chunk.append(self._tasks.popleft())
      return chunk

  def _score(self, i: int, todo: collections.deque['_Task']) -> None:
    """Scores tasks off the front of `todo`, not always all of them.

    Raises:
      TimeoutError, Lost: with the task that it happened to in front.
    """
    messages = self._messages(todo)
    if not messages:
      return
    each = self._send(i, messages)
    part = todo[0].part
    begin = time.monotonic()
    for _ in messages:
      size = len(todo[0].span)
      seconds = self._specs[part].seconds * size
      status, scores, detail = process.receive(each, size, seconds)
      if status == scorer.SCORED:
        self._settle(todo.popleft(), scores)
      else:
        self._fail(todo.popleft(), 'raised', detail)
    pace = (time.monotonic() - begin) / len(messages)
    self._pace[part] = max(pace, 1e-6)

  def _messages(self, todo: collections.deque['_Task']) -> list[bytes]:
    """As many of the first tasks as may be sent at once."""
    messages: list[bytes] = []
    size = 0
    while len(messages) < len(todo):
      task = todo[len(messages)]
      completions = [task.job.completions[k] for k in task.span]
      try:
        message = pickle.dumps((task.part, completions))
      except Exception as error:
        del todo[len(messages)]
        self._fail(task, 'raised', f'{type(error).__name__}: {error}')
        continue
      size += len(message)
      if messages and size > _AHEAD_BYTES:
        break
      messages.append(message)
    return messages

  def _send(self, i: int, messages: list[bytes]) -> process.Worker:
    """A worker that was lost between two tasks is no task's fault."""
    each = self._workers[i]
    if each and process.alive(each):
      try:
        process.send(each, messages)
        return each
      except process.Lost:
        pass
    each = self._replace(i)
    process.send(each, messages)
    return each

  def _replace(self, i: int) -> process.Worker:
    self._end(i)
    with self._changed:
      if self._closed:
        raise process.Lost(_CLOSED)
      if self._nursery.process.poll() is not None:  # Somebody killed it.
        process.close_nursery(self._nursery)
        self._nursery = process.open_nursery(self._specs)
    each = process.start(self._nursery, self._specs, self._memory_gib)
    with self._changed:
      self._workers[i] = each
      if self._closed:  # Meanwhile; `close` has not seen this one.
        process.let_go(each)
    return each

  def _end(self, i: int) -> None:
    with self._changed:
      each, self._workers[i] = self._workers[i], None
    if each:
      process.stop(each)

  def _lose(
    self, i: int, todo: collections.deque['_Task'], kind: str, detail: str
  ) -> None:
    if self._closed:
      return
    if todo:
      self._fail(todo.popleft(), kind, detail)
    try:
      self._replace(i)
    except (process.Lost, ValueError, OSError):
      pass  # The next task tries again, and tells if it fails.

  def _fail(self, task: '_Task', kind: str, detail: str) -> None:
    """Writes one completion off; a group is tried again, one by one."""
    if len(task.span) > 1:
      singles = [_Task(task.job, task.part, range(k, k + 1)) for k in task.span]
      with self._changed:
        self._tasks.extendleft(reversed(singles))
        self._changed.notify_all()
      return
    self._settle(task, [math.nan], kind, ' '.join(detail.split()))

  def _settle(
    self,
    task: '_Task',
    scores: Sequence[float],
    kind: str = 'nan',
    detail: str = 'not a finite number',
  ) -> None:
    """Keeps scores; inf among them stands for what is not finite."""
    job, name = task.job, self._specs[task.part].name
    with self._changed:
      for k, score in zip(task.span, scores, strict=True):
        if math.isfinite(score):
          job.outcome.scores[name][k] = score
        elif math.isinf(score) or kind != 'nan':
          text = job.completions[k].text
          job.outcome.failures.append(Failure(name, k, kind, detail, text))
      job.left -= len(task.span)
      done = job.left == 0
    if done:
      job.outcome.failures.sort(key=lambda failure: failure.index)
      job.future.set_result(job.outcome)


@dataclasses.dataclass
class _Job:
  """What was submitted at once."""

  completions: tuple[Completion, ...]
  outcome: Outcome
  left: int  # Scores that are still to come.
  future: concurrent.futures.Future = dataclasses.field(
    default_factory=concurrent.futures.Future
  )


@dataclasses.dataclass(frozen=True)
class _Task:
  """One call of one reward: a completion, or a whole group."""

  job: _Job
  part: int
  span: range  # Of the job's completions.
