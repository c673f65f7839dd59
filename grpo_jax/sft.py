"""Next-token training: pre-training, and every other step that imitates.

  sft_update(state, documents, model=..., optimizer=...) -> (state, metrics)

Dimension key: B rows, T tokens, D width.
"""

import jax
import jax.numpy as jnp
import optax

from grpo_jax import models
from grpo_jax.losses import head
from grpo_jax.metrics import Metrics
from grpo_jax.models import Model
from grpo_jax.types import ModelInputs, Params, TrainState


def sft_update(
  state: TrainState,
  documents: ModelInputs,
  *,
  model: Model,
  optimizer: optax.GradientTransformation,
  head_chunk: int = 8192,
) -> tuple[TrainState, Metrics]:
  """One step of next-token prediction on packed documents.

  Args:
    state: parameters and optimizer state.
    documents: rows of documents with segment ids; a token is predicted from
      those before it in its own document, and the first of each is not.
    model: the model to train.
    optimizer: made by `optim.make`.
    head_chunk: tokens whose logits exist at one time.
  """
  trained, frozen = models.partition(model, state.params)

  def loss_of(trained: Params):
    params = models.join(trained, frozen)
    return next_token_loss(params, documents, model, head_chunk)

  loss, grads = jax.value_and_grad(loss_of)(trained)
  updates, opt_state = optimizer.update(grads, state.opt_state, trained)
  state = state.replace(
    step=state.step + 1,
    cursor=state.cursor + documents.tokens_BT.shape[0],
    params=models.join(optax.apply_updates(trained, updates), frozen),
    opt_state=opt_state,
  )
  return state, {'loss': loss, 'grad_norm': optax.tree.norm(grads)}


def next_token_loss(
  params: Params, documents: ModelInputs, model: Model, head_chunk: int
) -> jax.Array:
  """Mean over predicted tokens, in nats."""
  out = model.apply(params, documents)
  logps_BT = head.token_logps(
    out.hidden_BTD[:, :-1],
    model.head(params),
    documents.tokens_BT[:, 1:],
    chunk=head_chunk,
  )
  ids_BT = documents.segment_ids_BT
  assert ids_BT is not None
  predicted_BT = (ids_BT[:, 1:] == ids_BT[:, :-1]) & (ids_BT[:, 1:] > 0)
  count = jnp.maximum(jnp.sum(predicted_BT), 1)
  return -jnp.sum(logps_BT * predicted_BT) / count
