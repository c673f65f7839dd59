"""Which of two texts is better: the training of a reward model.

  preference_update(state, pairs, model=..., optimizer=...) -> (state, metrics)
  leads(params, pairs, model=...) -> lead_P
  score_rollout(params, rollout, model=...) -> score_PG    its use, in RL

The model has a scalar head (models/scalar.py). People, or a judge, preferred
one completion of a prompt to another; Bradley-Terry says that they do so with
probability sigmoid(score of the one - score of the other).

Dimension key: P pairs, T tokens of prompt and completion; 2: the better text,
then the worse. Of a rollout: P prompts, G completions each, T tokens of one.
"""

import jax
import jax.numpy as jnp
import optax

from grpo_jax import models
from grpo_jax.metrics import Metrics
from grpo_jax.models import Model, scalar
from grpo_jax.rollout import prefill
from grpo_jax.types import ModelInputs, Pairs, Params, Rollout, TrainState


def preference_update(
  state: TrainState,
  pairs: Pairs,
  *,
  model: Model,
  optimizer: optax.GradientTransformation,
  margin: float = 0.0,
) -> tuple[TrainState, Metrics]:
  """One step of a reward model, as of InstructGPT (arxiv.org/abs/2203.02155).

  Args:
    state: parameters and optimizer state.
    pairs: texts of which the first was preferred.
    model: the model to train, with a scalar head.
    optimizer: made by `optim.make`.
    margin: by how much the better is to score more; see `bradley_terry`.
  """
  trained, frozen = models.partition(model, state.params)

  def loss_of(trained: Params):
    lead_P = leads(models.join(trained, frozen), pairs, model=model)
    return bradley_terry(lead_P, margin), lead_P

  (loss, lead_P), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
  updates, opt_state = optimizer.update(grads, state.opt_state, trained)
  state = state.replace(
    step=state.step + 1,
    cursor=state.cursor + len(lead_P),
    params=models.join(optax.apply_updates(trained, updates), frozen),
    opt_state=opt_state,
  )
  return state, {
    'loss': loss,
    'preference/accuracy': jnp.mean(lead_P > 0),
    'preference/lead': jnp.mean(lead_P),
    'grad_norm': optax.tree.norm(grads),
  }


def bradley_terry(lead_P: jax.Array, margin: float = 0.0) -> jax.Array:
  """Mean of -log sigmoid(lead - margin), nats.

  The margin is Llama 2's (arxiv.org/abs/2307.09288), but the same for all
  pairs.
  """
  return jnp.mean(jax.nn.softplus(margin - lead_P))


def leads(params: Params, pairs: Pairs, *, model: Model) -> jax.Array:
  """By how much the better text scores more than the worse."""
  P, _, T = pairs.tokens_P2T.shape
  tokens_BT, lengths_B = pairs.tokens_P2T.reshape(2 * P, T), pairs.lengths_P2
  score_B = scalar.score(params, tokens_BT, lengths_B.reshape(-1), model=model)
  score_P2 = score_B.reshape(P, 2)
  return score_P2[:, 0] - score_P2[:, 1]


def score_rollout(
  params: Params, rollout: Rollout, *, model: Model
) -> jax.Array:
  """The score of each completion, read after its prompt.

  As in likelihood.py a prompt runs once for its group. The score is that of
  `scalar.score` for prompt and completion as one text.
  """
  P, G, T = rollout.tokens_PGT.shape
  _, cache = prefill(params, rollout.prompts, model, G, max_tokens=0)
  lengths_B1 = jnp.repeat(rollout.prompts.lengths_P, G)[:, None]
  inputs = ModelInputs(
    rollout.tokens_PGT.reshape(P * G, T), lengths_B1 + jnp.arange(T)
  )
  hidden_BTD = model.apply(params, inputs, cache).hidden_BTD
  lengths_B = rollout.lengths_PG.reshape(P * G)
  score_B = scalar.at_last(params, hidden_BTD, lengths_B, model=model)
  return score_B.reshape(P, G)
