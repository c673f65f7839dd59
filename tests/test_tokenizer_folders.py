"""Hugging Face directories made here; the tokenizers library is the oracle."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import sentencepiece
import tokenizer_files
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from grpo_jax import tokenizers

LLAMA = {'bos_token': '<s>', 'eos_token': '</s>'}
TEXT = st.text(max_size=40) | st.text('ab <>0A\nx12', max_size=40)


@pytest.fixture(scope='module')
def byte_level(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bytes')
  return tokenizers.load(
    tokenizer_files.folder(folder, tokenizer_files.byte_level())
  )


def load_pieces(folder, **knobs):
  core = tokenizer_files.pieces(**knobs)
  return tokenizers.load(tokenizer_files.folder(folder, core, LLAMA))


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
  return load_pieces(tmp_path_factory.mktemp('pieces'))


def joined(tokenizer, ids) -> bytes:
  return b''.join(tokenizer.token_bytes[i] for i in ids)


@settings(deadline=None)
@given(TEXT)
def test_byte_level_tokens_join_to_the_text(byte_level, text):
  ids = byte_level.encode(text)
  assert ids == reference(byte_level, text)
  assert joined(byte_level, ids) == text.encode()
  assert byte_level.decode(ids) == text


@settings(deadline=None)
@given(TEXT.filter(lambda text: '▁' not in text))
def test_pieces_join_to_the_text(pieces, text):
  ids = pieces.encode(text)
  assert ids == reference(pieces, text)
  assert joined(pieces, ids) == text.encode()


def reference(tokenizer, text):
  core = Tokenizer.from_file(str(tokenizer.folder / 'tokenizer.json'))
  return core.encode(text, add_special_tokens=False).ids


def test_a_token_has_the_bytes_that_it_stands_for(byte_level, pieces):
  def text(tokenizer, token):
    return tokenizer.token_bytes[tokenizer.core.token_to_id(token)]

  assert text(byte_level, 'Ġ') == b' '
  assert text(byte_level, '<thé>') == '<thé>'.encode()  # Added: as it is.
  assert text(byte_level, '<|turn|>') == b''
  assert text(pieces, '▁ab') == b' ab'
  assert text(pieces, '<0x0A>') == b'\n'
  assert text(pieces, '<0xE9>') == b'\xe9'
  assert text(pieces, '<unk>') == text(pieces, '</s>') == b''
  singles = [text for text in byte_level.token_bytes if len(text) == 1]
  assert sorted(singles) == [bytes([byte]) for byte in range(256)]


def test_without_byte_fallback_0x0a_is_a_text(tmp_path):
  core = tokenizer_files.pieces(byte_fallback=False)
  folder = tokenizer_files.folder(tmp_path, core, LLAMA)
  content = json.loads((folder / 'tokenizer.json').read_text())
  content['model']['vocab']['<0x0A>'] = core.get_vocab_size()
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  assert tokenizers.load(folder).token_bytes[-1] == b'<0x0A>'


def test_the_unknown_piece_has_no_text_though_nobody_added_it(tmp_path):
  folder = tokenizer_files.folder(tmp_path, tokenizer_files.pieces(), LLAMA)
  content = json.loads((folder / 'tokenizer.json').read_text())
  assert content['added_tokens'].pop(0)['content'] == '<unk>'
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  assert tokenizers.load(folder).token_bytes[0] == b''


def test_a_space_that_the_tokenizer_puts_in_front_is_in_the_text(tmp_path):
  tokenizer = load_pieces(tmp_path, prefix=True)
  ids = tokenizer.encode('ab')
  assert [tokenizer.core.id_to_token(i) for i in ids] == ['▁ab']
  assert tokenizer.decode(ids) == ' ab'


def test_characters_without_a_piece_are_named(tmp_path):
  tokenizer = load_pieces(tmp_path, byte_fallback=False)
  with pytest.raises(ValueError, match=r"characters \['q', 'ü'\] of 'aüqb'"):
    tokenizer.encode('aüqb')
  with pytest.raises(ValueError, match=r"characters \['▁'\]"):
    tokenizer.encode('a▁')


def test_control_tokens_are_recognised_and_leave_no_trace(byte_level):
  ids = byte_level.encode('a<|turn|>b')
  assert ids[1] == 2
  assert byte_level.decode(ids) == 'ab'


def test_a_named_token_is_a_control_token_where_the_json_forgot_it(tmp_path):
  core = tokenizer_files.pieces()
  config = LLAMA | {'eos_token': '<0A>'}
  core.add_tokens(['<0A>'])
  tokenizer = tokenizers.load(tokenizer_files.folder(tmp_path, core, config))
  assert tokenizer.encode('<0A>') == [*tokenizer.eos_ids]
  assert tokenizer.token_bytes[tokenizer.eos_ids[0]] == b''


def test_all_ends_count_and_the_tokenizer_s_own_is_the_first(tmp_path):
  folder = tokenizer_files.folder(
    tmp_path,
    tokenizer_files.byte_level(),
    generation_config={'eos_token_id': [2, 1]},
    config={'eos_token_id': 0},
  )
  assert tokenizers.load(folder).eos_ids == (1, 2, 0)


def test_an_end_is_also_found_under_text_config(tmp_path):
  folder = tokenizer_files.folder(
    tmp_path,
    tokenizer_files.byte_level(),
    {},
    config={'text_config': {'eos_token_id': 2}},
  )
  assert tokenizers.load(folder).eos_ids == (2,)


@pytest.mark.parametrize(
  'config,bos_id',
  [
    ({'bos_token': {'content': '<|begin|>'}}, 0),
    ({'bos_token': None}, None),
    ({'add_bos_token': False}, None),
    ({'bos_token': '<|turn|>'}, None),  # The json puts another one there.
    ({'bos_token': '<|turn|>', 'add_bos_token': True}, 2),
  ],
)
def test_texts_start_as_the_files_say(tmp_path, config, bos_id):
  names = {'bos_token': '<|begin|>', 'eos_token': '<|end|>'}
  folder = tokenizer_files.folder(
    tmp_path,
    tokenizer_files.byte_level(),
    names | config,
    special_tokens_map={'bos_token': '<|begin|>'},
  )
  tokenizer = tokenizers.load(folder)
  assert tokenizer.bos_id == bos_id
  start = [] if bos_id is None else [bos_id]
  chat = [{'role': 'user', 'content': 'a'}] * 2
  assert tokenizer.prompt(chat) == start + tokenizer.encode('a\na')


def test_names_are_also_read_from_special_tokens_map(tmp_path):
  names = {'bos_token': {'content': '<|begin|>'}, 'eos_token': '<|turn|>'}
  core = tokenizer_files.byte_level()
  folder = tokenizer_files.folder(tmp_path, core, {}, special_tokens_map=names)
  tokenizer = tokenizers.load(folder)
  assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (2,))


def chat_ids(folder):
  return tokenizers.load(folder).prompt([{'role': 'user', 'content': 'ab'}])


def test_the_template_is_in_its_file_or_else_in_the_config(tmp_path):
  core = tokenizer_files.byte_level()
  names = {'eos_token': '<|end|>', 'bos_token': '<|begin|>'}
  named = [
    {'name': 'tools', 'template': 'x'},
    {'name': 'default', 'template': '{{ bos_token }}1'},
  ]
  one, other = [0, *core.encode('1').ids[1:]], [*core.encode('2').ids[1:]]
  text = {'chat_template': '{{ bos_token }}1'}
  folder = tokenizer_files.folder(tmp_path, core, names | text)
  assert chat_ids(folder) == one
  tokenizer_files.folder(folder, core, names | {'chat_template': named})
  assert chat_ids(folder) == one
  (folder / 'chat_template.jinja').write_text('2')
  assert chat_ids(folder) == other


@pytest.mark.parametrize('knobs', [{}, {'add_dummy_prefix': True}])
def test_a_folder_may_hold_a_sentencepiece_model_alone(tmp_path, knobs):
  data = tokenizer_files.pieces_model(**knobs)
  (tmp_path / 'tokenizer.model').write_bytes(data)
  config = LLAMA | {
    'added_tokens_decoder': {
      '500': {'content': '<|im|>', 'special': True},
      '501': {'content': '<box>', 'special': False},
      '502': {'content': '<box>s', 'special': False},
    }
  }
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  tokenizer = tokenizers.load(tmp_path)
  own = sentencepiece.SentencePieceProcessor(model_proto=data)
  assert tokenizer.vocab_size == 503
  assert tokenizer.token_bytes[499:] == [b'', b'', b'<box>', b'<box>s']
  assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
  assert tokenizer.encode('two ab') == own.encode('two ab')
  assert tokenizer.encode('<box>s<box>') == [502, 501]  # The longest.
  ids = tokenizer.encode('a<|im|>b</s><box>c')
  parts = [own.encode('a'), [500], own.encode('b'), [2, 501], own.encode('c')]
  assert ids == sum(parts, [])


def test_the_workdir_of_a_run_has_its_pieces_alone(tmp_path):
  trained = tokenizers.train(tokenizer_files.TEXTS, 90)
  trained.save(tmp_path / 'tokenizer.model')
  (tmp_path / 'config.json').write_text('{"model": {}}')
  tokenizer = tokenizers.load(tmp_path)
  assert tokenizer.folder is None  # To be exported, not copied.
  assert tokenizer.encode('a</answer>') == trained.encode('a</answer>')


BERT = Tokenizer(models.WordPiece({'[UNK]': 0}, unk_token='[UNK]'))
WORDS = Tokenizer(models.BPE({'a': 0}, []))
CLIP = Tokenizer(models.BPE({'a</w>': 0}, [], end_of_word_suffix='</w>'))
CLIP.normalizer = normalizers.Replace(' ', '▁')
WORDS.pre_tokenizer = pre_tokenizers.Whitespace()


@pytest.mark.parametrize(
  'core,message',
  [
    (BERT, "tokenizer.json: model.type='WordPiece' is not one of ['BPE'"),
    (WORDS, 'tokenizer.json: neither a ByteLevel step nor one that writes'),
    (CLIP, "tokenizer.json: model.end_of_word_suffix='</w>'"),
  ],
)
def test_another_kind_of_tokenizer_is_refused(tmp_path, core, message):
  assert message in refusal(tokenizer_files.folder(tmp_path, core, {}))


@pytest.mark.parametrize(
  'name,content,message',
  [
    ('tokenizer.json', b'{"model": ', 'tokenizer.json is not the JSON of a'),
    ('tokenizer.json', b'[1]', 'tokenizer.json is not the JSON of a tokeni'),
    ('tokenizer.json', b'\xff\xfe', 'tokenizer.json is not UTF-8 text'),
    (
      'tokenizer.json',
      b'{"model": {"type": "BPE", "vocab": 3}}',
      'tokenizer.json does not hold a tokenizer',
    ),
    ('tokenizer_config.json', b'{', 'tokenizer_config.json is not JSON'),
    ('tokenizer_config.json', b'[]', 'json: a JSON object was expected'),
    ('tokenizer_config.json', b'{}', 'no eos_token in tokenizer_config.json'),
    (
      'tokenizer_config.json',
      b'{"eos_token": "<none>"}',
      "eos_token='<none>' is not in the vocabulary",
    ),
    (
      'generation_config.json',
      b'{"eos_token_id": [1, "a"]}',
      "generation_config.json: eos_token_id=[1, 'a'] are not ids",
    ),
    (
      'chat_template.jinja',
      b'\n{% if %}',
      'chat_template.jinja: the chat template is not Jinja: Expected an expr',
    ),
    (
      'tokenizer_config.json',
      b'{"eos_token": "<|end|>", "chat_template":'
      b' [{"name": "rag", "template": ""}]}',
      "no chat template is called 'default', only ['rag']",
    ),
  ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, name, content, message):
  folder = tokenizer_files.folder(tmp_path, tokenizer_files.byte_level())
  (folder / name).write_bytes(content)
  assert message in refusal(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='neither a tokenizer.json nor'):
    tokenizers.load(tmp_path)


def refusal(folder) -> str:
  with pytest.raises(ValueError) as error:
    tokenizers.load(folder)
  assert '\n' not in str(error.value)
  assert str(folder) in str(error.value)
  return str(error.value)
