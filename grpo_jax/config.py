"""Every knob with its unit and reason, and the errors of a wrong one.

`default()` is the whole list. A file in configs/ changes what differs, and the
command line changes it once more (`--config.optim.lr=3e-6`). `check` refuses
what cannot work before anything is compiled. Below train.py no function knows
of configs: they take arrays, functions and numbers.
"""

from collections.abc import Callable
import importlib
import inspect
import math
import pkgutil

import jax
from ml_collections import ConfigDict, config_dict

from grpo_jax import (
  advantages,
  curriculum,
  datasets,
  inputs,
  models,
  optim,
  prompts,
)
from grpo_jax.losses import aggregate, kl, off_policy, policy, select
from grpo_jax.rewards import host, mix


def default() -> ConfigDict:
  """The defaults of everything."""
  c = ConfigDict(type_safe=True)
  c.seed = 0  # Of parameters, data order and sampling.
  c.steps = 100  # RL iterations: rollout, reward, update; 0 does none, and
  # a run is what pre-training makes of its weights, or how good they are.
  c.fuse = True  # One program an iteration; False times its three parts. Host
  # rewards stand between programs in any case.
  c.algorithm = ''  # A published one (recipes.py): it sets what follows from
  # advantage to updates, dynamic, truncated and curriculum, but for what
  # differs from here; '' is none.
  c.resolved = ''  # The one whose values are in this config by now.

  c.model = ConfigDict()
  c.model.name = 'llama'  # models/<name>.py
  c.model.variant = 'tiny'  # A row of that file's VARIANTS; '' is the
  # one, and the model the one, that the weights in model.init say they are.
  c.model.sizes = ConfigDict()  # Replace numbers of the variant (layers=2).
  c.model.init = ''  # Weights: a Hugging Face folder, hf://org/name, a .gguf,
  # 'package:NAME/FILE' (weights/), the workdir of a run or one of its
  # checkpoints (initial.py); '' is random.
  c.model.dtype = 'float32'  # bfloat16 is slow on CPU, and halves TPU memory.
  c.model.unroll = False  # Layers as straight code: faster on CPU, and to be
  # left alone on TPU, where it costs compile time and gains nothing.
  c.model.remat = 'none'  # What the backward pass computes again: 'full', all
  # but a layer's input; 'dots', all but products with weights; 'offload' is
  # 'full' with these inputs in host memory. Less memory, more time; none is
  # saved where a CPU has unrolled layers.
  c.model.attention = 'plain'  # models/attention.py; memory is linear in the
  # length with 'chunked', 'splash' (TPU), and 'cudnn' (GPU, bfloat16).

  c.lora = ConfigDict()  # Low-rank adapters in the place of all weights
  # (models/lora.py).
  c.lora.rank = 0  # Of the adapters; 0 trains the weights.
  c.lora.alpha = 32.0  # Adapters count alpha / rank times.
  c.lora.targets = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')  # Projections.
  c.lora.dtype = 'float32'  # Of the frozen weights; bfloat16 halves them.

  c.tokenizer = ConfigDict()
  c.tokenizer.path = ''  # A Hugging Face folder, .model or .gguf; '' is that of
  # published weights in model.init, or else SentencePiece learnt in the run.
  c.tokenizer.vocab_size = 64  # Pieces at the most, when trained in the run.

  c.data = ConfigDict()
  c.data.name = 'chains'  # datasets/<name>.py
  c.data.knobs = ConfigDict()  # Arguments of its examples(); see the file.
  c.data.heldout = 0.05  # Share of the problems that is never trained on,
  # where the dataset has no test split of its own.
  c.data.prompts = 16  # Prompts a step, P.
  c.data.max_prompt = 32  # Tokens, L; a longer prompt is an error.
  c.data.template = ''  # 'r1_zero' and others of prompts.py, or a text with
  # {question} in it; '' is the tokenizer's chat template.
  c.data.instruction = ''  # Said before the worked examples; '' says nothing.
  c.data.shots = ()  # Worked examples: (question, completion) pairs, as
  # earlier turns of the chat. The shared prompt makes them nearly free.

  c.pretrain = ConfigDict()  # Next-token prediction before RL, of random
  # weights, or as supervised fine-tuning of those in model.init.
  c.pretrain.steps = 0  # Optimizer steps; 0: none.
  c.pretrain.files = ()  # JSON lines with 'prompt' and 'completion' to imitate,
  # as experiments/r1.py collects them; () is what the dataset itself would say.
  c.pretrain.rows = 16  # Rows of packed documents a step.
  c.pretrain.width = 128  # Tokens of a row.
  c.pretrain.reasoned = 0.4  # Share of documents that work the answer out.
  c.pretrain.optim = ConfigDict(_optim())
  c.pretrain.optim.update(lr=3e-3, schedule='cosine', warmup=20, b2=0.98)

  c.preference = ConfigDict()  # With a path the run trains a reward model
  # (preference.py), which the reward 'reward_model' asks, and no policy.
  c.preference.path = ''  # Files with columns prompt, chosen and rejected, all
  # texts (datasets/pairs.py); '' is none.
  c.preference.steps = 100  # Optimizer steps.
  c.preference.rows = 16  # Pairs a step.
  c.preference.max_tokens = 256  # Of prompt and completion; pairs with a
  # longer text are left out.
  c.preference.heldout = 0.05  # Share of the prompts that is never trained on.
  c.preference.margin = 0.0  # By how much the better text is to score more.
  c.preference.optim = ConfigDict(_optim())

  c.curriculum = ConfigDict({'name': 'none'})  # curriculum.py: how often a
  # problem is drawn, by how often it was solved. 'none' shuffles epochs.
  c.curriculum.decay = 0.5  # Of what is remembered, at each visit.
  c.curriculum.floor = 0.05  # Least weight of a problem; 1 is the greatest.
  c.curriculum.prior = 0.5  # Success that is believed of one never visited.

  c.rollout = ConfigDict()
  c.rollout.group_size = 8  # Completions per prompt, G.
  c.rollout.max_tokens = 64  # Longest completion, T, in tokens.
  c.rollout.temperature = 1.0  # The update divides its logits by it as well.
  c.rollout.stages = 1  # The cache grows in so many: long completions read less
  # of it, and compilation takes longer.

  c.reward = ConfigDict({'answer': 1.0, 'format': 0.1})  # rewards/<name>.py ->
  # weight, or {'weight': ..., knobs}; see rewards/mix.py.
  c.host = ConfigDict()  # Of rewards that cannot compile (rewards/host).
  c.host.workers = 0  # Processes that score; 0: as many as there are cores.
  c.host.pieces = 2  # A batch is sampled in so many: the host scores one while
  # the device samples the next.
  c.dynamic = ConfigDict()  # Dynamic sampling (groups.py).
  c.dynamic.batches = 1  # A step samples on, up to so many, until data.prompts
  # groups have rewards that differ; 1 takes the first batch as it is.
  c.truncated = 'count'  # Or 'mask': completions without a stop token have no
  # token in the loss. For a penalty see rewards/truncated.py and overlong.py.
  c.advantage = ConfigDict({'name': 'grpo'})  # advantages.py: how a completion
  # compares with its group.
  c.loss = ConfigDict({'name': 'ppo_clip', 'clip_low': 0.2, 'clip_high': 0.2})
  # losses/policy.py: what a token costs.
  c.select = ConfigDict({'name': 'all_tokens'})  # losses/select.py: tokens
  # whose surrogate counts.
  c.off_policy = ConfigDict({'name': 'none'})  # losses/off_policy.py: weights
  # of tokens that the trainer finds as likely as the sampler, or not quite.
  c.aggregate = ConfigDict({'name': 'token_mean'})  # losses/aggregate.py: what
  # a token weighs.
  c.kl = ConfigDict({'name': 'k3'})  # losses/kl.py: the estimate of the KL.
  c.kl.coef = 0.0  # Of the KL to the reference; 0 holds and runs none.
  c.kl.where = 'loss'  # Or 'reward': taken from it, token by token.
  c.kl.target = 0.0  # Nats a token; above 0 the coefficient follows it.
  c.kl.horizon = 10_000  # Completions; the greater, the slower it follows.
  c.reference = ConfigDict()  # The policy that the KL looks at.
  c.reference.init = ''  # A teacher, spelt as model.init, which stays as it is;
  # '' is the policy itself, at the start of RL. With kl.name='k1_plus' and no
  # weight in the reward this is on-policy distillation.
  c.reference.every = 0  # RL steps until the next one is taken; 0: the first.
  c.reference.rate = 1.0  # Share of the way that it goes to the policy then.
  c.entropy = ConfigDict()
  c.entropy.coef = 0.0  # Of the policy's entropy, which the loss makes large.
  c.entropy.target = 0.0  # Nats; above 0 the coefficient follows it:
  # down where the entropy is greater.
  c.entropy.step = 0.005  # What the coefficient changes by in a step.
  c.entropy.low = 0.0  # Least coefficient,
  c.entropy.high = 1.0  # and greatest, of one that follows.
  c.entropy.measure = False  # As a metric where it has no weight (the mean
  # surprise, rollout/entropy, is there in any case, and free).

  c.offload = ConfigDict()  # What waits in the host's memory, where devices
  # reach it, until a step has a use for it:
  c.offload.reference = False  # the policy that the KL looks at,
  c.offload.optimizer = False  # the optimizer's moments. All of them are on the
  # device in an optimizer step (and between those of an update), so that it
  # helps only where activations take more than that.

  c.updates = ConfigDict()
  c.updates.passes = 1  # Times that a batch is gone through (mu in the paper).
  c.updates.minibatches = 1  # Optimizer steps of a pass.
  c.updates.microbatches = 1  # Pieces of a minibatch; memory, not numbers.
  c.updates.head_chunk = 8192  # Tokens whose logits exist at one time.
  c.updates.skip_even = False  # No compute for groups without advantage, as
  # far as they fill microbatches; only where no other term needs them.
  c.updates.max_skipped = 10  # Optimizer steps in a row without a finite
  # gradient, none of which is taken, until the run stops.

  c.optim = ConfigDict(_optim())  # Of RL.

  c.mesh = ConfigDict()  # Devices along each axis; -1 is the rest.
  c.mesh.update(data=-1, fsdp=1, expert=1, context=1, tensor=1)
  c.cpu_devices = 1  # What a CPU counts as, up to its cores (process.cut_cpu).

  c.eval = ConfigDict()  # Of held-out problems, before and after RL.
  c.eval.every = 0  # RL steps between more of them, whose results are metrics
  # of the step ('eval/accuracy'); 0: none. It waits for the device.
  c.eval.right = 'answer'  # The part of the reward that tells what is right.
  c.eval.reasoned = 'format'  # The part that tells what reasons.
  c.eval.problems = 512  # Held-out problems.
  c.eval.samples = 1  # Completions of each.
  c.eval.batch = 512  # Problems sampled at one time.
  c.eval.temperature = config_dict.placeholder(float)  # None: the rollout's; 0
  # takes the most probable token.
  c.eval.top_p = 1.0  # Least probability that the tokens which may be drawn
  # have together; 1 cuts none.

  c.sample = ConfigDict()  # Rejection sampling (rejection.py), as eval samples:
  # eval.samples completions a problem, eval.batch problems at a time.
  c.sample.problems = 512  # Of the training split.
  c.sample.keep = 1  # Best completions of a problem, at the most.
  c.sample.margin = 0.0  # Least difference between the rewards of its best and
  # its worst completion that makes them a pair for c.preference; 0: no pairs.
  c.sample.least = ConfigDict()  # Part of the reward -> least score of what may
  # be kept; {} asks for a 1 of eval.right.

  c.alarms = ConfigDict()  # What is said in words, and done, when a run goes
  # wrong (alarms.py).
  c.alarms.drift = _alarm(above=0.0)  # rollout/logp_drift, nats; 0: by
  # model.dtype, 2 for bfloat16 and 0.02 for others.
  c.alarms.duplicates = _alarm(above=0.5, steps=10)  # rollout/repeats: share of
  # problems that are answered as they were the last time, beyond chance; with
  # 'off' nobody looks.
  c.alarms.degenerate = _alarm(above=0.99, steps=10)  # groups/degenerate: share
  # of groups.
  c.alarms.truncated = _alarm(above=0.5, steps=10)  # rollout/truncated: share
  # of completions.
  c.alarms.entropy = _alarm(below=1e-3, steps=10)  # rollout/entropy, nats.
  c.alarms.ratio = _alarm(above=10.0)  # policy/log_ratio_max, nats.
  c.alarms.gradient = _alarm(above=100.0)  # grad_norm_max, not yet clipped; of
  # sums (token_sum, sequence_sum) it is greater by nature.
  c.alarms.length = _alarm(above=3.0, steps=10)  # Mean rollout/length of 10
  # steps, in that of 10 steps 50 before, or of the first.
  c.alarms.hacking = _alarm(above=0.1, steps=2)  # What eval/accuracy has lost
  # since its best, if reward/mean has risen; steps are evaluations.

  c.log = ConfigDict()
  c.log.every = 5.0  # Seconds between lines where there is no terminal.
  c.log.prompts = 2  # Prompts a step whose groups go into completions.jsonl.
  c.log.completions_every = 10  # Steps between such samples.

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 100  # Steps, of pre-training and RL alike.
  c.checkpoint.keep = 2  # Newest ones that stay on disk.
  c.checkpoint.best = 'reward/mean'  # Metric whose greatest value keeps one
  # more, of RL; '' keeps none. With one of eval/ every evaluated step is saved.
  return c


