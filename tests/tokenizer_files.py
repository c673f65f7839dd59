"""Small tokenizers as they are published, made where a test wants them."""

import io
import json
import pathlib
import tempfile

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

TEXTS = [
  'Start at 6: -1 *2 +2. Last digit?<think>6-1=5;5*2=10</think>',
  'two  spaces,\ttab\nand a second line <answer>1234567890</answer>',
  ' é and 日本 and a < b > c',
]
SYMBOLS = ['<think>', '</think>', '\n\n', '▁▁', '▁▁▁']


def tiny_gguf(
  folder,
  model='gpt2',
  pre='smollm',
  merges=('a b', 'Ġ ab', '1 2'),
  template=None,
  eot_token_id=None,
  more=(),
  **knobs,
):
  """Two control tokens, the 256 bytes and the merged tokens.

  `more` are further (token, type), `knobs` other keys of tokenizer.ggml.
  """
  printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
  alphabet = [*map(chr, printed), *(chr(256 + i) for i in range(68))]
  merged = [merge.replace(' ', '') for merge in merges or ()]
  tokens = ['<|start|>', '<|end|>', *alphabet, *merged]
  types = [3, 3] + [1] * (len(tokens) - 2)
  path = pathlib.Path(tempfile.mkdtemp(dir=folder)) / 'tiny.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model(model)
  if pre:
    writer.add_tokenizer_pre(pre)
  writer.add_token_list([*tokens, *(token for token, _ in more)])
  writer.add_token_types([*types, *(type_ for _, type_ in more)])
  if merges:
    writer.add_token_merges(list(merges))
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(1)
  if eot_token_id is not None:
    writer.add_eot_token_id(eot_token_id)
  if template:
    writer.add_chat_template(template)
  return _finished(writer, path, knobs)


def pieces_model(**knobs) -> bytes:
  """A SentencePiece model with a token for every byte."""
  model = io.BytesIO()
  knobs = {
    'model_type': 'bpe',
    'user_defined_symbols': SYMBOLS,
    'control_symbols': ['<turn>'],
    'normalization_rule_name': 'identity',
    'add_dummy_prefix': False,
  } | knobs
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*TEXTS, 'x']),
    model_writer=model,
    vocab_size=400,
    hard_vocab_limit=False,
    remove_extra_whitespaces=False,
    byte_fallback=True,
    pad_id=3,
    minloglevel=2,
    **knobs,
  )
  return model.getvalue()


def pieces_gguf(folder, data: bytes, **knobs):
  """As converters write it: pieces, scores, types, symbols with spaces."""
  model = sentencepiece_model_pb2.ModelProto.FromString(data)
  path = folder / 'pieces.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model('llama')
  writer.add_tokenizer_pre('default')
  symbol = gguf.TokenType.USER_DEFINED
  writer.add_token_list(
    [
      p.piece.replace('▁', ' ') if p.type == symbol else p.piece
      for p in model.pieces
    ]
  )
  writer.add_token_scores(
    [-1000.0 if p.type == symbol else p.score for p in model.pieces]
  )
  writer.add_token_types([p.type for p in model.pieces])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
  return _finished(writer, path, knobs)


def byte_level() -> Tokenizer:
  """Byte-level BPE as that of Llama 3: a BOS before every text."""
  core = Tokenizer(models.BPE())
  core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.decoder = decoders.ByteLevel()
  core.train_from_iterator(
    TEXTS,
    trainers.BpeTrainer(
      vocab_size=320,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=['<|begin|>', '<|end|>', '<|turn|>'],
      show_progress=False,
    ),
  )
  core.add_tokens([AddedToken('<thé>', special=False, normalized=False)])
  core.post_processor = processors.TemplateProcessing(
    single='<|begin|> $A', special_tokens=[('<|begin|>', 0)]
  )
  return core


def pieces(byte_fallback=True, prefix=False) -> Tokenizer:
  """BPE of pieces: as Gemma's, or with a prefix as Llama 2's."""
  tokens = ['<unk>', '<s>', '</s>']
  if byte_fallback:
    tokens += [f'<0x{byte:02X}>' for byte in range(256)]
  tokens += [*'▁abcxé<0A>\n', 'ab', '▁ab', '▁▁']
  merges = [('a', 'b'), ('▁', 'ab'), ('▁', '▁')]
  core = Tokenizer(
    models.BPE(
      {token: i for i, token in enumerate(tokens)},
      merges,
      unk_token='<unk>',
      fuse_unk=True,
      byte_fallback=byte_fallback,
    )
  )
  steps = [normalizers.Prepend('▁')] if prefix else []
  core.normalizer = normalizers.Sequence(
    [*steps, normalizers.Replace(' ', '▁')]
  )
  core.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  )
  core.add_special_tokens(
    [AddedToken(token, normalized=False) for token in tokens[:3]]
  )
  return core


def folder(path, core: Tokenizer, named=None, **files):
  """A directory; files: name without .json -> content."""
  if named is None:
    named = {'bos_token': '<|begin|>', 'eos_token': '<|end|>'}
  path.mkdir(exist_ok=True)
  core.save(str(path / 'tokenizer.json'))
  for name, content in (files | {'tokenizer_config': named}).items():
    (path / f'{name}.json').write_text(json.dumps(content))
  return path


def _finished(writer, path, knobs):
  for key, value in knobs.items():
    add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
    add(f'tokenizer.ggml.{key}', value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
