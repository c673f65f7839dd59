"""Scorers: lists of completions to lists of scores, made from a `Spec`.

The signatures of a user's 'module:function' are

  score  f(completion, **knobs) -> float | None
  trl    f(prompts, completions, completion_ids, **columns) -> list of those
  verl   compute_score(data_source, solution_str, ground_truth, extra_info)
           -> float, or a dict with 'score'

Each may be `async`. TRL's gets lists of length 1; of a whole group with the
knob `group=True`, for functions that compare the completions of a prompt; its
prompts and completions are plain text, or lists of messages with `chat=True`.
All other knobs are handed on as keywords.
"""

import asyncio
from collections.abc import Callable
import importlib
import inspect
import operator
from typing import Any

from grpo_jax.rewards.host.records import Completion, Spec

Scorer = Callable[[list[Completion]], list[Any]]
BUILT_IN = ('maths', 'code', 'gym')
SIGNATURES = ('score', 'trl', 'verl')


def load(spec: Spec) -> Scorer:
  """Imports the function and gives it the one signature of all scorers.

  Raises:
    TypeError: it cannot be called in this way.
    ImportError, AttributeError: it is not there.
  """
  if spec.function in BUILT_IN:
    module = importlib.import_module(f'{__package__}.{spec.function}')
    function = getattr(module, spec.function)
    # Code that hangs is wrong, not unscored: code.py keeps the time itself.
    own = {'seconds': spec.seconds} if spec.function == 'code' else {}
    return _score(function, own | spec.knobs)
  module, _, name = spec.function.partition(':')
  function = operator.attrgetter(name)(importlib.import_module(module))
  if not callable(function):
    raise TypeError(f'{spec.function} is {function!r:.50}, not a function')
  return {'score': _score, 'trl': _trl, 'verl': _verl}[spec.signature](
    function, dict(spec.knobs)
  )


def _score(function: Callable, knobs: dict[str, Any]) -> Scorer:
  inspect.signature(function).bind(None, **knobs)
  return lambda completions: [_await(function(c, **knobs)) for c in completions]


def _trl(function: Callable, knobs: dict[str, Any]) -> Scorer:
  """Passes what the function accepts; takes all if it has **kwargs."""
  chat = knobs.pop('chat', False)
  knobs.pop('group', None)  # The pool has cut the groups.
  accepted = inspect.signature(function).parameters
  greedy = any(p.kind == p.VAR_KEYWORD for p in accepted.values())
  unknown = [name for name in knobs if not greedy and name not in accepted]
  if unknown:
    raise TypeError(f'got an unexpected keyword argument {unknown[0]!r}')

  def scorer(completions: list[Completion]) -> list[Any]:
    names = {name: None for c in completions for name in c.columns}
    given: dict[str, Any] = {
      name: [c.columns.get(name) for c in completions] for name in names
    }
    answers = [c.answer for c in completions]
    given = {'answer': answers, 'solution': answers} | given
    given |= {
      'prompts': [_messages('user', c.prompt, chat) for c in completions],
      'completions': [
        _messages('assistant', c.text, chat) for c in completions
      ],
      'completion_ids': [list(c.token_ids) for c in completions],
      'trainer_state': None,
      'log_extra': lambda name, values: None,
      'log_metric': lambda name, value: None,
    }
    given |= knobs
    return _await(
      function(**{k: v for k, v in given.items() if greedy or k in accepted})
    )

  return scorer


def _verl(function: Callable, knobs: dict[str, Any]) -> Scorer:
  """verl's ground truth may be more than text: the column of that name."""
  names = ('data_source', 'solution_str', 'ground_truth', 'extra_info')
  inspect.signature(function).bind(**dict.fromkeys(names), **knobs)

  def score(completion: Completion) -> Any:
    result = _await(
      function(
        data_source=completion.source,
        solution_str=completion.text,
        ground_truth=completion.columns.get('ground_truth', completion.answer),
        extra_info=dict(completion.columns),
        **knobs,
      )
    )
    return result['score'] if isinstance(result, dict) else result

  return _score(score, {})


def _messages(role: str, text: str, chat: bool) -> Any:
  return [{'role': role, 'content': text}] if chat else text


def _await(result: Any) -> Any:
  if not inspect.isawaitable(result):
    return result

  async def wait():
    return await result

  return asyncio.run(wait())
