"""From the names in a config to the things that they stand for.

  build(config, workdir) -> Run       checks, data, tokenizer, model
  functions(run) -> Functions         rollout, reward, update, ... of this run
  preference(run) -> Preference       those that train a reward model
  templates(run) -> (state, state)    shapes and shardings before and in RL

Everything that is wrong with a config, a weights file, the data or the mesh is
said here, in one line and before anything is compiled.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from grpo_jax import (
  algorithms,
  checkpoint,
  datasets,
  groups,
  grpo,
  history,
  initial,
  inputs,
  models,
  optim,
  process,
  progress,
  prompts,
  rewards,
  rollout,
  scorers,
  sft,
  sharding,
  tokenizers,
)
from grpo_jax import config as config_lib
from grpo_jax import preference as preference_lib
from grpo_jax import text as text_lib
from grpo_jax.datasets import local, packing
from grpo_jax.losses import control
from grpo_jax.models import attention, flash, lora, scalar
from grpo_jax.rewards import answer, mix
from grpo_jax.types import History, ModelInputs, Prompts, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
  """What compile_steps and fit work with."""

  config: ConfigDict
  workdir: epath.Path
  mesh: jax.sharding.Mesh
  model: models.Model
  tokenizer: Any
  dataset: datasets.Dataset
  text: text_lib.TokenText
  encode: Callable[..., Prompts]  # (examples, rows=None)
  documents: packing.Packed | None  # For pre-training.
  teacher: models.Model | None = None  # What c.reference.init holds.


class Functions(NamedTuple):
  """The pure functions of a run, with the config's choices bound."""

  init: Callable  # (params) -> state, before pre-training
  pretrain: Callable  # (state, documents) -> state, metrics
  # (state, teacher=None) -> state, optimizer fresh, reference taken; `teacher`
  # are the parameters in c.reference.init.
  start_rl: Callable
  rollout: Callable  # (params, prompts, key) -> rollout
  reward: Callable  # (rollout, prompts, text) -> rewards
  score: Callable  # (rollouts, text, hosted) -> rollout, rewards; joins them
  score_sample: Callable  # the same, with the parts of an evaluation
  update: Callable  # (state, rollout, rewards) -> state, metrics
  draw: Callable  # (history, step, key) -> rows of a step, of a curriculum
  look: Callable  # (history, rollout, rewards) -> history, count, metrics
  merge: Callable  # (kept, new) -> kept, count; of dynamic sampling
  iterate: Callable  # (state, prompts, text, key) -> state, (all of the three)
  rollout_sample: Callable  # (params, prompts, key) -> rollout
  sample: Callable  # (params, prompts, text, key) -> rollout, rewards
  said: Callable | None  # (rollout, text) -> what it answers, for votes


def cpu_devices(c: ConfigDict) -> int:
  """What a CPU should count as; see process.cut_cpu.

  `c.cpu_devices`, halved until the batches can be cut into so many, or 1 if
  `c.mesh` says itself how often. Raises ValueError for what config.check does.
  """
  c = algorithms.resolve(c)
  config_lib.check(c)
  if c.mesh.data != -1:
    return 1
  devices = c.cpu_devices
  while any(size % devices for size in _batches(c).values()):
    devices //= 2
  return devices


def build(
  config: ConfigDict,
  workdir: str,
  devices: Sequence[jax.Device] | None = None,
  dataset: datasets.Dataset | None = None,
) -> Run:
  """Checks the config, claims the workdir, and makes data and tokenizer.

  `devices` are all that there are, or those of a topology to compile for;
  `dataset` is that of the config, or another in its place.

  Raises:
    ValueError, FileNotFoundError: naming the bad value and what is allowed.
  """
  config = algorithms.resolve(config)
  config_lib.check(config)
  mesh = sharding.make_mesh(config.mesh, devices)
  _check_batches(config, sharding.batch_divisor(mesh))
  _check_kernel(config, mesh.devices.flat[0].platform)
  _check_host_memory(config, mesh)
  with process.lead_first():
    return _build(config, epath.Path(workdir), mesh, dataset)


