"""The reward: a declared mix of parts, one file each.

A part is a pure function from token ids to scores, so that it compiles together
with the rollout; grpo_jax/text has what it needs to read a completion.
NaN is its way to say 'I cannot score this one'. The config names the parts, and
gives each a weight, or a weight and more (mix.py):

  c.reward = {'answer': 1.0, 'length': {'weight': 0.1, 'gate': 'answer'}}

To add a part, write `rewards/<name>.py` with one public function of that name,

  def <name>(rollout, prompts, text, *, knob=default, ...) -> score_PG

and give it a weight. With weight 0 it is a metric and no more. It sees whole
groups, but not all prompts of a step: each device scores its own. Some keywords
are not knobs but filled in, if the function has them:

  right_PG      bool, where another part, which the knob `right` names, has 1;
                where that one is NaN, so will be the score
  reference_PN  int32, what the part's own `reference` says of each problem
  readers       name -> Reader, of the machines that its own `reads` returns
  scores        name -> score_PG of the parts that have been scored so far
  scorer        the reward model that the knob `init` names (types.Scorer). Such
                a part sees the whole batch, as the policy's own passes do.

with, in the same file and with the same knobs,

  def reference(example, tokenizer, *, ...) -> ints, padded with -1
  def reads(*, ...) -> {name: Machine}          see text/automata.py
  def tags(*, ...) -> literals that text.find is to know besides text.TAGS

What cannot compile (symbolic maths, code, any Python) is a host reward: see
rewards/host. The mix does not tell the two kinds apart.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax import sharding
from grpo_jax import text as text_lib
from grpo_jax.datasets import Example
from grpo_jax.rewards import mix as mix_lib
from grpo_jax.text import TokenText, reader
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
  for part in parts:
    if part.host and part.name not in hosted:
      raise ValueError(
        f'reward {part.name!r} is scored on the host; see scoring.py'
      )

  # What is not scored row by row: by the host, or by a model that is in parts.
  known = {part.name: hosted[part.name] for part in parts if part.host}
  for part in parts:
    if 'scorer' in part.takes:
      known[part.name] = _score(part, rollout, prompts, text, known)

  def score(rows, text):
    rollout, prompts, known = rows
    scores: dict[str, jax.Array] = {}
    for part in parts:
      if part.name in known:
        score_PG = known[part.name]
      else:
        score_PG = _score(part, rollout, prompts, text, scores)
      scores[part.name] = _only(part, prompts, score_PG)
    scores = {name: scores[name] for name in mix}  # As they were declared.
    return Rewards(
      total_PG=mix_lib.total(scores, parts),
      parts=scores,
      shaped=mix_lib.shape(scores, parts),
    )

  rows = rollout, prompts, known
  return sharding.by_rows(score)(rows, text.replace(scorers={}))


def _score(part, rollout, prompts, text, scores) -> jax.Array:
  """Calls the function of a part with what it asks for."""
  given = dict(part.knobs)
  if 'reference_PN' in part.takes:
    given['reference_PN'] = prompts.references[part.name]
  if 'readers' in part.takes:
    given['readers'] = text.readers[part.name]
  if 'scorer' in part.takes:
    given['scorer'] = text.scorers[part.name]
  if 'scores' in part.takes:
    given['scores'] = scores
  if 'right_PG' not in part.takes:
    return part.function(rollout, prompts, text, **given)
  right_PG = scores[part.right]
  score_PG = part.function(
    rollout, prompts, text, right_PG=right_PG >= 1, **given
  )
  # Nobody knows whether an unscored one is right.
  return jnp.where(jnp.isnan(right_PG), jnp.nan, score_PG)


def _only(part, prompts, score_PG) -> jax.Array:
  """NaN for problems that are none of the part's."""
  if not part.only:
    return score_PG
  theirs_P1 = prompts.references[f'{part.name}.only'] == 1
  return jnp.where(theirs_P1, score_PG, jnp.nan)


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
  found = {}
  for part in mix_lib.parse(mix):
    if part.reference:
      found[part.name] = [
        list(part.reference(example, tokenizer, **part.knobs))
        if part.scores(example)
        else []
        for example in examples
      ]
    if part.only:
      found[f'{part.name}.only'] = [[int(part.scores(x))] for x in examples]
  return found