def _alarm(steps: int = 1, **bound: float) -> ConfigDict:
  """Of a number, above or below a bound."""
  return ConfigDict(
    bound
    | dict(
      steps=steps,  # In a row.
      action='warn',  # 'skip' does not take such a step (drift, ratio and
      # gradient), 'stop' saves and ends the run, 'off' looks away.
    )
  )


def _optim() -> dict:
  """The arguments of optim.make; see there."""
  return dict(
    name='adamw',  # Or 'sgd'.
    lr=1e-5,  # Small models take 1e-4, large ones 1e-6.
    schedule='constant',  # Or 'linear', 'cosine', after the warm-up.
    warmup=0,  # Steps.
    final=0.1,  # Last learning rate as a share of lr.
    clip_norm=1.0,  # Greatest norm of a gradient; None does not clip.
    weight_decay=0.0,  # Of matrices, times the learning rate.
    b1=0.9,  # Of Adam's first moment,
    b2=0.999,  # and of its second.
    eps=1e-8,  # Of Adam's denominator.
  )


def parse_arg(arg: str, **defaults) -> ConfigDict:
  """Reads what follows the colon: `configs/x.py:smoke,group_size=16`.

  A bare name is True; other values take the type of their default. Raises
  ValueError for a name that the config does not take.
  """
  values = dict(defaults)
  for item in filter(None, arg.split(',')):
    name, equals, text = item.partition('=')
    if name not in defaults:
      raise ValueError(
        f'config argument {name!r} is not one of {", ".join(defaults)}'
      )
    kind = type(defaults[name])
    if kind is bool:
      if text.lower() not in ('', 'true', 'false'):
        raise ValueError(f'config argument {item!r}: not true or false')
      values[name] = text.lower() != 'false'
    elif not equals:
      raise ValueError(f'config argument {name!r} needs =<{kind.__name__}>')
    else:
      try:
        values[name] = kind(text)
      except ValueError:
        raise ValueError(
          f'config argument {item!r}: {text!r} is no {kind.__name__}'
        ) from None
  return ConfigDict(values)


