"""Where a completion says its answer: between tags, in a box, on a line.

  between   <answer>42</answer>
  box       \\boxed{42}
  line      #### 42

Each gives bytes [start, end) of the completion's text, and `read` fetches them
without the whitespace around. A box and a line are looked for in the `size`
bytes after what opens them, and the last one counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax import text as text_lib

BOX = '\\boxed{'


class Span(NamedTuple):
  """What was found."""

  found_B: jax.Array  # bool.
  start_B: jax.Array  # int32, bytes.
  end_B: jax.Array  # int32, bytes.
  open_B: jax.Array  # bool: it goes on for longer than was looked at.


def between(
  text: text_lib.TokenText,
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  tag: str,
  last: bool = False,
) -> Span:
  """The text in the only pair <tag>...</tag>.

  With `last` there may be more of either, and the last <tag> has to stand
  before the last </tag>.
  """
  opening, closing = text_lib.find(
    text, pair(tag), tokens_BT, lengths_B, last=last
  )
  found_B = opening.end_B <= closing.start_B
  for side in (opening, closing):
    found_B &= (side.count_B > 0) if last else (side.count_B == 1)
  return Span(found_B, opening.end_B, closing.start_B, jnp.zeros_like(found_B))


def pair(tag: str) -> tuple[str, str]:
  return f'<{tag}>', f'</{tag}>'


def box(
  text: text_lib.TokenText,
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  size: int,
) -> Span:
  """What the last \\boxed{ holds, up to the brace that closes it."""
  start_B, end_B, bytes_BC, more_B, some_B = _after(
    text, tokens_BT, lengths_B, BOX, size
  )
  signs_BC = (bytes_BC == ord('{')).astype(jnp.int32) - (bytes_BC == ord('}'))
  closes_BC = jnp.cumsum(signs_BC, axis=1) < 0
  closed_B = jnp.any(closes_BC, axis=1)
  end_B = jnp.where(closed_B, start_B + jnp.argmax(closes_BC, axis=1), end_B)
  return Span(some_B & (closed_B | more_B), start_B, end_B, more_B & ~closed_B)


def line(
  text: text_lib.TokenText,
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  marker: str,
  size: int,
) -> Span:
  """What follows the last marker, up to the end of the line or text."""
  start_B, end_B, bytes_BC, more_B, some_B = _after(
    text, tokens_BT, lengths_B, marker, size
  )
  closes_BC = bytes_BC == ord('\n')
  closed_B = jnp.any(closes_BC, axis=1)
  end_B = jnp.where(closed_B, start_B + jnp.argmax(closes_BC, axis=1), end_B)
  return Span(some_B, start_B, end_B, some_B & more_B & ~closed_B)


def read(
  text: text_lib.TokenText,
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  span: Span,
  size: int,
) -> tuple[jax.Array, jax.Array]:
  """bytes_BC and how many there are, without the whitespace around them.

  No more than `size` are fetched.
  """
  start_B, end_B = text_lib.trim(
    text, tokens_BT, lengths_B, span.start_B, span.end_B
  )
  bytes_BC, _ = text_lib.span(text, tokens_BT, lengths_B, start_B, end_B, size)
  return bytes_BC, end_B - start_B


def _after(text, tokens_BT, lengths_B, literal, size):
  """From the last literal to the end of the text, of which `size` are read."""
  [opening] = text_lib.find(text, (literal,), tokens_BT, lengths_B, last=True)
  _, ends_BT = text_lib.offsets(text, tokens_BT, lengths_B)
  start_B, end_B = opening.end_B, ends_BT[:, -1]
  bytes_BC, more_B = text_lib.span(
    text, tokens_BT, lengths_B, start_B, end_B, size
  )
  return start_B, end_B, bytes_BC, more_B, opening.count_B > 0
