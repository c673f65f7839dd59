"""What the functions of an algorithm may ask for by name.

An advantage, a loss, a selection and a KL each have a few positional arguments.
What else one of them wants to see is a keyword-only argument without a default
of a name below; with a default it is a knob, which the config may set.
"""

from collections.abc import Callable
import functools
import inspect

# By section of the config; config.check refuses others.
KNOWN = {
  'advantage': (
    'mask_PGT',  # Tokens that count.
    'token_rewards_PGT',  # The reward on the last of them; less the KL there.
    'parts',  # Name of a part with a weight -> score_PG, bounded and gated.
    'part_weights',  # The same names -> float, the weights in c.reward.
    'greedy_P',  # The reward of a greedy completion of each prompt.
    'logps_PGT',  # Under the policy before the update.
    'squares_PGT',  # Sum over the vocabulary of p**2 at each token.
    'correction_PGT',  # Off-policy weights.
  ),
  'loss': ('correction_PGT', 'selected_PGT'),
  'select': ('entropies_PGT', 'noise_PGT'),
  'kl': ('old_logps_PGT', 'mask_PGT'),
}


def asks(function: Callable) -> list[str]:
  """Names of the keywords without a default: what it wants to be given."""
  parameters = inspect.signature(function).parameters.values()
  return [
    p.name
    for p in parameters
    if p.kind is p.KEYWORD_ONLY and p.default is p.empty
  ]


def fill(function: Callable, **given) -> Callable:
  """The function with what it asks for, of what there is."""
  found = {name: given[name] for name in asks(function)}
  return functools.partial(function, **found)
