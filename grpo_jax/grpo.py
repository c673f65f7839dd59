"""The GRPO update: from scored completions to an improved policy.

  grpo_update(state, rollout, rewards, model=..., optimizer=...)
      -> (state, metrics)

  rewards --advantage--> how each completion compares with its group
  tokens  --log-probs--> how likely the policy finds them now
  both    --loss-------> gradient, summed over microbatches --> optimizer

What makes a variant are functions that come as arguments, and each has a room:

  advantage     advantages.py         policy_loss   losses/policy.py
  kl            losses/kl.py          select        losses/select.py
  aggregate     losses/aggregate.py   off_policy    losses/off_policy.py

An idea is one function there, and its name in the config. What it wants to see
besides its positional arguments it asks for by name: a keyword without a
default is filled in (inputs.py lists them), one with a default is a knob.

Dimension key: P prompts, G completions each, B = P*G rows, L prompt length,
T completion length, D width.
"""

from collections.abc import Callable
import functools
import math

import jax
import jax.numpy as jnp
import optax

from grpo_jax import advantages, groups, models, sampling
from grpo_jax.batch import Batch, join, prepare, split
from grpo_jax.inputs import asks, fill
from grpo_jax.likelihood import likelihood
from grpo_jax.losses import aggregate as aggregate_lib
from grpo_jax.losses import control
from grpo_jax.losses import kl as kl_lib
from grpo_jax.losses import policy as policy_lib
from grpo_jax.metrics import Metrics
from grpo_jax.models import Model
from grpo_jax.types import Params, Rewards, Rollout, TrainState


