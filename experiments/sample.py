r"""Asks a policy: one question, a group of completions, or a chat.

  python experiments/sample.py --workdir runs/quickstart \
      "Start at 8: -1 -2 +3 -1. Last digit?"
  python experiments/sample.py --workdir runs/quickstart --problem 3 --n 8
  python experiments/sample.py --model hf://Qwen/Qwen3-0.6B

A run is asked as it was trained: its template, its temperature. --model takes
what config.model.init does: a checkpoint, a Hugging Face folder, a .gguf file.
The reasoning is set apart from the answer. With --n the group's rewards and
advantages are shown, best first; the answer reward needs --answer, or --problem
N of the held-out ones. --json prints one object and nothing else. Without a
question it is a chat, in which /reset forgets, and /quit or Ctrl-D ends; a
model without a chat template is asked each question by itself.
"""

import argparse
import contextlib
import json
import tempfile

from grpo_jax import process

process.keep_memory()  # Before anything allocates.

from grpo_jax import (  # noqa: E402
  ask,
  command,
  datasets,  # noqa: E402
  opened,
  progress,
  prompts,
  train,
)
from grpo_jax import config as config_lib  # noqa: E402

_STYLES = {'reasoning': 'italic dim', 'answer': 'bold cyan'}


def main():
  args = parse()
  if args.json and args.question is None and args.problem is None:
    raise ValueError('--json needs a question, or --problem')
  path = args.workdir or args.model
  c = opened.configure(path)
  for knob, value in {
    'eval.temperature': 0.0 if args.greedy else args.temperature,
    'eval.top_p': args.top_p,
    'rollout.max_tokens': args.max_tokens,
    'data.template': args.template,
    'seed': args.seed,
  }.items():
    if value is not None:
      opened.change(c, {knob: value})
  if c.eval.temperature is not None:  # Both say it, so that either may be read.
    c.rollout.temperature = c.eval.temperature or 1.0
  progress.console.quiet = True  # What building says is of no interest here.
  example = _example(args, c)
  with tempfile.TemporaryDirectory() as scratch:
    run, params = ask.open_policy(c, scratch, example, args.n)
    progress.console.quiet = args.json
    if args.n > 1 or args.json:
      _group(args, run, params, example)
    else:
      temperature = config_lib.eval_temperature(c)
      programs = train.stream(run, temperature, c.eval.top_p)
      talk = Talk(run, params, programs, args.context or opened.context(path))
      if args.question or args.problem is not None:
        talk.say(example.prompt)
      else:
        talk.chat()


class Talk:
  """A conversation, and what goes on it with."""

  def __init__(self, run, params, programs, context: int):
    self.run, self.params, self.programs = run, params, programs
    self.room = context - programs.max_tokens
    self.history = []
    # A whole prompt around one question has no turns in it, and a tokenizer
    # without a chat template knows none: each question is asked by itself.
    template = run.config.data.template
    self.alone = run.tokenizer.special.template is None or (
      template and template not in prompts.SYSTEM
    )

  def say(self, question: str) -> str:
    """Prints the answer while it is sampled, and remembers it."""
    c, tokenizer = self.run.config, self.run.tokenizer
    ids = self._prompt(question)
    tokens = ask.stream(
      self.run,
      self.params,
      self.programs,
      ids,
      c.seed,
      datasets.Example(question, '').id,
    )
    said = []

    def heard():
      for piece in ask.text(tokenizer.token_bytes, tokens):
        said.append(piece)
        yield piece

    with contextlib.closing(tokens):
      last = None
      for kind, piece in ask.marked(heard()):
        if last not in (None, kind):
          progress.say('')  # A line of its own for the answer.
        last = kind
        progress.console.print(
          piece, style=_STYLES[kind], end='', markup=False, soft_wrap=True
        )
    progress.say('')
    said = ''.join(said)
    self.history += [
      {'role': 'user', 'content': question},
      {'role': 'assistant', 'content': said},
    ]
    return said

  def _prompt(self, question: str) -> list[int]:
    c, tokenizer = self.run.config, self.run.tokenizer
    if self.alone:
      ids = opened.to_ids(c, tokenizer, question)
      ask.check_room(len(ids), self.room)
      return ids
    instruction = prompts.SYSTEM.get(c.data.template, c.data.instruction)
    shots = [tuple(shot) for shot in c.data.shots]
    *start, last = prompts.chat(question, instruction, shots)
    turns = ask.fit_turns(
      [*start, *self.history, last],
      len(start),
      lambda turns: len(tokenizer.prompt(turns)),
      self.room,
    )
    self.history = turns[len(start) : -1]
    return tokenizer.prompt(turns)

  def chat(self) -> None:
    if self.alone:
      progress.say('each question is asked by itself; /quit or Ctrl-D ends')
    else:
      progress.say('/reset forgets what was said, /quit or Ctrl-D ends')
    while True:
      try:
        question = input('> ').strip()
      except (EOFError, KeyboardInterrupt):
        progress.say('')
        return
      if question == '/quit':
        return
      if question == '/reset':
        self.history = []
      elif question:
        try:
          self.say(question)
        except KeyboardInterrupt:  # Enough of this answer.
          progress.say('')
        except ValueError as e:
          progress.say(str(e))


