"""A scalar head: one number for a text, in the place of logits.

  with_scalar_head(model) -> model
  from_policy(params, model, key) -> params, of such a model
  score(params, tokens_BT, lengths_B, model=...) -> score_B

The parameter table is the model's own, without a head for the vocabulary of its
own and with a row `score` more. What follows is ordinary: `head(params)` is
that row as a matrix of one column, and initialisers, shardings, checkpoints and
adapters come from the table. A reward model is one of these (preference.py).
"""

import dataclasses

import jax
from jax.nn import initializers
import jax.numpy as jnp

from grpo_jax.models import Model, Param
from grpo_jax.models.layers import accumulator
from grpo_jax.types import ModelInputs, Params

_VOCABULARY = 'unembed'  # Where the head is not the embedding (decoder.py).


def with_scalar_head(model: Model) -> Model:
  """The model with a head of one column: no logits, and nothing to sample.

  Raises ValueError if its table has no row `embed` to tell its width.
  """
  if 'embed' not in model.table:
    raise ValueError('a scalar head needs a model with a parameter `embed`')
  D = model.table['embed'].shape[1]
  table = {k: rows for k, rows in model.table.items() if k != _VOCABULARY}
  table['score'] = Param((D,), (None,), initializers.normal(D**-0.5))
  return dataclasses.replace(
    model, table=table, head=lambda params: params['score'][:, None]
  )


def from_policy(params: Params, model: Model, key: jax.Array) -> Params:
  """A policy's parameters for its `model` with a scalar head, which is new."""
  row = model.table['score']
  kept = {k: w for k, w in params.items() if k != _VOCABULARY}
  return kept | {'score': row.init(key, row.shape, row.dtype)}


def score(
  params: Params, tokens_BT: jax.Array, lengths_B: jax.Array, *, model: Model
) -> jax.Array:
  """What the head says at the last token of each text; float32.

  Texts are padded on the right with anything.
  """
  positions_BT = jnp.broadcast_to(
    jnp.arange(tokens_BT.shape[1]), tokens_BT.shape
  )
  out = model.apply(params, ModelInputs(tokens_BT, positions_BT))
  return at_last(params, out.hidden_BTD, lengths_B, model=model)


def at_last(
  params: Params, hidden_BTD: jax.Array, lengths_B: jax.Array, *, model: Model
) -> jax.Array:
  """The head's product with the hidden state of each row's last token."""
  last_B11 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
  hidden_BD = jnp.take_along_axis(hidden_BTD, last_B11, axis=1)[:, 0]
  dtype = accumulator(hidden_BD)
  head_D = model.head(params)[:, 0].astype(dtype)
  return jnp.sum(hidden_BD.astype(dtype) * head_D, axis=-1)