def grpo_update(
  state: TrainState,
  rollout: Rollout,
  rewards: Rewards,
  *,
  model: Model,
  optimizer: optax.GradientTransformation,
  advantage: Callable = advantages.grpo,
  policy_loss: Callable = policy_lib.ppo_clip,
  select: Callable | None = None,
  off_policy: Callable | None = None,
  aggregate: Callable = aggregate_lib.token_mean,
  kl: Callable = kl_lib.k3,
  kl_coef: float = 0.0,
  kl_where: str = 'loss',
  kl_control: Callable = control.stay,
  refresh: Callable | None = None,
  reference_model: Model | None = None,
  entropy_coef: float = 0.0,
  entropy_control: Callable = control.stay,
  entropy_gate: Callable = control.stay,
  measure_entropy: bool = False,
  temperature: float = 1.0,
  passes: int = 1,
  minibatches: int = 1,
  microbatches: int = 1,
  skip_even: bool = False,
  head_chunk: int = 4096,
  max_grad_norm: float = math.inf,
  max_log_ratio: float = math.inf,
  max_drift: float = math.inf,
) -> tuple[TrainState, Metrics]:
  """Moves the policy towards the completions that beat their group.

  GRPO (arxiv.org/abs/2402.03300); by default with DAPO's token mean and without
  a KL term (arxiv.org/abs/2503.14476). The old policy is the one that sampled:
  its log-probabilities come with the rollout.

  An optimizer step whose loss or gradient is not finite, or beyond one of the
  bounds, is left out and counted (`state.skipped`, in a row).

  Args:
    state: parameters, optimizer state and, for a KL term, the reference.
    rollout: groups of completions.
    rewards: their scores. An unscored completion (NaN) has no advantage.
    model: the policy.
    optimizer: made by `optim.make`.
    advantage: rewards_PG -> advantages_PG or advantages_PGT. If it asks for
      greedy_P, the last completion of each group has to be the greedy one, and
      is not trained on (`rollout.rollout(..., greedy=True)`).
    policy_loss: see losses/policy.py.
    select: which tokens' surrogate counts, see losses/select.py; all if None.
    off_policy: weights of tokens that another policy sampled, see
      losses/off_policy.py. With it the old log-probabilities are the model's
      own from before the first step, at the price of a forward pass.
    aggregate: mask_PGT -> weights_PGT.
    kl: see losses/kl.py.
    kl_coef: weight of the KL to `state.reference`; 0 runs no reference.
    kl_where: 'loss', or 'reward': there its gradient is that of the reward.
    kl_control: (coef, kl) -> coef of the next step; then `state.coefs['kl']`
      is in the place of `kl_coef`.
    refresh: (step, reference, params) -> reference of the next step.
    reference_model: what `state.reference` are the parameters of, where that is
      not the policy's own model but a teacher's; with k1_plus this is on-policy
      distillation (arxiv.org/abs/2306.13649).
    entropy_coef: weight of the policy's entropy, which is made large.
    entropy_control: (coef, entropy) -> coef, of `state.coefs['entropy']`.
    entropy_gate: (coef, entropy) -> weight, with the entropy of the update
      before (`state.coefs['entropy_before']`).
    measure_entropy: makes the entropy a metric, also where it has no weight.
    temperature: the sampler's; log-probabilities are of that distribution.
    passes: times that the batch is gone through (mu in the paper).
    minibatches: optimizer steps of a pass, each on P / minibatches groups.
    microbatches: pieces in which a minibatch's gradient is summed up. They
      save memory; losses and gradients do not depend on them.
    skip_even: leaves microbatches out that have no advantage in them, after
      groups without any have been gathered there. They still count in all
      denominators, and the loss's statistics count them as zeros. Only for a
      loss that is zero where the advantage is.
    head_chunk: tokens whose logits exist at one time.
    max_grad_norm: greatest norm, before clipping, of a gradient that is taken.
    max_log_ratio: greatest |log-ratio| to the sampler, nats, of any token.
    max_drift: the same before the first step; beyond it none is taken.
  """
  measure, teacher = (
    functools.partial(
      likelihood, model=m, temperature=temperature, head_chunk=head_chunk
    )
    for m in (model, reference_model or model)
  )
  coefs = {'kl': kl_coef} | state.coefs
  has_kl = bool(kl_coef) or 'kl' in state.coefs
  kl_in_loss = has_kl and kl_where == 'loss'
  if 'entropy' in state.coefs:
    bonus = entropy_gate(coefs['entropy'], coefs['entropy_before'])
  else:
    bonus = entropy_coef
  has_bonus = bool(entropy_coef) or 'entropy' in state.coefs
  has_entropy = has_bonus or measure_entropy

  trained, frozen = models.partition(model, state.params)

  def survey(params: Params, rollout: Rollout, pieces: int, **more):
    """The statistics of all tokens, without gradients."""

    def one(piece):
      return measure(models.join(params, frozen), piece, **more)

    return join(jax.lax.map(one, split(rollout, pieces)))

  pieces = minibatches * microbatches

  def refer(rollout: Rollout):
    if reference_model is None:
      return survey(state.reference, rollout, pieces)
    look = functools.partial(teacher, state.reference)
    return join(jax.lax.map(look, split(rollout, pieces)))

  batch, metrics = prepare(
    state,
    rollout,
    rewards,
    advantage=advantage,
    off_policy=off_policy,
    reference_kl=kl if has_kl else None,
    penalty=coefs['kl'] if has_kl and kl_where == 'reward' else None,
    survey=functools.partial(survey, pieces=pieces),
    refer=refer,
  )

  def loss(trained: Params, batch: Batch):
    mask_PGT = batch.rollout.actions_PGT
    params = models.join(trained, frozen)
    now = measure(params, batch.rollout, entropy=has_entropy)
    logps_PGT, old_logps_PGT = now.logps_PGT, batch.old_logps_PGT
    given = {
      'correction_PGT': batch.correction_PGT,
      'selected_PGT': batch.selected_PGT,
    }
    own = {
      name: _or_ones(given.pop(name), mask_PGT) for name in asks(policy_loss)
    }
    losses_PGT, stats = policy_loss(
      logps_PGT, old_logps_PGT, batch.advantages_PGT, mask_PGT, **own
    )
    for weights_PGT in given.values():  # What the loss did not ask for.
      if weights_PGT is not None:
        losses_PGT *= weights_PGT
    if kl_in_loss:
      stats['kl'] = fill(kl, old_logps_PGT=old_logps_PGT, mask_PGT=mask_PGT)(
        logps_PGT, batch.reference_logps_PGT
      )
      losses_PGT += coefs['kl'] * stats['kl']
    value = jnp.sum(jnp.where(mask_PGT, batch.weights_PGT * losses_PGT, 0.0))
    if has_entropy:
      stats['entropy'] = now.entropies_PGT
    means = {
      name: jnp.sum(jnp.where(mask_PGT, batch.share_PGT * x, 0.0))
      for name, x in stats.items()
    }
    if has_bonus:
      bonus_PGT = stats['entropy'] * batch.bonus_PGT
      value -= bonus * jnp.sum(jnp.where(mask_PGT, bonus_PGT, 0.0))
    drift_PGT = jnp.abs(logps_PGT - batch.rollout.logps_PGT)
    drift = jnp.max(jnp.where(mask_PGT, drift_PGT, 0.0))
    return value, (jax.lax.stop_gradient(means), drift)

  def minibatch_step(carry, batch: Batch):
    trained, opt_state, in_a_row, first = carry
    mask_PGT = batch.rollout.actions_PGT.astype(jnp.float32)
    # Denominators are of the whole minibatch, before it is cut into pieces.
    batch = batch.replace(
      weights_PGT=aggregate(mask_PGT),
      share_PGT=aggregate_lib.token_mean(mask_PGT),
    )
    if select is not None:
      look = functools.partial(survey, trained, pieces=microbatches)
      batch = batch.replace(selected_PGT=_select(select, batch, look, state))
    if has_bonus:
      # Of the tokens that count, as in TRL.
      kept_PGT = mask_PGT * _or_ones(batch.selected_PGT, mask_PGT)
      batch = batch.replace(bonus_PGT=aggregate_lib.token_mean(kept_PGT))
    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, (means, drift)), grads = _summed(
      gradient, trained, batch, microbatches, skip_even
    )
    norm = optax.tree.norm(grads)
    # Before the first step the policy is the one that sampled.
    first = jnp.where(jnp.isnan(first), drift.astype(first.dtype), first)
    beyond = (norm > max_grad_norm) | (drift > max_log_ratio)
    beyond |= first > max_drift
    taken = jnp.isfinite(value) & jnp.isfinite(norm) & ~beyond
    updates, next_opt_state = optimizer.update(grads, opt_state, trained)
    moved = optax.apply_updates(trained, updates), next_opt_state
    stays = trained, opt_state
    carry = jax.tree.map(
      lambda new, old: jnp.where(taken, new, old), moved, stays
    )
    carry = *carry, jnp.where(taken, 0, in_a_row + 1), first
    numbers = {'loss': value, 'grad_norm': norm, 'skipped': 1.0 - taken}
    return carry, (means | numbers, drift)

  def one_pass(carry, _):
    return jax.lax.scan(minibatch_step, carry, split(batch, minibatches))

  carry = (trained, state.opt_state, state.skipped, jnp.float32(jnp.nan))
  carry, (stats, drifts) = jax.lax.scan(one_pass, carry, length=passes)
  trained, opt_state, in_a_row, first = carry
  skipped, norm_max = jnp.sum(stats.pop('skipped')), jnp.max(stats['grad_norm'])
  stats = {name: jnp.mean(x) for name, x in stats.items()}
  metrics |= {
    'loss': stats.pop('loss'),
    'grad_norm': stats.pop('grad_norm'),
    'grad_norm_max': norm_max,
    'rollout/logp_drift': first,
    'policy/log_ratio_max': jnp.max(drifts),
    'update/skipped': skipped,
    'update/skipped_in_a_row': in_a_row.astype(jnp.float32),
  }
  if kl_in_loss:
    metrics['kl/reference'] = stats.pop('kl')
  next_coefs = dict(state.coefs)
  if 'kl' in state.coefs:
    metrics['kl/coef'] = coefs['kl']
    next_coefs['kl'] = kl_control(coefs['kl'], metrics['kl/reference'])
  if 'entropy' in state.coefs:
    metrics['entropy/coef'] = bonus
    next_coefs['entropy'] = entropy_control(coefs['entropy'], stats['entropy'])
    next_coefs['entropy_before'] = stats['entropy']
  metrics |= {f'policy/{name}': value for name, value in stats.items()}
  reference = state.reference
  if refresh is not None and reference is not None:
    reference = refresh(state.step + 1, reference, trained)
  state = state.replace(
    step=state.step + 1,
    cursor=state.cursor + rollout.tokens_PGT.shape[0],
    params=models.join(trained, frozen),
    opt_state=opt_state,
    reference=reference,
    coefs=next_coefs,
    skipped=in_a_row,
  )
  return state, metrics


