"""What published algorithms set: a function each, every number with its source.

  dapo() -> {'advantage': {'name': 'grpo'}, 'loss': {'name': 'ppo_clip', ...}}

Sections have the names and keys of config.default(); one that a recipe does not
name is off (algorithms.OFF). `config.algorithm = 'dapo'` finds a function here
by its name, and algorithms.py puts it into a config. To add one, add it here.

A number stands beside the paper's section, or the codebase, that it is from:
'verl' with a file is a script or its YAML, 'TRL' version 1.16 or its index of
papers. 'Ours' are those that no source tells, and 'unchecked' those that we
know of the paper and did not look up again. What of a recipe lies elsewhere,
mostly in the reward, the docstring says.

`scale` holds the paper's learning rate, batch and lengths: a recipe for
hundreds of accelerators, in which a model of 0.6M parameters would learn
nothing. It is applied only when asked for (algorithms.apply(..., scale=True)).
`updates.minibatches` belongs to the algorithm, since a clip does nothing at the
first step after sampling; how many fit into a small batch, algorithms.py says.
"""

_NO_CLIP = 1e6  # An upper bound that no ratio reaches, where JSON has no inf.


def grpo() -> dict:
  """DeepSeekMath, in which GRPO first appears (arxiv.org/abs/2402.03300)."""
  return dict(
    advantage=dict(name='grpo'),  # Sec. 4.1.2, outcome supervision.
    # The paper does not tell the clip: 0.2 is PPO's (1707.06347, table 3).
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.2),
    aggregate=dict(name='sequence_mean'),  # Eq. 3: 1/G sum 1/|o| sum.
    kl=dict(name='k3', coef=0.04),  # Eq. 4; coefficient of sec. 4.2.
    # One update after each exploration (sec. 4.2), so nothing is clipped.
    scale=_scale(prompts=16, group_size=64, max_tokens=1024, lr=1e-6),
  )


def r1_zero() -> dict:
  """DeepSeek-R1-Zero: pure RL on a base model (arxiv.org/abs/2501.12948).

  Numbers of the paper's second version; the first says nothing of the clip. The
  reward is accuracy and format of the same weight: that is c.reward, and the
  prompt c.data.template='r1_zero'.
  """
  return dict(
    advantage=dict(name='grpo'),
    # 10, which bounds almost nothing: with 0.2 it would be another algorithm.
    loss=dict(name='ppo_clip', clip_low=10.0, clip_high=10.0),
    aggregate=dict(name='sequence_mean'),
    kl=dict(name='k3', coef=0.001),
    # Every 400 steps of 512 completions, of which a rollout gives 16.
    reference=dict(every=400 // 16),
    updates=dict(minibatches=16),  # 8,192 completions a rollout.
    scale=_scale(prompts=512, group_size=16, max_tokens=32_768, lr=3e-6),
  )


def r1() -> dict:
  """DeepSeek-R1's first RL stage, after the cold start (2501.12948).

  R1-Zero's numbers all over, for which the paper tells them; new is a reward
  for staying in one language: `language` in c.reward.
  """
  return r1_zero()


def dapo() -> dict:
  """DAPO: clip-higher, token mean, groups that differ (arxiv 2503.14476).

  Sec. 4.1. It also takes a penalty for length off the reward (sec. 3.4): add
  `overlong` to c.reward, with a fifth of max_tokens as its buffer (4,096 of
  20,480 in the paper).
  """
  return dict(
    advantage=dict(name='grpo'),
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.28),
    aggregate=dict(name='token_mean'),  # Sec. 3.3.
    truncated='mask',  # Overlong filtering, sec. 3.4.
    # Sampling on until the batch is full (sec. 3.2); the paper has no bound,
    # verl's recipe/dapo/run_dapo_qwen2.5_32b.sh has this one.
    dynamic=dict(batches=10),
    updates=dict(minibatches=16),
    scale=_scale(
      prompts=512,
      group_size=16,
      max_tokens=20_480,
      lr=1e-6,
      warmup=20 * 16,  # 20 rollouts.
    ),
  )