def _build(c: ConfigDict, folder: epath.Path, mesh, dataset) -> Run:
  checkpoint.claim(folder, c)
  goes_on = bool(c.model.init) and initial.is_run(c.model.init)
  if not c.model.variant and not c.model.init:
    raise ValueError(
      "model.variant='' is that of the weights in model.init, which is '' too"
    )
  if goes_on and not c.tokenizer.path:
    raise ValueError(
      f'model.init={c.model.init!r} is a run, and only its tokenizer knows its '
      f"tokens: tokenizer.path='{initial.tokenizer(c.model.init)}'"
    )
  published = bool(c.model.init) and not goes_on
  if published:
    initial.check(c.model.init, _model(c, vocab_size=None))
    initial.check_variant(
      c.model.init, c.model.name, c.model.variant, c.model.sizes.to_dict()
    )

  if dataset is None:
    with progress.bar('problems') as advance:
      dataset = datasets.load(
        c.data.name,
        str(folder / 'data'),
        heldout=c.data.heldout,
        progress=advance,
        **c.data.knobs.to_dict(),
      )
  examples = dataset.all('train')
  tokenizer = _tokenizer(c, examples)
  # Weights that say what they are have their vocabulary; others take the
  # tokenizer's.
  told = published or not c.model.variant
  model = _model(c, None if told else tokenizer.vocab_size)
  if goes_on:
    initial.check(c.model.init, model)
  if tokenizer.vocab_size > model.vocab_size:
    raise ValueError(
      f'tokenizer.path={c.tokenizer.path!r} has {tokenizer.vocab_size} tokens, '
      f'model.init={c.model.init!r} only {model.vocab_size}'
    )
  if c.rollout.stages > 1 and model.grow_cache is None:
    raise ValueError(
      f'rollout.stages={c.rollout.stages} needs a model whose cache can grow, '
      f'and model.name={c.model.name!r} has no grow_cache'
    )
  _check_enough(c, len(examples))
  encode = _encoder(c, tokenizer, examples + dataset.all('heldout'))
  documents = None
  if c.pretrain.steps:
    documents = packing.pack(
      _documents(c, tokenizer, examples), c.pretrain.width
    )
  text = rewards.token_text(tokenizer.token_bytes, config_lib.reward_mix(c))
  text = text.replace(scorers=scorers.load(c, mesh, tokenizer))
  checkpoint.record(folder, c)
  if not c.tokenizer.path and not published:
    tokenizer.save(folder / 'tokenizer.model')
  return Run(
    c,
    folder,
    mesh,
    model,
    tokenizer,
    dataset,
    text,
    encode,
    documents,
    _teacher(c, model),
  )


