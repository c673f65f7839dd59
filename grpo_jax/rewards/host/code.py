"""Python code against tests: what share of them does the program pass?"""

from collections.abc import Mapping
import json
import re
import secrets
import time
from typing import Any

from grpo_jax.rewards.host import sandbox
from grpo_jax.rewards.host.records import Completion

_BLOCK = re.compile(r'```(?:python|py)[ \t]*\r?\n(.*?)```', re.DOTALL)
_ANSWER = re.compile(r'<answer>((?:(?!<answer>).)*?)</answer>', re.DOTALL)
# The program gives its score away before the deadline of the pool passes,
# which would leave it unscored.
_MARGIN = 0.8


def code(
  completion: Completion,
  seconds: float,
  all_or_nothing: bool = False,
  seconds_per_test: float = 2.0,
  limits: Mapping[str, int] | None = None,
  unsafe: bool = False,
) -> float | None:
  """The share of columns['tests'] that pass; None if there are no tests.

  A test is {'input': ..., 'output': ...}, what goes into the program and what
  has to come out, or a line of Python that is executed after the program, such
  as 'assert f(2) == 4'. The tests may be JSON. Whitespace at the ends of lines
  and of the output does not count. Every test is run in a sandbox of its own;
  the expected output never gets there, an assert has to, and a program that is
  bent on it can find it.

  A program that hangs, dies or breaks a limit fails the test, and one that has
  hung fails those for which there is no time left. Without any that hung the
  completion is not scored: the machine was too slow, not the program.
  `limits` changes those of
  sandbox.Limits. `unsafe` does without bubblewrap.
  """
  end = time.monotonic() + _MARGIN * seconds
  tests = completion.columns['tests']
  tests = json.loads(tests) if isinstance(tests, str) else tests
  if not tests:
    return None
  program = extract(completion.text)
  if program is None:
    return 0.0
  limits = sandbox.Limits(**(limits or {}))
  way = sandbox.UNSAFE if unsafe else sandbox.mode()
  passed, slow = 0, False
  for i, test in enumerate(tests):
    begun = time.monotonic()
    left = min(end - begun, seconds_per_test)
    if left <= 0 and not slow:
      raise TimeoutError(
        f'no time for {len(tests) - i} of {len(tests)} tests, though none of '
        f'the others took {seconds_per_test} s: give more `seconds`'
      )
    good = left > 0 and _passes(program, test, left, limits, way)
    slow |= time.monotonic() - begun >= min(left, seconds_per_test)
    passed += good
    if all_or_nothing and not good:
      return 0.0
  return passed / len(tests)


def prepare() -> None:
  """Finds out how bubblewrap works here, before any completion waits for it."""
  sandbox.mode()


def extract(text: str) -> str | None:
  """The last ```python block of the last <answer>, else of the whole text.

  An answer without a block is the program itself.
  """
  answers = _ANSWER.findall(text)
  text = answers[-1] if answers else text
  blocks = _BLOCK.findall(text)
  if blocks:
    return blocks[-1]
  return text if answers else None


def _passes(
  program: str,
  test: Any,
  seconds: float,
  limits: sandbox.Limits,
  way: tuple[list[str], int],
) -> bool:
  if isinstance(test, str):
    # Only who gets to the end of the test knows the word.
    word = secrets.token_hex(16)
    tell = f'import os\nos.write(1, b"{word}")'
    output = sandbox.run([program, test, tell], '', seconds, limits, way)
    return output is not None and word.encode() in output
  output = sandbox.run([program], test['input'], seconds, limits, way)
  if output is None:
    return False
  text = output.decode('utf-8', 'replace')
  return _lines(text) == _lines(test['output'])


def _lines(text: str) -> list[str]:
  return [line.rstrip() for line in text.strip().splitlines()]
