"""The files that transformers (AutoTokenizer) and vLLM load.

  fast(tokenizer, folder)            of a FastTokenizer
  sentencepieces(tokenizer, folder)  of a SentencePieceTokenizer, with its
    pieces once more as a tokenizer.json that gives the same ids

What came from a Hugging Face directory goes out as the same bytes. Else these
are written: tokenizer.json, tokenizer_config.json, special_tokens_map.json;
chat_template.jinja if there is a template; tokenizer.model if there is one; and
generation_config.json, with all the ids that end a completion, unless the
folder has one.

transformers 5 reads them whatever the model is, with one exception: beside a
config.json of model_type 'qwen2' it takes any tokenizer for Qwen's own, so that
pieces have to go out with a model of another type, such as 'llama'.

A tokenizer.json of pieces differs from SentencePiece in three things. Where a
text spells a control token, as in '<s>', it is that token, which a model that
was trained here takes for characters. Unigram takes another cut of about one
random text in a thousand: where two weigh the same, since its sums are rounded
otherwise (b bb for bb b), where a symbol could be cut in a better way, since
symbols are always found first, and where <0x41> is spelt with a character that
has no piece, which is that byte. And BPE that can make one piece in two ways
that overlap need not begin on the left; no text has been found that shows it.
"""

import json

from etils import epath
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  normalizers,
  processors,
)

SPACE = '\u2581'  # SentencePiece writes a space so.

_COPIED = [
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'vocab.json',
  'merges.txt',
]


def fast(tokenizer, folder: epath.Path) -> None:
  """`folder` is made if it is not there."""
  folder.mkdir(parents=True, exist_ok=True)
  if tokenizer.folder is not None:
    _copy(tokenizer.folder, folder)
    return
  _write(tokenizer, tokenizer.core, folder)


def sentencepieces(tokenizer, folder: epath.Path) -> None:
  """Raises ValueError if tokenizer.json cannot say what the model does."""
  folder.mkdir(parents=True, exist_ok=True)
  if tokenizer.folder is not None:
    _copy(tokenizer.folder, folder)
    return
  core = to_core(tokenizer.data)
  _write(tokenizer, core, folder)
  (folder / 'tokenizer.model').write_bytes(tokenizer.data)


def to_core(data: bytes) -> Tokenizer:
  """A SentencePiece model as the `tokenizers` library has it.

  Raises ValueError for models of other types, with rules for characters or
  with pieces out of use: those of Llama, Mistral and Gemma have none of them.
  """
  model = sentencepiece_model_pb2.ModelProto.FromString(data)  # type: ignore[attr-defined]
  _check(model)
  spec, kinds = model.trainer_spec, model.SentencePiece
  pieces = [*model.pieces]
  names = [piece.piece for piece in pieces]
  unknown = [p.type for p in pieces].index(kinds.UNKNOWN)
  if spec.model_type == spec.UNIGRAM:
    # A text may spell <0x41>, and means these characters, not that byte.
    never = 10 * min(piece.score for piece in pieces) - 100
    scores = [
      (p.piece, never if p.type == kinds.BYTE else p.score) for p in pieces
    ]
    core = Tokenizer(models.Unigram(scores, unknown, spec.byte_fallback))
  else:
    core = Tokenizer(
      models.BPE(
        {name: i for i, name in enumerate(names)},
        _merges([p for p in pieces if p.type == kinds.NORMAL]),
        unk_token=names[unknown],
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
      )
    )
  core.add_special_tokens(
    [
      AddedToken(p.piece, special=True, normalized=False)
      for p in pieces
      if p.type in (kinds.CONTROL, kinds.UNKNOWN)
    ]
  )
  # Found in the normal form, where a space is ▁ as in the pieces.
  core.add_tokens(
    [
      AddedToken(p.piece, special=False, normalized=True)
      for p in pieces
      if p.type == kinds.USER_DEFINED
    ]
  )
  dummy = model.normalizer_spec.add_dummy_prefix
  core.normalizer = normalizers.Sequence(
    [normalizers.Prepend(SPACE) for _ in range(dummy)]
    + [normalizers.Replace(' ', SPACE)]
  )
  core.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
    + [decoders.Strip(' ', 1, 0) for _ in range(dummy)]
  )
  return core


def _merges(pieces) -> list[tuple[str, str]]:
  """Pairs that make a piece, the best piece first: SentencePiece's order."""
  names = {piece.piece for piece in pieces}
  merges = []
  for piece in sorted(pieces, key=lambda piece: -piece.score):
    name = piece.piece
    pairs = [(name[:i], name[i:]) for i in range(1, len(name))]
    merges += [pair for pair in pairs if names.issuperset(pair)]
  return merges


def _check(model) -> None:
  spec, rules, kinds = (
    model.trainer_spec,
    model.normalizer_spec,
    model.SentencePiece,
  )
  normal = [p.score for p in model.pieces if p.type == kinds.NORMAL]
  defined = any(p.type == kinds.USER_DEFINED for p in model.pieces)
  for problem, why in [
    (
      spec.model_type not in (spec.BPE, spec.UNIGRAM),
      'it is neither a BPE nor a Unigram model',
    ),
    (
      bool(rules.precompiled_charsmap or model.denormalizer_spec.ByteSize()),
      f'it changes characters ({rules.name or "denormalizer"})',
    ),
    (rules.remove_extra_whitespaces, 'it takes spaces out of a text'),
    (not rules.escape_whitespaces, 'its pieces have bare spaces'),
    (spec.treat_whitespace_as_suffix, 'its spaces are at the end of words'),
    (
      rules.add_dummy_prefix and defined,
      'it puts a space before a text and has symbols of its own',
    ),
    (
      any(p.type == kinds.UNUSED for p in model.pieces),
      'it has pieces out of use',
    ),
    (
      spec.model_type == spec.BPE and len({*normal}) < len(normal),
      'some of its pieces have the same score',
    ),
  ]:
    if problem:
      raise ValueError(
        f'the SentencePiece model has no equal tokenizer.json: {why}'
      )


def _write(tokenizer, core, folder) -> None:
  special = tokenizer.special
  names = dict(special.names)
  names.setdefault('eos_token', core.id_to_token(special.eos_ids[0]))
  names.setdefault('pad_token', names['eos_token'])
  if special.bos_id is not None:
    bos = names['bos_token']
    core.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A',
      pair=f'{bos} $A {bos}:1 $B:1',
      special_tokens=[(bos, special.bos_id)],
    )
  text = core.to_str(pretty=True) + '\n'
  (folder / 'tokenizer.json').write_bytes(text.encode())
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    **names,
    'clean_up_tokenization_spaces': False,
  }
  if special.template is not None:
    config['chat_template'] = special.template
    (folder / 'chat_template.jinja').write_bytes(special.template.encode())
  _write_json(folder / 'tokenizer_config.json', config)
  _write_json(folder / 'special_tokens_map.json', names)
  ids = {key: core.token_to_id(name) for key, name in names.items()}
  generation = {
    'bos_token_id': ids.get('bos_token'),
    'eos_token_id': [*special.eos_ids],
    'pad_token_id': ids['pad_token'],
  }
  if not (folder / 'generation_config.json').exists():
    _write_json(folder / 'generation_config.json', generation)


def _write_json(file: epath.Path, content: dict) -> None:
  text = json.dumps(content, ensure_ascii=False, indent=2) + '\n'
  file.write_bytes(text.encode())


def _copy(source: epath.Path, folder: epath.Path) -> None:
  for name in _COPIED:
    if (source / name).is_file():
      (folder / name).write_bytes((source / name).read_bytes())