def functions(run: Run) -> Functions:
  """Binds the config's choices to rollout, reward, update and the rest."""
  c, model = run.config, run.model
  decode_layout = sharding.param_shardings(model, sharding.ROLLOUT, run.mesh)
  optimizers = _optimizers(c)

  def init(params) -> TrainState:
    zero = jax.numpy.int32(0)
    trained, _ = models.partition(model, params)
    return TrainState(zero, zero, params, optimizers['pretrain'].init(trained))

  coefs = {'kl': c.kl.coef} if c.kl.target else {}
  if c.entropy.target:
    coefs |= {'entropy': c.entropy.coef, 'entropy_before': float('inf')}

  def start_rl(state: TrainState, teacher=None) -> TrainState:
    trained, _ = models.partition(model, state.params)
    reference = teacher if c.reference.init else trained
    return state.replace(
      cursor=jax.numpy.zeros_like(state.cursor),
      opt_state=optimizers['rl'].init(trained),
      reference=reference if c.kl.coef else None,
      coefs={name: jax.numpy.float32(x) for name, x in coefs.items()},
      history=new_history(run),
      openings_N=new_openings(run),
    )

  greedy = 'greedy_P' in config_lib.asks('advantage', c)

  def roll(params, prompts, key, **how):
    # All the 'weight sync' there is: cast once, and laid out for decoding.
    params = jax.tree.map(lambda w: w.astype(c.model.dtype), params)
    return rollout.rollout(
      jax.lax.with_sharding_constraint(params, decode_layout),
      prompts,
      key,
      model=model,
      max_tokens=c.rollout.max_tokens,
      stop_ids=run.tokenizer.eos_ids,
      stages=c.rollout.stages,
      **how,
    )

  def roll_train(params, prompts, key):
    rolled = roll(
      params,
      prompts,
      key,
      group_size=c.rollout.group_size,
      temperature=c.rollout.temperature,
      greedy=greedy,
    )
    return groups.drop_truncated(rolled) if c.truncated == 'mask' else rolled

  reward = functools.partial(rewards.reward, mix=c.reward.to_dict())

  def draw(known, step, key):
    return history.draw(
      known,
      draw_key(key, step),
      size=c.data.prompts * c.dynamic.batches,
      weigh=choose('curriculum', c),
      floor=c.curriculum.floor,
    )

  def record(known, rolled, scores):
    if known is None:
      return None, {}
    right_PG = scores.parts[c.eval.right][:, : c.rollout.group_size]
    rows_P = rolled.prompts.rows_P
    numbers = history.describe(known, rows_P)
    decay = c.curriculum.decay
    return history.record(known, rows_P, right_PG, decay=decay), numbers

  def look(known, rolled, scores):
    known, numbers = record(known, rolled, scores)
    scores = jax.tree.map(lambda x: x[:, : c.rollout.group_size], scores)
    count, more = groups.look(scores)
    return known, count, numbers | more

  learn: Callable = functools.partial(
    grpo.grpo_update,
    model=model,
    optimizer=optimizers['rl'],
    temperature=c.rollout.temperature,
    reference_model=run.teacher,
    **_algorithm(c),
  )

  def fetched(state):
    """All of it on the devices; _offloaded says what was not."""
    if c.offload.reference:
      state = state.replace(reference=sharding.fetch(state.reference))
    if c.offload.optimizer:
      state = state.replace(opt_state=sharding.fetch(state.opt_state))
    return state

  def update(state, rolled, scores):
    waits = state.reference
    state, numbers = _update(fetched(state), rolled, scores)
    if c.offload.reference and not c.reference.every:
      state = state.replace(reference=waits)  # It is as it was, and not moved.
    return state, numbers

  def _update(state, rolled, scores):
    numbers: dict[str, Any] = {}
    if state.openings_N is not None:
      openings_N, numbers = history.repeats(state.openings_N, rolled)
      state = state.replace(openings_N=openings_N)
    if c.dynamic.batches == 1:  # Or `look` tells the history of each batch.
      known, more = record(state.history, rolled, scores)
      state, numbers = state.replace(history=known), numbers | more
    state, more = learn(state, rolled, scores)
    return state, numbers | more

  def pretrain(state, documents):
    return sft.sft_update(
      fetched(state),
      documents,
      model=model,
      optimizer=optimizers['pretrain'],
      head_chunk=c.updates.head_chunk,
    )

  def iterate(state, prompts, text, key):
    key = roll_key(key, state.step)
    rolled = roll_train(state.params, prompts, key)
    scores = reward(rolled, prompts, text)
    state, numbers = update(state, rolled, scores)
    return state, (rolled, scores, numbers)

  def roll_sample(params, prompts, key):
    return roll(
      params,
      prompts,
      key,
      group_size=c.eval.samples,
      temperature=config_lib.eval_temperature(c),
      top_p=c.eval.top_p,
    )

  def sample(params, prompts, text, key):
    rolled = roll_sample(params, prompts, key)
    return rolled, rewards.reward(
      rolled, prompts, text, mix=config_lib.reward_mix(c)
    )

  def score(rolled, text, hosted, mix):
    rolled = jax.tree.map(lambda *x: jax.numpy.concatenate(x), *rolled)
    return rolled, rewards.reward(rolled, rolled.prompts, text, mix, hosted)

  return Functions(
    init=init,
    pretrain=pretrain,
    start_rl=start_rl,
    rollout=roll_train,
    reward=reward,
    update=update,
    draw=draw,
    look=look,
    merge=functools.partial(groups.merge, group_size=c.rollout.group_size),
    score=functools.partial(score, mix=c.reward.to_dict()),
    score_sample=functools.partial(score, mix=config_lib.reward_mix(c)),
    iterate=iterate,
    rollout_sample=roll_sample,
    sample=sample,
    said=_said(c),
  )


