"""Policy losses: per-token surrogates whose gradient moves the policy.

  fn(logps_PGT, old_logps_PGT, advantages_PGT, mask_PGT, *, <inputs>, <knobs>)
      -> (loss_PGT, stats)

loss_PGT is to be minimised; stats are arrays that are averaged over tokens into
the metrics. With r the ratio p / p_old, s a ratio of whole completions, A the
advantage and [x] for 'x without a gradient', a token's loss is, in short, the
third column; tests compare it with what the fourth names.

  name         paper             loss                        equal to
  ppo_clip     1707.06347        -min(r A, clip(r) A)        TRL grpo, rloo
  dual_clip    1912.09729        at most -cap A, if A < 0    verl vanilla
  two_sided    2505.07291        -min(min(r, d) A, clip A)   TRL delta
  gspo         2507.18071        ppo_clip of s               TRL sequence
  gspo_token   2507.18071        of [s] r / [r]              verl gspo
  luspo        2602.05261        gspo, summed over tokens    TRL luspo
  gmpo         2507.20673        -A s, each r clipped in s   verl, TRL gmpo
  cispo        2506.13585        -[clip(r)] A log p          verl cispo
  cispo_cap    2510.13786        -[min(r, cap)] A log p      TRL cispo
  sapo         2511.20347        -A sigmoid(t(r - 1)) 4/t    verl, TRL sapo
  vespo        2602.10693        -[phi(s)] A log p           TRL vespo
  dppo_tv      2602.04879        -[keep min(r, c)] A log p   verl dppo_tv
  dppo_kl      2602.04879        the same, keep by KL        verl dppo_kl
  masked_pg    2602.04879        t log(r)^2 - keep A r       by hand
  reinforce    2504.02546 (GPG)  -A log p                    verl gpg
  kl_cov       2505.22617        -A r + chosen c |log r|     verl kl_cov
  dro          2405.19107        -A log p + b/2 log(r)^2     verl dro
  kimi         2501.12599        -A log p + t/2 log(s)^2     by hand

To try an idea, add a function: `config.loss.name` finds it by its name. What
picks tokens out of a whole batch is in select.py (Clip-Cov is ppo_clip there),
and how tokens are averaged in aggregate.py.

  level   'token' for each token's own ratio; 'mean' for the geometric mean
          of a completion's ratios (TRL's 'sequence'); 'sum' for their product
  clamp   bound of a log-ratio in nats, so that no ratio overflows; beyond it
          the ratio has no gradient. verl has 20; TRL has none, which is None

Masked positions may hold any finite number: they reach no loss of others, and
their own loss is finite and weighs nothing in the average.

Dimension key: P prompts, G completions each, T completion length. Advantages
are [P, G, 1] or [P, G, T].
"""

import jax
import jax.numpy as jnp

Stats = dict[str, jax.Array]

# Losses with a gradient where the advantage is zero.
REGULARISED = ('masked_pg', 'kl_cov', 'dro', 'kimi')


def ppo_clip(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  level: str = 'token',
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """The clipped surrogate of PPO (arxiv.org/abs/1707.06347) as in GRPO.

  Separate bounds are DAPO's clip-higher (arxiv.org/abs/2503.14476): the ratio
  counts up to 1 + clip_high for good tokens and down to 1 - clip_low for bad.
  Of `level`, 'mean' is `gspo`, and 'sum' is TRL's RLOO, whose average is
  `sequence_mean`. Equals TRL with clamp=None, and verl without its dual clip.
  """
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp, level)
  return _clipped(ratio_PGT, ratio_PGT, advantages_PGT, clip_low, clip_high)


def dual_clip(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  cap: float = 3.0,
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """PPO's clip, and a bad token's loss ends at cap (arxiv.org/abs/1912.09729).

  Under PPO's clip alone a bad token that became much likelier has a gradient
  without bound. Here it has none from a ratio of `cap` on. verl's `vanilla`.
  """
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp)
  loss_PGT, stats = _clipped(
    ratio_PGT, ratio_PGT, advantages_PGT, clip_low, clip_high
  )
  capped_PGT = jnp.minimum(loss_PGT, -cap * advantages_PGT)
  bad_PGT = advantages_PGT < 0
  stats['cap_fraction'] = _share(bad_PGT & (capped_PGT < loss_PGT), loss_PGT)
  return jnp.where(bad_PGT, capped_PGT, loss_PGT), stats