def dr_grpo() -> dict:
  """Dr. GRPO: no deviation, no length in it (arxiv.org/abs/2503.20783).

  Group size and length as in the authors' repository (TRL's index).
  """
  return dict(
    advantage=dict(name='dr_grpo'),  # Sec. 3.2: both biases are taken out.
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.2),
    aggregate=dict(name='constant_length'),  # By the longest that is allowed.
    scale=_scale(group_size=8, max_tokens=3000),
  )


def gspo() -> dict:
  """GSPO: the ratio of a whole sequence (arxiv.org/abs/2507.18071).

  Sec. 5.1; without a KL as its authors told verl (pull request 2775). The paper
  tells no learning rate and no batch.
  """
  return dict(
    advantage=dict(name='grpo'),
    loss=dict(name='gspo', clip_low=3e-4, clip_high=4e-4),
    aggregate=dict(name='sequence_mean'),
    updates=dict(minibatches=4),
  )


def gmpo() -> dict:
  """GMPO: geometric mean of clipped ratios (arxiv.org/abs/2507.20673)."""
  return dict(
    advantage=dict(name='grpo'),
    loss=dict(name='gmpo', clip_low=0.4, clip_high=0.4),  # Sec. 4, in nats.
    aggregate=dict(name='sequence_mean'),
    # From here on verl's examples/gmpo_trainer, which also has a KL of 0.001
    # that TRL's example of the paper has not.
    updates=dict(minibatches=4),
    scale=_scale(prompts=1024, group_size=5, max_tokens=2048, lr=1e-6),
  )


def cispo() -> dict:
  """CISPO of MiniMax-M1: clips the weight, not the update (2506.13585).

  The paper tunes the upper bound alone and does not tell it; both bounds are
  those of verl's examples/cispo_trainer. TRL's form is loss cispo_cap, with the
  cap of 5 that ScaleRL recommends (arxiv.org/abs/2510.13786).
  """
  return dict(
    advantage=dict(name='grpo'),
    loss=dict(name='cispo', clip_low=10.0, clip_high=0.2),
    aggregate=dict(name='token_mean'),  # Sec. 3.1: over a group's tokens in
    # the paper's equation, over the batch's in verl and TRL.
    dynamic=dict(batches=10),  # Sec. 3.1, 'as DAPO'; bound as in dapo.
    updates=dict(minibatches=16),  # Sec. 3.1: 16 rounds of updates per batch.
  )


def sapo() -> dict:
  """SAPO: a soft gate in place of the clip (arxiv.org/abs/2511.20347)."""
  return dict(
    advantage=dict(name='grpo'),
    loss=dict(name='sapo', tau_good=1.0, tau_bad=1.05),  # verl, TRL: sec. 5.
    aggregate=dict(name='sequence_mean'),  # verl allows no other.
    updates=dict(minibatches=4),  # As gspo; unchecked.
  )


def luspo() -> dict:
  """LUSPO: GSPO without the bias for short ones (arxiv.org/abs/2602.05261)."""
  return dict(
    advantage=dict(name='grpo'),
    # Sec. 5.1, by TRL's index.
    loss=dict(name='luspo', clip_low=2e-3, clip_high=2.5e-3),
    aggregate=dict(name='sequence_sum'),
    updates=dict(minibatches=4),  # As gspo, which it corrects.
  )


def vespo() -> dict:
  """VESPO: a weight of whole completions, no clip (arxiv 2602.10693).

  It is made for stale samples, up to 64 steps old in the paper. The exponents
  are TRL's defaults.
  """
  return dict(
    advantage=dict(name='grpo'),
    loss=dict(
      name='vespo', k_good=2.0, lambda_good=3.0, k_bad=3.0, lambda_bad=2.0
    ),
    aggregate=dict(name='token_mean'),  # TRL.
    updates=dict(minibatches=4),  # Ours: with 1 all weights would be 1.
  )


def rloo() -> dict:
  """RLOO: the others of a group are the baseline (arxiv.org/abs/2402.14740).

  Numbers of its appendix C by TRL's index, whose RLOOTrainer clips the ratio of
  whole completions (and has a KL of 0.05 by default).
  """
  return dict(
    advantage=dict(name='rloo'),
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.2, level='sum'),
    aggregate=dict(name='sequence_mean'),  # One loss a completion.
    kl=dict(name='k1', coef=0.03, where='reward'),
    updates=dict(minibatches=2),
    scale=_scale(prompts=512, group_size=2, lr=1e-6),
  )