class Preference(NamedTuple):
  """The pure functions of a run that trains a reward model."""

  init: Callable  # (params of a policy, seed of the head) -> state
  update: Callable  # (state, pairs) -> state, metrics
  leads: Callable  # (params, pairs) -> lead_P
  template: TrainState  # Shapes and shardings of the state.


def preference(run: Run) -> Preference:
  """Binds what c.preference says."""
  c, model = run.config.preference, scalar.with_scalar_head(run.model)
  optimizer = optim.make(steps=c.steps, **c.optim)

  def init(params, seed) -> TrainState:
    key = jax.random.fold_in(jax.random.key(seed), 1)  # 0 is the policy's.
    params = scalar.from_policy(params, model, key)
    trained, _ = models.partition(model, params)
    zero = jax.numpy.int32(0)
    return TrainState(zero, zero, params, optimizer.init(trained))

  state = jax.eval_shape(init, models.abstract_params(run.model), 0)
  return Preference(
    init=init,
    update=functools.partial(
      preference_lib.preference_update,
      model=model,
      optimizer=optimizer,
      margin=c.margin,
    ),
    leads=functools.partial(preference_lib.leads, model=model),
    template=sharding.like_params(
      state, params_template(model, run.mesh), run.mesh
    ),
  )


def _said(c: ConfigDict) -> Callable | None:
  """If the part that tells what is right reads an answer."""
  parts = {part.name: part for part in mix.parse(config_lib.reward_mix(c))}
  right = parts[c.eval.right]
  if right.function is not answer.answer:
    return None
  return functools.partial(answer.said, **right.knobs)


def new_history(run: Run) -> History | None:
  """Of the problems of a curriculum, before anything was learnt."""
  c = run.config
  if c.curriculum.name == 'none':
    return None
  return history.fresh(run.dataset.size('train'), c.curriculum.prior)


def new_openings(run: Run) -> jax.Array | None:
  """Of problems that nobody has tried, if their repeats are looked for."""
  if run.config.alarms.duplicates.action == 'off':
    return None
  return jax.numpy.zeros(run.dataset.size('train'), jax.numpy.uint32)


def roll_key(key: jax.Array, step: jax.Array, batch: int = 0) -> jax.Array:
  """Of the sampler, in a step: each batch of one has dice of its own."""
  # No step is as great as these, so that no two keys are the same.
  key = jax.random.fold_in(key, 2**31 + batch) if batch else key
  return jax.random.fold_in(key, step)


def draw_key(key: jax.Array, step: jax.Array) -> jax.Array:
  """Of a curriculum."""
  return jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), step)


_BOUNDS = {  # Alarm that can skip -> the bound of grpo_update that it sets.
  'gradient': 'max_grad_norm',
  'ratio': 'max_log_ratio',
  'drift': 'max_drift',
}


