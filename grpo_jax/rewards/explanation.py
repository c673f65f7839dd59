"""How much of a reference explanation does the reasoning go through?"""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import text as text_lib
from grpo_jax.types import Prompts, Rollout

_ALL = np.uint32(2**32 - 1)


def explanation(
  rollout: Rollout,
  prompts: Prompts,
  text: text_lib.TokenText,
  *,
  reference_PN: jax.Array,
  n: int = 2,
  share: float = 0.5,
) -> jax.Array:
  """share * F1 of the n-grams + (1 - share) * F1 of the common subsequence.

  Over tokens: those wholly in the reasoning (`text.reasoning` says where it
  is) against those of the problem's own. An n-gram counts as often as both have
  it (ROUGE-N), and the subsequence is the longest one that both have (ROUGE-L).
  NaN for a problem that comes without a reasoning.
  """
  del prompts
  P, G = rollout.lengths_PG.shape
  tokens_BT, lengths_B = text_lib.flat(rollout)
  part_B2 = text_lib.reasoning(text, tokens_BT, lengths_B)
  starts_BT, ends_BT = text_lib.offsets(text, tokens_BT, lengths_B)
  inside_BT = starts_BT >= part_B2[:, :1]
  inside_BT &= ends_BT <= part_B2[:, 1:]
  inside_BT &= jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None]

  empty = len(text.lengths_V) - 1
  tokens_BT = jnp.where(inside_BT, jnp.minimum(tokens_BT, empty), empty)
  reference_PN = jnp.where(reference_PN < 0, empty, reference_PN)
  ngrams_PG, longest_PG = _shared(reference_PN, tokens_BT, empty, n)
  said_PG = jnp.sum(inside_BT, axis=1).reshape(P, G)
  wanted_P1 = jnp.sum(reference_PN != empty, axis=1, keepdims=True)
  grams_PG = sum(jnp.maximum(x - n + 1, 0) for x in (said_PG, wanted_P1))
  score_PG = share * 2 * ngrams_PG / jnp.maximum(grams_PG, 1)
  score_PG += (1 - share) * 2 * longest_PG / jnp.maximum(said_PG + wanted_P1, 1)
  return jnp.where(wanted_P1 > 0, score_PG, jnp.nan)


def reference(example, tokenizer, *, n: int = 2, share: float = 0.5):
  del n, share
  return tokenizer.encode(example.reasoning)


def _shared(reference_PN, tokens_BT, empty, n):
  """How many n-grams both have, and their longest common subsequence.

  Bit j of a completion's words stands for token j of the reference:

    grows  0: the subsequence gets longer here (Hyyro 2004); a token changes
           the words by one addition, whose carry goes on to the next word
    free   1: no n-gram of the completion was counted for the one ending here
    runs   1: here end the last 1, 2, ... n - 1 tokens of the completion
  """
  P, N = reference_PN.shape
  B, W = len(tokens_BT), -(-N // 32)
  row_P1 = jnp.arange(P)[:, None]
  # The first place of each token in the reference, or N.
  place_PV = jnp.full((P, empty + 1), N, jnp.int32)
  place_PV = place_PV.at[row_P1, reference_PN].min(np.arange(N))
  place_PV = place_PV.at[:, empty].set(N)
  row_P1N = row_P1 * (N + 1)  # The rows of all prompts in one.
  first_PN = row_P1N + place_PV[row_P1, reference_PN]
  first_PM = row_P1N + place_PV[row_P1, tokens_BT.reshape(P, -1)]
  bit_N = np.uint32(1) << (np.arange(N) % 32).astype(np.uint32)
  masks_WM = jnp.zeros((W, P * (N + 1)), jnp.uint32)
  masks_WM = masks_WM.at[np.arange(N) // 32, first_PN].add(bit_N)
  masks_WM = masks_WM.at[:, N :: N + 1].set(0)

  def word(carries, inputs):
    carry_B, tops, counted_B, first_B = carries
    grows_B, free_B, runs, mask_M = inputs
    mask_B = mask_M[first_B]
    sum_B = grows_B + (grows_B & mask_B)
    total_B = sum_B + carry_B
    carry_B = ((sum_B < grows_B) | (total_B < sum_B)).astype(jnp.uint32)
    ends = [mask_B]
    for run_B, top_B in zip(runs, tops, strict=True):
      ends.append(mask_B & (run_B << 1 | top_B))
    tops = [run_B >> 31 for run_B in runs]
    *runs, gram_B = ends
    gram_B = jnp.where(counted_B, 0, gram_B & free_B)
    lowest_B = gram_B & (~gram_B + 1)
    carries = carry_B, tops, counted_B | (gram_B > 0), first_B
    after = total_B | (grows_B & ~mask_B), free_B & ~lowest_B, runs
    return carries, after

  def token(carry, first_B):
    state, count_B = carry
    none_B = jnp.zeros(B, jnp.uint32)
    begin = none_B, [none_B] * (n - 1), jnp.zeros(B, bool), first_B
    (_, _, counted_B, _), state = jax.lax.scan(word, begin, (*state, masks_WM))
    return (state, count_B + counted_B), None

  full_WB = jnp.full((W, B), _ALL)
  state = full_WB, full_WB, [jnp.zeros_like(full_WB)] * (n - 1)
  (state, count_B), _ = jax.lax.scan(
    token, (state, jnp.zeros(B, jnp.int32)), first_PM.reshape(B, -1).T
  )
  zeros_WB = jax.lax.population_count(~state[0]).astype(jnp.int32)
  return count_B.reshape(P, -1), jnp.sum(zeros_WB, axis=0).reshape(P, -1)
