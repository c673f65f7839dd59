r"""GSM8K, Gemma 3 1B through low-rank adapters, on one accelerator of 16 GB.

  python experiments/train.py --config configs/gsm8k_gemma3_1b.py \
      --workdir runs/gsm8k_gemma3_1b

The weights are google/gemma-3-1b-it of the Hugging Face Hub, whose licence has
to be accepted there first; --config.model.init=FOLDER takes a copy. By the
TPU's compiler a step takes 6.1 GB of a v5e chip (tests/test_accelerators.py,
COMPILE_LARGE=1); nobody has measured time or accuracy yet.
"""

from ml_collections import ConfigDict

from grpo_jax import algorithms
from grpo_jax import config as config_lib


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, group_size=8, algorithm='', smoke=False)
  c = config_lib.default()

  c.model.update(variant='', init='hf://google/gemma-3-1b-it')
  c.model.update(dtype='bfloat16', remat='full')
  c.lora.update(rank=16, dtype='bfloat16')
  c.data.update(name='gsm8k', prompts=16, max_prompt=384, template='r1_chat')
  c.rollout.update(group_size=arg.group_size, max_tokens=512)
  c.optim.update(lr=2e-5, warmup=10)
  c.updates.update(microbatches=8, head_chunk=1024)
  c.steps = 500

  if arg.smoke:
    c.model.update(name='gemma3', variant='tiny', init='', dtype='float32')
    c.lora.update(rank=2, dtype='float32')
    c.data.update(name='sums', prompts=2, max_prompt=64, template='')
    c.rollout.update(group_size=2, max_tokens=8)
    c.eval.update(problems=4, samples=1, batch=4)
    c.updates.microbatches = 1
    c.steps = 1
  algorithms.apply(c, arg.algorithm)
  return c