def _algorithm(c: ConfigDict) -> dict[str, Any]:
  """What the config says about grpo_update's loss and steps."""
  completions = c.data.prompts * c.rollout.group_size
  updates = c.updates.to_dict()
  updates.pop('max_skipped')
  bounds = {
    bound: knobs['above']
    for name, bound in _BOUNDS.items()
    if (knobs := config_lib.alarms(c)[name])['action'] == 'skip'
  }
  refresh = None
  if c.reference.every:
    refresh = functools.partial(
      control.reference,
      every=c.reference.every,
      rate=c.reference.rate,
      begin=c.pretrain.steps,
    )
  return (
    updates
    | bounds
    | {
      'advantage': choose('advantage', c),
      'policy_loss': choose('loss', c),
      # Without these two a pass over the batch is saved.
      'select': _unless('all_tokens', 'select', c),
      'off_policy': _unless('none', 'off_policy', c),
      'aggregate': choose('aggregate', c),
      'kl': choose('kl', c),
      'kl_coef': c.kl.coef,
      'kl_where': c.kl.where,
      'kl_control': functools.partial(
        control.kl,
        target=c.kl.target,
        horizon=c.kl.horizon,
        samples=completions,
      ),
      'refresh': refresh,
      'entropy_coef': c.entropy.coef,
      'entropy_control': functools.partial(
        control.entropy,
        target=c.entropy.target,
        step=c.entropy.step,
        low=c.entropy.low,
        high=c.entropy.high,
      ),
      'entropy_gate': functools.partial(control.gate, target=c.entropy.target),
      'measure_entropy': c.entropy.measure,
    }
  )


def _unless(name: str, section: str, c: ConfigDict) -> Callable | None:
  return None if c[section].name == name else choose(section, c)


def choose(section: str, c: ConfigDict) -> Callable:
  """The function that c.<section> names, with its knobs bound."""
  function, knobs = config_lib.choose(section, c[section])
  if section == 'advantage' and 'part_weights' in inputs.asks(function):
    parts = rewards.mix_lib.parse(c.reward.to_dict())
    weights = {part.name: part.weight for part in parts if part.weight}
    knobs |= {'part_weights': weights}
  return functools.partial(function, **knobs)


def templates(run: Run) -> tuple[TrainState, TrainState]:
  """Shapes and shardings of the state, in pre-training and in RL."""
  f = functions(run)
  params = params_template(run.model, run.mesh)
  first = jax.eval_shape(f.init, params)
  rl = jax.eval_shape(f.start_rl, first)
  first, rl = (sharding.like_params(x, params, run.mesh) for x in (first, rl))
  if run.teacher:
    rl = rl.replace(reference=params_template(run.teacher, run.mesh))
  offload = run.config.offload
  return _offloaded(first, offload), _offloaded(rl, offload)


