"""Log-probabilities of given tokens, without logits of the whole batch.

At 32 completions of 1,024 tokens and a vocabulary of 150,000, the float32
logits alone would take 20 GB. Here the head is applied to `chunk` tokens at a
time and its logits are recomputed in the backward pass.

Dimension key: B rows, T tokens, D width, V vocabulary, C tokens that a row has
in a chunk, X = B*C tokens of a chunk.
"""

import math

import jax
import jax.numpy as jnp

from grpo_jax.models.layers import accumulator


def token_logps(
  hidden_BTD: jax.Array,
  head_DV: jax.Array,
  tokens_BT: jax.Array,
  *,
  temperature: float = 1.0,
  chunk: int = 4096,
) -> jax.Array:
  """log softmax(hidden @ head / temperature) at `tokens`, logps_BT in float32.

  Args:
    hidden_BTD: the hidden state that predicts the token at the same place.
    head_DV: the model's head.
    tokens_BT: the tokens to score.
    temperature: of the sampler; 0 (greedy) counts as 1, as in `sampling`.
    chunk: tokens whose logits exist at one time; less is less memory. At the
      least it is one token of each row.
  """
  B, T, D = hidden_BTD.shape

  @jax.checkpoint
  def score(hidden_BCD, tokens_BC):
    logits_XV = jnp.matmul(
      hidden_BCD.reshape(-1, D),
      head_DV,
      preferred_element_type=accumulator(hidden_BCD),
    ) / (temperature or 1.0)
    tokens_X1 = tokens_BC.reshape(-1, 1)
    logit_X1 = jnp.take_along_axis(logits_XV, tokens_X1, axis=-1)
    logps_X = logit_X1[:, 0] - jax.nn.logsumexp(logits_XV, axis=-1)
    return logps_X.reshape(tokens_BC.shape)

  if B * T <= chunk:
    return score(hidden_BTD, tokens_BT)

  # A chunk has tokens of every row, so that no row leaves its device.
  chunks = math.ceil(T / max(chunk // B, 1))

  def cut(x):
    pad = [(0, 0), (0, -T % chunks)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, pad).reshape(B, chunks, -1, *x.shape[2:])
    return x.swapaxes(0, 1)

  pieces = (cut(hidden_BTD), cut(tokens_BT))
  logps = jax.lax.map(lambda piece: score(*piece), pieces)
  return logps.swapaxes(0, 1).reshape(B, -1)[:, :T]
