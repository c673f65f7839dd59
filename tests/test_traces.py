"""Trainings by TRL, done again: losses, gradient norms and final weights.

The completions, rewards and initial weights are given, so that nothing is
sampled: what is compared is log-probabilities, advantages, losses, the KL term,
gradients, clipping and the optimizer, over three or four steps, in float32.

How close is close is read from the recording: TRL ran each training a second
time with another attention kernel, and we may be MULTIPLE times as far from the
first run as that was.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import advantages, grpo, likelihood, models, optim, types
from grpo_jax.losses import aggregate, kl, policy

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'traces.npz')
RECORDS = json.loads(GOLDEN['records'].item())
ROLLOUTS = json.loads(GOLDEN['rollouts'].item())
MULTIPLE = 8
EOS = 2
P, G, L, T = 2, 4, 8, 12
MODEL = models.build(
  'llama',
  'tiny',
  layers=2,
  width=32,
  heads=4,
  kv_heads=2,
  head_size=8,
  feed_forward=64,
  vocab_size=96,
  tied=False,
)
OURS = {
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'q',
  'self_attn.k_proj': 'k',
  'self_attn.v_proj': 'v',
  'self_attn.o_proj': 'o',
  'post_attention_layernorm': 'mlp_norm',
  'mlp.gate_proj': 'gate',
  'mlp.up_proj': 'up',
  'mlp.down_proj': 'down',
}


def params_of(vector):
  """Our parameters from a checkpoint's tensors, laid end to end."""
  tensors, start = {}, 0
  for name, shape in json.loads(GOLDEN['names'].item()):
    size = int(np.prod(shape))
    tensor = vector[start : start + size].reshape(shape)
    # Files hold matrices output-first.
    turned = len(shape) == 2 and 'embed' not in name
    tensors[name.removesuffix('.weight')] = tensor.T if turned else tensor
    start += size
  assert start == vector.size
  return {
    'embed': tensors['model.embed_tokens'],
    'layers': {
      ours: np.stack([tensors[f'model.layers.{y}.{name}'] for y in range(2)])
      for name, ours in OURS.items()
    },
    'final_norm': tensors['model.norm'],
    'unembed': tensors['lm_head'],
  }


def rollout_of(given, masked):
  """A generation as ours; `masked` leaves truncated completions out."""
  tokens_PL, lengths_P = np.zeros((P, L), np.int32), np.zeros(P, np.int32)
  for p, ids in enumerate(given['prompts']):
    tokens_PL[p, : len(ids)], lengths_P[p] = ids, len(ids)
  tokens_PGT = np.zeros((P, G, T), np.int32)
  lengths_PG = np.zeros((P, G), np.int32)
  for p, g in np.ndindex(P, G):
    ids = given['completions'][p][g]
    tokens_PGT[p, g, : len(ids)], lengths_PG[p, g] = ids, len(ids)
  last_PG1 = np.take_along_axis(tokens_PGT, lengths_PG[..., None] - 1, -1)
  ended_PG = last_PG1[..., 0] == EOS
  actions_PGT = np.arange(T) < lengths_PG[..., None]
  if masked:
    actions_PGT &= ended_PG[..., None]
  return types.Rollout(
    prompts=types.Prompts(
      tokens_PL=tokens_PL,
      lengths_P=lengths_P,
      ids_P=np.arange(P, dtype=np.uint32),
      answers_PC=np.zeros((P, 1), np.uint8),
    ),
    tokens_PGT=tokens_PGT,
    lengths_PG=lengths_PG,
    ended_PG=ended_PG,
    logps_PGT=np.zeros((P, G, T), np.float32),
    actions_PGT=actions_PGT,
  )


def rows_alone(batch, rows):
  """These of the P*G completions of a batch, each as a group of its own."""
  p, g = np.divmod(rows, G)
  rollout, advantages_PG = batch
  prompts = jax.tree.map(lambda x: x[p], rollout.prompts)
  rest = (rollout.replace(prompts=None), advantages_PG)
  rest, advantages_PG = jax.tree.map(lambda x: x[p, g][:, None], rest)
  return rest.replace(prompts=prompts), advantages_PG


def aggregate_of(config, tokens):
  """TRL's average; `tokens` counts those of the generation.

  Where TRL cuts a generation into several optimizer steps, each divides by its
  share of the generation's tokens, not by its own.
  """
  match config['loss_type']:
    case 'grpo':
      return aggregate.sequence_mean
    case 'dr_grpo':
      length = config['max_completion_length']
      return functools.partial(aggregate.constant_length, length=length)
    case 'dapo':
      if not is_cut(config):
        return aggregate.token_mean
      share = tokens / config['steps_per_generation']
      return lambda mask_PGT: aggregate.token_sum(mask_PGT) / share


