"""Automata over tokens: what a machine finds in a completion, on the device.

  reader(machine, text) -> Reader             tables, once and on the host
  hits(reader, text, tokens, lengths) -> B    matches in each completion

A machine (automata.py, words.py) was run over the bytes of every vocabulary
entry, from each of its states. So a completion costs one look-up for each
token, however the tokenizer cuts words, tags and characters. A part of a
completion is read byte by byte only in the tokens that stick out of it.

Scattering all tokens to bytes first was measured and lost to Python's `re`.

Dimension key here: S states of the machine; V has one entry more than the
vocabulary has, the empty one of TokenText.
"""

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import text as text_lib
from grpo_jax.text.utf8 import Machine
from grpo_jax.types import Array


class Reader(struct.PyTreeNode):
  """A machine, and the same machine over whole tokens; it begins in state 0."""

  next_VS: Array  # uint8, the state after a token.
  hits_VS: Array | None  # uint8, matches that it completes; None: never.
  next_SC: Array  # uint8, the state after a byte.
  hits_SC: Array  # uint8.
  end_S: Array  # uint8, matches that the end of the text completes.


def reader(machine: Machine, text: text_lib.TokenText) -> Reader:
  """Runs a machine over the vocabulary."""
  bytes_VC, lengths_V = np.asarray(text.bytes_VC), np.asarray(text.lengths_V)
  next_SC = machine.next_SC.astype(np.uint8)
  hits_SC = machine.hits_SC.astype(np.uint8)
  V, S = len(bytes_VC), len(machine.end_S)
  state_VS = np.broadcast_to(np.arange(S, dtype=np.uint8), (V, S)).copy()
  hits_VS = np.zeros((V, S), np.uint8) if hits_SC.any() else None
  for c in range(lengths_V.max()):
    live = np.flatnonzero(lengths_V > c)
    byte_V1 = bytes_VC[live, c, None]
    if hits_VS is not None:
      hits_VS[live] += hits_SC[state_VS[live], byte_V1]
    state_VS[live] = next_SC[state_VS[live], byte_V1]
  end_S = machine.end_S.astype(np.uint8)
  return jax.tree.map(
    jnp.asarray, Reader(state_VS, hits_VS, next_SC, hits_SC, end_S)
  )


def hits(
  reader: Reader,
  text: text_lib.TokenText,
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  part_B2: jax.Array | None = None,
) -> jax.Array:
  """How many matches there are: in the whole text, or in bytes [start, end)."""
  B, T = tokens_BT.shape
  inside_BT = jnp.arange(T) < lengths_B[:, None]
  carry = jnp.zeros(B, jnp.uint8), jnp.zeros(B, jnp.int32)
  if part_B2 is not None:
    # Bytes of the first token, whole tokens, bytes of the last token.
    starts_BT, ends_BT = text_lib.offsets(text, tokens_BT, lengths_B)
    start_B, end_B = jnp.minimum(part_B2, ends_BT[:, -1:]).T
    end_B = jnp.maximum(start_B, end_B)
    later_BT = starts_BT >= start_B[:, None]
    first_B = jnp.min(jnp.where(later_BT, starts_BT, end_B[:, None]), axis=1)
    first_B = jnp.minimum(first_B, end_B)
    earlier_BT = ends_BT <= end_B[:, None]
    last_B = jnp.max(jnp.where(earlier_BT, ends_BT, first_B[:, None]), axis=1)
    last_B = jnp.maximum(last_B, first_B)
    inside_BT &= (starts_BT >= first_B[:, None]) & (ends_BT <= last_B[:, None])
    given = reader, text, tokens_BT, (starts_BT, ends_BT)
    carry = _read_bytes(*given, start_B, first_B, carry)
  carry = _read_tokens(reader, tokens_BT, inside_BT, carry)
  if part_B2 is not None:
    carry = _read_bytes(*given, last_B, end_B, carry)
  state_B, hits_B = carry
  return hits_B + reader.end_S[state_B]


def _read_tokens(reader, tokens_BT, inside_BT, carry):
  empty = len(reader.next_VS) - 1

  def step(carry, token_B):
    state_B, hits_B = carry
    if reader.hits_VS is not None:
      hits_B += reader.hits_VS[token_B, state_B]
    return (reader.next_VS[token_B, state_B], hits_B), None

  tokens_TB = jnp.where(inside_BT, tokens_BT, empty).T
  return jax.lax.scan(step, carry, tokens_TB)[0]


def _read_bytes(reader, text, tokens_BT, offsets, start_B, end_B, carry):
  """Reads bytes [start, end), which belong to one token."""
  starts_BT, ends_BT = offsets
  at_B1 = jnp.sum(ends_BT <= start_B[:, None], axis=1, keepdims=True)
  at_B1 = jnp.minimum(at_B1, tokens_BT.shape[1] - 1)
  token_B = jnp.take_along_axis(tokens_BT, at_B1, axis=1)[:, 0]
  first_B = start_B - jnp.take_along_axis(starts_BT, at_B1, axis=1)[:, 0]
  size_B = end_B - start_B

  def step(carry):
    c, (state_B, hits_B) = carry
    inside_B = c < size_B
    byte_B = text.bytes_VC[token_B, first_B + c]
    hits_B += jnp.where(inside_B, reader.hits_SC[state_B, byte_B], 0)
    after_B = reader.next_SC[state_B, byte_B]
    return c + 1, (jnp.where(inside_B, after_B, state_B), hits_B)

  # Long tokens are rare: as many steps as there are bytes to read, mostly few.
  more = jnp.max(size_B)
  return jax.lax.while_loop(lambda x: x[0] < more, step, (0, carry))[1]
