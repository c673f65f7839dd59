"""What a policy thinks of completions that are there already.

  likelihood(params, rollout, model=...) -> Likelihood(logps_PGT, ...)

The same model function as in the rollout, on the same tokens, so that it finds
the same numbers.

Dimension key: P prompts, G completions each, B = P*G rows, T completion length,
D width.
"""

from flax import struct
import jax
import jax.numpy as jnp

from grpo_jax.losses import head
from grpo_jax.models import Model
from grpo_jax.rollout import prefill
from grpo_jax.types import ModelInputs, Params, Rollout


class Likelihood(struct.PyTreeNode):
  """Of the policy's distribution at each token; float32, with gradients."""

  logps_PGT: jax.Array  # log p of the token itself, nats.
  entropies_PGT: jax.Array | None = None  # -sum p log p, nats.
  squares_PGT: jax.Array | None = None  # sum p^2 over the vocabulary.


def likelihood(
  params: Params,
  rollout: Rollout,
  *,
  model: Model,
  temperature: float = 1.0,
  head_chunk: int = 4096,
  entropy: bool = False,
  squares: bool = False,
) -> Likelihood:
  """How likely the sampled tokens are; entropy and squares if asked for.

  A prompt runs once for its group, as in the rollout: the completions attend to
  its keys and values, and gradients flow back through them.
  """
  P, G, T = rollout.tokens_PGT.shape
  hidden_PD, cache = prefill(params, rollout.prompts, model, G, max_tokens=0)
  tokens_BT = rollout.tokens_PGT.reshape(P * G, T)
  lengths_B1 = jnp.repeat(rollout.prompts.lengths_P, G)[:, None]
  positions_BT = lengths_B1 + jnp.arange(T)
  inputs = ModelInputs(tokens_BT[:, :-1], positions_BT[:, :-1])
  hidden_BTD = model.apply(params, inputs, cache).hidden_BTD
  # The prompt's last token predicts the first of each completion.
  first_B1D = jnp.repeat(hidden_PD, G, axis=0)[:, None]
  found = head.token_stats(
    jnp.concatenate([first_B1D, hidden_BTD], axis=1),
    model.head(params),
    tokens_BT,
    temperature=temperature,
    chunk=head_chunk,
    entropy=entropy,
    squares=squares,
  )
  found = jax.tree.map(lambda x_BT: x_BT.reshape(P, G, T), found)
  return Likelihood(found.logps_BT, found.entropies_BT, found.squares_BT)