def is_cut(config):
  calls = config['gradient_accumulation_steps']
  return config['steps_per_generation'] > calls


def optimizer_of(config):
  clip = optax.clip_by_global_norm(config['max_grad_norm'])
  if config['optim'] == 'sgd':
    return optax.chain(clip, optax.sgd(config['learning_rate']))
  return optax.chain(clip, torch_adamw(config))


def torch_adamw(config):
  """AdamW whose bias corrections are exact, as in torch.

  optax has 1 - b2^t in float32, too small by 1.3e-5 in the first step and by
  2.7e-5 in the third, so that its steps are too short by half of that. On a
  loss that is up to thirty times what another attention kernel does.
  """
  b1, b2 = config['adam_beta1'], config['adam_beta2']
  powers = range(1, 9)
  first = jnp.float32([1 - b1**t for t in powers])
  second = jnp.float32([(1 - b2**t) ** 0.5 for t in powers])

  def init(params):
    return jnp.int32(0), *(jax.tree.map(jnp.zeros_like, params),) * 2

  def update(grads, state, params):
    count, m, v = state
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)

    def change(path, m, v, w):
      root = jnp.sqrt(v) / second[count] + config['adam_epsilon']
      decays = not jax.tree_util.keystr(path).endswith("norm']")
      decay = config['weight_decay'] * w if decays else 0.0
      return -config['learning_rate'] * (m / first[count] / root + decay)

    changes = jax.tree_util.tree_map_with_path(change, m, v, params)
    return changes, (count + 1, m, v)

  return optax.GradientTransformation(init, update)


@functools.cache
def scorer(temperature):
  score = functools.partial(
    likelihood.likelihood, model=MODEL, temperature=temperature
  )
  return jax.jit(lambda *args: score(*args).logps_PGT)


def update_of(config, optimizer, tokens):
  """A compiled optimizer step of a trace.

  (state, rollout, advantages_PG, old_logps_PGT or None for the policy's own)
  -> (state, metrics)
  """

  def update(state, rollout, advantages_PG, old_logps_PGT):
    def estimate(logps_PGT, reference_logps_PGT):
      if not config['use_bias_correction_kl']:
        return kl.k3(logps_PGT, reference_logps_PGT)
      old_PGT = old_logps_PGT
      if old_PGT is None:
        old_PGT = jax.lax.stop_gradient(logps_PGT)
      return kl.k3_weighted(
        logps_PGT,
        reference_logps_PGT,
        old_logps_PGT=old_PGT,
        mask_PGT=jnp.ones_like(logps_PGT),
      )

    return grpo.grpo_update(
      state,
      rollout,
      types.Rewards(total_PG=advantages_PG, parts={}),
      model=MODEL,
      optimizer=optimizer,
      advantage=lambda advantages_PG: advantages_PG,  # They are made before.
      policy_loss=functools.partial(
        policy.ppo_clip,
        clip_low=config['epsilon'],
        clip_high=config['epsilon_high'] or config['epsilon'],
      ),
      aggregate=aggregate_of(config, tokens),
      kl=estimate,
      kl_coef=config['beta'],
      temperature=config['temperature'],
      microbatches=config['gradient_accumulation_steps'],
    )

  return jax.jit(update)


def train(record):
  """Our losses and gradient norms of each step, and the final weights."""
  config = record['config']
  optimizer = optimizer_of(config)
  params = jax.tree.map(jnp.asarray, params_of(GOLDEN['init']))
  zero = jnp.int32(0)
  state = types.TrainState(
    zero, zero, params, optimizer.init(params), reference=params
  )
  score = scorer(config['temperature'])
  estimator = {'group': advantages.grpo, 'none': advantages.dr_grpo}
  estimator = estimator[config['scale_rewards']]
  found, current, update = [], None, None
  for step in record['steps']:
    if step['rollout'] != current:  # A generation: the old policy is now.
      current = step['rollout']
      given = ROLLOUTS[current]
      rollout = rollout_of(given, config['mask_truncated_completions'])
      rollout = rollout.replace(
        logps_PGT=np.asarray(score(state.params, rollout))
      )
      advantages_PG = np.asarray(estimator(jnp.float32(given['rewards'])))
    update = update or update_of(config, optimizer, rollout.actions_PGT.sum())
    batch, old_logps_PGT = (rollout, advantages_PG), None
    if is_cut(config):  # TRL cuts a shuffle of rows, not of groups.
      (rows,) = step['rows']
      batch = rows_alone(batch, rows)
      old_logps_PGT = batch[0].logps_PGT
    state, metrics = update(state, *batch, old_logps_PGT)
    found.append((float(metrics['loss']), float(metrics['grad_norm'])))
  return np.array(found).T, jax.device_get(state.params)


