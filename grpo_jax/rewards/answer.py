"""Is the answer that the completion gives the reference answer?"""

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib
from grpo_jax.text import spans, values
from grpo_jax.types import Prompts, Rollout


def answer(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  where: str = 'tags',
  tag: str = 'answer',
  last: bool = False,
  compare: str = 'bytes',
  size: int = 64,
) -> jax.Array:
  """1 for the reference answer, 0 for another or none; NaN without reference.

  `where` it stands:
    tags   in exactly one <tag>...</tag>; with `last`, in the last one
    box    in the last \\boxed{...}
    line   between the last `tag`, such as '####', and the end of that line
  `compare` says what is equal, whitespace around it never counting:
    bytes   the same bytes
    text    the same in normal form: case, dollars, 1,234.50 (values.plain)
    number  that, or numbers of one value, such as 1/2 and 0.5

  A text or number of more than `size` bytes, or a box or line that goes on for
  longer, cannot be scored. Other than in verl's gsm8k and math_dapo, the place
  in the text does not matter and nothing but the value of a number does.
  """
  P, G = rollout.lengths_PG.shape
  reference_PC = prompts.answers_PC
  C = reference_PC.shape[1]
  bytes_BC, size_B, span = _read(
    rollout, text, where, tag, last, size, C if compare == 'bytes' else size
  )
  unknown_B = span.open_B
  if compare == 'bytes':
    # The lengths too: '7\0' is padded to the same bytes as '7'. They also tell
    # an answer apart that goes on beyond the C bytes that were read.
    equal_B = _alike(bytes_BC, reference_PC, G)
    written_PC = jnp.where(reference_PC > 0, jnp.arange(1, C + 1), 0)
    equal_B &= size_B == jnp.repeat(jnp.max(written_PC, axis=1), G)
  else:
    unknown_B |= size_B > size
    equal_B = _alike(values.plain(bytes_BC), values.plain(reference_PC), G)
  if compare == 'number':
    number = jax.tree.map(
      lambda x: jnp.repeat(x, G), values.number(reference_PC)
    )
    equal_B |= values.same(values.number(bytes_BC), number)
  score_B = (span.found_B & equal_B).astype(jnp.float32)
  unknown_B &= span.found_B
  # A problem without a reference takes many answers; others may judge it.
  unknown_B |= jnp.repeat(jnp.all(reference_PC == 0, axis=1), G)
  score_B = jnp.where(unknown_B, jnp.nan, score_B)
  return score_B.reshape(P, G)


def said(
  rollout: Rollout,
  text: text_lib.TokenText,
  *,
  where: str = 'tags',
  tag: str = 'answer',
  last: bool = False,
  compare: str = 'bytes',
  size: int = 64,
) -> dict[str, jax.Array]:
  """What completions answer, so that those which `answer` takes for equal are.

  bytes_PGC is the text, in normal form unless bytes are compared; known_PG
  whether there is one of no more than `size` bytes; ratio_PG2 its numerator and
  denominator, where numbers are compared and it is one, or else zeros.
  """
  P, G = rollout.lengths_PG.shape
  bytes_BC, size_B, span = _read(rollout, text, where, tag, last, size, size)
  known_B = span.found_B & ~span.open_B & (size_B <= size)
  ratio_B2 = jnp.zeros((P * G, 2), jnp.int32)
  if compare == 'number':
    found = values.number(bytes_BC)
    ratio_B2 = jnp.stack([found.numerator_B, found.denominator_B], axis=1)
    ratio_B2 *= (found.valid_B & found.exact_B)[:, None]
  if compare != 'bytes':
    bytes_BC = values.plain(bytes_BC)
  return {
    'bytes_PGC': bytes_BC.reshape(P, G, -1),
    'known_PG': known_B.reshape(P, G),
    'ratio_PG2': ratio_B2.reshape(P, G, 2),
  }


def _read(rollout, text, where, tag, last, size, read):
  """`read` bytes of the answer, how many it has, and where it stands."""
  given = text, *text_lib.flat(rollout)
  match where:
    case 'tags':
      span = spans.between(*given, tag, last)
    case 'box':
      span = spans.box(*given, size)
    case 'line':
      span = spans.line(*given, tag, size)
  return *spans.read(*given, span, read), span


def tags(
  *,
  where: str = 'tags',
  tag: str = 'answer',
  last: bool = False,
  compare: str = 'bytes',
  size: int = 64,
) -> tuple[str, ...]:
  """Raises ValueError for a `where` or `compare` that does not exist."""
  del last, size
  literals = {'tags': spans.pair(tag), 'box': (spans.BOX,), 'line': (tag,)}
  if where not in literals:
    raise ValueError(f'answer: where={where!r} is not tags, box or line')
  if compare not in ('bytes', 'text', 'number'):
    raise ValueError(
      f'answer: compare={compare!r} is not bytes, text or number'
    )
  return literals[where]


def _alike(given_BC, reference_PC, G):
  """Whether two rows of bytes are the same, apart from zeros at the end."""
  C = max(given_BC.shape[1], reference_PC.shape[1])
  given_BC, reference_PC = (
    jnp.pad(x, ((0, 0), (0, C - x.shape[1]))) for x in (given_BC, reference_PC)
  )
  return jnp.all(given_BC == jnp.repeat(reference_PC, G, axis=0), axis=1)