def reinforce_pp() -> dict:
  """REINFORCE++: PPO without a critic (arxiv.org/abs/2501.03262)."""
  return dict(
    advantage=dict(name='reinforce_pp', gamma=1.0),
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.2),  # PPO's.
    aggregate=dict(name='token_mean'),  # verl and OpenRLHF.
    kl=dict(name='k1', coef=0.01, where='reward'),  # OpenRLHF's default.
  )


def reinforce_pp_baseline() -> dict:
  """REINFORCE++-baseline: the group's mean, whitened (2501.03262).

  All numbers of verl's examples/reinforce_plus_plus_trainer/*_rf_baseline.sh.
  """
  return dict(
    advantage=dict(name='reinforce_pp_baseline'),
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.2),
    aggregate=dict(name='token_mean'),
    kl=dict(name='k2', coef=0.001),
    scale=_scale(prompts=1024, group_size=8, max_tokens=1024, lr=3e-6),
  )


def remax() -> dict:
  """ReMax: a greedy completion is the baseline (arxiv.org/abs/2310.10505).

  The loss is the paper's plain REINFORCE; the other numbers are those of verl's
  examples/remax_trainer, which clips besides.
  """
  return dict(
    advantage=dict(name='remax'),
    loss=dict(name='reinforce'),
    aggregate=dict(name='token_mean'),
    kl=dict(name='k1', coef=0.001, where='reward'),
    scale=_scale(prompts=512, group_size=4, max_tokens=1024, lr=1e-6),
  )


def opo() -> dict:
  """OPO: the baseline of least variance, one step (arxiv.org/abs/2505.23585).

  That a batch is used for one step alone is half of the paper, which has no KL
  and no entropy term.
  """
  return dict(
    advantage=dict(name='opo'),
    loss=dict(name='reinforce'),
    aggregate=dict(name='token_mean'),  # verl.
  )


def gpg() -> dict:
  """GPG: the policy gradient and nothing else (arxiv.org/abs/2504.02546)."""
  return dict(
    advantage=dict(name='gpg', f_norm=1.0),  # verl.
    loss=dict(name='reinforce'),
    aggregate=dict(name='token_mean'),
    # verl's examples/gpg_trainer.
    updates=dict(minibatches=4),
    scale=_scale(prompts=1024, group_size=5, max_tokens=1024, lr=1e-6),
  )


def gdpo() -> dict:
  """GDPO: each part of the reward by itself (arxiv.org/abs/2601.05242).

  It needs a reward of several parts. Batch and steps are those of verl's
  examples/gdpo_trainer/run_qwen1_5b_gdpo.sh, the form is TRL's.
  """
  return dict(
    advantage=dict(name='gdpo'),
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.2),
    aggregate=dict(name='token_mean'),
    updates=dict(minibatches=8),
    scale=_scale(prompts=32, group_size=4, max_tokens=1024, lr=1e-6),
  )


def max_rl() -> dict:
  """MaxRL: hard prompts weigh by 1/p (arxiv.org/abs/2602.02710).

  Advantage and average as in prime-rl. The estimator is an on-policy one, so
  the loss is REINFORCE and a batch is used once.
  """
  return dict(
    advantage=dict(name='max_rl'),
    loss=dict(name='reinforce'),
    aggregate=dict(name='token_mean'),
  )


def magistral() -> dict:
  """Magistral, sec. 2.1 (arxiv.org/abs/2506.10910).

  Its reward is 0.9 for the answer, 0.1 for the form, 0.1 for the language and
  up to -0.1 for length; that is c.reward. It tells no learning rate.
  """
  return dict(
    advantage=dict(name='magistral'),
    # 'Between 0.26 and 0.28'; the lower bound is that of PPO.
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.28),
    aggregate=dict(name='group_length'),
    dynamic=dict(batches=10),  # No groups of equal rewards; bound as in dapo.
  )


def kimi_k15() -> dict:
  """Kimi k1.5, sec. 2.3 (arxiv.org/abs/2501.12599).

  The paper tells neither tau nor batch nor steps: those here are ours. It also
  starts the optimizer anew for each batch, which is not done here. Its penalty
  for length is `length_kimi` in c.reward.
  """
  return dict(
    advantage=dict(name='dr_grpo'),  # Eq. 3: the mean reward is the baseline.
    loss=dict(name='kimi', tau=0.1),
    aggregate=dict(name='sequence_sum'),
    curriculum=dict(name='hard'),  # Prioritised by 1 - success, sec. 2.3.4.
    updates=dict(minibatches=4),
  )


