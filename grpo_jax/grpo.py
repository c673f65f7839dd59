"""The GRPO update: from scored completions to an improved policy.

  grpo_update(state, rollout, rewards, model=..., optimizer=...)
      -> (state, metrics)

  rewards --advantage--> how each completion compares with its group
  tokens  --log-probs--> how likely the policy finds them now
  both    --loss-------> gradient, summed over microbatches --> optimizer

Advantage, loss, average and KL are functions that come as arguments: an idea is
one function in advantages.py or losses/, and its name in the config.

Dimension key: P prompts, G completions each, B = P*G rows, L prompt length,
T completion length, D width.
"""

from collections.abc import Callable
import functools

from flax import struct
import jax
import jax.numpy as jnp
import optax

from grpo_jax import advantages
from grpo_jax import metrics as metrics_lib
from grpo_jax.losses import aggregate as aggregate_lib
from grpo_jax.losses import head
from grpo_jax.losses import kl as kl_lib
from grpo_jax.losses import policy as policy_lib
from grpo_jax.metrics import Metrics
from grpo_jax.models import Model
from grpo_jax.rollout import prefill
from grpo_jax.types import ModelInputs, Params, Rewards, Rollout, TrainState


@struct.dataclass
class Batch:
  """What the loss is computed from; every leaf has the groups first."""

  rollout: Rollout
  advantages_PG1: jax.Array
  reference_logps_PGT: jax.Array | None
  weights_PGT: jax.Array | None = None  # Of a token in the loss.
  share_PGT: jax.Array | None = None  # Of a token in a plain token mean.


