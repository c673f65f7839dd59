r"""How good policies are, side by side: pass@1, pass@k and maj@k.

  python experiments/evaluate.py --workdir runs/a runs/b --samples 8
  python experiments/evaluate.py --model hf://Qwen/Qwen3-0.6B --protocol r1 \
      --data math:path=math500.jsonl --template boxed --max-tokens 4096 \
      --set "reward={'maths': 1.0}" eval.right=maths --json out.json

A run answers the held-out problems of its own data, in its own words, at its
own temperature, unless told otherwise. --data takes any dataset: gsm8k,
gsm8k:path=FOLDER, math:path=FILE, files:path=aime.jsonl,prompt=problem; where
it has a test split, that one, or else all of it. --protocol r1 is DeepSeek-R1's
(2501.12948): 64 samples at temperature 0.6 and top-p 0.95; its 32,768 tokens
are up to --max-tokens. Intervals are 95%, bootstrap over problems; differences
are to the first policy and paired by problem.

Many hosts evaluate together if all of them run the same command, with
--coordinator, --processes and --process where no cluster says who they are; the
first one prints and writes.
"""

import argparse
import json
import pathlib

from grpo_jax import process

process.keep_memory()  # Before anything allocates.

from grpo_jax import command, comparison, progress  # noqa: E402

_R1 = {'temperature': 0.6, 'top_p': 0.95, 'samples': 64}


def main():
  args = parse()
  paths = [*args.workdir, *args.model]
  if not paths:
    raise ValueError('give --workdir of runs, or --model PATH')
  process.join(args.coordinator, args.processes, args.process)
  progress.console.quiet = not process.is_lead()
  values = dict(x.partition('=')[::2] for x in args.set)
  values = {name: command.literal(text) for name, text in values.items()}
  if args.greedy:
    args.temperature, args.samples = 0.0, args.samples or 1
  if args.protocol == 'r1':
    for name, value in _R1.items():
      if getattr(args, name) is None:
        setattr(args, name, value)
  for knob, value in {
    'eval.temperature': args.temperature,
    'eval.top_p': args.top_p,
    'eval.samples': args.samples,
    'eval.problems': args.problems,
    'eval.batch': args.batch,
    'rollout.max_tokens': args.max_tokens,
    'data.template': args.template,
    'seed': args.seed,
  }.items():
    if value is not None:
      values[knob] = value
  found = {
    path: comparison.evaluate_path(path, values, args.data) for path in paths
  }
  report = comparison.compare(found, args.k)
  comparison.show(report)
  if args.json and process.is_lead():
    text = json.dumps({'command': vars(args)} | report, indent=2)
    pathlib.Path(args.json).write_text(text + '\n')


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--workdir', nargs='+', default=[], help='runs, or their checkpoints')
  add('--model', nargs='+', default=[], help='as config.model.init has it')
  add('--data', default='', metavar='NAME[:KNOB=VALUE,...]')
  add('--problems', type=int, help='at most; 512')
  add('--samples', type=int, help="completions of each; the run's eval.samples")
  add('--batch', type=int, help='problems sampled at one time')
  add('--max-tokens', type=int, help="the run's rollout.max_tokens")
  add('--temperature', type=float, help="the run's; 0 is greedy")
  add('--top-p', type=float)
  add('--greedy', action='store_true', help='one most probable completion')
  add('--protocol', choices=['r1'], help='temperature 0.6, top-p 0.95, k = 64')
  add('--template', help="how questions are put; the run's data.template")
  add('--k', type=int, nargs='+', help='of pass@k, maj@k; 1 and --samples')
  add('--seed', type=int)
  add('--set', nargs='+', default=[], metavar='KNOB=VALUE', help='of a config')
  add('--json', metavar='FILE', help='all of it, for programs')
  add('--coordinator', help='host:port on which the first process listens')
  add('--processes', type=int, help='how many there are; 1 looks for no others')
  add('--process', type=int, help='which this is, from 0')
  return parser.parse_args()


if __name__ == '__main__':
  command.guard(main)