def two_sided(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  delta: float = 4.0,
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """INTELLECT-2's bound on the free ratio (arxiv.org/abs/2505.07291).

  The same as `dual_clip` with cap=delta, if that is above 1 + clip_high. TRL's
  `delta`, with clamp=None.
  """
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp)
  free_PGT = jnp.minimum(ratio_PGT, delta)
  return _clipped(free_PGT, ratio_PGT, advantages_PGT, clip_low, clip_high)


def gspo(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """PPO's clip of a completion's mean log-ratio (arxiv.org/abs/2507.18071).

  Bounds are the paper's; a mean log-ratio is far smaller than a token's. TRL's
  importance_sampling_level='sequence', with clamp=None. It averages over
  completions: `sequence_mean`.
  """
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp, 'mean')
  return _clipped(ratio_PGT, ratio_PGT, advantages_PGT, clip_low, clip_high)


def gspo_token(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
  clamp: float = 10.0,
) -> tuple[jax.Array, Stats]:
  """GSPO where a token may have its own advantage (arxiv.org/abs/2507.18071).

  Every token has the value of its completion's ratio and a gradient of its own
  only. With one advantage for a completion it is `gspo`. verl's `gspo`, which
  clamps the mean log-ratio from above only, and always has `sequence_mean`.
  """
  log_ratio_PGT = _log_ratio(logps_PGT, old_logps_PGT, mask_PGT, None, 'mean')
  own_PGT = _counted(logps_PGT, mask_PGT)
  own_PGT -= jax.lax.stop_gradient(own_PGT)
  log_ratio_PGT = own_PGT + jax.lax.stop_gradient(log_ratio_PGT)
  ratio_PGT = jnp.exp(jnp.minimum(log_ratio_PGT, clamp))
  return _clipped(ratio_PGT, ratio_PGT, advantages_PGT, clip_low, clip_high)


def luspo(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 2e-3,
  clip_high: float = 2.5e-3,
  level: str = 'mean',
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """GSPO without its division by length (arxiv.org/abs/2602.05261).

  The name is for the pair: with `aggregate.sequence_sum` a completion weighs as
  much as it has tokens, so that short ones are not favoured; with another
  average this is `gspo` and its bounds. TRL's `luspo`, with clamp=None.
  """
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp, level)
  return _clipped(ratio_PGT, ratio_PGT, advantages_PGT, clip_low, clip_high)


def gmpo(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  selected_PGT: jax.Array,
  correction_PGT: jax.Array,
  clip_low: float = 0.4,
  clip_high: float = 0.4,
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """The geometric mean of clipped ratios (arxiv.org/abs/2507.20673).

  Bounds are of the log-ratio, in nats, before the mean. A completion has one
  loss; its advantage is the mean over its tokens, and its average
  `sequence_mean`. Tokens not selected leave the geometric mean (TRL), and
  corrections enter by theirs (verl). verl's `geo_mean` and TRL's GMPO, both
  with clamp=None; TRL's value has a constant more, -A of empty completions.
  """
  log_ratio_PGT = _log_ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp)
  sign_PGT = jnp.sign(advantages_PGT)
  bounded_PGT = jnp.clip(log_ratio_PGT, -clip_low, clip_high)
  one_sided_PGT = sign_PGT * jnp.minimum(
    sign_PGT * log_ratio_PGT, sign_PGT * bounded_PGT
  )
  inside_PGT = (mask_PGT != 0) & (selected_PGT != 0)
  ratio_PG1 = jnp.exp(_mean(one_sided_PGT, inside_PGT))
  # 1e-10 is verl's: a weight of zero makes the mean small, and not NaN.
  log_weights_PGT = jnp.log(correction_PGT + 1e-10)
  weight_PG1 = jnp.exp(_mean(log_weights_PGT, mask_PGT))
  loss_PG1 = -_mean(advantages_PGT, mask_PGT) * ratio_PG1 * weight_PG1
  loss_PGT = jnp.broadcast_to(loss_PG1, logps_PGT.shape)
  cut_PGT = sign_PGT * (log_ratio_PGT - bounded_PGT) > 0
  return loss_PGT, {'clip_fraction': _share(cut_PGT, loss_PGT)}


