r"""DeepSeek-R1-Zero with the paper's numbers (arxiv.org/abs/2501.12948, v2).

  python experiments/r1.py --config configs/r1_zero_671b.py \
      --workdir runs/r1_zero_671b

RL on DeepSeek-V3-Base and nothing before it, on files of yours in data/. Nobody
has run it at this size here, and this version has no file for that model yet:
the recipe is there to be read, planned for a machine, or scaled down (:smoke).
In brackets stands the section of the paper that a number is from.
"""

from ml_collections import ConfigDict

from grpo_jax import algorithms, pipeline
from grpo_jax import config as config_lib
from grpo_jax.pipeline import but, stage

STEPS = 10_400  # [2.1] 1.6 epochs,
LONGER = 8_200  # and from here on completions of twice the length.
MINIBATCHES = 16  # [2.1] Steps of a rollout, which has 8,192 outputs.
# [B.3.1] Prompts in thousands: of code 17 and 8 bugs to fix.
PROMPTS = {'maths': 26, 'code': 25, 'stem': 22, 'logic': 15}


def get_config(arg: str = '') -> ConfigDict:
  arg = config_lib.parse_arg(arg, smoke=False)
  c = policy(PROMPTS)
  first = but(c, steps=LONGER // MINIBATCHES)
  longer = but(c, rollout__max_tokens=65_536)
  longer.steps = (STEPS - LONGER) // MINIBATCHES
  recipe = pipeline.recipe(
    r1_zero=stage('grpo', first),
    # A stage of its own is ours: the optimizer's moments begin anew.
    r1_zero_longer=stage('grpo', longer, 'r1_zero'),
  )
  return smaller(recipe) if arg.smoke else recipe


def policy(prompts: dict[str, int]) -> ConfigDict:
  """What all RL stages share: 'maths': 26 are so many in data/maths.jsonl."""
  c = config_lib.default()
  c.model.update(variant='', init='hf://deepseek-ai/DeepSeek-V3-Base')
  c.model.update(dtype='bfloat16', remat='full', attention='splash')
  c.data.update(name='mixture', template='r1_zero', max_prompt=1024)
  c.data.knobs = {
    kind: {'name': 'files', 'path': f'data/{kind}.jsonl', 'weight': float(n)}
    for kind, n in prompts.items()
  }
  c.reward = rules()
  c.eval.right = 'right'
  # [2.1] KL 0.001, a new reference every 400 steps, 16 outputs of 32,768
  # tokens, 512 prompts a rollout, learning rate 3e-6; [3.2.1] clip 10. The
  # numbers are in recipes.r1_zero.
  algorithms.apply(c, 'r1_zero', scale=True)
  c.rollout.temperature = 1.0
  c.mesh.update(data=-1, fsdp=256)
  return c


def rules() -> dict:
  """[2.2] Accuracy and format weigh the same; no neural model."""
  told = ('maths', 'code')
  return {
    'maths': {'weight': 1.0, 'only': 'source=maths|stem|logic'},
    'code': {'weight': 1.0, 'only': 'source=code'},
    'right': {'weight': 0.0, 'file': 'any_of', 'parts': told},
    'format': 1.0,
  }


def smaller(recipe: ConfigDict) -> ConfigDict:
  """Every stage in seconds on a CPU: random weights, sums, plain answers."""
  for name in recipe.order:
    c = recipe.stages[name].config
    c.model.update(variant='tiny', init='', dtype='float32', remat='none')
    c.model.attention = 'plain'
    c.data.update(name='sums', prompts=2, max_prompt=128, template='')
    c.data.knobs = ConfigDict()
    asked = {'reward_model': 1.0} if 'reward_model' in c.reward else {}
    short = {'overlong': {'weight': 1.0, 'cache': 8}}  # They differ in this.
    c.reward = {'answer': 1.0, 'format': 1.0, **short, **asked}
    c.rollout.update(group_size=2, max_tokens=8)
    c.pretrain.update(steps=min(c.pretrain.steps, 2), rows=2, width=128)
    c.preference.update(steps=2, rows=2, max_tokens=64, heldout=0.5)
    c.sample.update(problems=16, keep=2)
    c.sample.least = ConfigDict({'format': 0.0})
    c.sample.margin = min(c.sample.margin, 1e-3)
    c.eval.update(problems=4, batch=4, right='answer')
    c.eval.samples = min(c.eval.samples, 4)
    c.updates.update(minibatches=1, microbatches=1)
    c.mesh.update(data=-1, fsdp=1)
    c.steps = min(c.steps, 1)
  return recipe