def check(c: ConfigDict) -> None:
  """Raises ValueError, in one line, for what cannot work."""
  positive = {
    'data.prompts': c.data.prompts,
    'cpu_devices': c.cpu_devices,
    'data.max_prompt': c.data.max_prompt,
    'rollout.group_size': c.rollout.group_size,
    'rollout.max_tokens': c.rollout.max_tokens,
    'rollout.stages': c.rollout.stages,
    'dynamic.batches': c.dynamic.batches,
    'updates.passes': c.updates.passes,
    'updates.minibatches': c.updates.minibatches,
    'updates.microbatches': c.updates.microbatches,
    'updates.head_chunk': c.updates.head_chunk,
    'updates.max_skipped': c.updates.max_skipped,
    'kl.horizon': c.kl.horizon,
    'pretrain.rows': c.pretrain.rows,
    'pretrain.width': c.pretrain.width,
    'preference.steps': c.preference.steps,
    'preference.rows': c.preference.rows,
    'preference.max_tokens': c.preference.max_tokens,
    'host.pieces': c.host.pieces,
    'eval.problems': c.eval.problems,
    'eval.samples': c.eval.samples,
    'eval.batch': c.eval.batch,
    'sample.problems': c.sample.problems,
    'sample.keep': c.sample.keep,
    'log.completions_every': c.log.completions_every,
    'checkpoint.every': c.checkpoint.every,
    'checkpoint.keep': c.checkpoint.keep,
  }
  for name, value in positive.items():
    if value < 1:
      raise ValueError(f'{name}={value} must be at least 1')
  for name, value in (
    ('steps', c.steps),
    ('pretrain.steps', c.pretrain.steps),
    ('preference.margin', c.preference.margin),
    ('sample.margin', c.sample.margin),
    ('lora.rank', c.lora.rank),
    ('kl.coef', c.kl.coef),
    ('kl.target', c.kl.target),
    ('reference.every', c.reference.every),
    ('entropy.target', c.entropy.target),
    ('entropy.step', c.entropy.step),
    ('eval.every', c.eval.every),
    ('log.every', c.log.every),
    ('log.prompts', c.log.prompts),
    ('host.workers', c.host.workers),
  ):
    if value < 0:
      raise ValueError(f'{name}={value} must not be below 0')
  _check_choice('model.dtype', c.model.dtype, _DTYPES)
  _check_choice('lora.dtype', c.lora.dtype, _DTYPES)
  if c.model.dtype == 'float64' and not jax.config.read('jax_enable_x64'):
    raise ValueError('model.dtype=float64 needs JAX_ENABLE_X64=1 in the shell')
  if not c.rollout.temperature > 0:
    raise ValueError(
      f'rollout.temperature={c.rollout.temperature} must be above 0: greedy '
      'completions of a group are all the same and teach nothing'
    )
  if c.rollout.stages > c.rollout.max_tokens:
    raise ValueError(
      f'rollout.stages={c.rollout.stages} are more than '
      f'rollout.max_tokens={c.rollout.max_tokens}'
    )
  if c.eval.temperature is not None and c.eval.temperature < 0:
    raise ValueError(f'eval.temperature={c.eval.temperature} is below 0')
  if not 0 < c.eval.top_p <= 1:
    raise ValueError(f'eval.top_p={c.eval.top_p} is not in (0, 1]')
  pieces = c.updates.minibatches * c.updates.microbatches
  if c.data.prompts % pieces:
    raise ValueError(
      f'data.prompts={c.data.prompts} must be a multiple of '
      f'updates.minibatches * updates.microbatches = {pieces}'
    )
  _check_choice('model.name', c.model.name, _modules(models, 'build'))
  datasets.find(c.data.name)
  prompts.check(c.data.template, c.data.instruction, c.data.shots)
  parts = mix.parse(reward_mix(c))
  if hosted(c) and c.data.prompts % c.host.pieces:
    raise ValueError(
      f'data.prompts={c.data.prompts} must be a multiple of '
      f'host.pieces={c.host.pieces}, where the host scores'
    )
  for part in parts:
    if part.host:
      host.check(part.host)
    for look in (part.tags, part.reads):
      if look:
        look(**part.knobs)  # Raises for a knob that cannot be.
  if not any(part.weight for part in parts) and not c.reference.init:
    raise ValueError(f'reward={c.reward.to_dict()}: no part has a weight')
  for name in c.sample.least:
    _check_choice('sample.least', name, reward_mix(c))
  _check_level(c)
  for section in CHOICES:
    choose(section, c[section])
    for name in asks(section, c):
      _check_choice(
        f'what {section}.name={c[section].name!r} asks for',
        name,
        inputs.KNOWN.get(section, ()),
      )
  _check_algorithm(c)
  _check_groups(c)
  _check_alarms(c)
  for section, knobs in (
    ('optim', c.optim),
    ('pretrain.optim', c.pretrain.optim),
    ('preference.optim', c.preference.optim),
  ):
    try:
      optim.make(steps=c.steps, **knobs)
    except ValueError as e:
      raise ValueError(f'{section}: {e}') from None
  if not 0 < c.preference.heldout < 1:
    raise ValueError(
      f'preference.heldout={c.preference.heldout} is not between 0 and 1'
    )