def cispo(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """REINFORCE weighted by a clipped ratio (MiniMax-M1, 2506.13585).

  No token loses its gradient; only its weight is bounded. MiniMax has no lower
  bound, which is clip_low=1. The paper's and verl's parameterisation, where the
  weight ends at 1 + clip_high; TRL's is `cispo_cap`.
  """
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp)
  weight_PGT = jnp.clip(ratio_PGT, 1.0 - clip_low, 1.0 + clip_high)
  loss_PGT = _weighted(weight_PGT, advantages_PGT, logps_PGT, mask_PGT)
  return loss_PGT, {'clip_fraction': _share(ratio_PGT != weight_PGT, loss_PGT)}


def cispo_cap(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  cap: float = 5.0,
  level: str = 'token',
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """CISPO with the bound as a ratio itself (ScaleRL, arxiv.org/abs/2510.13786).

  The same as `cispo` with clip_low=1 and clip_high=cap - 1. TRL's `cispo`, with
  clamp=None; its epsilon_high is `cap`.
  """
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp, level)
  weight_PGT = jnp.minimum(ratio_PGT, cap)
  loss_PGT = _weighted(weight_PGT, advantages_PGT, logps_PGT, mask_PGT)
  return loss_PGT, {'clip_fraction': _share(ratio_PGT != weight_PGT, loss_PGT)}


def sapo(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  tau_good: float = 1.0,
  tau_bad: float = 1.05,
  level: str = 'token',
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """A soft gate in place of the clip (arxiv.org/abs/2511.20347).

  The greater tau, the faster a token's gradient fades as its ratio leaves 1;
  tau_good is for advantages above 0, tau_bad for the others. verl's `sapo`, and
  TRL's with clamp=None; both average by `sequence_mean`.
  """
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp, level)
  tau_PGT = jnp.where(advantages_PGT > 0, tau_good, tau_bad)
  gate_PGT = jax.nn.sigmoid(tau_PGT * (ratio_PGT - 1.0)) * 4.0 / tau_PGT
  return -gate_PGT * advantages_PGT, {}


def vespo(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  correction_PGT: jax.Array,
  k_good: float = 2.0,
  lambda_good: float = 3.0,
  k_bad: float = 3.0,
  lambda_bad: float = 2.0,
) -> tuple[jax.Array, Stats]:
  """REINFORCE weighted by a whole completion's ratio (arxiv 2602.10693).

  phi(w) = w^k exp(lambda (1 - w)), w the product of a completion's ratios and
  corrections: 1 at w = 1, and 0 at both ends. TRL's `vespo`, except that TRL
  also multiplies the corrections of masked positions.
  """
  least, most = jnp.log(1e-8), 20.0
  token_PGT = _log_ratio(logps_PGT, old_logps_PGT, mask_PGT, most)
  # A weight of 0 has a logarithm that the clip makes finite.
  weights_PGT = jnp.clip(jnp.log(correction_PGT), least, most)
  log_w_PGT = _counted(token_PGT + weights_PGT, mask_PGT)
  log_w_PG1 = jnp.sum(log_w_PGT, axis=-1, keepdims=True)
  log_w_PG1 = jnp.clip(log_w_PG1, least, most)
  good_PGT = advantages_PGT >= 0
  k_PGT = jnp.where(good_PGT, k_good, k_bad)
  lambda_PGT = jnp.where(good_PGT, lambda_good, lambda_bad)
  # Not lambda (1 - w): that rounds otherwise than the source.
  log_phi_PGT = lambda_PGT + k_PGT * log_w_PG1 - lambda_PGT * jnp.exp(log_w_PG1)
  phi_PGT = jax.lax.stop_gradient(jnp.exp(log_phi_PGT))
  loss_PGT = _weighted(phi_PGT, advantages_PGT, logps_PGT, mask_PGT)
  return loss_PGT, {'phi': jnp.broadcast_to(phi_PGT, loss_PGT.shape)}


def dppo_tv(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 0.15,
  clip_high: float = 0.15,
  cap: float = 20.0,
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """Trust region in probability, not ratio (arxiv.org/abs/2602.04879).

  A token is left alone when its probability already moved by more than the
  bound (total variation of 'this token or another') in the direction of its
  advantage. A ratio of 100 on a rare token is no reason. verl's `dppo_tv`; its
  code has cap=20 and its YAML 3, and without bounds it takes PPO's 0.2.
  """
  keep_PGT = _near(
    logps_PGT, old_logps_PGT, advantages_PGT, mask_PGT, clip_low, clip_high
  )
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp)
  weight_PGT = jnp.where(keep_PGT, jnp.minimum(ratio_PGT, cap), 0.0)
  loss_PGT = _weighted(weight_PGT, advantages_PGT, logps_PGT, mask_PGT)
  return loss_PGT, {'clip_fraction': _share(~keep_PGT, loss_PGT)}