def dppo() -> dict:
  """DPPO: a bound on probability, not on ratios (arxiv.org/abs/2602.04879).

  All numbers of verl's examples/dppo_trainer/run_qwen30b_dppo.sh. The ratio
  starts from the sampler (sec. 5.2), as it does here without being told. For
  the KL form take loss dppo_kl with bounds of 0.05.
  """
  return dict(
    advantage=dict(name='dr_grpo'),
    # 10,000 switches the cap of the weight off.
    loss=dict(name='dppo_tv', clip_low=0.15, clip_high=0.15, cap=10_000.0),
    aggregate=dict(name='constant_length'),
    updates=dict(minibatches=8),
    scale=_scale(prompts=256, group_size=16, max_tokens=8192, lr=1e-6),
  )


def clip_cov() -> dict:
  """Clip-Cov: drops tokens that collapse the entropy (2505.22617, sec. 4).

  Share and bounds are the defaults of verl and SkyRL, the rest is that of the
  authors' script for 7B, verl's recipe/entropy/7b_clip_cov.sh.
  """
  return dict(
    advantage=dict(name='grpo'),
    # With bounds of 1 the selection clips alone.
    loss=dict(name='ppo_clip', clip_low=1.0, clip_high=1.0),
    select=dict(
      name='clip_cov',
      share=2e-4,
      low=1.0,
      high=5.0,
      clip_low=1.0,
      clip_high=1.0,
    ),
    aggregate=dict(name='token_mean'),
    dynamic=dict(batches=10),
    updates=dict(minibatches=8),  # 256 by 32 prompts.
    scale=_scale(prompts=256, group_size=8, max_tokens=8192, lr=1e-6),
  )


def kl_cov() -> dict:
  """KL-Cov: holds tokens that collapse the entropy (2505.22617, sec. 4).

  All of the authors' script for 7B, verl's recipe/entropy/7b_kl_cov.sh; share
  and coefficient are 2e-4 and 0.1 in verl's YAML.
  """
  return dict(
    advantage=dict(name='grpo'),
    loss=dict(name='kl_cov', coef=1.0),
    select=dict(name='top_covariance', share=0.002),
    aggregate=dict(name='token_mean'),
    dynamic=dict(batches=10),
    updates=dict(minibatches=8),  # 256 by 32 prompts.
    scale=_scale(prompts=256, group_size=8, max_tokens=8192, lr=1e-6),
  )


def high_entropy() -> dict:
  """DAPO on the fifth of tokens with the most entropy (arxiv 2506.01939).

  Sec. 5.2, by TRL's index: all else is DAPO's.
  """
  return dapo() | dict(select=dict(name='high_entropy', share=0.2))


def m2po() -> dict:
  """M2PO: masks tokens until log-ratios are small (arxiv.org/abs/2510.01161).

  The threshold is the paper's, by Trinity-RFT's examples/m2po_gsm8k; AReaL has
  it as actor.m2_threshold.
  """
  return dict(
    advantage=dict(name='grpo'),
    # A lower bound of 0: the selection bounds the ratio, and nothing else.
    loss=dict(name='ppo_clip', clip_low=1.0, clip_high=_NO_CLIP),
    select=dict(name='m2po', threshold=0.04),
    aggregate=dict(name='token_mean'),
    updates=dict(minibatches=4),  # AReaL's ppo_n_minibatches.
  )


def best_of_group() -> dict:
  """Iterated rejection-sampling fine-tuning: imitate each group's best one.

  Often taken for GRPO, and older (expert iteration; RAFT,
  arxiv.org/abs/2304.06767). The others of a group count nothing, not even as a
  baseline.
  """
  return dict(
    advantage=dict(name='best_of_group'),
    loss=dict(name='reinforce'),  # Of weight 1: the next-token loss.
    aggregate=dict(name='token_mean'),
  )


