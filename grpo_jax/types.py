"""What crosses a jit boundary, and the letters that name dimensions.

Every array's name ends in its dimensions: `tokens_PGT[p, g, t]`. The key, used
in the whole code base:

  P prompts of a step       G completions per prompt (the group size)
  B = P*G, b = p*G + g      L prompt length       T completion length
  S keys attended to        V vocabulary          D model width
  N query heads             K key-value heads     H head size
  F feed-forward width      E experts             R rewards
  C bytes of text           W slots

A scalar has no suffix. Inside the models B is any batch and T any length.
"""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax.numpy as jnp

# A leaf of the records below: jax.Array under jit and on devices, np.ndarray on
# the host (sharding.to_host), a shape with its sharding in a template.
Array = Any
Params = Any  # A nested dict of arrays, laid out as the model's table says.


class Prompts(struct.PyTreeNode):
  """The questions of one step, and what their answers are checked against."""

  tokens_PL: Array  # int32, padded on the right with anything.
  lengths_P: Array  # int32, tokens; masks come from here, not from ids.
  ids_P: Array  # uint32, names the prompt in the sampler's noise.
  answers_PC: Array  # uint8, UTF-8 of the reference answer, zero-padded.
  # Reward name -> int32 [P, N], what it has to know besides; -1 is padding.
  references: dict[str, Array] = struct.field(default_factory=dict)
  rows_P: Array | None = None  # int32, in the training split; -1: not there.


class Rollout(struct.PyTreeNode):
  """A group of completions for each prompt, as the sampler saw them."""

  prompts: Prompts  # What the completions were conditioned on.
  tokens_PGT: Array  # int32; positions from the length on are padding.
  lengths_PG: Array  # int32, tokens, the stop token counted.
  ended_PG: Array  # bool: a stop token came before the limit.
  logps_PGT: Array  # float32 nats under the sampling policy; 0 in padding.
  actions_PGT: Array  # bool: the policy chose this token (the loss mask).


class Rewards(struct.PyTreeNode):
  """The scores of a rollout; NaN means that it could not be scored."""

  total_PG: Array  # float32, the weighted sum of the parts.
  parts: dict[str, Array]  # Reward name -> score_PG before weighting.
  # The same with bounds, scales and gates, as they are weighted and summed.
  shaped: dict[str, Array] = struct.field(default_factory=dict)


class Pairs(struct.PyTreeNode):
  """Texts of which one was preferred to another."""

  # int32, prompt and completion; [:, 0] is the better. Padded on the right.
  tokens_P2T: Array
  lengths_P2: Array  # int32, tokens, the stop token counted.


class Scorer(struct.PyTreeNode):
  """A reward model, an argument of compiled functions."""

  params: Params
  # (params, rollout) -> score_PG.
  score: Callable = struct.field(pytree_node=False)


class ModelInputs(struct.PyTreeNode):
  """Tokens and where they stand; never a dense mask."""

  tokens_BT: Array  # int32.
  positions_BT: Array  # int32, from 0 at the start of a document.
  segment_ids_BT: Array | None = None  # int32, packed documents; 0 is none.


class ModelOutputs(struct.PyTreeNode):
  """The last hidden states; the head is applied by whoever needs logits."""

  hidden_BTD: Array
  cache: Any  # Keys and values, opaque outside of the model.
  aux: dict[str, Array] = struct.field(default_factory=dict)


class History(struct.PyTreeNode):
  """How the problems of the training split went; N is their number."""

  success_N: Array  # float32, a running mean of the share that was right.
  visits_N: Array  # int32, times that it was tried and scored.


class TrainState(struct.PyTreeNode):
  """Everything that a step depends on, and all that a checkpoint holds."""

  step: Array  # int32, steps done, pre-training counted.
  cursor: Array  # int32, examples that the current phase has drawn.
  params: Params
  opt_state: Any
  reference: Params | None = None  # Frozen policy of the KL term, if any.
  model_state: Any = None  # What a model learns without gradients.
  # Name -> float32, weights of loss terms that follow what they weigh.
  coefs: dict[str, Array] = struct.field(default_factory=dict)
  # int32, optimizer steps in a row that were not taken, because loss or
  # gradient was not finite or beyond a bound.
  skipped: Array = struct.field(default_factory=lambda: jnp.int32(0))
  history: History | None = None  # Of a curriculum.
  # uint32, how the last first completion of each training problem begins
  # (history.repeats); None looks for no repeats.
  openings_N: Array | None = None
