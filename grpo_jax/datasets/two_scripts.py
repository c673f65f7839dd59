"""A small language with two scripts: sums, countdown, quadratics and talk.

  sum        27+8+5          first 27+8=35 then 35+5=40 so        40
  countdown  3 5 8 -> 43     try 3+5=8 8*8=64 wait try 8*5=40
                             40+3=43 so                           8*5+3
  quadratic  xx-5x+6         try 1*6=6 1+6=7 wait try 2*3=6
                             2+3=5 so                             2 3
  tell       tell 12         first 2*6=12 so                      even after 11

Every word is there in Latin and in Greek letters (first, πρωτα), and of the
texts some keep to one script and some mix them: a policy may come to mix them
too, as DeepSeek-R1-Zero did (arxiv.org/abs/2501.12948), and can be cured of it.
A search that misses says wait. Whoever works problems out slips now and then,
and corrects it.

The column 'kind' is the first word above; 'numbers' and 'target' are those of
countdown. What is told of a number has no right answer; `judge` says how good
it is, in the place of a person.
"""

from collections.abc import Iterator
import random
import re

from grpo_jax.datasets import Example, countdown
from grpo_jax.rewards.host.records import Completion

VERSION = '1.1.0'

KINDS = ('sum', 'countdown', 'quadratic', 'tell')
GREEK = {
  'first': 'πρωτα',
  'then': 'μετα',
  'try': 'δες',
  'wait': 'στοπ',
  'so': 'αρα',
  'even': 'ζυγος',
  'odd': 'μονος',
  'after': 'απο',
  'before': 'πριν',
}
WAIT = ('wait', 'στοπ')
_LATIN = {greek: latin for latin, greek in GREEK.items()}


def examples(
  problems: int = 20_000,
  kinds: str = '+'.join(KINDS),
  mixed: float = 0.5,
  greek: float = 0.15,
  slips: float = 0.1,
  seed: int = 0,
) -> Iterator[Example]:
  """Draws problems of the given kinds, all alike often.

  Args:
    problems: how many are drawn; repeated ones come once.
    kinds: some of KINDS, joined by +.
    mixed: share of the texts in which each word is of either script.
    greek: share of those that are all Greek; the rest are Latin.
    slips: chance that a sum comes out wrong at first.
    seed: of all of it.
  """
  names = kinds.split('+')
  for name in names:
    if name not in KINDS:
      raise ValueError(f'kinds={kinds!r}: each must be of {", ".join(KINDS)}')
  if problems < 1:
    raise ValueError(f'problems={problems} must be at least 1')
  rng = random.Random(seed)
  equations = countdown.examples(
    problems,
    numbers_min=3,
    numbers_max=3,
    largest=12,
    target_max=60,
    operations='+-*',
    style='terse',
    seed=seed,
  )
  for i in range(problems):
    kind = names[i % len(names)]
    if kind == 'sum':
      found = _sum(rng, slips)
    elif kind == 'countdown':
      found = _countdown(next(equations))
    elif kind == 'quadratic':
      found = _quadratic(rng)
    else:
      found = _tell(rng)
    draw = rng.random()
    share = 0.5 if draw < mixed else float(draw < mixed + greek)
    yield found._replace(
      reasoning=_written(rng, found.reasoning, share),
      answer=_written(rng, found.answer, share),
      columns={'kind': kind} | found.columns,
    )


def key(prompt: str) -> str:
  """Terms of a quadratic in any order; 27+8 and 8+27 are other problems."""
  if 'x' not in prompt:
    return prompt
  signed = prompt if prompt[0] == '-' else f'+{prompt}'
  return ' '.join(sorted(re.findall(r'[+-][0-9x]+', signed)))


def judge(completion: Completion) -> float | None:
  """How much is told of a number: true things, less twice the false ones.

  Each counts once; what mixes scripts loses a half. Without an answer it is -1,
  and other kinds of problems it does not judge. A host reward.
  """
  if completion.columns['kind'] != 'tell':
    return None
  number = int(completion.prompt.split()[-1])
  _, opening, rest = completion.text.rpartition('<answer>')
  text, closing, _ = rest.partition('</answer>')
  if not opening or not closing:
    return -1.0
  words = text.split()
  latin = [_LATIN.get(word, word) for word in words]
  letters = [word for word in words if word.isalpha()]
  greek = sum(word in _LATIN for word in letters)
  true, false = _facts(number, latin)
  return len(true) - 2.0 * false - 0.5 * (0 < greek < len(letters))


def liked(completion: Completion) -> float | None:
  """Whether somebody would be content: 1 if `judge` finds 2 or more, else 0."""
  found = judge(completion)
  return None if found is None else float(found >= 2)


def _sum(rng: random.Random, slips: float) -> Example:
  numbers = [rng.randint(10, 60), *(rng.randint(2, 9) for _ in range(3))]
  total, steps = numbers[0], []
  for i, number in enumerate(numbers[1:]):
    word, right = 'then' if i else 'first', total + number
    if rng.random() < slips:
      slip = right + rng.choice((-10, -2, -1, 1, 2, 10))
      steps.append(f'{word} {total}+{number}={slip} wait')
      word = 'then'
    steps.append(f'{word} {total}+{number}={right}')
    total = right
  prompt = '+'.join(map(str, numbers))
  return Example(prompt, str(total), ' '.join([*steps, 'so']))


def _countdown(example: Example) -> Example:
  lines = example.reasoning.replace(' no', ' wait').split(';')
  reasoning = ' '.join(f'try {line}' for line in lines)
  return example._replace(reasoning=f'{reasoning} so')


def _quadratic(rng: random.Random) -> Example:
  """Terms in any order; roots from 1 to 12, the smaller one first."""
  r, s = sorted(rng.randint(1, 12) for _ in range(2))
  terms = ['+xx', f'-{r + s}x', f'+{r * s}']
  rng.shuffle(terms)
  lines = []
  for a in range(1, r + 1):
    b, rest = divmod(r * s, a)
    if not rest:
      miss = '' if a == r else ' wait'
      lines.append(f'try {a}*{b}={r * s} {a}+{b}={a + b}{miss}')
  reasoning = ' '.join(lines[-3:])  # The nearest misses are enough.
  prompt = ''.join(terms).removeprefix('+')
  return Example(prompt, f'{r} {s}', f'{reasoning} so')


def _tell(rng: random.Random) -> Example:
  n = rng.randint(2, 999)
  things = [
    'odd' if n % 2 else 'even',
    f'after {n - 1}',
    f'before {n + 1}',
  ]
  rng.shuffle(things)
  told = things[: rng.randint(1, 3)]
  if rng.random() < 0.2:
    told.append(f'after {n + rng.randint(1, 9)}')
  return Example(f'tell {n}', ' '.join(told), f'first {n - 1}+1={n} so')


def _facts(n: int, words: list[str]) -> tuple[set[str], int]:
  """The true things that are said of a number, and how many are false."""
  true, false, i = set(), 0, 0
  while i < len(words):
    said, i = words[i], i + 1
    if said in ('after', 'before'):
      next_word = words[i] if i < len(words) else ''
      said, i = f'{said} {next_word}', i + 1
    right = {'odd' if n % 2 else 'even', f'after {n - 1}', f'before {n + 1}'}
    if said in right:
      true.add(said)
    else:
      false += 1
  return true, false


def _written(rng: random.Random, text: str, greek: float) -> str:
  """The same with each word in Greek letters with this chance."""
  return ' '.join(
    GREEK[word] if word in GREEK and rng.random() < greek else word
    for word in text.split(' ')
  )
