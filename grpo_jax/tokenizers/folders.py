"""The tokenizer of a Hugging Face directory.

  from_folder(folder) -> a FastTokenizer from tokenizer.json, or without that
    a SentencePieceTokenizer from tokenizer.model (which is all that there is
    in the workdir of a run, where no tokenizer_config.json is beside it)

tokenizer_config.json and special_tokens_map.json name the special tokens; the
tokens that end a completion are the eos_token, then those that
generation_config.json and config.json have as eos_token_id. The chat template
is chat_template.jinja, or in tokenizer_config.json, where it may be a list of
templates with a 'default'.

A text starts with the bos_token if add_bos_token says so or, without that, if
tokenizer.json puts it in front (that of Qwen and SmolLM2 does not).
"""

import json

from etils import epath

from grpo_jax.tokenizers import chat, fast, sentencepieces
from grpo_jax.tokenizers.chat import Special
from grpo_jax.tokenizers.fast import FastTokenizer
from grpo_jax.tokenizers.sentencepieces import SentencePieceTokenizer


def from_folder(folder: epath.Path) -> FastTokenizer | SentencePieceTokenizer:
  """Raises FileNotFoundError or ValueError, in one line."""
  config = _read(folder, 'tokenizer_config.json')
  names = _names(_read(folder, 'special_tokens_map.json')) | _names(config)
  for key in [key for key, value in config.items() if value is None]:
    names.pop(key, None)
  if (folder / 'tokenizer.json').is_file():
    return _fast(folder, config, names)
  file = folder / 'tokenizer.model'
  if file.is_file() and not (folder / 'tokenizer_config.json').is_file():
    return SentencePieceTokenizer(file.read_bytes(), origin=str(file))
  if file.is_file():
    return _sentencepieces(folder, config, names)
  raise FileNotFoundError(
    f'{folder}: there is neither a tokenizer.json nor a tokenizer.model'
  )


def _fast(folder, config, names) -> FastTokenizer:
  file = folder / 'tokenizer.json'
  core, alphabet = fast.from_json(_text(file), str(file))
  bos = core.token_to_id(names.get('bos_token', ''))
  starts = bos is not None and core.encode('').ids[:1] == [bos]
  special = _special(folder, config, names, core.token_to_id, starts)
  return FastTokenizer(core, alphabet, special, folder)


def _sentencepieces(folder, config, names) -> SentencePieceTokenizer:
  file = folder / 'tokenizer.model'
  data = file.read_bytes()
  pieces = sentencepieces.parse(data, str(file))
  names = sentencepieces.names(pieces) | names
  ids = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
  control = {
    token: i
    for token, i in ids.items()
    if pieces.is_control(i) or pieces.is_unknown(i)
  }
  added = _read(folder, 'added_tokens.json')
  for i, token in config.get('added_tokens_decoder', {}).items():
    target = control if token.get('special') else added
    target[token['content']] = int(i)
  ids |= added | control
  control |= {name: ids[name] for name in names.values() if name in ids}
  return SentencePieceTokenizer(
    data,
    control=control,
    added={token: i for token, i in added.items() if token not in control},
    special=_special(folder, config, names, ids.get, starts=True),
    folder=folder,
  )


def _special(folder, config, names, to_id, starts) -> Special:
  """`to_id` gives the id of a token, or None."""
  for key in ['bos_token', 'eos_token']:
    if key in names and to_id(names[key]) is None:
      raise ValueError(
        f'{folder}: {key}={names[key]!r} is not in the vocabulary'
      )
  ends = [to_id(names['eos_token'])] if 'eos_token' in names else []
  for name in ['generation_config.json', 'config.json']:
    ends += _ends(folder, name)
  if not ends:
    raise ValueError(
      f'{folder}: no eos_token in tokenizer_config.json and no eos_token_id in'
      ' generation_config.json or config.json, so that no text would end'
    )
  template = _template(folder, config)
  if config.get('add_bos_token', starts) and 'bos_token' in names:
    bos_id = to_id(names['bos_token'])
  else:
    bos_id = None
  return Special(bos_id, tuple(dict.fromkeys(ends)), names, template)


def _ends(folder, name) -> list[int]:
  config = _read(folder, name)
  ends = config.get('eos_token_id')
  if ends is None and isinstance(config.get('text_config'), dict):
    ends = config['text_config'].get('eos_token_id')
  ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
  if not all(type(i) is int and i >= 0 for i in ends):
    raise ValueError(f'{folder / name}: eos_token_id={ends} are not ids')
  return ends


def _names(config: dict) -> dict[str, str]:
  """The entries that name a special token: bos_token, pad_token, ..."""
  extra = config.get('extra_special_tokens')
  named = config | (extra if isinstance(extra, dict) else {})
  found = {}
  for key, value in named.items():
    if isinstance(value, dict):  # All that an AddedToken has.
      value = value.get('content')
    if key.endswith('_token') and isinstance(value, str):
      found[key] = value
  return found


def _template(folder, config) -> str | None:
  file = folder / 'chat_template.jinja'
  template, origin = config.get('chat_template'), 'tokenizer_config.json'
  if file.is_file():
    template, origin = _text(file), file.name
  if isinstance(template, list):
    templates = {entry['name']: entry['template'] for entry in template}
    if 'default' not in templates:
      raise ValueError(
        f"{folder / origin}: no chat template is called 'default', only"
        f' {[*templates]}'
      )
    template = templates['default']
  chat.check(template, str(folder / origin))
  return template


def _read(folder, name) -> dict:
  """The object in a JSON file; an empty one if there is no such file."""
  file = folder / name
  if not file.is_file():
    return {}
  try:
    content = json.loads(_text(file))
  except json.JSONDecodeError as error:
    raise ValueError(f'{file} is not JSON ({error})') from error
  if not isinstance(content, dict):
    raise ValueError(f'{file}: a JSON object was expected')
  return content


def _text(file: epath.Path) -> str:
  try:
    return file.read_bytes().decode()
  except UnicodeDecodeError as error:
    raise ValueError(f'{file} is not UTF-8 text ({error})') from error
