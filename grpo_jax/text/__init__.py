"""The text of completions, read on the device without detokenising.

`token_text` turns a tokenizer's vocabulary into tables, once and on the host.
From then on everything is arrays: token ids and lengths go in, counts and byte
positions come out, and nothing calls back. This file has tags and bytes; beside
it stand

  reader.py       machines over tokens: does it match, how many are there?
  automata.py     such machines from regular expressions (utf8.py: from
  words.py        characters to bytes), and from scripts and lists of words
  spans.py        where the answer is: in tags, in a box, on a line
  values.py       bytes -> numbers, exact (symbols.py, rationals.py)
  expressions.py  bytes -> the value of an arithmetic expression

A tag is found by an automaton that was run over the text of every vocabulary
entry beforehand, so a completion costs one look-up for each token. It does not
matter how the tokenizer cuts a tag (`</`, `answer`, `>7`): the state between
two tokens says how much of the tag was there already.

A position counts bytes from the start of the completion's text, and a span is
[start, end). Whitespace means the six ASCII characters of `bytes.strip()`.
Tokens from the length on are no text, and neither is a token id outside of the
tables. Completions are a batch here: `flat` makes one of a rollout.

Dimension key here: S states of an automaton, K tags or positions at once, C
bytes, and V is one more than the vocabulary: the last entry is empty.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.types import Array, Rollout, Scorer

TAGS = ('<think>', '</think>', '<answer>', '</answer>')


class TagTable(struct.PyTreeNode):
  """The automaton of a literal tag, run over every vocabulary entry.

  State s means that the last s bytes are the first s of the tag.
  """

  next_VS: Array  # uint8, the state after the token.
  hits_VS: Array  # uint8, how often the tag ends inside the token.
  end_VS: Array  # uint16, bytes up to the first such end; 0 if none.
  last_VS: Array  # uint16, bytes up to the last such end.


class TokenText(struct.PyTreeNode):
  """What each token adds to the text; an argument of compiled functions."""

  bytes_VC: Array  # uint8, zero-padded.
  lengths_V: Array  # int32, bytes.
  solids_V: Array  # int32, bytes that are not whitespace.
  tags: dict[str, TagTable]
  # Name of a reward -> name of a machine -> Reader; see reader.py.
  readers: dict[str, dict[str, Any]] = struct.field(default_factory=dict)
  # Name of a reward -> the model that it asks; see scorers.py.
  scorers: dict[str, Scorer] = struct.field(default_factory=dict)


class Found(NamedTuple):
  """Where a tag is first, or last; positions are 0 where it is missing."""

  count_B: jax.Array  # int32, occurrences that do not overlap.
  start_B: jax.Array  # int32, the first byte of that occurrence.
  end_B: jax.Array  # int32, just after that occurrence.


def token_text(
  token_bytes: Sequence[bytes], tags: Sequence[str] = TAGS
) -> TokenText:
  """Tables for a vocabulary, `token_bytes[i]` being the text of token i."""
  # JAX clamps an index past the end, so that an id that the model's padded
  # embedding has and the tokenizer has not reads the empty entry.
  token_bytes = [*token_bytes, b'']
  lengths_V = np.array([len(text) for text in token_bytes], np.int32)
  bytes_VC = np.zeros((len(token_bytes), max(1, lengths_V.max())), np.uint8)
  written_VC = np.arange(bytes_VC.shape[1]) < lengths_V[:, None]
  bytes_VC[written_VC] = np.frombuffer(b''.join(token_bytes), np.uint8)
  solids_V = np.sum(written_VC & _is_solid(bytes_VC), axis=1, dtype=np.int32)
  tables = {tag: _tag_table(tag, bytes_VC, lengths_V) for tag in tags}
  return jax.tree.map(
    jnp.asarray, TokenText(bytes_VC, lengths_V, solids_V, tables)
  )


def flat(rollout: Rollout) -> tuple[jax.Array, jax.Array]:
  """The completions as one batch: tokens_BT, lengths_B."""
  P, G, T = rollout.tokens_PGT.shape
  return rollout.tokens_PGT.reshape(P * G, T), rollout.lengths_PG.ravel()


def find(
  text: TokenText,
  tags: Sequence[str],
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  last: bool = False,
) -> tuple[Found, ...]:
  """Looks for some of the tables' tags together, in one pass.

  Tells where each is for the first time, or with `last` for the last time.
  """
  tables = [text.tags[tag] for tag in tags]
  B, T = tokens_BT.shape
  empty = len(text.lengths_V) - 1

  def step(carry, inputs):
    position_B, scans = carry
    t, token_B = inputs
    token_B = jnp.where(t < lengths_B, token_B, empty)
    after = []
    for table, (state_B, count_B, place) in zip(tables, scans, strict=True):
      hits_B = table.hits_VS[token_B, state_B]
      new_B = (hits_B > 0) if last else (count_B == 0) & (hits_B > 0)
      here = (position_B, token_B, state_B)
      place = [jnp.where(new_B, *x) for x in zip(here, place, strict=True)]
      after.append((table.next_VS[token_B, state_B], count_B + hits_B, place))
    return (position_B + text.lengths_V[token_B], after), None

  zero_B = jnp.zeros(B, jnp.int32)
  start_B = jnp.zeros(B, jnp.uint8)
  # The state, the count, and what `end_VS` is to be asked for the hit.
  blank = (start_B, zero_B, [zero_B, zero_B + empty, start_B])
  (_, scans), _ = jax.lax.scan(
    step, (zero_B, [blank] * len(tags)), (jnp.arange(T), tokens_BT.T)
  )
  found = []
  for tag, table, (_, count_B, place) in zip(tags, tables, scans, strict=True):
    position_B, token_B, state_B = place
    end_VS = table.last_VS if last else table.end_VS
    end_B = position_B + end_VS[token_B, state_B]
    start_B = jnp.where(count_B > 0, end_B - len(tag.encode()), 0)
    found.append(Found(count_B, start_B, end_B))
  return tuple(found)


def reasoning(
  text: TokenText, tokens_BT: jax.Array, lengths_B: jax.Array
) -> jax.Array:
  """Where the thinking is, bytes [start, end) as a column each.

  It goes from the first <think>, or the start of a text without one (a prompt
  may have opened it), to the first </think>. Where that is missing, or comes
  before the <think>, it goes to the end, for which a huge position stands.
  """
  tags = '<think>', '</think>'
  opening, closing = find(text, tags, tokens_BT, lengths_B)
  closed_B = (closing.count_B > 0) & (closing.start_B >= opening.end_B)
  end = jnp.iinfo(jnp.int32).max
  end_B = jnp.where(closed_B, closing.start_B, end)
  return jnp.stack([opening.end_B, end_B], axis=1)


def offsets(
  text: TokenText, tokens_BT: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Where each token starts and ends; padding is at the end of the text."""
  return _offsets(text.lengths_V, tokens_BT, lengths_B)


