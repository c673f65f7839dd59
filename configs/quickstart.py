r"""R1-Zero in miniature: a small model learns that thinking pays.

  python experiments/train.py --config configs/quickstart.py \
      --workdir runs/quickstart

A decoder of 0.6M parameters reads a corpus in which 40% of the documents work
an answer out and the others just state it. Then RL asks only questions, and
looks only at the answer and its form. Measured on 2 CPU cores (512 held-out
problems at temperature 1; experiments/RESULTS.md has intervals and commit):

  seed   accuracy        reasons         length (tokens)   seconds
  0      43.0 -> 98.6%   36.3 -> 99.6%   17.4 -> 40.7      125
  1      44.7 -> 99.2%   38.1 -> 99.8%   18.1 -> 40.6      130
  2      48.0 -> 99.2%   39.5 -> 99.8%   18.6 -> 40.7      124
"""

from ml_collections import ConfigDict

from grpo_jax import algorithms
from grpo_jax import config as config_lib


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, group_size=8, algorithm='', smoke=False)
  c = config_lib.default()

  c.model.update(variant='quickstart', unroll=True)
  c.data.update(name='chains', prompts=16, max_prompt=32)
  c.pretrain.update(steps=1000, rows=16)
  c.pretrain.optim.update(lr=2e-3, b2=0.95)
  c.rollout.update(group_size=arg.group_size, max_tokens=56)
  c.optim.update(lr=1e-4)
  c.steps = 100

  if arg.smoke:
    c.model.variant = 'tiny'
    c.data.update(prompts=2, knobs={'problems': 500})
    c.pretrain.update(steps=4, rows=2)
    c.rollout.max_tokens = 16
    c.eval.update(problems=8, batch=8)
    c.log.completions_every = 1
    c.steps = 2
  algorithms.apply(c, arg.algorithm)
  return c
