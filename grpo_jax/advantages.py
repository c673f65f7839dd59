"""Advantage estimators: how a group of rewards becomes a learning signal.

Each estimator maps rewards_PG, the rewards of G completions for each of P
prompts, to advantages of the same shape, or of one per token. It sees no model,
device or state, so a new idea is one new function here, chosen by name:

  c.advantage = dict(name='rloo')

A keyword without a default is an input, which the update fills in by its name;
one with a default is a knob, which c.advantage may set.

  name                   advantage of completion i (m: group mean)     arxiv.org
  grpo                   (r - m) / (group std + eps)                  2402.03300
  dr_grpo                r - m                                        2503.20783
  rloo                   r - mean of the others                       2402.14740
  batch_scaled           (r - m) / (batch std of r + eps)             2508.08221
  magistral              (r - m) / (batch std of r - m + eps)         2506.10910
  max_rl                 (r - m) / m                                  2602.02710
  opo                    r - mean weighted by length                  2505.23585
  gpg                    (r - m) B / (rewards that are not 0)         2504.02546
  gdpo                   sum of the parts' z-scores, batch-scaled     2601.05242
  passk                  best - second best, only for the best        2503.19595
  best_of_group          1 for the best, 0 for the others             2304.06767
  reinforce_pp_baseline  r - m, whitened over the batch's tokens      2501.03262
  reinforce_pp           reward to go, whitened over the same         2501.03262
  remax                  reward to go - r of a greedy completion      2310.10505
  optimal_token_baseline reward to go - mean weighted by energy       2602.07078

The last three are per token. A statistic of the batch is one of the whole batch
that the function is given.

A NaN reward means 'could not be scored': it is left out of every statistic, and
gets zero advantage. Where the advantage is relative to the group, a group of
equal rewards gets exactly zero: nothing is to be learnt from it. The exceptions
are reinforce_pp_baseline and gdpo over tokens, from which the batch's mean is
taken away last, and the tail that optimal_token_baseline leaves as it is. A
completion that is the only one scored in its group is a group of equal rewards
too; `keep_lone` gives it its reward as advantage, as verl does.

Dimension key: P prompts, G completions each, T completion length.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def grpo(
  rewards_PG: jax.Array,
  *,
  ddof: int = 1,
  eps: float = 1e-4,
  keep_lone: bool = False,
) -> jax.Array:
  """Z-score within the group (GRPO, arxiv.org/abs/2402.03300).

  The deviation divides by the group size minus `ddof`. Most codebases take 1,
  some 0, which makes advantages 15% larger at G=4. `eps` is added to the
  deviation; 1e-4 is TRL's, verl has 1e-6.
  """
  deviation_P1 = _deviation(rewards_PG, _scored(rewards_PG), 1, ddof)
  if keep_lone:
    deviation_P1 = jnp.where(_lone(rewards_PG), 1.0, deviation_P1)
  return _centred(rewards_PG, keep_lone) / (deviation_P1 + eps)


def dr_grpo(rewards_PG: jax.Array, *, keep_lone: bool = False) -> jax.Array:
  """Centre only: no bonus for too-easy prompts (arxiv.org/abs/2503.20783)."""
  return _centred(rewards_PG, keep_lone)


def rloo(
  rewards_PG: jax.Array,
  *,
  normalize: bool = False,
  eps: float = 1e-4,
  keep_lone: bool = False,
) -> jax.Array:
  """Baseline is the mean of the others (RLOO, arxiv.org/abs/2402.14740).

  `normalize` divides by the deviation over the batch, plus `eps`, as TRL's
  normalize_advantages. It leaves a lone completion out of that deviation.
  """
  count_P1 = jnp.sum(_scored(rewards_PG), axis=1, keepdims=True)
  advantages_PG = (
    _centred(rewards_PG, keep_lone) * count_P1 / jnp.maximum(count_P1 - 1, 1)
  )
  if normalize:
    # The batch's mean is not taken away: every group's is zero.
    compared_PG = _scored(rewards_PG) & ~_lone(rewards_PG)
    advantages_PG /= _deviation(advantages_PG, compared_PG) + eps
  return advantages_PG


def batch_scaled(rewards_PG: jax.Array, *, eps: float = 1e-4) -> jax.Array:
  """Group mean, deviation of all rewards (Lite PPO, arxiv.org/abs/2508.08221).

  TRL's scale_rewards='batch': how much prompts differ in their rewards counts
  in the deviation as well.
  """
  deviation = _deviation(rewards_PG, _scored(rewards_PG))
  return _centred(rewards_PG) / (deviation + eps)


def magistral(rewards_PG: jax.Array, *, eps: float = 1e-4) -> jax.Array:
  """Centred in the group, scaled over the batch (arxiv.org/abs/2506.10910).

  The deviation is that of the centred rewards, so how much prompts differ does
  not count. The paper leaves groups of equal rewards out of the batch; here
  they count in the deviation. It names no `eps`.
  """
  centred_PG = _centred(rewards_PG)
  # The batch's mean is not taken away: every group's is zero.
  return centred_PG / (_deviation(centred_PG, _scored(rewards_PG)) + eps)


def max_rl(rewards_PG: jax.Array) -> jax.Array:
  """Relative to the group mean: hard prompts count (arxiv.org/abs/2602.02710).

  For rewards that are not negative: a group whose mean is 0 or less gets zero,
  as in prime-rl.
  """
  mean_P1 = _mean(rewards_PG, _scored(rewards_PG), 1)
  solved_P1 = mean_P1 > 0
  scaled_PG = _centred(rewards_PG) / jnp.where(solved_P1, mean_P1, 1.0)
  return jnp.where(solved_P1, scaled_PG, 0.0)


def opo(
  rewards_PG: jax.Array, *, mask_PGT: jax.Array, keep_lone: bool = False
) -> jax.Array:
  """Baseline weighted by length (OPO, arxiv.org/abs/2505.23585).

  It has the least variance if a completion's squared gradient grows with its
  number of tokens. A group without tokens gets zero.
  """
  lengths_PG = jnp.sum(_counted(rewards_PG, mask_PGT), axis=-1)
  baseline_P1 = _mean(rewards_PG, lengths_PG, 1)
  advantages_PG = _relative(rewards_PG, baseline_P1, keep_lone)
  has_tokens_P1 = jnp.any(lengths_PG > 0, axis=1, keepdims=True)
  return jnp.where(has_tokens_P1, advantages_PG, 0.0)


def gpg(
  rewards_PG: jax.Array, *, f_norm: float = 1.0, keep_lone: bool = False
) -> jax.Array:
  """Centred, and made up for rewards of 0 (GPG, arxiv.org/abs/2504.02546).

  As verl has it: multiplied by the number of rewards in the batch over that of
  rewards which are not 0, and divided by `f_norm`.
  """
  count = jnp.sum(_scored(rewards_PG))
  nonzero = jnp.sum(_scored(rewards_PG) & (rewards_PG != 0))
  scale = count / jnp.maximum(nonzero, 1)
  return _centred(rewards_PG, keep_lone) * scale / f_norm


def gdpo(
  rewards_PG: jax.Array,
  *,
  parts: Mapping[str, jax.Array],
  part_weights: Mapping[str, float],
  mask_PGT: jax.Array,
  over_tokens: bool = False,
  eps: float = 1e-4,
  keep_lone: bool = False,
) -> jax.Array:
  """Z-score of each part of the reward, then sum (arxiv.org/abs/2601.05242).

  No part drowns another one out by its scale. A part that is NaN counts as its
  mean. The sum is divided by its deviation over the batch's completions, as in
  TRL, or with `over_tokens` whitened over the batch's tokens, as in verl, so
  that long completions count more. `eps` is added to each deviation (1e-4 is
  TRL's, verl has 1e-6); to the variance over tokens verl's 1e-8 is added.
  """
  scored_PG = _scored(rewards_PG)
  each = (
    weight * grpo(parts[name], eps=eps, keep_lone=keep_lone)
    for name, weight in part_weights.items()
  )
  sum_PG = sum(each, start=jnp.zeros_like(rewards_PG))
  if over_tokens:
    lengths_PG = jnp.sum(_counted(rewards_PG, mask_PGT), axis=-1)
    return _whiten(sum_PG, lengths_PG, 1e-8)
  # The batch's mean is not taken away: every group's is zero.
  sum_PG = jnp.where(scored_PG, sum_PG, 0.0)
  return sum_PG / (_deviation(sum_PG, scored_PG) + eps)


def passk(
  rewards_PG: jax.Array, *, scaled: bool = True, eps: float = 1e-6
) -> jax.Array:
  """For the best of k = G samples (pass@k, arxiv.org/abs/2503.19595).

  Only the best completion has an advantage: what the group would lose without
  it, which is its distance to the second best, and 0 where there are two best.
  `scaled` divides by the group's deviation plus `eps`, as verl does.
  """
  scored_PG = _scored(rewards_PG)
  best_PG = _first_max(rewards_PG, scored_PG)
  others_PG = jnp.where(scored_PG & ~best_PG, rewards_PG, -jnp.inf)
  second_P1 = jnp.max(others_PG, axis=1, keepdims=True)
  # A lone completion has no second best, and so no advantage.
  gaps_PG = jnp.where(jnp.isneginf(second_P1), 0.0, rewards_PG - second_P1)
  advantages_PG = jnp.where(best_PG, gaps_PG, 0.0)
  if scaled:
    advantages_PG /= _deviation(rewards_PG, scored_PG, 1) + eps
  return advantages_PG


def best_of_group(rewards_PG: jax.Array, *, mask_PGT: jax.Array) -> jax.Array:
  """The best completion is the label (RAFT, arxiv.org/abs/2304.06767).

  Iterated rejection-sampling fine-tuning: with losses.policy.reinforce, the
  next-token loss on the best completion of each group. Of several best ones it
  is the shortest, and of several shortest ones the first. Where no completion
  is better than another, none is the label.
  """
  scored_PG = _scored(rewards_PG)
  score_PG = jnp.where(scored_PG, rewards_PG, -jnp.inf)
  best_PG = scored_PG & (score_PG == jnp.max(score_PG, axis=1, keepdims=True))
  lengths_PG = jnp.sum(_counted(rewards_PG, mask_PGT), axis=-1)
  label_PG = _first_max(-lengths_PG, best_PG)
  differ_P1 = _differ(rewards_PG, scored_PG, 1)
  return jnp.where(label_PG & differ_P1, jnp.ones_like(rewards_PG), 0.0)


def reinforce_pp_baseline(
  rewards_PG: jax.Array,
  *,
  mask_PGT: jax.Array,
  eps: float = 1e-8,
  keep_lone: bool = False,
) -> jax.Array:
  """Centred in the group, whitened over tokens (arxiv.org/abs/2501.03262).

  A long completion counts more in the batch's mean and variance, to which `eps`
  is added. That mean is not zero, so groups of equal rewards have the same
  small advantage, unless all groups of the batch are such.
  """
  lengths_PG = jnp.sum(_counted(rewards_PG, mask_PGT), axis=-1)
  return _whiten(_centred(rewards_PG, keep_lone), lengths_PG, eps)


def reinforce_pp(
  rewards_PG: jax.Array,
  *,
  mask_PGT: jax.Array,
  token_rewards_PGT: jax.Array,
  gamma: float = 1.0,
  eps: float = 1e-8,
) -> jax.Array:
  """Reward to go, whitened over the tokens (arxiv.org/abs/2501.03262).

  There is no group: the baseline is the batch's mean. `gamma` discounts by the
  tokens that count in between, and `eps` is added to the variance.
  """
  counted_PGT = _counted(rewards_PG, mask_PGT)
  returns_PGT = _returns(token_rewards_PGT, counted_PGT, gamma)
  return _whiten(returns_PGT, counted_PGT, eps)


def remax(
  rewards_PG: jax.Array,
  *,
  mask_PGT: jax.Array,
  token_rewards_PGT: jax.Array,
  greedy_P: jax.Array,
) -> jax.Array:
  """Baseline is the reward of the greedy completion (arxiv.org/abs/2310.10505).

  A prompt whose greedy completion could not be scored (NaN) gets zero.
  """
  greedy_P11 = greedy_P[:, None, None]
  counted_PGT = _counted(rewards_PG, mask_PGT) & _scored(greedy_P11)
  returns_PGT = _returns(token_rewards_PGT, counted_PGT)
  return jnp.where(counted_PGT, returns_PGT - greedy_P11, 0.0)


def optimal_token_baseline(
  rewards_PG: jax.Array,
  *,
  mask_PGT: jax.Array,
  token_rewards_PGT: jax.Array,
  logps_PGT: jax.Array,
  squares_PGT: jax.Array,
  correction_PGT: jax.Array,
  zero_tail: bool = True,
  close_holes: bool = True,
  eps: float = 1e-8,
  keep_lone: bool = False,
) -> jax.Array:
  """The baseline of least variance at each place (arxiv.org/abs/2602.07078).

  At a place, the group's mean of the reward to go, weighted by the energy that
  a completion has spent until there: the sum of its tokens' squared gradients
  with respect to the logits, 1 - 2p + sum over the vocabulary of p^2, each
  times the squared off-policy weight (1 where nothing is corrected).

  `zero_tail`: past the end of the second longest completion the longest has no
  one to be compared with, and keeps its reward to go, so that equal rewards do
  not give zero there; without it, it gets 0. `close_holes` compares the n-th
  tokens that count, as verl's tir_optimal_token_baseline; without it those at
  the same place, as its optimal_token_baseline. `eps` is added to the energy.
  """
  counted_PGT = _counted(rewards_PG, mask_PGT)
  returns_PGT = _returns(token_rewards_PGT, counted_PGT)
  steps_PGT = 1.0 - 2.0 * jnp.exp(logps_PGT) + squares_PGT
  steps_PGT = jnp.where(counted_PGT, steps_PGT * correction_PGT**2, 0.0)
  energy_PGT = jnp.cumsum(steps_PGT, axis=-1)

  by_place: tuple[jax.Array, jax.Array, jax.Array]
  by_place = (returns_PGT, energy_PGT, counted_PGT)
  if close_holes:
    order_PGT = jnp.argsort(~counted_PGT, axis=-1, stable=True)
    by_place = jax.tree.map(
      lambda x: jnp.take_along_axis(x, order_PGT, axis=-1), by_place
    )
  baseline_PGT = _energy_mean(*by_place, eps)

  lengths_PG1 = jnp.sum(counted_PGT, axis=-1, keepdims=True)
  longest_PG = _first_max(lengths_PG1[..., 0], lengths_PG1[..., 0] > 0)
  others_PG1 = jnp.where(longest_PG[..., None], 0, lengths_PG1)
  second_P11 = jnp.max(others_PG1, axis=1, keepdims=True)
  if zero_tail:
    places_T = jnp.arange(returns_PGT.shape[-1])
    tail_PGT = (places_T >= second_P11) & (lengths_PG1 > second_P11)
    baseline_PGT = jnp.where(tail_PGT, 0.0, baseline_PGT)
  if close_holes:
    rank_PGT = jnp.maximum(jnp.cumsum(counted_PGT, axis=-1) - 1, 0)
    baseline_PGT = jnp.take_along_axis(baseline_PGT, rank_PGT, axis=-1)

  lone_PG1 = second_P11 == 0  # No other completion has tokens.
  lone_PGT = 0.0 if keep_lone else returns_PGT
  baseline_PGT = jnp.where(lone_PG1, lone_PGT, baseline_PGT)
  return jnp.where(counted_PGT, returns_PGT - baseline_PGT, 0.0)


def _energy_mean(returns_PGT, energy_PGT, counted_PGT, eps) -> jax.Array:
  """The group's mean return at each place, weighted by energy."""
  energy_PGT = jnp.where(counted_PGT, energy_PGT, 0.0)
  weighted_PGT = jnp.where(counted_PGT, returns_PGT * energy_PGT, 0.0)
  mean_P1T = jnp.sum(weighted_PGT, axis=1, keepdims=True) / (
    jnp.sum(energy_PGT, axis=1, keepdims=True) + eps
  )
  # Equal returns are their own mean, also where there is no energy.
  return jnp.where(_differ(returns_PGT, counted_PGT, 1), mean_P1T, returns_PGT)


def _scored(x: jax.Array) -> jax.Array:
  return ~jnp.isnan(x)


def _lone(rewards_PG: jax.Array) -> jax.Array:
  """Whether only one completion of the group was scored, lone_P1."""
  return jnp.sum(_scored(rewards_PG), axis=1, keepdims=True) == 1


def _counted(rewards_PG: jax.Array, mask_PGT: jax.Array) -> jax.Array:
  """The tokens that count, of completions that were scored."""
  return (mask_PGT > 0) & _scored(rewards_PG)[..., None]


def _centred(rewards_PG: jax.Array, keep_lone: bool = False) -> jax.Array:
  """Rewards minus the group's mean."""
  mean_P1 = _mean(rewards_PG, _scored(rewards_PG), 1)
  return _relative(rewards_PG, mean_P1, keep_lone)


def _relative(rewards_PG, baseline_P1, keep_lone: bool) -> jax.Array:
  """Rewards minus a mean of the group; exactly 0 if the group is all equal.

  The mean of equal floats can miss them by a rounding error, which a tiny
  deviation would blow up, so equality is tested on the rewards themselves.
  """
  scored_PG = _scored(rewards_PG)
  differ_P1 = _differ(rewards_PG, scored_PG, 1)
  relative_PG = jnp.where(differ_P1, rewards_PG - baseline_P1, 0.0)
  if keep_lone:
    relative_PG = jnp.where(_lone(rewards_PG), rewards_PG, relative_PG)
  return jnp.where(scored_PG, relative_PG, 0.0)


def _differ(x: jax.Array, counted: jax.Array, axis: int | None) -> jax.Array:
  """Whether not all that count are equal; False where none does."""
  low = jnp.min(jnp.where(counted, x, jnp.inf), axis, keepdims=True)
  high = jnp.max(jnp.where(counted, x, -jnp.inf), axis, keepdims=True)
  return low < high


def _first_max(x_PG: jax.Array, counted_PG: jax.Array) -> jax.Array:
  """Marks the greatest of those that count in a group, the first of equals."""
  G = x_PG.shape[1]
  best_P = jnp.argmax(jnp.where(counted_PG, x_PG, -jnp.inf), axis=1)
  return jax.nn.one_hot(best_P, G, dtype=bool) & counted_PG


def _mean(x: jax.Array, weights: jax.Array, axis: int | None = None):
  """Weighted mean that keeps its axes; 0 where nothing weighs anything."""
  total = jnp.sum(weights, axis, keepdims=True)
  weighted = jnp.sum(_weigh(x, weights), axis, keepdims=True)
  return weighted / jnp.where(total > 0, total, 1)


def _deviation(
  x: jax.Array, weights: jax.Array, axis: int | None = None, ddof: int = 1
) -> jax.Array:
  """Weighted deviation that keeps its axes; 0 where it is not defined."""
  return jnp.sqrt(_variance(x, weights, axis, ddof))


def _variance(x, weights, axis, ddof) -> jax.Array:
  # From the distances to the mean: E[x^2] - E[x]^2 is nothing but rounding
  # where rewards hardly differ.
  squares = _weigh((x - _mean(x, weights, axis)) ** 2, weights)
  spare = jnp.sum(weights, axis, keepdims=True) - ddof
  squares = jnp.sum(squares, axis, keepdims=True)
  return jnp.where(spare > 0, squares / jnp.where(spare > 0, spare, 1), 0.0)


def _weigh(x: jax.Array, weights: jax.Array) -> jax.Array:
  """x times its weight; what weighs nothing may be NaN."""
  return jnp.where(weights > 0, x, 0.0) * weights


def _whiten(x: jax.Array, weights: jax.Array, eps: float) -> jax.Array:
  """(x - mean) / sqrt(variance + eps) over the batch, 0 if x is all equal."""
  variance = _variance(x, weights, None, 1)
  white = (x - _mean(x, weights)) / jnp.sqrt(variance + eps)
  counted = weights > 0
  return jnp.where(counted & _differ(x, counted, None), white, 0.0)


def _returns(
  token_rewards_PGT: jax.Array, counted_PGT: jax.Array, gamma: float = 1.0
) -> jax.Array:
  """The reward from each token on, discounted by the tokens that count."""
  rewards_PGT = jnp.where(counted_PGT, token_rewards_PGT, 0.0)
  decay_PGT = jnp.where(counted_PGT, gamma, 1.0).astype(rewards_PGT.dtype)

  def join(after, before):
    decay_after, return_after = after
    decay, reward = before
    return decay * decay_after, decay * return_after + reward

  pairs = (decay_PGT, rewards_PGT)
  _, returns_PGT = jax.lax.associative_scan(join, pairs, reverse=True, axis=2)
  return returns_PGT
