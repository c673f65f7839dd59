"""Rollout: sample a group of completions for each prompt.

  rollout(params, prompts, key, model=..., group_size=8, ...) -> Rollout
  begin(params, prompts, key, ...), advance(fixed, loop, ...)   its two halves

A prompt is computed once (prefill on P prompts); its G completions read the
same keys and values. All rows decode in lockstep until each has ended or
`max_tokens` is reached. The log-probabilities of the sampled tokens come back
with them: they are the old policy of the update, which runs the same model
function on the same tokens and so finds the same numbers.

Dimension key: P prompts, G completions each, B = P*G rows, L prompt length,
T completion length, D width, V vocabulary.
"""

import functools
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from grpo_jax import sampling
from grpo_jax.models import Model, layers
from grpo_jax.types import ModelInputs, Params, Prompts, Rollout


def rollout(
  params: Params,
  prompts: Prompts,
  key: jax.Array,
  *,
  model: Model,
  group_size: int,
  max_tokens: int,
  stop_ids: tuple[int, ...],
  temperature: float = 1.0,
  greedy: bool = False,
  top_p: float = 1.0,
  stages: int = 1,
) -> Rollout:
  """Samples `group_size` completions of each prompt.

  Args:
    params: the policy's parameters.
    prompts: the questions; their ids key the noise.
    key: one per seed and step. The noise of a token depends on it, the prompt
      id, the sample's number in its group and the token's position.
    model: the policy.
    group_size: completions per prompt, G.
    max_tokens: longest completion, T, in tokens.
    stop_ids: token ids that end a completion; they count as part of it.
    temperature: divides the logits; 0 takes the most probable token.
    greedy: makes one more of each prompt, the last of its group, that always
      takes the most probable token.
    top_p: see sampling.nucleus; 1 is for training.
    stages: in so many equal ones the cache grows to `max_tokens`, if the model
      can do that (`grow_cache`). In one, each token reads room for all of them,
      half of it empty in the mean; but each stage is compiled. Of 512 tokens by
      shape S1 of experiments/benchmark.py 4 stages took 2.2 s, and one 3.0.
  """
  P, G, T = prompts.tokens_PL.shape[0], group_size + greedy, max_tokens
  how: dict[str, Any] = dict(
    model=model, stop_ids=stop_ids, temperature=temperature, top_p=top_p
  )
  sizes = [T]
  if model.grow_cache:
    sizes = [math.ceil(T * (i + 1) / stages) for i in range(stages)]
  fixed, loop = begin(
    params,
    prompts,
    key,
    group_size=group_size,
    max_tokens=T,
    room=sizes[0],
    greedy=greedy,
    **how,
  )
  for size in sizes:
    if size > sizes[0] and model.grow_cache:
      loop = loop.replace(cache=model.grow_cache(loop.cache, size))
    loop = jax.lax.while_loop(
      functools.partial(_goes_on, size),
      lambda loop: advance(fixed, loop, **how),
      loop,
    )
  tokens_BT, done_B = loop.tokens_BT, loop.done_B

  is_stop_BT = jnp.isin(tokens_BT, jnp.array(stop_ids, jnp.int32))
  first_stop_B = jnp.argmax(is_stop_BT, axis=1) + 1
  lengths_B = jnp.where(done_B, first_stop_B, T)
  return Rollout(
    prompts=prompts,
    tokens_PGT=tokens_BT.reshape(P, G, T),
    lengths_PG=lengths_B.reshape(P, G),
    ended_PG=done_B.reshape(P, G),
    logps_PGT=loop.logps_BT.reshape(P, G, T),
    actions_PGT=(jnp.arange(T) < lengths_B[:, None]).reshape(P, G, T),
  )


def _goes_on(size: int, loop: 'Loop') -> jax.Array:
  return (loop.t < size) & ~jnp.all(loop.done_B)


class Fixed(struct.PyTreeNode):
  """What the steps of a rollout read."""

  params: Params  # As `decode_params` makes them.
  head_VD: jax.Array
  lengths_B: jax.Array  # Of the prompts.
  uniform_TB: jax.Array  # The dice of all tokens.
  greedy_B: jax.Array | None