def _check_level(c: ConfigDict) -> None:
  level = c.loss.get('level', 'token')
  if level != 'token' and c.loss.get('name') in _CAPPED:
    raise ValueError(
      f'loss.level={level!r}: the bound of {c.loss.name!r} is for the ratio of '
      'a token, and a completion is on another scale; gspo bounds completions'
    )


def _check_algorithm(c: ConfigDict) -> None:
  """Choices that exist, but make no sense together."""
  _check_choice('kl.where', c.kl.where, ('loss', 'reward'))
  G = c.rollout.group_size
  if G == 1 and c.advantage.name not in _ALONE:
    raise ValueError(
      f'rollout.group_size=1: advantage {c.advantage.name!r} compares a '
      f'completion with its group, which needs at least 2 (without a group: '
      f'{", ".join(_ALONE)})'
    )
  picks = c.loss.name == 'kl_cov'
  if picks and c.select.name == 'all_tokens':
    raise ValueError(
      f'loss.name={c.loss.name!r} treats selected tokens apart, and '
      "select.name='all_tokens' selects them all; it was published with "
      "'top_covariance'"
    )
  if c.select.name == 'top_covariance' and not picks:
    raise ValueError(
      "select.name='top_covariance' would keep those tokens alone: "
      "it is meant for loss.name='kl_cov'"
    )
  if c.kl.where == 'reward' and 'parts' in asks('advantage', c):
    raise ValueError(
      f'advantage.name={c.advantage.name!r} looks at the parts of the reward '
      "one by one, in which the KL of kl.where='reward' is not: put it into "
      "the 'loss'"
    )
  if c.kl.where == 'reward' and not c.kl.coef:
    raise ValueError("kl.where='reward' needs kl.coef above 0")
  if c.kl.coef and c.kl.where == 'loss' and c.kl.name == 'k1':
    raise ValueError(
      "kl.name='k1' has an expected gradient of zero in the loss: it is for "
      "kl.where='reward', and in the loss 'k1_plus' has its value"
    )
  if c.kl.target and not c.kl.coef:
    raise ValueError(
      f'kl.target={c.kl.target} moves kl.coef by factors, and it is 0'
    )
  if c.reference.every and not c.kl.coef:
    raise ValueError(
      f'reference.every={c.reference.every} refreshes the policy that the KL '
      'looks at, and kl.coef=0 holds none'
    )
  if c.reference.init and not c.kl.coef:
    raise ValueError(
      f'reference.init={c.reference.init!r} is for a KL, and kl.coef=0'
    )
  if c.reference.init and c.reference.every:
    raise ValueError(
      f'reference.every={c.reference.every} puts the policy in the place of '
      f'reference.init={c.reference.init!r}: one of them must go'
    )
  if c.offload.reference and not c.kl.coef:
    raise ValueError('offload.reference: kl.coef=0 holds no reference')
  if c.offload.reference and c.lora.rank:
    raise ValueError(
      f'offload.reference: with lora.rank={c.lora.rank} the frozen weights are '
      'the reference, which the policy needs too'
    )
  if not 0 < c.reference.rate <= 1:
    raise ValueError(f'reference.rate={c.reference.rate} is not in (0, 1]')
  if not 0 <= c.entropy.low <= c.entropy.high:
    raise ValueError(
      f'entropy.low={c.entropy.low} and entropy.high={c.entropy.high} are no '
      'range from 0 on'
    )
  _check_skip(c)