def solids(
  text: TokenText,
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  positions_BK: jax.Array,
) -> jax.Array:
  """How many bytes before each position are not whitespace."""
  starts_BT, ends_BT = _offsets(text.lengths_V, tokens_BT, lengths_B)
  before_BT, _ = _offsets(text.solids_V, tokens_BT, lengths_B)
  at_BK = _count_up_to(ends_BT, positions_BK)
  solid_BKC = _solid_bytes(text, tokens_BT, lengths_B, at_BK)
  inside_BK = positions_BK - _pick(starts_BT, at_BK)
  passed_BKC = jnp.arange(solid_BKC.shape[-1]) < inside_BK[..., None]
  return _pick(before_BT, at_BK) + jnp.sum(
    solid_BKC & passed_BKC, axis=-1, dtype=jnp.int32
  )


def trim(
  text: TokenText,
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  start_B: jax.Array,
  end_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The span without the whitespace around it; empty if it is all blank."""
  starts_BT, _ = _offsets(text.lengths_V, tokens_BT, lengths_B)
  before_BT, after_BT = _offsets(text.solids_V, tokens_BT, lengths_B)
  span_B2 = jnp.stack([start_B, end_B], axis=1)
  from_B, to_B = solids(text, tokens_BT, lengths_B, span_B2).T
  # The first and the last byte to keep, counted in bytes that are solid.
  rank_B2 = jnp.stack([from_B, to_B - 1], axis=1)
  at_B2 = _count_up_to(after_BT, rank_B2)
  solid_B2C = _solid_bytes(text, tokens_BT, lengths_B, at_B2)
  inside_B2 = rank_B2 - _pick(before_BT, at_B2)
  reached_B2C = jnp.cumsum(solid_B2C, axis=-1) > inside_B2[..., None]
  first_B, last_B = (_pick(starts_BT, at_B2) + jnp.argmax(reached_B2C, -1)).T
  blank_B = from_B >= to_B
  return (
    jnp.where(blank_B, start_B, first_B),
    jnp.where(blank_B, start_B, last_B + 1),
  )


def span(
  text: TokenText,
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  start_B: jax.Array,
  end_B: jax.Array,
  size: int,
) -> tuple[jax.Array, jax.Array]:
  """The first `size` bytes of a span, zero-padded, and whether it has more."""
  starts_BT, ends_BT = _offsets(text.lengths_V, tokens_BT, lengths_B)
  end_B = jnp.minimum(end_B, ends_BT[:, -1])
  positions_BC = start_B[:, None] + jnp.arange(size)
  at_BC = _count_up_to(ends_BT, positions_BC)
  inside_BC = positions_BC - _pick(starts_BT, at_BC)
  bytes_BC = text.bytes_VC[_pick(tokens_BT, at_BC), inside_BC]
  bytes_BC = jnp.where(positions_BC < end_B[:, None], bytes_BC, 0)
  return bytes_BC, end_B - start_B > size


def _offsets(sizes_V, tokens_BT, lengths_B):
  """Running sums of the tokens' sizes, before and after each token."""
  written_BT = jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None]
  sizes_BT = jnp.where(written_BT, sizes_V[tokens_BT], 0)
  after_BT = jnp.cumsum(sizes_BT, axis=1)
  return after_BT - sizes_BT, after_BT


