"""Rollout: sample a group of completions for each prompt.

  rollout(params, prompts, key, model=..., group_size=8, ...) -> Rollout

A prompt is computed once (prefill on P prompts); its G completions read the
same keys and values. All rows decode in lockstep until each has ended or
`max_tokens` is reached. The log-probabilities of the sampled tokens come back
with them: they are the old policy of the update, which runs the same model
function on the same tokens and so finds the same numbers.

Dimension key: P prompts, G completions each, B = P*G rows, L prompt length,
T completion length, D width, V vocabulary.
"""

import jax
import jax.numpy as jnp

from grpo_jax import sampling
from grpo_jax.models import Model
from grpo_jax.models.layers import accumulator
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
  """
  P, G, T = prompts.tokens_PL.shape[0], group_size + greedy, max_tokens
  B = P * G
  hidden_PD, cache = prefill(params, prompts, model, G, T)
  head_DV = model.head(params)
  lengths_B = jnp.repeat(prompts.lengths_P, G)
  prompt_ids_B = jnp.repeat(prompts.ids_P, G)
  sample_ids_B = jnp.tile(jnp.arange(G), P)
  greedy_B = sample_ids_B == G - 1 if greedy else None
  stops = jnp.array(stop_ids, jnp.int32)
  # The dice of all tokens at once: 5% of a decode step if thrown in it.
  uniform_TB = sampling.noise(key, prompt_ids_B, sample_ids_B, jnp.arange(T))
  decode_params = model.decode_params(params)

  def emit(carry, t, hidden_BD):
    """Draws token t of every row and writes it down."""
    tokens_BT, logps_BT, done_B = carry
    logits_BV = jnp.matmul(
      hidden_BD, head_DV, preferred_element_type=accumulator(hidden_BD)
    )
    token_B, logp_B = sampling.sample(
      logits_BV, uniform_TB[t], temperature, greedy_B
    )
    tokens_BT = tokens_BT.at[:, t].set(jnp.where(done_B, stops[0], token_B))
    logps_BT = logps_BT.at[:, t].set(
      jnp.where(done_B, 0.0, logp_B).astype(jnp.float32)
    )
    return tokens_BT, logps_BT, done_B | jnp.isin(token_B, stops)

  def more(loop):
    t, (_, _, done_B), _ = loop
    return (t < T) & ~jnp.all(done_B)

  def step(loop):
    t, carry, cache = loop
    inputs = ModelInputs(
      tokens_BT=jax.lax.dynamic_slice_in_dim(carry[0], t - 1, 1, axis=1),
      positions_BT=(lengths_B + t - 1)[:, None],
    )
    out = model.apply(decode_params, inputs, cache)
    return t + 1, emit(carry, t, out.hidden_BTD[:, 0]), out.cache

  carry = (
    jnp.full((B, T), stops[0], jnp.int32),
    jnp.zeros((B, T), jnp.float32),
    jnp.zeros(B, bool),
  )
  carry = emit(carry, 0, jnp.repeat(hidden_PD, G, axis=0))
  _, (tokens_BT, logps_BT, done_B), _ = jax.lax.while_loop(
    more, step, (1, carry, cache)
  )

  is_stop_BT = jnp.isin(tokens_BT, stops)
  first_stop_B = jnp.argmax(is_stop_BT, axis=1) + 1
  lengths_B = jnp.where(done_B, first_stop_B, T)
  return Rollout(
    prompts=prompts,
    tokens_PGT=tokens_BT.reshape(P, G, T),
    lengths_PG=lengths_B.reshape(P, G),
    ended_PG=done_B.reshape(P, G),
    logps_PGT=logps_BT.reshape(P, G, T),
    actions_PGT=(jnp.arange(T) < lengths_B[:, None]).reshape(P, G, T),
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
