"""Completions that are hard to read, and the arrays that they come in."""

import numpy as np
import test_rewards

from grpo_jax import types


def vocabulary(pieces: list[bytes]) -> list[bytes]:
  """Every byte, and pieces cut anywhere, in the middle of characters too."""
  rng = np.random.default_rng(0)
  source = b''.join(rng.permutation(np.array(pieces * 3, object)))
  cuts = rng.integers([0, 1], [len(source), 10], size=(250, 2))
  cut = [source[start : start + size] for start, size in cuts]
  return [bytes([byte]) for byte in range(256)] + cut + [b'']


def draw(rng, pieces: list[bytes], forms: list[list[bytes]]) -> bytes:
  """A text of one of these forms, or of none, more or less broken."""

  def some(most):
    at = rng.integers(len(pieces), size=rng.integers(most + 1))
    return b''.join(pieces[i] for i in at)

  form = forms[rng.integers(len(forms))] if rng.random() < 0.7 else [b'']
  data = b''.join(part or some(5) for part in form)
  for _ in range(rng.choice([0, 0, 0, 1, 2])):
    start, size = rng.integers(len(data) + 1), rng.integers(1, 12)
    middle = data[start : start + size]
    middle = [b'', middle * 2, rng.bytes(1), some(1), middle[:-1]]
    data = data[:start] + middle[rng.integers(5)] + data[start + size :]
  fate = rng.random()
  return data * 10 if fate < 0.03 else data if fate < 0.98 else b''


def rollout(
  rng, tokens: list[bytes], texts: list[bytes], T: int, references=None
) -> tuple[types.Rollout, list[bytes]]:
  """Groups of one, of T tokens at the most; and what of the texts that is."""
  B = len(texts)
  tokens_BT = rng.integers(0, 256, (B, T), dtype=np.int32)  # Noise is padding.
  lengths_B, read = np.zeros(B, np.int32), []
  for b, text in enumerate(texts):
    ids = test_rewards.encode(rng, tokens, text)[:T]
    tokens_BT[b, : len(ids)] = ids
    lengths_B[b] = len(ids)
    read.append(b''.join(tokens[i] for i in ids))
  prompts = types.Prompts(
    tokens_PL=np.zeros((B, 1), np.int32),
    lengths_P=np.ones(B, np.int32),
    ids_P=np.arange(B, dtype=np.uint32),
    answers_PC=np.zeros((B, 1), np.uint8),
    references=references or {},
  )
  made = types.Rollout(
    prompts=prompts,
    tokens_PGT=tokens_BT[:, None],
    lengths_PG=lengths_B[:, None],
    ended_PG=rng.random((B, 1)) < 0.9,
    logps_PGT=np.zeros((B, 1, T), np.float32),
    actions_PGT=np.ones((B, 1, T), bool),
  )
  return made, read