def _check_groups(c: ConfigDict) -> None:
  """Which prompts and completions a step has."""
  _check_choice('truncated', c.truncated, ('count', 'mask'))
  greedy = 'greedy_P' in asks('advantage', c)
  if c.dynamic.batches > 1 and c.rollout.group_size + greedy == 1:
    raise ValueError(
      f'dynamic.batches={c.dynamic.batches} samples until groups differ, which '
      'those of rollout.group_size=1 never do'
    )
  knobs = c.curriculum
  if not 0 <= knobs.decay < 1:
    raise ValueError(f'curriculum.decay={knobs.decay} is not in [0, 1)')
  if not 0 < knobs.floor <= 1:
    raise ValueError(f'curriculum.floor={knobs.floor} is not in (0, 1]')
  if not 0 <= knobs.prior <= 1:
    raise ValueError(f'curriculum.prior={knobs.prior} is not in [0, 1]')
  if knobs.name == 'none':
    return
  if c.eval.right not in c.reward:
    raise ValueError(
      f'curriculum.name={knobs.name!r} asks for the part eval.right='
      f'{c.eval.right!r}, which is not one of the reward: {", ".join(c.reward)}'
    )
  if c.data.name == 'mixture':
    raise ValueError(
      f'curriculum.name={knobs.name!r} chooses problems by their difficulty, '
      "and data.name='mixture' by the shares of its datasets: one must go"
    )