def _select(select: Callable, batch: Batch, look: Callable, state: TrainState):
  """Tokens of a minibatch whose surrogate counts."""
  wants = asks(select)
  now = look(batch.rollout, entropy='entropies_PGT' in wants)
  P, G, T = batch.old_logps_PGT.shape
  more = {'entropies_PGT': now.entropies_PGT}
  if 'noise_PGT' in wants:
    # Keyed by what the token is, not by where it lies.
    noise_TB = sampling.noise(
      jax.random.fold_in(jax.random.key(0), state.step),
      jnp.repeat(batch.rollout.prompts.ids_P, G),
      jnp.tile(jnp.arange(G), P),
      jnp.arange(T),
    )
    more['noise_PGT'] = noise_TB.T.reshape(P, G, T)
  return fill(select, **more)(
    now.logps_PGT,
    batch.old_logps_PGT,
    batch.advantages_PGT,
    batch.rollout.actions_PGT,
  )


def _summed(
  gradient: Callable,
  params: Params,
  batch: Batch,
  pieces: int,
  skip_even: bool,
) -> tuple:
  """The gradient of a batch and what comes with it, piece after piece.

  All of it is summed over the pieces, but for the drift, the largest of them.
  """
  if skip_even:  # Groups without advantage come last; piece i is i, i + pieces.
    order_P, _ = groups.order(batch.advantages_PGT)
    order_P = order_P.reshape(pieces, -1).T.reshape(-1)
    batch = jax.tree.map(lambda x: x[order_P], batch)

  def add(total, piece: Batch):
    def compute():
      return gradient(params, piece)

    if skip_even:
      learnable = jnp.any(piece.advantages_PGT != 0)
      nothing = _zeros(jax.eval_shape(compute))
      (value, (means, drift)), grads = jax.lax.cond(
        learnable, compute, lambda: nothing
      )
    else:
      (value, (means, drift)), grads = compute()
    return jax.tree.map(jnp.add, total, grads), (value, means, drift)

  grads, (values, means, drifts) = jax.lax.scan(
    add, _zeros(params), split(batch, pieces)
  )
  value, means = jax.tree.map(jnp.sum, (values, means))
  return (value, (means, jnp.max(drifts))), grads


def _or_ones(x: jax.Array | None, mask_PGT: jax.Array) -> jax.Array:
  return jnp.ones(mask_PGT.shape) if x is None else x


def _zeros(tree):
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
