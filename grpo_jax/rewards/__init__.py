"""The reward: a declared mix of parts, one file each.

A part is a pure function from token ids to scores, so that it compiles together
with the rollout; text.py and reader.py have what it needs to read a completion.
NaN is its way to say 'I cannot score this one'. The config names the parts, and
gives each a weight, or a weight and more (mix.py):

  c.reward = {'answer': 1.0, 'length': {'weight': 0.1, 'gate': 'answer'}}

To add a part, write `rewards/<name>.py` with one public function of that name,

  def <name>(rollout, prompts, text, *, knob=default, ...) -> score_PG

and give it a weight. With weight 0 it is a metric and no more. Some keywords
are not knobs but filled in, if the function has them:

  right_PG      bool, where another part, which the knob `right` names, has 1;
                where that one is NaN, so will be the score
  reference_PN  int32, what the part's own `reference` says of each problem
  readers       name -> Reader, of the machines that its own `reads` returns

with, in the same file and with the same knobs,

  def reference(example, tokenizer, *, ...) -> ints, padded with -1
  def reads(*, ...) -> {name: Machine}          see automata.py
  def tags(*, ...) -> literals that text.find is to know besides text.TAGS

What cannot compile (symbolic maths, code, any Python) is a host reward: see
rewards/host. The mix does not tell the two kinds apart.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax import reader
from grpo_jax import text as text_lib
from grpo_jax.datasets import Example
from grpo_jax.rewards import mix as mix_lib
from grpo_jax.text import TokenText
from grpo_jax.types import Prompts, Rewards, Rollout

Mix = Mapping[str, float | Mapping[str, Any]]


def reward(
  rollout: Rollout,
  prompts: Prompts,
  text: TokenText,
  mix: Mix,
  hosted: Mapping[str, jax.Array] = MappingProxyType({}),
) -> Rewards:
  """Scores completions.

  Args:
    rollout: the completions.
    prompts: what they answer, with the `references` of this mix.
    text: the vocabulary, as `token_text` makes it for this mix.
    mix: name of a part -> its weight, or a mapping of its knobs.
    hosted: score_PG of the parts that the host has scored (scoring.py).

  Raises:
    ValueError: the mix names a part or a knob that does not exist, or one that
      the host has to score first.
  """
  parts = mix_lib.parse(mix)
  scores = {}
  for part in parts:
    if part.host:
      if part.name not in hosted:
        raise ValueError(
          f'reward {part.name!r} is scored on the host; see scoring.py'
        )
      scores[part.name] = hosted[part.name]
      continue
    given = dict(part.knobs)
    if 'reference_PN' in part.takes:
      given['reference_PN'] = prompts.references[part.name]
    if 'readers' in part.takes:
      given['readers'] = text.readers[part.name]
    if 'right_PG' in part.takes:
      given['right_PG'] = scores[part.right] >= 1
    score_PG = part.function(rollout, prompts, text, **given)
    if 'right_PG' in part.takes:  # Nobody knows whether an unscored one is.
      unknown_PG = jnp.isnan(scores[part.right])
      score_PG = jnp.where(unknown_PG, jnp.nan, score_PG)
    scores[part.name] = score_PG
  scores = {name: scores[name] for name in mix}  # As they were declared.
  return Rewards(total_PG=mix_lib.total(scores, parts), parts=scores)


def token_text(token_bytes: Sequence[bytes], mix: Mix) -> TokenText:
  """Tables of a vocabulary with all that the parts of a mix look for."""
  parts = mix_lib.parse(mix)
  tags = dict.fromkeys(text_lib.TAGS)
  for part in parts:
    if part.tags:
      tags |= dict.fromkeys(part.tags(**part.knobs))
  text = text_lib.token_text(token_bytes, tuple(tags))
  readers = {
    part.name: {
      name: reader.reader(machine, text)
      for name, machine in part.reads(**part.knobs).items()
    }
    for part in parts
    if part.reads
  }
  return text.replace(readers=readers)


def references(
  examples: Sequence[Example], tokenizer, mix: Mix
) -> dict[str, list[list[int]]]:
  """What the parts of a mix want to know of each problem."""
  return {
    part.name: [
      list(part.reference(example, tokenizer, **part.knobs))
      for example in examples
    ]
    for part in mix_lib.parse(mix)
    if part.reference
  }