def params_template(model: models.Model, mesh: jax.sharding.Mesh):
  """Shapes of parameters, in the shardings in which they are trained."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    models.abstract_params(model),
    sharding.param_shardings(model, sharding.TRAIN, mesh),
  )


def _offloaded(state: TrainState, offload: ConfigDict) -> TrainState:
  if offload.reference:
    state = state.replace(reference=sharding.on_host(state.reference))
  if offload.optimizer:
    state = state.replace(opt_state=sharding.on_host(state.opt_state))
  return state


def train_rows(run: Run, cursor: int, batches: int = 1) -> np.ndarray:
  """Where the problems from there on stand in the training split."""
  size = run.config.data.prompts * batches
  return run.dataset.rows('train', size, run.config.seed, cursor)


def train_examples(run: Run, step: int) -> list[datasets.Example]:
  """The problems of an RL step, counted from the first of them.

  With a curriculum or dynamic sampling it depends on the state what they are,
  and `train_rows` are chosen by train.py.
  """
  rows_P = train_rows(run, step * run.config.data.prompts)
  return run.dataset.read('train', rows_P)


def train_batch(run: Run, step: int) -> Prompts:
  """The same as arrays."""
  rows_P = train_rows(run, step * run.config.data.prompts)
  return run.encode(run.dataset.read('train', rows_P), rows=rows_P)


def own_batch(
  run: Run, rows_P: np.ndarray
) -> tuple[Prompts, list[datasets.Example | None]]:
  """Those problems, but read only for the devices of this process."""
  P, pieces = run.config.data.prompts, config_lib.host_pieces(run.config)
  own = sharding.own_rows(run.mesh, P // pieces)
  examples: list[datasets.Example | None] = [None] * P
  for first in range(0, P, P // pieces):
    held = slice(first + own.start, first + own.stop)
    examples[held] = run.dataset.read('train', rows_P[held])
  return run.encode(examples, rows=rows_P), examples


def pretrain_batch(run: Run, step: int) -> ModelInputs:
  assert run.documents is not None
  size = run.config.pretrain.rows
  rows = run.documents.batch(size, run.config.seed, step * size)
  return ModelInputs(rows.tokens_BT, rows.positions_BT, rows.segment_ids_BT)


def eval_batches(run: Run) -> list[tuple[Prompts, list[datasets.Example]]]:
  """The held-out problems in equal batches; the last is filled with others."""
  return sample_batches(run, heldout(run))


def sample_batches(
  run: Run, examples: Sequence[datasets.Example]
) -> list[tuple[Prompts, list[datasets.Example]]]:
  """Any problems in batches of that size, for the program `sample`."""
  size = _eval_batch(run.config)
  batches = []
  for first in range(0, len(examples), size):
    some = examples[first : first + size]
    filled = itertools.islice(itertools.cycle(some), size)
    batches.append((run.encode(list(filled)), list(some)))
  return batches


def heldout(run: Run) -> list[datasets.Example]:
  """The problems of the evaluations: the same ones each time."""
  count = min(run.config.eval.problems, run.dataset.size('heldout'))
  return run.dataset.batch('heldout', count, run.config.seed, 0)


def _model(c: ConfigDict, vocab_size: int | None) -> models.Model:
  name = c.model.name
  sizes: dict[str, Any] = {}
  if not c.model.variant:
    name, sizes = initial.architecture(c.model.init)
    for ours in ('unroll', 'remat', 'attention'):
      sizes.pop(ours, None)
  sizes |= c.model.sizes.to_dict()
  if vocab_size is not None:
    sizes['vocab_size'] = vocab_size
  model = models.build(
    name,
    c.model.variant,
    unroll=c.model.unroll,
    remat=c.model.remat,
    attention=c.model.attention,
    **sizes,
  )
  model = models.in_dtype(model, c.model.dtype)
  return lora.adapt(model, **c.lora) if c.lora.rank else model


def _teacher(c: ConfigDict, model: models.Model) -> models.Model | None:
  """The model in reference.init, which has to read what the policy writes."""
  if not c.reference.init:
    return None
  own = c.copy_and_resolve_references().unlock()
  own.model.update(variant='', init=c.reference.init)
  own.model.sizes = ConfigDict()
  own.lora.rank = 0
  teacher = _model(own, vocab_size=None)
  initial.check(c.reference.init, teacher)
  if teacher.vocab_size != model.vocab_size:
    raise ValueError(
      f'reference.init={c.reference.init!r} has {teacher.vocab_size} tokens, '
      f'the policy {model.vocab_size}'
    )
  return teacher


def _tokenizer(c: ConfigDict, examples):
  """A published one, or pieces learnt from documents of both kinds.

  Learning takes a tenth of a second and always finds the same, so that a run
  that goes on learns them again.
  """
  path = c.tokenizer.path
  if not path and c.model.init and not initial.is_run(c.model.init):
    path = c.model.init
  if path:
    return tokenizers.load(path)
  corpus = [prompts.fill(c.data.template, '')] if c.data.template else []
  for i, example in enumerate(examples[:5_000]):
    completion = prompts.completion(example, reasoned=i % 2 == 0)
    corpus += [example.prompt, completion]
  return tokenizers.train(corpus, c.tokenizer.vocab_size, text_lib.TAGS)


def _to_ids(c, tokenizer, question: str) -> list[int]:
  shots = [tuple(shot) for shot in c.data.shots]
  return prompts.to_ids(
    question, tokenizer, c.data.template, c.data.instruction, shots
  )


def _documents(c, tokenizer, examples) -> list[list[int]]:
  """What is imitated before RL: of files, or what the dataset would say."""
  to_ids = functools.partial(_to_ids, c, tokenizer)
  if c.pretrain.files:
    pairs = local.completions(c.pretrain.files)
  else:
    pairs = (prompts.answered(x, c.pretrain.reasoned) for x in examples)
  return [
    prompts.document(prompt, completion, to_ids, tokenizer)
    for prompt, completion in pairs
  ]


def _encoder(c, tokenizer, examples):
  """examples -> Prompts; every prompt and answer is checked once, here."""
  to_ids = functools.partial(_to_ids, c, tokenizer)

  def refer(examples):
    return rewards.references(examples, tokenizer, config_lib.reward_mix(c))

  widths = {
    name: max(1, *map(len, rows)) for name, rows in refer(examples).items()
  }
  encode = functools.partial(
    prompts.encode,
    to_ids=to_ids,
    max_prompt=c.data.max_prompt,
    answer_bytes=max(1, *(len(x.answer.encode()) for x in examples)),
    refer=refer,
    widths=widths,
  )
  encode(examples)
  _check_only(c, examples)
  return encode


def _check_only(c: ConfigDict, examples) -> None:
  for part in mix.parse(config_lib.reward_mix(c)):
    if not any(map(part.scores, examples)):
      raise ValueError(
        f'reward.{part.name}.only={part.only!r}: no problem has that, and the '
        f'first has {examples[0].columns}'
      )


def _batches(c: ConfigDict) -> dict[str, int]:
  """What is cut along the mesh: how many rows of it run at a time."""
  pieces = c.updates.minibatches * c.updates.microbatches
  found = {
    'data.prompts / (updates.minibatches * updates.microbatches)': (
      c.data.prompts // pieces
    ),
    'the smaller of eval.batch and eval.problems': _eval_batch(c),
  }
  if config_lib.hosted(c):
    found['data.prompts / host.pieces'] = c.data.prompts // c.host.pieces
  if c.pretrain.steps:
    found['pretrain.rows'] = c.pretrain.rows
  if c.preference.path:
    found['preference.rows'] = c.preference.rows
  return found


def _check_batches(c: ConfigDict, divisor: int) -> None:
  for name, size in _batches(c).items():
    if size % divisor:
      raise ValueError(
        f'{name} = {size} must be a multiple of the devices along '
        f'mesh.data * mesh.fsdp = {divisor}'
      )


def _check_kernel(c: ConfigDict, platform: str) -> None:
  name = c.model.attention
  if name in flash.KERNELS and flash.KERNELS[name] != platform:
    there = [name for name, at in flash.KERNELS.items() if at == platform]
    raise ValueError(
      f'model.attention={name!r} needs {flash.KERNELS[name]} devices, and '
      f'these are {platform}: it may be one of {[*attention.KERNELS, *there]}'
    )
  if name == 'cudnn' and c.model.dtype != 'bfloat16':
    raise ValueError(
      f"model.attention={name!r} needs model.dtype='bfloat16', not "
      f'{c.model.dtype!r}: with that it may be one of {[*attention.KERNELS]}'
    )


def _check_host_memory(c: ConfigDict, mesh: jax.sharding.Mesh) -> None:
  asked = {
    "model.remat='offload'": c.model.remat == 'offload',
    'offload.reference=True': c.offload.reference,
    'offload.optimizer=True': c.offload.optimizer,
  }
  for knob, wanted in asked.items():
    if wanted and not sharding.reaches_host(mesh):
      kind = mesh.devices.flat[0].device_kind
      raise ValueError(
        f'{knob} needs devices that reach memory of their host '
        f'({sharding.HOST!r}), which {kind!r} here does not'
      )


def _check_enough(c: ConfigDict, problems: int) -> None:
  wanted = c.data.prompts * c.dynamic.batches
  if c.curriculum.name != 'none' and problems < wanted:
    raise ValueError(
      f'curriculum.name={c.curriculum.name!r} draws data.prompts * '
      f'dynamic.batches = {wanted} different problems a step, and there are '
      f'{problems} to train on'
    )


def _eval_batch(c: ConfigDict) -> int:
  return min(c.eval.batch, c.eval.problems)


def _optimizers(c: ConfigDict) -> dict[str, Any]:
  per_step = c.updates.passes * c.updates.minibatches
  return {
    'pretrain': optim.make(steps=c.pretrain.steps, **c.pretrain.optim),
    'rl': optim.make(steps=c.steps * per_step, **c.optim),
  }
