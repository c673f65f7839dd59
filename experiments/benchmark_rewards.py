"""Times the scoring of completions on the device against Python's own.

  python experiments/benchmark_rewards.py --json out.json

Both sides start from token ids: the device scores them as they are, Python has
to detokenise first. 4,096 completions of 1,024 tokens, made of sentences of
worked arithmetic in think and answer tags; some are cut, some are broken. The
parts are answer, format, tag_count, reasoning_steps and reflection, on either
side; the scores are compared.

The share is that of an iteration that samples and learns from as many tokens
with the model of `--shape` (see benchmark.py), at the pace of one measured
step.
"""

import argparse
import json
import random
import re
import time

from grpo_jax import process

process.keep_memory()  # Before anything allocates.

import benchmark  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from grpo_jax import rewards, text, tokenizers  # noqa: E402
from grpo_jax.rewards import reasoning_steps, reflection  # noqa: E402
from grpo_jax.types import Prompts, Rollout  # noqa: E402

PARTS = ('answer', 'format', 'tag_count', 'reasoning_steps', 'reflection')
SENTENCES = (
  'Step {a}: we have {a} + {b} = {c}. ',
  'First, take {a} times {b}, which is {d}. ',
  'Wait, that is not right; let me check {c} - {b} = {a}. ',
  'So the number of apples is {c}, and each costs {a} dollars.\n- ',
  'Next, we divide by {b} and get {a}. ',
  'Hmm, {d} / {a} = {b}, as it should be. ',
)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--completions', type=int, default=4096)
  parser.add_argument('--tokens', type=int, default=1024)
  parser.add_argument('--shape', choices=benchmark.SHAPES, default='S1')
  parser.add_argument('--tokenizer', help='.model or .gguf; else made here')
  parser.add_argument('--runs', type=int, default=5)
  parser.add_argument('--json', help='file for the numbers')
  args = parser.parse_args()
  if args.completions % 8 or args.runs < 1:
    parser.error('--completions must be a multiple of 8, --runs at least 1')

  tokenizer, rollout = batch(args)
  table = rewards.token_text(tokenizer.token_bytes, dict.fromkeys(PARTS, 1.0))
  score = jax.jit(
    lambda rollout, table: rewards.reward(
      rollout, rollout.prompts, table, dict.fromkeys(PARTS, 1.0)
    )
  )
  device = jax.device_put((rollout, table))
  begun = time.perf_counter()
  found = jax.block_until_ready(score(*device))
  compile_s = time.perf_counter() - begun
  device_s = [
    _seconds(lambda: jax.block_until_ready(score(*device)))
    for _ in range(args.runs)
  ]
  begun = time.perf_counter()
  texts = detokenised(tokenizer, rollout)
  decode_s = time.perf_counter() - begun
  begun = time.perf_counter()
  expected = in_python(texts, rollout)
  python_s = time.perf_counter() - begun
  for name in PARTS:
    np.testing.assert_allclose(
      found.parts[name], expected[name], atol=1e-6, err_msg=name
    )

  run = benchmark.make_run(benchmark.SHAPES[args.shape])
  bench = benchmark.Bench(run, ('iterate',))
  bench.once()
  step_s = min(bench.once()['iterate'] for _ in range(2))
  c = run.config
  size = c.data.prompts * c.rollout.group_size * c.rollout.max_tokens
  iteration_s = step_s / size * args.completions * args.tokens
  result = {
    'completions': args.completions,
    'tokens': args.tokens,
    'parts': PARTS,
    'vocabulary': tokenizer.vocab_size,
    'compile_s': compile_s,
    'device_s_min': min(device_s),
    'device_s_median': sorted(device_s)[len(device_s) // 2],
    'python_detokenise_s': decode_s,
    'python_score_s': python_s,
    'ratio': (decode_s + python_s) / min(device_s),
    'shape': args.shape,
    'iteration_s': iteration_s,
    'share': min(device_s) / iteration_s,
  }
  print(
    f'{args.completions:,} completions of {args.tokens:,} tokens, '
    f'{len(PARTS)} parts, vocabulary {tokenizer.vocab_size:,}\n'
    f'device: {min(device_s):.3f} s (median '
    f'{result["device_s_median"]:.3f}; compiled in {compile_s:.1f} s)\n'
    f'Python: {decode_s:.2f} s to detokenise, {python_s:.2f} s to score; '
    f'{result["ratio"]:.1f} times as long\n'
    f'share of an iteration of {args.shape}, {iteration_s:.0f} s at the pace '
    f'of one step: {result["share"]:.3%}'
  )
  if args.json:
    with open(args.json, 'w') as file:
      json.dump(result, file, indent=2)


def batch(args):
  """A tokenizer, and completions in its tokens, eight of each prompt."""
  rng = random.Random(0)

  def sentence():
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    return rng.choice(SENTENCES).format(a=a, b=b, c=a + b, d=a * b)

  if args.tokenizer:
    tokenizer = tokenizers.load(args.tokenizer)
  else:
    corpus = [sentence() for _ in range(2_000)]
    tokenizer = tokenizers.train(corpus, 2_000, text.TAGS)
  sentences = [tokenizer.encode(sentence()) for _ in range(2_000)]
  P, G, T = args.completions // 8, 8, args.tokens
  answers = [str(rng.randint(2, 9_999)) for _ in range(P)]
  tokens_PGT = np.zeros((P, G, T), np.int32)
  lengths_PG = np.zeros((P, G), np.int32)
  begin, between, end = map(
    tokenizer.encode, ('<think>', '</think>\n<answer>', '</answer>')
  )
  for p, answer in enumerate(answers):
    for g in range(G):
      given = answer if rng.random() < 0.5 else str(rng.randint(2, 9_999))
      tail = between + tokenizer.encode(given) + end
      if rng.random() < 0.1:
        tail = tail[1:]  # A broken tag, or none.
      ids = list(begin)
      while len(ids) + len(tail) < T - 30:
        ids += rng.choice(sentences)
      ids = (ids + tail)[:T]
      tokens_PGT[p, g, : len(ids)] = ids
      lengths_PG[p, g] = len(ids)
  C = max(map(len, answers))
  answers_PC = np.zeros((P, C), np.uint8)
  for row_C, answer in zip(answers_PC, answers, strict=True):
    row_C[: len(answer)] = list(answer.encode())
  prompts = Prompts(
    tokens_PL=np.zeros((P, 1), np.int32),
    lengths_P=np.ones(P, np.int32),
    ids_P=np.arange(P, dtype=np.uint32),
    answers_PC=answers_PC,
  )
  rollout = Rollout(
    prompts=prompts,
    tokens_PGT=tokens_PGT,
    lengths_PG=lengths_PG,
    ended_PG=np.ones((P, G), bool),
    logps_PGT=np.zeros((P, G, T), np.float32),
    actions_PGT=np.ones((P, G, T), bool),
  )
  return tokenizer, rollout


def detokenised(tokenizer, rollout: Rollout) -> list[str]:
  P, G, T = rollout.tokens_PGT.shape
  return [
    tokenizer.decode(tokens_T[:length].tolist())
    for tokens_T, length in zip(
      rollout.tokens_PGT.reshape(-1, T), rollout.lengths_PG.ravel(), strict=True
    )
  ]


_FORMAT = re.compile(
  r'\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*', re.DOTALL | re.ASCII
)
_STEPS = re.compile('|'.join(reasoning_steps.PATTERNS), re.ASCII)
_PHRASES = '|'.join(map(re.escape, reflection.PHRASES)).replace(r'\ ', r'\s+')
_REFLECTION = re.compile(rf'\b(?:{_PHRASES})\b', re.ASCII | re.IGNORECASE)


def in_python(texts: list[str], rollout: Rollout) -> dict[str, np.ndarray]:
  """The same parts as one would write them in Python."""
  G = rollout.lengths_PG.shape[1]
  scores = {name: [] for name in PARTS}
  for i, found in enumerate(texts):
    row_C = rollout.prompts.answers_PC[i // G]
    reference = row_C.tobytes().rstrip(b'\0').decode()
    counts = [found.count(tag) for tag in text.TAGS]
    match = _FORMAT.fullmatch(found)
    formed = match and counts == [1] * 4 and all(map(str.strip, match.groups()))
    scores['format'].append(float(bool(formed)))
    scores['tag_count'].append(sum(count == 1 for count in counts) / 4)
    right = 0.0
    if counts[2:] == [1, 1]:
      _, _, rest = found.partition('<answer>')
      given, closed, _ = rest.partition('</answer>')
      right = float(bool(closed) and given.strip() == reference)
    scores['answer'].append(right)
    steps = len(_STEPS.findall(found))
    scores['reasoning_steps'].append(min(1.0, steps / 3))
    _, _, thought = found.partition('<think>')
    thought, _, _ = thought.partition('</think>')
    scores['reflection'].append(len(_REFLECTION.findall(thought)))
  shape = rollout.lengths_PG.shape
  return {name: np.reshape(found, shape) for name, found in scores.items()}


def _seconds(call) -> float:
  begun = time.perf_counter()
  call()
  return time.perf_counter() - begun


if __name__ == '__main__':
  main()
