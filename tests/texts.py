"""Short texts for the readers of answers, and Python's reading of their marks.

Texts are bytes here: half a character is a text too.
"""

import functools
import random
import re

import jax
import numpy as np

MARKS = {
  '−': '-',
  '×': '*',
  '⋅': '*',
  '·': '*',
  '÷': '/',
  '\\times': '*',
  '\\cdot': '*',
  '\\div': '/',
  '\\frac': 'f',
  '\\dfrac': 'f',
  '\\tfrac': 'f',
  '\\$': '$',
  '\\%': '%',
  '{,}': ',',
  '\\ ': ' ',
  '\\,': ' ',
  '\u00a0': ' ',
  '\\!': '',
  '\\left': '',
  '\\right': '',
}
_MARK = re.compile(
  b'|'.join(re.escape(mark.encode()) for mark in MARKS) + b'|.', re.DOTALL
)
_AROUND = re.compile(
  rb'(?s)(.+)\.|\$(.+)\$|\\\((.+)\\\)|\\\[(.+)\\\]'
  rb'|\\(?:boxed ?|text|textbf|mathrm)\{(.+)\}'
)
_SPACE = b' \t\n\v\f\r'


def padded(texts, C):
  return np.stack(
    [np.frombuffer(text[:C].ljust(C, b'\0'), np.uint8) for text in texts]
  )


@functools.partial(jax.jit, static_argnums=0)
def _compiled(function, *batches):
  return function(*batches)


def run(function, *batches, C):
  """A function of texts, compiled for one shape however many there are."""
  size = len(batches[0])
  filled = (batch + [b''] * (4096 - size) for batch in batches)
  result = _compiled(function, *(padded(batch, C) for batch in filled))
  return jax.tree.map(lambda x: np.asarray(x)[:size], result)


def unwrapped(text):
  text = text.rstrip(b'\0').strip(_SPACE)
  for _ in range(6):
    if found := _AROUND.fullmatch(text):
      text = next(x for x in found.groups() if x is not None).strip(_SPACE)
  return text


def symbols(text):
  """The text in ASCII, each character that has no meaning being a question."""

  def symbol(found):
    mark = found[0]
    if (known := MARKS.get(mark.decode(errors='replace'))) is not None:
      return known.encode()
    if mark in _SPACE:
      return b' '
    return mark if mark in b'0123456789.,+-*/()${}%' else b'?'

  return _MARK.sub(symbol, unwrapped(text)).decode()


def wrapped(rng, text):
  """A way in which a model may write an answer."""
  layers = ['%s', '%s', ' %s\n', '%s.', '$%s$', '\\(%s\\)', '\\boxed{%s}']
  layers += ['\\boxed { %s }', '\\text{%s}', '$$%s$$', '\\[ %s \\]']
  for _ in range(rng.choice([0, 0, 1, 2])):
    text = rng.choice(layers).replace('%s', text)
  return text


def mutated(rng, text):
  """One to three bytes of it are lost, doubled, moved or replaced."""
  data = bytearray(text)
  for _ in range(rng.randint(1, 3)):
    at = rng.randrange(len(data) + 1)
    match rng.randrange(4):
      case 0:
        del data[at : at + 1]
      case 1:
        data[at:at] = data[: rng.randrange(3)]
      case 2:
        data[at:at] = rng.choice(
          b'0123456789.,+-*/() \\{}$%f\0\xe2x'
        ).to_bytes()
      case 3:
        data[at : at + 1] = bytes([rng.randrange(256)])
  return bytes(data)


def corpus(seed, size, make):
  """Texts that `make(rng)` writes, every fourth of them broken, some random."""
  rng = random.Random(seed)
  texts = [b'', b'\0' * 10, b'\0001', b' ', b'.', '−'.encode()[:2]]
  while len(texts) < size:
    text = wrapped(rng, make(rng)).encode()
    kind = rng.randrange(16)
    if kind < 4:
      text = mutated(rng, text)
    elif kind == 4:
      text = rng.randbytes(rng.randrange(30))
    elif kind == 5:
      text = bytes(
        rng.choices(b'0123456789.,+-*/() \\{}$%', k=rng.randrange(9))
      )
    texts.append(text)
  return texts
