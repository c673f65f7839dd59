"""Writes the weights of a run as a Hugging Face folder, to serve them.

  python experiments/convert.py --from runs/gsm8k --to served/gsm8k

--from is the workdir of a run (its newest checkpoint), one checkpoint of it, a
.gguf file or a Hugging Face folder; see config.model.init. Where the training
started from a Hugging Face folder, its config.json, its tokenizer and its chat
template are copied; else all are made. The folder is what transformers and vLLM
load. Low-rank adapters are merged into the weights, or with --adapters written
alone, in PEFT's format.
"""

from absl import flags
from etils import epath
import jax

from grpo_jax import command, initial, models, tokenizers, weights
from grpo_jax.models import lora
from grpo_jax.weights import config_out, export, paths, safetensors_files

_FROM = flags.DEFINE_string('from', None, 'What to convert.')
_TO = flags.DEFINE_string('to', None, 'The new folder.')
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  export.DTYPES,
  'Of the tensors; if it is not given, that of the folder from which the '
  'training started, or else float32.',
)
_ADAPTERS = flags.DEFINE_bool(
  'adapters', False, "Only the low-rank adapters of a run, in PEFT's format."
)

# What a Hugging Face folder says of its text, and of how to sample.
_TEXT_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
)


def main():
  path, folder = getattr(flags.FLAGS, 'from'), paths.expand(_TO.value)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f'--to={_TO.value} is there already; give a new folder')
  name, sizes = initial.architecture(path)
  model = models.build(name, '', **sizes)
  adapted = initial.config(path).get('lora') if initial.is_run(path) else None
  if adapted and adapted['rank']:
    model = lora.adapt(model, **adapted)
  elif _ADAPTERS.value:
    raise ValueError(f'--from={path} has no low-rank adapters')
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shardings = models.map_table(lambda row: device, model)
  params = initial.load(path, model, shardings)
  rank_and_alpha = {}
  if lora.is_adapted(model):
    rank_and_alpha = {key: adapted[key] for key in ('rank', 'alpha')}
  if _ADAPTERS.value:
    targets = adapted['targets']
    _write_adapters(path, params, folder, name, sizes, targets, rank_and_alpha)
    print(f'{folder} has the adapters of {path}')
    return
  if rank_and_alpha:
    params = lora.merge(params, **rank_and_alpha)
  dtype = _write_model(path, params, folder, name, sizes)
  print(f'{path} is now {folder}: a {name} in {dtype}')


def _write_adapters(path, params, folder, name, sizes, targets, rank_and_alpha):
  origin = _origin(path)
  config = safetensors_files.read_config(origin) if origin else None
  config = config or config_out.write(name, sizes)
  export.save_adapters(
    params,
    folder,
    architecture=config['model_type'],
    targets=targets,
    base=_start(path).removeprefix('hf://'),
    **rank_and_alpha,
  )


def _write_model(path, params, folder, name, sizes) -> str:
  """Returns the dtype in which it is written."""
  origin = _origin(path)
  text = initial.tokenizer(path) if initial.is_run(path) else path
  config = generation = None
  if origin:
    config = safetensors_files.read_config(origin)
    file = weights.resolve(origin) / 'generation_config.json'
    generation = safetensors_files.read_json(file) if file.exists() else None
  else:
    tokenizer = tokenizers.load(text)
    generation = {'eos_token_id': [*tokenizer.eos_ids]}
    if tokenizer.bos_id is not None:
      generation['bos_token_id'] = tokenizer.bos_id
  folder.mkdir(parents=True, exist_ok=True)
  _write_text(text, folder)
  dtype = _DTYPE.value or _dtype(origin)
  export.save(
    params,
    folder,
    name=name,
    sizes=sizes,
    dtype=dtype,
    config=config,
    generation=generation,
  )
  return dtype


def _origin(path: str) -> str:
  """The Hugging Face folder from which the training started, or ''."""
  path = _start(path)
  return path if path and weights.resolve(path).is_dir() else ''


def _start(path: str) -> str:
  """Published weights from which the training started, or ''."""
  while path and initial.is_run(path):
    path = initial.config(path)['model']['init']
  return path


def _write_text(path: str, folder: epath.Path) -> None:
  found = weights.resolve(path)
  published = found if found.is_dir() else found.parent
  if not (published / 'tokenizer_config.json').exists() and found.is_file():
    tokenizers.load(path).save_pretrained(folder)
    return
  for name in _TEXT_FILES:
    if (published / name).exists():
      (published / name).copy(folder / name)


def _dtype(origin: str) -> str:
  """That of the embedding in the files from which the training started."""
  if not origin:
    return 'float32'
  source = safetensors_files.open_source(origin)
  found = source.tensors[source.names['embed']].dtype
  return {'BF16': 'bfloat16', 'F16': 'float16'}.get(found, 'float32')


if __name__ == '__main__':
  flags.mark_flags_as_required(['from', 'to'])
  command.run(main)