def grpo_update(
  state: TrainState,
  rollout: Rollout,
  rewards: Rewards,
  *,
  model: Model,
  optimizer: optax.GradientTransformation,
  advantage: Callable = advantages.grpo,
  policy_loss: Callable = policy_lib.grpo,
  aggregate: Callable = aggregate_lib.token_mean,
  kl: Callable = kl_lib.k3,
  kl_coef: float = 0.0,
  temperature: float = 1.0,
  passes: int = 1,
  minibatches: int = 1,
  microbatches: int = 1,
  head_chunk: int = 4096,
) -> tuple[TrainState, Metrics]:
  """Moves the policy towards the completions that beat their group.

  GRPO (arxiv.org/abs/2402.03300); by default with DAPO's token mean and without
  a KL term (arxiv.org/abs/2503.14476). The old policy is the one that sampled:
  its log-probabilities come with the rollout.

  Args:
    state: parameters, optimizer state and, for a KL term, the reference.
    rollout: groups of completions.
    rewards: their scores. An unscored completion (NaN) has no advantage.
    model: the policy.
    optimizer: made by `optim.make`.
    advantage: rewards_PG -> advantages_PG.
    policy_loss: see losses/policy.py.
    aggregate: mask_PGT -> weights_PGT.
    kl: see losses/kl.py.
    kl_coef: weight of the KL to `state.reference`; 0 runs no reference.
    temperature: the sampler's; log-probabilities are of that distribution.
    passes: times that the batch is gone through (mu in the paper).
    minibatches: optimizer steps of a pass, each on P / minibatches groups.
    microbatches: pieces in which a minibatch's gradient is summed up. They
      save memory; losses and gradients do not depend on them.
    head_chunk: tokens whose logits exist at one time.
  """
  score = functools.partial(
    completion_logps,
    model=model,
    temperature=temperature,
    head_chunk=head_chunk,
  )
  reference_logps_PGT = None
  if kl_coef:
    reference_logps_PGT = _join(
      jax.lax.map(
        lambda piece: score(state.reference, piece),
        _split(rollout, minibatches * microbatches),
      )
    )
  batch = Batch(
    rollout=rollout,
    advantages_PG1=advantage(rewards.total_PG)[..., None],
    reference_logps_PGT=reference_logps_PGT,
  )

  def loss(params: Params, batch: Batch):
    mask_PGT = batch.rollout.actions_PGT
    old_logps_PGT = batch.rollout.logps_PGT
    logps_PGT = score(params, batch.rollout)
    losses_PGT, stats = policy_loss(
      logps_PGT, old_logps_PGT, batch.advantages_PG1, mask_PGT
    )
    if kl_coef:
      stats['kl'] = kl(logps_PGT, batch.reference_logps_PGT)
      losses_PGT += kl_coef * stats['kl']
    means = {k: jnp.sum(batch.share_PGT * v) for k, v in stats.items()}
    drift_PGT = jnp.where(mask_PGT, jnp.abs(logps_PGT - old_logps_PGT), 0.0)
    return jnp.sum(batch.weights_PGT * losses_PGT), (means, jnp.max(drift_PGT))

  def minibatch_step(carry, batch: Batch):
    params, opt_state = carry
    mask_PGT = batch.rollout.actions_PGT.astype(jnp.float32)
    # Denominators are of the whole minibatch, before it is cut into pieces.
    batch = batch.replace(
      weights_PGT=aggregate(mask_PGT),
      share_PGT=aggregate_lib.token_mean(mask_PGT),
    )

    def add(grads, piece: Batch):
      (value, (means, drift)), more = jax.value_and_grad(loss, has_aux=True)(
        params, piece
      )
      return jax.tree.map(jnp.add, grads, more), (value, means, drift)

    grads, (values, means, drifts) = jax.lax.scan(
      add, jax.tree.map(jnp.zeros_like, params), _split(batch, microbatches)
    )
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    sums = {'loss': values} | means
    sums = {name: jnp.sum(x) for name, x in sums.items()}
    norm = optax.tree.norm(grads)
    return (params, opt_state), (sums | {'grad_norm': norm}, jnp.max(drifts))

  def one_pass(carry, _):
    return jax.lax.scan(minibatch_step, carry, _split(batch, minibatches))

  carry = (state.params, state.opt_state)
  carry, (stats, drifts) = jax.lax.scan(one_pass, carry, length=passes)
  params, opt_state = carry
  stats = {name: jnp.mean(x) for name, x in stats.items()}
  metrics = {
    'loss': stats.pop('loss'),
    'grad_norm': stats.pop('grad_norm'),
    # Before the first step the policy is the one that sampled.
    'rollout/logp_drift': drifts[0, 0],
  }
  if kl_coef:
    metrics['kl/reference'] = stats.pop('kl')
  metrics |= {f'policy/{name}': value for name, value in stats.items()}
  metrics |= metrics_lib.describe(rollout, rewards)
  lengths_P = rollout.prompts.lengths_P.astype(jnp.float32)
  metrics['rollout/prompt_length'] = jnp.mean(lengths_P)
  state = state.replace(
    step=state.step + 1,
    cursor=state.cursor + rollout.tokens_PGT.shape[0],
    params=params,
    opt_state=opt_state,
  )
  return state, metrics


def completion_logps(
  params: Params,
  rollout: Rollout,
  *,
  model: Model,
  temperature: float = 1.0,
  head_chunk: int = 4096,
) -> jax.Array:
  """Log-probabilities of the sampled tokens, logps_PGT in float32 nats.

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
  logps_BT = head.token_logps(
    jnp.concatenate([first_B1D, hidden_BTD], axis=1),
    model.head(params),
    tokens_BT,
    temperature=temperature,
    chunk=head_chunk,
  )
  return logps_BT.reshape(P, G, T)


def _split(tree, pieces: int):
  """Leaves [P, ...] -> [pieces, P / pieces, ...], each piece on every device.

  Piece i takes the groups i, i + pieces, ...: a device that holds a run of
  groups has some of each piece, so nothing moves.
  """

  def split(x):
    P, *rest = x.shape
    return x.reshape(P // pieces, pieces, *rest).swapaxes(0, 1)

  return jax.tree.map(split, tree)


def _join(x: jax.Array) -> jax.Array:
  """The inverse of _split on one array."""
  pieces, size, *rest = x.shape
  return x.swapaxes(0, 1).reshape(pieces * size, *rest)
