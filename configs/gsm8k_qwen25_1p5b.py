r"""GSM8K, Qwen2.5 1.5B, all weights trained: a v5e-8, or one GPU of 80 GB.

  python experiments/train.py --config configs/gsm8k_qwen25_1p5b.py \
      --workdir runs/gsm8k_qwen25_1p5b

on eight TPU chips; on the GPU with `:gpu` behind the config. The weights are
Qwen/Qwen2.5-1.5B-Instruct of the Hugging Face Hub; --config.model.init=FOLDER
takes a copy. By the TPU's compiler a step takes 11.1 GB of each v5e chip, which
has 16. For the GPU it was not compiled: its state is 18.5 GB, and on one v5p
chip that stands in for it a step takes 41.9 GB
(tests/test_accelerators.py, COMPILE_LARGE=1). Nobody has measured time or
accuracy yet.
"""

from ml_collections import ConfigDict

from grpo_jax import algorithms
from grpo_jax import config as config_lib


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(
    arg, gpu=False, group_size=8, algorithm='', smoke=False
  )
  c = config_lib.default()

  c.model.update(variant='', init='hf://Qwen/Qwen2.5-1.5B-Instruct')
  c.model.update(dtype='bfloat16', remat='full')
  c.data.update(name='gsm8k', prompts=64, max_prompt=512, template='r1_chat')
  c.rollout.update(group_size=arg.group_size, max_tokens=1024)
  c.reward = {'answer': {'weight': 1.0, 'compare': 'number'}, 'format': 0.1}
  c.optim.update(lr=1e-6, warmup=10)
  c.updates.update(microbatches=8, head_chunk=8192)
  c.mesh.update(data=1, fsdp=-1)
  c.steps = 300

  if arg.gpu:
    c.updates.update(microbatches=16, head_chunk=1024)
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
