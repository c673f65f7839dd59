r"""DeepSeek-R1 with the paper's numbers (arxiv.org/abs/2501.12948, v2).

  python experiments/r1.py --config configs/r1_671b.py --workdir runs/r1_671b

From DeepSeek-V3-Base through R1-Zero, a cold start, two stages of RL and the
fine-tuning between them, to a distilled student; see r1_zero_671b.py for what
is not there yet. In brackets stands the section of the paper that a number is
from; 'ours' are those that it does not give. Its second reward model, of
safety, is left out: [3.1] trains that on 106,000 labelled answers, one by one.
"""

from ml_collections import ConfigDict
import r1_zero_671b
from r1_zero_671b import PROMPTS, policy, rules, smaller

from grpo_jax import config as config_lib
from grpo_jax import pipeline
from grpo_jax.pipeline import but, stage

GENERAL = PROMPTS | {'general': 66, 'harmless': 12}  # [B.3.1]


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, smoke=False)
  zero = r1_zero_671b.get_config()
  base = policy(PROMPTS)
  # [3.2.1] R1-Zero's numbers, the clip of 10 named here, and a reward for the
  # share of words in the target language; 10,400 steps are R1-Zero's.
  rl_1 = but(base, reward=rules() | {'language': 1.0}, steps=10_400 // 16)
  # [3.2.2] Temperature 0.7, 1,700 steps: preferences and general
  # prompts in the last 400 alone, more of which is hacked.
  rl_2 = but(rl_1, rollout__temperature=0.7, steps=(1_700 - 400) // 16)
  last = but(policy(GENERAL), rollout__temperature=0.7, steps=400 // 16)
  last.reward = rules() | {'language': 1.0, 'reward_model': HELPFUL}
  # [B.3.2] Thousands of R1-Zero's texts at temperature 1, right, readable, in
  # one language; [B.3.3] 600,000 of reasoning, 200,000 others.
  kept = but(rl_1, sample__least={'right': 1.0, 'format': 1.0, 'language': 1.0})
  kept.eval.samples = 16  # Ours.
  recipe = pipeline.recipe(
    **zero.stages,
    zero_said=stage(
      'sample', but(kept, sample__problems=5_000), 'r1_zero_longer'
    ),
    cold_start=stage('sft', tuned(base, 5_000), data='zero_said'),
    rl_1=stage('grpo', rl_1, 'cold_start'),
    rl_1_said=stage('sample', but(kept, sample__problems=600_000), 'rl_1'),
    general_said=stage('sample', general(), 'rl_1'),
    sft=stage('sft', tuned(base, 804_745), data='rl_1_said,general_said'),
    helpful=stage('reward_model', preferences(), 'sft', 'general_said'),
    rl_2_rules=stage('grpo', rl_2, 'sft'),
    rl_2=stage('grpo', last, 'rl_2_rules', judge='helpful'),
    # [E] The 800,000 samples of the fine-tuning, into Qwen2.5 1.5B.
    distilled=stage('sft', student(), data='rl_1_said,general_said'),
  )
  return smaller(recipe) if arg.smoke else recipe


HELPFUL = {'weight': 1.0, 'only': 'source=general|harmless'}


def tuned(c: ConfigDict, texts: int) -> ConfigDict:
  """[B.4.2] Cosine 5e-5 to 5e-6, 32,768 tokens, batches of 128, 2 epochs."""
  c = but(c, pretrain__rows=128, pretrain__width=32_768)
  c.pretrain.optim.update(lr=5e-5, final=0.1, schedule='cosine')
  # [B.3.3] A text has 5,355 tokens in the mean, and texts share rows.
  c.pretrain.steps = -(-2 * texts * 5_355 // (128 * 32_768))
  return c


def general() -> ConfigDict:
  """[B.3.1] What nobody can check, judged by a function of yours."""
  c = policy({'general': 66, 'harmless': 12})
  c.reward = {'judge': {'function': 'r1_671b:judge'}, 'format': 1.0}
  # [3.1] A difference above 1 between the judgements makes a pair.
  c.sample.update(problems=200_000, margin=1.0)
  c.sample.least = {'format': 1.0}
  c.eval.update(right='format', samples=4)
  return c


def preferences() -> ConfigDict:
  """[3.1] 66,000 pairs once, batches of 256, 6e-6, 8,192 tokens."""
  c = policy({'general': 66, 'harmless': 12})
  c.preference.update(steps=66_000 // 256, rows=256, max_tokens=8_192)
  c.preference.optim.lr = 6e-6
  return c


def student() -> ConfigDict:
  """[B.4.3] 1e-4 to a tenth of it, batches of 64; 2 epochs."""
  c = tuned(policy(PROMPTS), 804_745)
  c.model.init = 'hf://Qwen/Qwen2.5-Math-1.5B'
  c.pretrain.update(rows=64, steps=2 * c.pretrain.steps)
  c.pretrain.optim.lr = 1e-4
  return c


def judge(completion) -> float:
  """[3.1] The mean of four judgements of DeepSeek-V3: ask yours."""
  raise NotImplementedError(completion.prompt)