def dppo_kl(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 0.05,
  clip_high: float = 0.05,
  cap: float = 20.0,
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """`dppo_tv` with the KL of 'this token or another' (arxiv 2602.04879).

  Bounds are in nats, of KL(old || new). verl's `dppo_kl`.
  """
  now_PGT = _counted(jax.lax.stop_gradient(logps_PGT), mask_PGT)
  old_PGT = _counted(old_logps_PGT, mask_PGT)
  p_PGT, q_PGT = jnp.exp(now_PGT), jnp.exp(old_PGT)
  others_PGT = jnp.log((1.0 - q_PGT + 1e-8) / (1.0 - p_PGT + 1e-8))
  kl_PGT = q_PGT * (old_PGT - now_PGT) + (1.0 - q_PGT) * others_PGT
  up_PGT = (kl_PGT <= clip_high) | (p_PGT <= q_PGT)
  down_PGT = (kl_PGT <= clip_low) | (p_PGT >= q_PGT)
  keep_PGT = jnp.where(advantages_PGT > 0, up_PGT, down_PGT)
  ratio_PGT = _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp)
  weight_PGT = jnp.where(keep_PGT, jnp.minimum(ratio_PGT, cap), 0.0)
  loss_PGT = _weighted(weight_PGT, advantages_PGT, logps_PGT, mask_PGT)
  return loss_PGT, {'clip_fraction': _share(~keep_PGT, loss_PGT)}


def masked_pg(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  tau: float = 1e-3,
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """The ratio, a mask as in `dppo_tv`, and a squared log-ratio.

  What prime-rl trains with by default: the mask of arxiv.org/abs/2602.04879 and
  the pull to the old policy of arxiv.org/abs/2602.02276, which acts on masked
  tokens too. There the old policy is the sampler, and the average `token_mean`.
  """
  keep_PGT = _near(
    logps_PGT, old_logps_PGT, advantages_PGT, mask_PGT, clip_low, clip_high
  )
  log_ratio_PGT = _log_ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp)
  gain_PGT = jnp.where(keep_PGT, jnp.exp(log_ratio_PGT), 0.0) * advantages_PGT
  loss_PGT = tau * log_ratio_PGT**2 - gain_PGT
  return loss_PGT, {'clip_fraction': _share(~keep_PGT, loss_PGT)}


def reinforce(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
) -> tuple[jax.Array, Stats]:
  """The plain policy gradient, -A log p (Williams, 1992); for on-policy use.

  Also GPG (arxiv.org/abs/2504.02546), verl's `gpg`.
  """
  del old_logps_PGT
  return -advantages_PGT * _counted(logps_PGT, mask_PGT), {}


def kl_cov(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  selected_PGT: jax.Array,
  coef: float = 0.1,
  clamp: float | None = 20.0,
) -> tuple[jax.Array, Stats]:
  """The ratio, and a pull to the old policy on a few tokens (arxiv 2505.22617).

  The selected tokens are those that would collapse the entropy most:
  `select.top_covariance`. verl's `kl_cov` with clamp=None; its YAML has a
  coefficient of 0.1, its docstring 1.
  """
  log_ratio_PGT = _log_ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp)
  # Not jnp.abs: its gradient at 0, where every update starts, is 1.
  pull_PGT = log_ratio_PGT * jnp.sign(log_ratio_PGT)
  pull_PGT = jnp.where(selected_PGT != 0, coef * pull_PGT, 0.0)
  return pull_PGT - jnp.exp(log_ratio_PGT) * advantages_PGT, {}


def dro(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  beta: float = 0.05,
) -> tuple[jax.Array, Stats]:
  """REINFORCE and half the squared log-ratio (arxiv.org/abs/2405.19107).

  verl's `dro`, of tokens; it has no default for `beta`, and 0.05 is ours.
  """
  log_ratio_PGT = _log_ratio(logps_PGT, old_logps_PGT, mask_PGT, None)
  gain_PGT = advantages_PGT * _counted(logps_PGT, mask_PGT)
  return 0.5 * beta * log_ratio_PGT**2 - gain_PGT, {}


