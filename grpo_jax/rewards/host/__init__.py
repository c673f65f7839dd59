"""Rewards that cannot compile: Python that may be slow, wrong or hostile.

Completions go in as records of text, scores come out of worker processes that
are killed when a deadline passes. A completion whose reward raises, hangs,
returns NaN or kills its process is not scored and is told of in `failures`;
nothing else is lost.

  specs = [Spec('maths', 'maths'), Spec('mine', 'my_rewards:brevity')]
  with Pool(specs, workers=2) as pool:
    future = pool.submit(completions)  # Returns at once.
    ...                                # The device samples or trains.
    outcome = future.result()

To add a reward, write `module:function` anywhere Python finds it:

  def brevity(completion: Completion, scale=0.01) -> float | None

None leaves the completion out, without a failure. Functions that were written
for TRL or verl are taken as they are; see function.py. The files maths.py,
code.py and gym.py hold the rewards that come with the package.

This package does not import JAX, and the workers import no more than it.
"""

from grpo_jax.rewards.host.checks import check
from grpo_jax.rewards.host.pool import Pool
from grpo_jax.rewards.host.records import Completion, Failure, Outcome, Spec

__all__ = ['Completion', 'Failure', 'Outcome', 'Pool', 'Spec', 'check']
