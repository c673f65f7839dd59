"""Log-probabilities of given tokens, without logits of the whole batch.

At 32 completions of 1,024 tokens and a vocabulary of 150,000, the float32
logits alone would take 20 GB. Here the head is applied to `chunk` tokens at a
time and its logits are recomputed in the backward pass.

Dimension key: B rows, T tokens, D width, V vocabulary, C tokens of a chunk.
"""

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
    chunk: tokens whose logits exist at one time; less is less memory.
  """
  B, T, D = hidden_BTD.shape

  @jax.checkpoint
  def score(hidden_CD, tokens_C):
    logits_CV = jnp.matmul(
      hidden_CD, head_DV, preferred_element_type=accumulator(hidden_CD)
    ) / (temperature or 1.0)
    logit_C1 = jnp.take_along_axis(logits_CV, tokens_C[:, None], axis=-1)
    return logit_C1[:, 0] - jax.nn.logsumexp(logits_CV, axis=-1)

  if B * T <= chunk:
    logps = score(hidden_BTD.reshape(-1, D), tokens_BT.reshape(-1))
    return logps.reshape(B, T)
  hidden = hidden_BTD.reshape(B * T, D)
  pad = -B * T % chunk
  hidden_XCD = jnp.pad(hidden, ((0, pad), (0, 0))).reshape(-1, chunk, D)
  tokens_XC = jnp.pad(tokens_BT.reshape(-1), (0, pad)).reshape(-1, chunk)
  logps_XC = jax.lax.map(lambda x: score(*x), (hidden_XCD, tokens_XC))
  return logps_XC.reshape(-1)[: B * T].reshape(B, T)
