"""Updates of a model that compiles in no time, to compare variants with.

The hidden state is the embedding of the token, so a completion's gradient is a
sum over its pairs of tokens. All else is as in a run at its worst: prompts of
different lengths, completions with holes, empty ones and unscored ones, a group
that is masked, groups of equal rewards, a policy that has moved since it
sampled, and numbers that mean nothing wherever nothing counts.
"""

import functools

import jax
from jax.nn import initializers
import jax.numpy as jnp
import numpy as np
import optax

from grpo_jax import grpo, models, types

P, G, L, T, V, D = 16, 4, 3, 5, 8, 8
EQUAL = (1, 6, 10, 11, 14)  # Groups of equal rewards.
MASKED = 5  # A group without tokens.
SGD = optax.sgd(1.0)  # New parameters show the gradient.
# Half the time of a compilation at level 0 is the fusion of loops.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_cpu_use_fusion_emitters': False,
}


def _apply(params, inputs, cache=None):
  return types.ModelOutputs(params['embed'][inputs.tokens_BT], cache)


MODEL = models.Model(
  table={
    'embed': models.Param((V, D), ('vocab', 'embed'), initializers.zeros),
    'head': models.Param((D, V), ('embed', 'vocab'), initializers.zeros),
  },
  vocab_size=V,
  apply=_apply,
  init_cache=lambda prompt_cache, *sizes: prompt_cache,
  head=lambda params: params['head'],
)


def params(seed: int = 0) -> types.Params:
  """Weights far from uniform, on the host."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(scale=0.7, size=row.shape)
    for name, row in MODEL.table.items()
  }


def state(optimizer=SGD, **fields) -> types.TrainState:
  """At step 0; in float64 or float32, whichever is the default."""
  zero, weights = jnp.int32(0), jax.tree.map(jnp.asarray, params())
  return types.TrainState(
    zero,
    zero,
    weights,
    optimizer.init(weights),
    skipped=zero,
    **jax.tree.map(jnp.asarray, fields),
  )


def logps(weights: types.Params, rollout: types.Rollout) -> np.ndarray:
  """Log-probabilities of all tokens, by hand; PGT."""
  rows_P = np.arange(len(rollout.tokens_PGT))
  last_P = rollout.prompts.tokens_PL[rows_P, rollout.prompts.lengths_P - 1]
  before_PGT = np.roll(rollout.tokens_PGT, 1, axis=-1)
  before_PGT[..., 0] = last_P[:, None]
  logits_VV = np.asarray(weights['embed'], float) @ np.asarray(weights['head'])
  logps_VV = logits_VV - np.log(np.exp(logits_VV).sum(-1, keepdims=True))
  return logps_VV[before_PGT, rollout.tokens_PGT]


def roll(log_ratio_PGT=None, group_size: int = G) -> types.Rollout:
  """Completions of a policy from which `params` is this far, in nats."""
  rng = np.random.default_rng(1)
  shape = P, group_size, T
  prompts = types.Prompts(
    tokens_PL=rng.integers(V, size=(P, L), dtype=np.int32),
    lengths_P=rng.integers(1, L + 1, P, dtype=np.int32),
    ids_P=rng.permutation(1000)[:P].astype(np.uint32),
    answers_PC=np.zeros((P, 1), np.uint8),
  )
  lengths_PG = rng.integers(1, T + 1, shape[:2], dtype=np.int32)
  lengths_PG[3, 1] = lengths_PG[4, 2] = 0
  counted_PGT = np.arange(T) < lengths_PG[..., None]
  counted_PGT &= rng.random(shape) > 0.15  # Tokens that a tool wrote.
  counted_PGT[MASKED] = False
  found = types.Rollout(
    prompts=prompts,
    tokens_PGT=rng.integers(V, size=shape, dtype=np.int32),
    lengths_PG=lengths_PG,
    ended_PG=lengths_PG < T,
    logps_PGT=rng.normal(scale=5, size=shape),
    actions_PGT=counted_PGT,
  )
  if log_ratio_PGT is None:
    log_ratio_PGT = rng.normal(scale=0.4, size=shape)
  logps_PGT = logps(params(), found) - log_ratio_PGT
  return found.replace(
    logps_PGT=np.where(counted_PGT, logps_PGT, found.logps_PGT)
  )


def score() -> types.Rewards:
  """Two parts, and their sum."""
  rng = np.random.default_rng(2)
  parts = {name: rng.random((P, G)) for name in ('answer', 'format')}
  for part_PG in parts.values():
    part_PG[list(EQUAL)] = part_PG[list(EQUAL), :1]
  total_PG = parts['answer'] + parts['format']
  total_PG[2, 1] = total_PG[6, 3] = np.nan  # Could not be scored.
  return types.Rewards(total_PG, parts, shaped=parts)


@functools.cache
def compiled(optimizer=SGD, **knobs):
  """grpo_update under jit; the same knobs share a program."""
  run = functools.partial(
    grpo.grpo_update, model=MODEL, optimizer=optimizer, **knobs
  )
  return jax.jit(run, compiler_options=QUICK)


def update(before, rollout, rewards, **knobs):
  """State and metrics after an update, on the host."""
  return jax.device_get(compiled(**knobs)(before, rollout, rewards))