def _check_alarms(c: ConfigDict) -> None:
  known = default().alarms
  for name, knobs in c.alarms.items():
    _check_choice('alarms', name, known)
    if knobs.keys() != known[name].keys():
      raise ValueError(
        f'alarms.{name}={knobs.to_dict()} must have '
        f'{", ".join(known[name])} and nothing else'
      )
    _check_choice(f'alarms.{name}.action', knobs.action, ACTIONS)
    bound = knobs.get('above', knobs.get('below'))
    if not math.isfinite(bound):
      raise ValueError(f"alarms.{name}: {bound} is no bound; see action='off'")
    if knobs.steps < 1:
      raise ValueError(f'alarms.{name}.steps={knobs.steps} must be at least 1')
    if knobs.action != 'skip':
      continue
    if name not in SKIPPABLE:
      raise ValueError(
        f"alarms.{name}.action='skip': the device would have to know of it "
        f'before it takes the step, as of {", ".join(SKIPPABLE)}'
      )
    if knobs.steps > 1:
      raise ValueError(
        f"alarms.{name}.steps={knobs.steps} with action='skip': the device "
        'looks at each step alone, so it must be 1'
      )


def alarms(c: ConfigDict) -> dict[str, dict]:
  """The knobs of all alarms; the bound of the drift follows the dtype."""
  found = c.alarms.to_dict()
  if not found['drift']['above']:
    found['drift']['above'] = 2.0 if c.model.dtype == 'bfloat16' else 0.02
  return found


