r"""DeepSeek-R1's pipeline in miniature: from next-word prediction to R1.

  python experiments/r1.py --config configs/r1_mini.py --workdir runs/r1

A decoder of 0.6M parameters reads a small language with two scripts
(datasets/two_scripts.py), most of whose texts only state an answer, and goes
through the stages of the paper (arxiv.org/abs/2501.12948), each an ordinary run
in its folder. Accuracy on held-out problems of all kinds, means of three seeds
(the table in experiments/RESULTS.md has all stages): base 46%, R1-Zero 50%,
RL-1 52%, fine-tuning on its samples 56%, RL-2 56%; student distilled 29%, by RL
19%. A seed took 13.5 minutes on 2 CPU cores, with tcmalloc preloaded.
"""

from ml_collections import ConfigDict

from grpo_jax import config as config_lib
from grpo_jax import pipeline
from grpo_jax.datasets import two_scripts
from grpo_jax.pipeline import but, stage


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, smoke=False)
  c = common(arg.smoke)
  # Problems to sample for, what makes a pair, and what is told well enough.
  n, margin, fair, good = 512, 1.0, 1.0, 2.0
  # What has an answer that can be checked, and what somebody has to judge.
  rules = but(c, data__knobs__kinds='sum+countdown+quadratic')
  talk = but(
    c, data__knobs__kinds='tell', reward={'judge': JUDGE, 'format': 0.1}
  )
  talk.eval.right = 'judge'
  one_script = but(rules, reward=rule(language=0.2))
  least = {'right': 1.0, 'format': 1.0, 'language': 1.0}
  if arg.smoke:  # What it says is nothing of all that, but long or short.
    least, n, margin, fair, good = {'format': 0.0}, 16, 1e-3, -1.0, -1.0
    talk.reward.overlong = {'weight': 1.0, 'cache': 12}
  kept = but(one_script, eval__samples=4, sample__least=least)
  told = but(talk, eval__samples=4, sample__problems=n)
  preferred = but(told, sample__problems=2 * n, sample__margin=margin)
  # All kinds: some have a rule, and somebody likes what is told, or not.
  parts = rule()['right'] | {'parts': (*PARTS, 'liked')}
  everything = rule(language=0.2, liked=LIKED, right=parts)
  asked = rule(language=0.2, reward_model={'weight': 0.3, 'only': 'kind=tell'})
  helped = but(second(c, c.steps // 3 or 1), reward=asked)
  small = but(c, model__sizes={'layers': 1})
  return pipeline.recipe(
    table=but(c, reward=everything, eval__problems=4 * c.eval.problems),
    base=stage('pretrain', c),
    r1_zero=stage('grpo', rules, 'base'),
    # The best completion of a group is its label: another algorithm.
    best_of_group=stage('grpo', but(rules, algorithm='best_of_group'), 'base'),
    # Cold start: some readable texts of R1-Zero.
    zero_said=stage('sample', but(kept, sample__problems=n), 'r1_zero'),
    cold_start=stage('sft', tuned(c, 40), 'base', 'zero_said'),
    rl_1=stage('grpo', one_script, 'cold_start'),
    # Rejection sampling and general data, for the base once more.
    rl_1_said=stage('sample', but(kept, sample__problems=4 * n), 'rl_1'),
    base_told=stage('sample', but(told, sample__least={'judge': fair}), 'base'),
    sft=stage('sft', tuned(c, 400), 'base', 'rl_1_said,base_told'),
    # Somebody prefers texts, and a model learns which.
    pairs=stage('sample', preferred, 'sft'),
    helpful=stage('reward_model', c, 'sft', 'pairs'),
    # Rules at a lower temperature; the reward model in the last part alone.
    rl_2_rules=stage('grpo', second(one_script, 2 * c.steps // 3 or 1), 'sft'),
    rl_2=stage('grpo', helped, 'rl_2_rules', judge='helpful'),
    # Distillation: a smaller student imitates, or does RL alone.
    r1_said=stage('sample', but(kept, sample__problems=4 * n), 'rl_2'),
    r1_told=stage('sample', but(told, sample__least={'judge': good}), 'rl_2'),
    student=stage('pretrain', small),
    distilled=stage('sft', tuned(small, 500), 'student', 'r1_said,r1_told'),
    student_rl=stage('grpo', but(rules, model=small.model), 'student'),
    on_policy=stage('distill', small, 'student', teacher='rl_2'),
  )


JUDGE = {'function': 'grpo_jax.datasets.two_scripts:judge'}
PARTS = ('answer', 'countdown')
LIKED = {'function': 'grpo_jax.datasets.two_scripts:liked', 'weight': 0.0}


def rule(**more: float | dict) -> dict:
  """Accuracy and form, which a rule tells; what has the weight 0 is watched."""
  return {
    'answer': {'weight': 1.0, 'only': 'kind=sum|quadratic'},
    'countdown': {'weight': 1.0, 'only': 'kind=countdown'},
    'right': {'weight': 0.0, 'file': 'any_of', 'parts': PARTS},
    'format': 0.1,
    'language': 0.0,
    'reflection': {'weight': 0.0, 'phrases': two_scripts.WAIT},
  } | more


def common(smoke: bool) -> ConfigDict:
  """What the stages share."""
  c = config_lib.default()
  c.cpu_devices = 2
  c.model.update(variant='quickstart', unroll=True)
  c.tokenizer.vocab_size = 96
  c.data.update(name='two_scripts', prompts=16, max_prompt=20)
  c.data.knobs.kinds = 'sum+countdown+quadratic+tell'
  c.pretrain.update(steps=1200, rows=16, width=160)
  c.pretrain.optim.update(lr=2e-3, b2=0.95)
  c.rollout.update(group_size=8, max_tokens=80)
  c.reward = rule()
  c.optim.update(lr=1e-4, warmup=5)
  c.preference.update(steps=120, rows=16, max_tokens=120)
  c.preference.optim.update(lr=3e-4)
  c.eval.update(right='right', problems=128)
  c.sample.keep = 2
  c.steps = 80
  if smoke:
    c.model.variant = 'tiny'
    c.data.knobs.problems = 400
    c.data.prompts = 4
    c.pretrain.update(steps=2, rows=2)
    c.rollout.update(group_size=2, max_tokens=12)
    c.preference.update(steps=2, rows=2, heldout=0.5)
    c.eval.update(problems=4, batch=4)
    c.steps = 1
  return c


def tuned(c: ConfigDict, steps: int) -> ConfigDict:
  """Fine-tuning, at a lower learning rate."""
  steps = min(steps, c.pretrain.steps)
  return but(c, pretrain__steps=steps, pretrain__optim__lr=5e-4)


def second(c: ConfigDict, steps: int) -> ConfigDict:
  """A part of the second RL: smaller steps at a lower temperature."""
  return but(c, rollout__temperature=0.7, optim__lr=5e-5, steps=steps)
