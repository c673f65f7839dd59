r"""Countdown: reach a target with three numbers, from scratch on a CPU.

  python experiments/train.py --config configs/countdown.py \
      --workdir runs/countdown

A decoder of 0.6M parameters reads solutions, some of which try a line or two
that misses before the one that hits; many of them just state the answer. Then
RL asks only for an equation that uses each number once and reaches the target:
right 36.9% -> 61.9% of 512 held-out problems (gain 19.9 to 30.1 points, 95%),
reasons 30.9 -> 92.8%, 28 minutes on 2 busy CPU cores (experiments/RESULTS.md).
"""

from ml_collections import ConfigDict

from grpo_jax import algorithms
from grpo_jax import config as config_lib


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, group_size=8, algorithm='', smoke=False)
  c = config_lib.default()

  c.model.update(variant='quickstart', unroll=True)
  c.data.update(name='countdown', prompts=16, max_prompt=24)
  c.data.knobs = dict(
    style='terse',
    numbers_min=3,
    numbers_max=3,
    largest=20,
    target_max=99,
    operations='+-*',
    tries=3,
  )
  c.pretrain.update(steps=1500, rows=16, width=192, reasoned=0.5)
  c.pretrain.optim.update(lr=2e-3, b2=0.95)
  c.rollout.update(group_size=arg.group_size, max_tokens=128)
  c.reward = {'countdown': 1.0, 'format': 0.1}
  c.eval.right = 'countdown'
  c.optim.update(lr=1e-4)
  c.steps = 300

  if arg.smoke:
    c.model.variant = 'tiny'
    c.data.prompts = 2
    c.data.knobs.problems = 500
    c.pretrain.update(steps=4, rows=2)
    c.rollout.max_tokens = 16
    c.eval.update(problems=8, batch=8)
    c.steps = 2
  algorithms.apply(c, arg.algorithm)
  return c
