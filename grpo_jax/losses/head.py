"""Log-probabilities of given tokens, without logits of the whole batch.

`token_logps` is all that most losses need; `token_stats` also gives the entropy
of each token's distribution and the sum of its squared probabilities.

At 32 completions of 1,024 tokens and a vocabulary of 150,000, the float32
logits alone would take 20 GB. Here the head is applied to `chunk` tokens at a
time. Where that is not all of them, the logits are recomputed in the backward
pass.

Dimension key: B rows, T tokens, D width, V vocabulary, C tokens that a row has
in a chunk, X = B*C tokens of a chunk.
"""

import math

from flax import struct
import jax
import jax.numpy as jnp

from grpo_jax.models.layers import accumulator


class TokenStats(struct.PyTreeNode):
  """Of the distribution that predicts each token; float32, with gradients."""

  logps_BT: jax.Array  # log p of the token itself, nats.
  entropies_BT: jax.Array | None = None  # -sum p log p, nats.
  squares_BT: jax.Array | None = None  # sum p^2 over the vocabulary.


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
  return token_stats(
    hidden_BTD, head_DV, tokens_BT, temperature=temperature, chunk=chunk
  ).logps_BT


def token_stats(
  hidden_BTD: jax.Array,
  head_DV: jax.Array,
  tokens_BT: jax.Array,
  *,
  temperature: float = 1.0,
  chunk: int = 4096,
  entropy: bool = False,
  squares: bool = False,
) -> TokenStats:
  """`token_logps`, and in the same pass what else is asked for.

  Entropy and squares are of the distribution at `temperature`, too.
  """
  B, T, D = hidden_BTD.shape

  def score(hidden_BCD, tokens_BC):
    logits_XV = jnp.matmul(
      hidden_BCD.reshape(-1, D),
      head_DV,
      preferred_element_type=accumulator(hidden_BCD),
    ) / (temperature or 1.0)
    tokens_X1 = tokens_BC.reshape(-1, 1)
    logit_X1 = jnp.take_along_axis(logits_XV, tokens_X1, axis=-1)
    totals_X = jax.nn.logsumexp(logits_XV, axis=-1)
    found = TokenStats(logit_X1[:, 0] - totals_X)
    if entropy or squares:
      logps_XV = logits_XV - totals_X[:, None]
      probs_XV = jnp.exp(logps_XV)
    if entropy:
      # Logits minus their own total: large ones would cost digits otherwise.
      found = found.replace(entropies_BT=-jnp.sum(probs_XV * logps_XV, axis=-1))
    if squares:
      found = found.replace(squares_BT=jnp.sum(probs_XV**2, axis=-1))
    return jax.tree.map(lambda x_X: x_X.reshape(tokens_BC.shape), found)

  if B * T <= chunk:
    return score(hidden_BTD, tokens_BT)

  # A chunk has tokens of every row, so that no row leaves its device.
  chunks = math.ceil(T / max(chunk // B, 1))

  def cut(x):
    pad = [(0, 0), (0, -T % chunks)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, pad).reshape(B, chunks, -1, *x.shape[2:])
    return x.swapaxes(0, 1)

  pieces = (cut(hidden_BTD), cut(tokens_BT))
  recomputed = jax.checkpoint(score)
  found = jax.lax.map(lambda piece: recomputed(*piece), pieces)
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, -1)[:, :T], found)