def prime_rl() -> dict:
  """prime-rl's defaults (its trainer/rl/loss.py at 559b44772).

  A mask as in dppo, and Kimi's square of the log-ratio. prime-rl also leaves
  groups without advantage out of the batch; here they stay in the average.
  """
  return dict(
    advantage=dict(name='dr_grpo'),
    loss=dict(name='masked_pg', clip_low=0.2, clip_high=0.2, tau=1e-3),
    aggregate=dict(name='token_mean'),
  )


def intellect_2() -> dict:
  """INTELLECT-2: a bound on the other side too (arxiv.org/abs/2505.07291).

  Clip, KL, group size and learning rate are those of sec. 4.1, by TRL's index;
  entropy and prompts too, unchecked. It trains on samples that are some steps
  old; ours are fresh.
  """
  return dict(
    advantage=dict(name='grpo'),
    loss=dict(name='two_sided', clip_low=0.2, clip_high=0.2, delta=4.0),
    aggregate=dict(name='token_mean'),
    kl=dict(name='k3', coef=0.001),
    entropy=dict(coef=1e-4),
    dynamic=dict(batches=10),  # 'Until the batch is full'; bound as in dapo.
    # 256 x 16 completions by 512: prime-rl's intellect2_qwen_distill.toml.
    updates=dict(minibatches=8),
    scale=_scale(prompts=256, group_size=16, lr=3e-7),
  )


def skywork_or1() -> dict:
  """Skywork-OR1's MAGIC: the entropy is held (arxiv.org/abs/2505.22312).

  One step a batch, no KL, nothing masked where a completion is cut. It leaves
  groups without advantage out of the batch; here they stay in the average. At
  the target of 0.2 nats the bonus of a small model hardly ever sets in: see
  losses/control.py.
  """
  return dict(
    advantage=dict(name='grpo'),
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.2),
    aggregate=dict(name='token_mean'),
    # TRL's defaults for it.
    entropy=dict(coef=0.0, target=0.2, step=0.005, low=0.0, high=1.0),
  )


def lite_ppo() -> dict:
  """Lite PPO: the batch's deviation, token mean (arxiv.org/abs/2508.08221).

  Numbers by TRL's index. It samples at a temperature of 0.99 with top-p and
  top-k, which no update here could follow: it stays at 1.
  """
  return dict(
    advantage=dict(name='batch_scaled'),
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.2),
    aggregate=dict(name='token_mean'),
    updates=dict(minibatches=8),  # 1,024 completions by 128.
    scale=_scale(prompts=128, group_size=8),
  )


def trl() -> dict:
  """The defaults of TRL 1.16's GRPOTrainer, whose loss_type is 'dapo'.

  They have no KL; with `--config.kl.coef` above 0 it is the weighted one, as
  use_bias_correction_kl has it. The learning rate falls to 0 in a line there.
  """
  return dict(
    advantage=dict(name='grpo', ddof=1, eps=1e-4),
    loss=dict(name='ppo_clip', clip_low=0.2, clip_high=0.2),
    aggregate=dict(name='token_mean'),
    kl=dict(name='k3_weighted', coef=0.0),
    scale=_scale(group_size=8, max_tokens=512, lr=1e-6),
  )


def verl() -> dict:
  """The defaults of verl's actor.yaml, with GRPO for the advantage.

  Its own default is GAE, with a critic. It clips twice, and a KL in the loss,
  where one asks for it, has a coefficient of 0.001 and these caps.
  """
  return dict(
    advantage=dict(name='grpo', ddof=1, eps=1e-6),
    loss=dict(name='dual_clip', clip_low=0.2, clip_high=0.2, cap=3.0),
    aggregate=dict(name='token_mean'),
    kl=dict(name='k3', coef=0.0, exponent_cap=20.0, value_cap=10.0),
    updates=dict(minibatches=4),  # 1,024 by ppo_mini_batch_size=256.
    scale=_scale(prompts=1024),
  )


def _scale(
  prompts: int | None = None,
  group_size: int | None = None,
  max_tokens: int | None = None,
  **of_optim,
) -> dict:
  """Sections of a config; what a paper does not tell is left out."""
  sections = {
    'data': {'prompts': prompts},
    'rollout': {'group_size': group_size, 'max_tokens': max_tokens},
    'optim': of_optim,
  }
  told = {
    name: {key: x for key, x in section.items() if x is not None}
    for name, section in sections.items()
  }
  return {name: section for name, section in told.items() if section}