def kimi(
  logps_PGT: jax.Array,
  old_logps_PGT: jax.Array,
  advantages_PGT: jax.Array,
  mask_PGT: jax.Array,
  *,
  tau: float = 0.1,
) -> tuple[jax.Array, Stats]:
  """`dro` of whole completions: Kimi k1.5 (arxiv.org/abs/2501.12599, eq. 3).

  Half the square of the completion's log-ratio S is shared out to tokens as
  S log(r) / 2, so that their sum has the paper's gradient; it needs an average
  in which a completion's tokens weigh the same, as all do, and is the paper's
  with `sequence_sum` and advantages of dr_grpo. The paper starts the optimizer
  anew for each old policy, and does not tell tau: 0.1 is ours.
  """
  log_ratio_PGT = _log_ratio(logps_PGT, old_logps_PGT, mask_PGT, None)
  whole_PG1 = jnp.sum(log_ratio_PGT, axis=-1, keepdims=True)
  gain_PGT = advantages_PGT * _counted(logps_PGT, mask_PGT)
  return 0.5 * tau * whole_PG1 * log_ratio_PGT - gain_PGT, {}


def _ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp, level='token'):
  """p / p_old at a level, in every position; 1 where nothing counts."""
  log_ratio = _log_ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp, level)
  return jnp.exp(log_ratio)


def _log_ratio(logps_PGT, old_logps_PGT, mask_PGT, clamp, level='token'):
  """Its logarithm, where it has a gradient only within +-clamp."""
  log_ratio_PGT = _counted(logps_PGT - old_logps_PGT, mask_PGT)
  match level:
    case 'token':
      found = log_ratio_PGT
    case 'mean':
      found = _mean(log_ratio_PGT, mask_PGT)
    case 'sum':
      found = jnp.sum(log_ratio_PGT, axis=-1, keepdims=True)
    case _:
      raise ValueError(f"loss.level={level!r} is not 'token', 'mean' or 'sum'")
  if clamp is not None:
    found = jnp.clip(found, -clamp, clamp)
  return jnp.broadcast_to(found, logps_PGT.shape)


def _clipped(free_PGT, ratio_PGT, advantages_PGT, clip_low, clip_high):
  """-min(free A, clip(ratio) A), and where the clip was the lesser."""
  bound_PGT = jnp.clip(ratio_PGT, 1.0 - clip_low, 1.0 + clip_high)
  free_PGT, bound_PGT = free_PGT * advantages_PGT, bound_PGT * advantages_PGT
  loss_PGT = -jnp.minimum(free_PGT, bound_PGT)
  return loss_PGT, {'clip_fraction': _share(bound_PGT < free_PGT, loss_PGT)}


def _weighted(weight_PGT, advantages_PGT, logps_PGT, mask_PGT):
  """REINFORCE with a weight that has no gradient."""
  weight_PGT = jax.lax.stop_gradient(weight_PGT)
  return -weight_PGT * advantages_PGT * _counted(logps_PGT, mask_PGT)


def _near(logps_PGT, old_logps_PGT, advantages_PGT, mask_PGT, low, high):
  """Whether a probability is not beyond its bound on the advantage's side."""
  moved_PGT = jnp.exp(_counted(jax.lax.stop_gradient(logps_PGT), mask_PGT))
  moved_PGT -= jnp.exp(_counted(old_logps_PGT, mask_PGT))
  return jnp.where(advantages_PGT > 0, moved_PGT <= high, moved_PGT >= -low)


def _mean(x_PGT, mask_PGT):
  """Mean over the counted tokens of a completion, [P, G, 1]; 0 of none."""
  counts_PG1 = jnp.sum(mask_PGT != 0, axis=-1, keepdims=True)
  sums_PG1 = jnp.sum(_counted(x_PGT, mask_PGT), axis=-1, keepdims=True)
  return sums_PG1 / jnp.maximum(counts_PG1, 1)


def _counted(x_PGT, mask_PGT):
  """x with 0 where the mask is, so that what stands there goes nowhere."""
  return jnp.where(mask_PGT != 0, x_PGT, 0.0)


def _share(true_PGT, like_PGT):
  """A condition as numbers of the loss's kind, to be averaged."""
  return true_PGT.astype(like_PGT.dtype)