def _check_skip(c: ConfigDict) -> None:
  """Groups without advantage may be left out only if nothing needs them."""
  if not c.updates.skip_even:
    return
  needed = {
    "kl.where='loss'": c.kl.coef and c.kl.where == 'loss',
    'entropy': c.entropy.coef or c.entropy.target,
    f'loss.name={c.loss.name!r}': c.loss.name in policy.REGULARISED,
  }
  for name, needs in needed.items():
    if needs:
      raise ValueError(
        f'updates.skip_even: {name} has a gradient where the advantage is 0'
      )
  if c.entropy.measure:
    raise ValueError(
      'updates.skip_even: entropy.measure=True looks at all groups'
    )


def reward_mix(c: ConfigDict) -> dict:
  """The parts of the reward, and those that an evaluation asks for."""
  asked = dict.fromkeys((c.eval.right, c.eval.reasoned), 0.0)
  return asked | c.reward.to_dict()


def eval_temperature(c: ConfigDict) -> float:
  """That of evaluations."""
  own = c.eval.temperature
  return c.rollout.temperature if own is None else own


def hosted(c: ConfigDict) -> bool:
  """Whether a part of the reward is scored on the host."""
  return any(part.host for part in mix.parse(reward_mix(c)))


def host_pieces(c: ConfigDict) -> int:
  """In how many pieces a batch is sampled."""
  return c.host.pieces if hosted(c) else 1