class Loop(struct.PyTreeNode):
  """What they change: t tokens of each row are written."""

  t: jax.Array
  tokens_BT: jax.Array
  logps_BT: jax.Array
  done_B: jax.Array
  cache: Any


def begin(
  params: Params,
  prompts: Prompts,
  key: jax.Array,
  *,
  model: Model,
  group_size: int,
  max_tokens: int,
  stop_ids: tuple[int, ...],
  temperature: float = 1.0,
  greedy: bool = False,
  top_p: float = 1.0,
  room: int = 0,
) -> tuple[Fixed, Loop]:
  """The prompts, and the first token of every row; see `rollout`.

  The cache has room for `room` tokens; 0 is for all of them.
  """
  P, G, T = prompts.tokens_PL.shape[0], group_size + greedy, max_tokens
  B = P * G
  hidden_PD, cache = prefill(params, prompts, model, G, room or T)
  prompt_ids_B = jnp.repeat(prompts.ids_P, G)
  sample_ids_B = jnp.tile(jnp.arange(G), P)
  fixed = Fixed(
    params=model.decode_params(params),
    head_VD=model.head(params).T,
    lengths_B=jnp.repeat(prompts.lengths_P, G),
    # All at once: 5% of a decode step if thrown in it.
    uniform_TB=sampling.noise(key, prompt_ids_B, sample_ids_B, jnp.arange(T)),
    greedy_B=sample_ids_B == G - 1 if greedy else None,
  )
  loop = Loop(
    t=jnp.int32(0),
    tokens_BT=jnp.full((B, T), stop_ids[0], jnp.int32),
    logps_BT=jnp.zeros((B, T), jnp.float32),
    done_B=jnp.zeros(B, bool),
    cache=cache,
  )
  hidden_BD = jnp.repeat(hidden_PD, G, axis=0)
  return fixed, _emit(fixed, loop, hidden_BD, stop_ids, temperature, top_p)


def advance(
  fixed: Fixed,
  loop: Loop,
  *,
  model: Model,
  stop_ids: tuple[int, ...],
  temperature: float = 1.0,
  top_p: float = 1.0,
) -> Loop:
  """One more token of every row."""
  inputs = ModelInputs(
    tokens_BT=jax.lax.dynamic_slice_in_dim(
      loop.tokens_BT, loop.t - 1, 1, axis=1
    ),
    positions_BT=(fixed.lengths_B + loop.t - 1)[:, None],
  )
  out = model.apply(fixed.params, inputs, loop.cache)
  loop = loop.replace(cache=out.cache)
  hidden_BD = out.hidden_BTD[:, 0]
  return _emit(fixed, loop, hidden_BD, stop_ids, temperature, top_p)


def _emit(fixed: Fixed, loop: Loop, hidden_BD, stop_ids, temperature, top_p):
  """Draws token t of every row and writes it down."""
  stops = jnp.array(stop_ids, jnp.int32)
  logits_BV = layers.thin_product(
    hidden_BD, fixed.head_VD, layers.accumulator(hidden_BD)
  )
  token_B, logp_B = sampling.sample(
    logits_BV, fixed.uniform_TB[loop.t], temperature, fixed.greedy_B, top_p
  )
  t, done_B = loop.t, loop.done_B
  return loop.replace(
    t=t + 1,
    tokens_BT=loop.tokens_BT.at[:, t].set(jnp.where(done_B, stops[0], token_B)),
    logps_BT=loop.logps_BT.at[:, t].set(
      jnp.where(done_B, 0.0, logp_B).astype(jnp.float32)
    ),
    done_B=done_B | jnp.isin(token_B, stops),
  )


def prefill(params, prompts: Prompts, model: Model, group_size, max_tokens):
  """Runs the prompts: hidden_PD at each one's last token, and a cache."""
  P, L = prompts.tokens_PL.shape
  positions_PL = jnp.broadcast_to(jnp.arange(L), (P, L))
  out = model.apply(params, ModelInputs(prompts.tokens_PL, positions_PL))
  last_P11 = (prompts.lengths_P - 1)[:, None, None]
  hidden_P1D = jnp.take_along_axis(out.hidden_BTD, last_P11, axis=1)
  cache = model.init_cache(out.cache, prompts.lengths_P, group_size, max_tokens)
  return hidden_P1D[:, 0], cache
