r"""GSM8K, Qwen3 8B, all weights trained: for a v5p-16.

  python experiments/train.py --config configs/gsm8k_qwen3_8b.py \
      --workdir runs/gsm8k_qwen3_8b

started on both hosts. The name counts TensorCores, two to a chip: it is eight
chips. The weights are Qwen/Qwen3-8B of the Hugging Face Hub;
--config.model.init=FOLDER takes a copy. By the TPU's compiler a step takes
62.7 GB of each chip, which has 95 (tests/test_accelerators.py, with
COMPILE_LARGE=1); nobody has measured time or accuracy yet.
"""

from ml_collections import ConfigDict

from grpo_jax import algorithms
from grpo_jax import config as config_lib


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, group_size=16, algorithm='', smoke=False)
  c = config_lib.default()

  c.model.update(variant='', init='hf://Qwen/Qwen3-8B')
  c.model.update(dtype='bfloat16', remat='full', attention='chunked')
  c.data.update(name='gsm8k', prompts=32, max_prompt=512, template='r1_chat')
  c.rollout.update(group_size=arg.group_size, max_tokens=2048)
  c.reward = {'answer': {'weight': 1.0, 'compare': 'number'}, 'format': 0.1}
  c.optim.update(lr=1e-6, warmup=10)
  c.updates.update(microbatches=4, head_chunk=8192)
  c.mesh.update(data=1, fsdp=-1)
  c.steps = 300

  if arg.smoke:
    c.model.update(variant='tiny', init='', dtype='float32', remat='none')
    c.data.update(name='sums', prompts=2, max_prompt=64, template='')
    c.rollout.update(group_size=2, max_tokens=8)
    c.eval.update(problems=4, samples=1, batch=4)
    c.updates.microbatches = 1
    c.reward.answer.compare = 'bytes'  # Compiles sooner.
    c.steps = 1
  algorithms.apply(c, arg.algorithm)
  return c