ACTIONS = ('warn', 'skip', 'stop', 'off')
SKIPPABLE = ('drift', 'ratio', 'gradient')
_DTYPES = ('float32', 'bfloat16', 'float64')  # The last to study rounding.
CHOICES = {
  'curriculum': curriculum,
  'advantage': advantages,
  'loss': policy,
  'select': select,
  'off_policy': off_policy,
  'aggregate': aggregate,
  'kl': kl,
}
_NOT_KNOBS = {  # Of the function.
  'curriculum': ('decay', 'floor', 'prior'),
  'kl': ('coef', 'where', 'target', 'horizon'),
}
_CAPPED = ('dual_clip', 'two_sided', 'cispo', 'cispo_cap')  # Token by token.
_ALONE = ('reinforce_pp', 'remax')  # Baselines that are not of the group.


def choose(section: str, knobs: ConfigDict) -> tuple[Callable, dict]:
  """The function that a section of the config names, and its keywords.

  Raises ValueError for a name or knob that does not exist, listing those that
  do.
  """
  module, knobs = CHOICES[section], dict(knobs)
  name = knobs.pop('name', None)
  functions = variants(module)
  _check_choice(f'{section}.name', name, functions)
  for knob in _NOT_KNOBS.get(section, ()):
    knobs.pop(knob, None)
  function = functions[name]
  parameters = inspect.signature(function).parameters.values()
  takes = [p.name for p in parameters if p.default is not p.empty]
  for knob in knobs:
    if knob not in takes:
      raise ValueError(
        f'{section}.{knob}: {name!r} does not take it; '
        f'it takes {", ".join(takes) or "nothing"}'
      )
  return function, knobs


def variants(module) -> dict[str, Callable]:
  """Its public functions, by their names."""
  return {
    name: value
    for name, value in vars(module).items()
    if inspect.isfunction(value)
    and value.__module__ == module.__name__
    and not name.startswith('_')
  }


def asks(section: str, c: ConfigDict) -> list[str]:
  """What the section's function has to be given besides its arguments."""
  return inputs.asks(choose(section, c[section])[0])


def _check_choice(name: str, value: str | None, allowed) -> None:
  if value not in allowed:
    raise ValueError(f'{name}={value!r} is not one of {", ".join(allowed)}')


def _modules(package, function: str) -> list[str]:
  """Files of a package that have a function of this name."""
  names = [info.name for info in pkgutil.iter_modules(package.__path__)]
  return [
    name
    for name in names
    if hasattr(importlib.import_module(f'{package.__name__}.{name}'), function)
  ]