def _count_up_to(sorted_BT, values_BK):
  """The index of the first entry above each value, or the last index."""
  # Not unrolled: XLA fuses that into whatever reads the indices, and on a CPU
  # takes three times as long to trim a span and read 64 bytes of it.
  search = jax.vmap(
    lambda sorted_T, values_K: jnp.searchsorted(
      sorted_T, values_K, side='right', method='scan'
    )
  )
  return jnp.minimum(search(sorted_BT, values_BK), sorted_BT.shape[1] - 1)


def _pick(values_BT, at_BK):
  return jnp.take_along_axis(values_BT, at_BK, axis=1)


def _solid_bytes(text, tokens_BT, lengths_B, at_BK):
  """Which bytes of the tokens at these indices are text and not whitespace."""
  token_BK = _pick(tokens_BT, at_BK)
  bytes_BKC = text.bytes_VC[token_BK]
  size_BK = jnp.where(at_BK < lengths_B[:, None], text.lengths_V[token_BK], 0)
  written_BKC = jnp.arange(bytes_BKC.shape[-1]) < size_BK[..., None]
  return written_BKC & _is_solid(bytes_BKC)


def _is_solid(data):
  return (data != 32) & ((data < 9) | (data > 13))


def _tag_table(tag, bytes_VC, lengths_V):
  """Runs the automaton of a tag over each vocabulary entry from each state."""
  tag = tag.encode()
  V, S = len(bytes_VC), len(tag)
  automaton = _automaton(tag)
  state_VS = np.broadcast_to(np.arange(S, dtype=np.uint8), (V, S)).copy()
  hits_VS = np.zeros((V, S), np.uint8)
  end_VS, last_VS = np.zeros((2, V, S), np.uint16)
  for c in range(lengths_V.max()):
    live = np.flatnonzero(lengths_V > c)
    after = automaton[state_VS[live], bytes_VC[live, c, None]]
    hit = after == S
    end_VS[live] = np.where(hit & (hits_VS[live] == 0), c + 1, end_VS[live])
    last_VS[live] = np.where(hit, c + 1, last_VS[live])
    hits_VS[live] += hit
    state_VS[live] = np.where(hit, 0, after)
  return TagTable(state_VS, hits_VS, end_VS, last_VS)


def _automaton(tag):
  """[S, 256] -> the state after a byte, len(tag) when the tag is complete."""

  def after(s, byte):
    seen = tag[:s] + bytes([byte])
    return max(k for k in range(s + 2) if seen.endswith(tag[:k]))

  # The next state is the longest start of the tag that the text ends on.
  rows = [[after(s, byte) for byte in range(256)] for s in range(len(tag))]
  return np.array(rows, np.uint8)