def _example(args, c) -> datasets.Example:
  if args.problem is None:
    return datasets.Example(args.question or '?', args.answer or '')
  with tempfile.TemporaryDirectory() as scratch:
    knobs = c.data.knobs.to_dict()
    problems = datasets.load(c.data.name, scratch, c.data.heldout, **knobs)
    size = problems.size('heldout')
    if not 0 <= args.problem < size:
      raise ValueError(f'--problem={args.problem} is not from 0 to {size - 1}')
    return problems.all('heldout')[args.problem]


def _group(args, run, params, example) -> None:
  samples = train.compile_sample(run)
  try:
    found = ask.group(run, params, samples, example)
  finally:
    samples.close()
  if args.json:
    _print_json(args, example, found)
    return
  progress.console.print(example.prompt, style='bold', markup=False)
  for row in found:
    parts = ', '.join(
      f'{k} {_number(v)}' for k, v in row['reward_parts'].items()
    )
    progress.console.print(
      f'\nadvantage {_number(row["advantage"])}  '
      f'reward {_number(row["reward"])} ({parts})  {row["tokens"]} tokens',
      style=_colour(row['advantage']),
      markup=False,
      soft_wrap=True,
    )
    for kind in ('reasoning', 'answer'):
      if row[kind]:
        progress.console.print(
          row[kind], style=_STYLES[kind], markup=False, soft_wrap=True
        )
  if not example.answer:
    progress.say('\nWithout --answer nobody knows which of them are right.')


def _colour(advantage: float | None) -> str:
  """What is learnt is green, what is unlearnt red."""
  if not advantage:
    return 'none'
  return 'green' if advantage > 0 else 'red'


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:.2f}'


def _print_json(args, example, completions) -> None:
  print(
    json.dumps(
      {
        'model': args.workdir or args.model,
        'question': example.prompt,
        'answer': example.answer or None,
        'completions': completions,
      },
      ensure_ascii=False,
    )
  )


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('question', nargs='?', help='without one it is a chat')
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--workdir', help='a run, or one of its checkpoints')
  source.add_argument('--model', help='as config.model.init has it')
  add('--n', type=int, default=1, help='completions, with rewards')
  add('--answer', help='the right one')
  add('--problem', type=int, help="of the run's held-out ones, from 0")
  add('--json', action='store_true', help='for programs')
  add('--temperature', type=float, help="the run's")
  add('--top-p', type=float)
  add('--greedy', action='store_true', help='the most probable tokens')
  add('--max-tokens', type=int, help="the run's rollout.max_tokens")
  add('--context', type=int, help='tokens of chat and answer; as trained')
  add('--template', help="how questions are put; the run's data.template")
  add('--seed', type=int)
  return parser.parse_args()


if __name__ == '__main__':
  command.guard(main)