@pytest.mark.slow
@pytest.mark.parametrize('record', RECORDS, ids=lambda r: r['name'])
def test_a_training_gives_the_losses_norms_and_weights_of_trl(record):
  (losses, norms), params = train(record)
  noise = record['noise']

  expected = [sum(step['losses']) for step in record['steps']]
  allowed = MULTIPLE * noise['loss'] + 1e-7  # Sums of terms near 1.
  np.testing.assert_allclose(losses, expected, rtol=0, atol=allowed)
  expected = [step['grad_norm'] for step in record['steps']]
  allowed = MULTIPLE * noise['grad_norm_rel'] + 1e-6
  np.testing.assert_allclose(norms, expected, rtol=allowed)

  final = params_of(GOLDEN[f'{record["name"]}.final'])
  start = params_of(GOLDEN['init'])
  pairs = [*zip(*map(jax.tree.leaves, (params, final, start)), strict=True)]
  largest = max(np.max(np.abs(ours - theirs)) for ours, theirs, _ in pairs)
  allowed = MULTIPLE * noise['param_max_abs']
  if record['config']['optim'] == 'adamw_torch':
    # Adam divides a small gradient's rounding by its size, so that one weight
    # strays 4, 8 or 10 times the noise as the processor's vectors are long.
    allowed = max(allowed, record['config']['learning_rate'] / 1000)
  assert largest <= allowed
  apart = sum(np.sum((ours - theirs) ** 2.0) for ours, theirs, _ in pairs)
  length = sum(np.sum(theirs**2.0) for _, theirs, _ in pairs)
  assert np.sqrt(apart / length) <= MULTIPLE * noise['param_rel_l2']
  for _, theirs, before in pairs:  # There was something to get wrong.
    moved = np.max(np.abs(theirs - before))
    assert moved > 20 * MULTIPLE * noise['param_max_abs'] or moved > 0.02


def test_trainings_differ_in_what_they_try():
  configs = [record['config'] for record in RECORDS]
  for name, values in {
    'loss_type': {'grpo', 'dapo', 'dr_grpo'},
    'optim': {'adamw_torch', 'sgd'},
    'use_bias_correction_kl': {True, False},
    'num_iterations': {1, 2},
    'gradient_accumulation_steps': {1, 2},
    'temperature': {1.0, 0.7},
    'mask_truncated_completions': {True, False},
    'weight_decay': {0.0, 0.1},
  }.items():
    assert {config[name] for config in configs} == values, name
  assert all(config['beta'] for config in configs)


@pytest.mark.parametrize(
  'name', ['dr_grpo_temp0.7_masktrunc_wd', 'grpo_eps1e-4', 'grpo_sgd']
)
def test_our_optimizer_takes_the_same_steps_but_for_optax_rounding(name):
  (config,) = [r['config'] for r in RECORDS if r['name'] == name]
  sgd = config['optim'] == 'sgd'
  ours = optim.make(
    name='sgd' if sgd else 'adamw',
    lr=config['learning_rate'],
    steps=4,
    clip_norm=config['max_grad_norm'],
    weight_decay=config['weight_decay'],
    b1=0.0 if sgd else config['adam_beta1'],
    b2=config['adam_beta2'],
    eps=config['adam_epsilon'],
  )
  theirs = optimizer_of(config)
  params = params_of(GOLDEN['init'])
  rng = np.random.default_rng(0)
  states = [optimizer.init(params) for optimizer in (ours, theirs)]
  for size in (0.1, 1e-3, 1e-5):  # The first is clipped.
    grads = jax.tree.map(
      lambda w, size=size: (size * rng.normal(size=w.shape)).astype('float32'),
      params,
    )
    (found, wanted), states = zip(
      *(
        optimizer.update(grads, state, params)
        for optimizer, state in zip((ours, theirs), states, strict=True)
      ),
      strict=True,
    )
    # 2e-5 of a step of usual length.
    atol = 2e-5 * (1e-5 if sgd else config['learning_rate'])
    jax.tree.map(
      lambda f, w, atol=atol: np.testing.assert_allclose(
        f, w, rtol=2e-5, atol=atol
      ),
      found,
      wanted,
    )
