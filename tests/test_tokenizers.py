"""SentencePiece: trained here, on text of every awkward kind. BPE: a tiny GGUF.

Published vectors of a real BPE are in test_smollm2.py.
"""

import pytest
from tokenizer_files import TEXTS, tiny_gguf

from grpo_jax import tokenizers

SYMBOLS = ['<think>', '</think>', '<answer>', '</answer>']


@pytest.fixture(scope='module')
def trained():
  return tokenizers.train(TEXTS, 100, SYMBOLS)


@pytest.mark.parametrize('model_type', ['bpe', 'unigram'])
def test_a_trained_model_gives_its_texts_back(model_type):
  tokenizer = tokenizers.train(TEXTS, 90, SYMBOLS, model_type)
  for text in [*TEXTS, '', ' ', '  a', 'a  ', '\n', '<a>', '</answer>']:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_control_tokens_have_fixed_ids_and_no_text(trained):
  assert (trained.bos_id, trained.eos_ids) == (1, (2,))
  assert trained.token_bytes[:4] == [b''] * 4
  assert trained.decode([1, *trained.encode('and'), 2, 0]) == 'and'


def test_symbols_are_single_tokens_and_digits_stand_alone(trained):
  for symbol in SYMBOLS:
    [i] = trained.encode(symbol)
    assert trained.token_bytes[i] == symbol.encode()
  assert len(trained.encode('1234567890')) == 10


def test_training_twice_gives_the_same_bytes(trained):
  assert tokenizers.train(iter(TEXTS), 100, SYMBOLS).data == trained.data


def test_a_vocabulary_larger_than_the_corpus_is_cut_short():
  tokenizer = tokenizers.train(['abab'], 5_000)
  assert tokenizer.vocab_size < 20
  assert len(tokenizer.token_bytes) == tokenizer.vocab_size


def test_the_smallest_vocabulary_trains_and_a_smaller_one_is_refused():
  # 4 control tokens, 1 symbol, and the characters outside of it.
  texts = ['ab<think>cd']
  assert tokenizers.train(texts, 9, ['<think>']).vocab_size == 9
  with pytest.raises(ValueError, match='vocab_size=8: .*8 vs 9'):
    tokenizers.train(texts, 8, ['<think>'])


def test_training_without_text_is_refused():
  with pytest.raises(ValueError, match='without any text'):
    tokenizers.train(['', ''], 100)


def test_a_long_text_is_not_left_out_of_training():
  tokenizer = tokenizers.train(['a' * 10_000 + 'z', 'a'], 50)
  assert tokenizer.decode(tokenizer.encode('zaz')) == 'zaz'


@pytest.mark.parametrize(
  'text,named', [('a ¿b ¡', "['¡', '¿']"), ('▁', "['▁']"), ('ü', "['ü']")]
)
def test_characters_without_a_token_are_named(trained, text, named):
  with pytest.raises(ValueError) as error:
    trained.encode(text)
  assert named in str(error.value)
  assert '\n' not in str(error.value)


def test_saved_and_loaded_it_is_the_same(trained, tmp_path):
  trained.save(tmp_path / 'tokenizer.model')
  loaded = tokenizers.load(tmp_path / 'tokenizer.model')
  assert loaded.data == trained.data
  assert loaded.encode(TEXTS[0]) == trained.encode(TEXTS[0])


@pytest.mark.parametrize('size', [0, 10, -7])
def test_a_damaged_model_is_refused(trained, tmp_path, size):
  (tmp_path / 'a.model').write_bytes(trained.data[:size])
  with pytest.raises(ValueError, match='a.model is not a whole SentencePiece'):
    tokenizers.load(tmp_path / 'a.model')


def test_a_base_model_is_prompted_line_by_line(trained):
  messages = [
    {'role': 'user', 'content': 'and'},
    {'role': 'assistant', 'content': '6'},
  ]
  assert trained.prompt(messages) == [1, *trained.encode('and\n6')]


def test_ids_past_the_vocabulary_decode_to_nothing(trained):
  padding = trained.vocab_size + 5
  assert trained.decode([padding, *trained.encode('a')]) == 'a'


def test_half_a_character_decodes_to_a_replacement(tmp_path):
  tokenizer = tokenizers.load(tiny_gguf(tmp_path))
  ids = tokenizer.encode('é')  # Two bytes.
  assert len(ids) == 2
  assert tokenizer.decode(ids) == 'é'
  assert tokenizer.decode(ids[:1]) == '\ufffd'


def test_bpe_merges_within_words_and_cuts_digits(tmp_path):
  tokenizer = tokenizers.load(tiny_gguf(tmp_path))
  text = 'ab ab12'
  pieces = [tokenizer.token_bytes[i] for i in tokenizer.encode(text)]
  assert pieces == [b'ab', b' ab', b'1', b'2']


def test_every_byte_has_its_own_token(tmp_path):
  tokenizer = tokenizers.load(tiny_gguf(tmp_path))
  singles = [text for text in tokenizer.token_bytes if len(text) == 1]
  assert sorted(singles) == [bytes([byte]) for byte in range(256)]


def test_control_tokens_are_recognised_in_text_and_leave_no_trace(tmp_path):
  tokenizer = tokenizers.load(tiny_gguf(tmp_path))
  ids = tokenizer.encode('a<|end|>b')
  assert ids[1:2] == [1] == list(tokenizer.eos_ids)
  assert tokenizer.decode(ids) == 'ab'


def test_both_end_tokens_of_a_file_count(tmp_path):
  path = tiny_gguf(tmp_path, eot_token_id=0)
  assert tokenizers.load(path).eos_ids == (1, 0)


def test_the_chat_template_sees_messages_and_special_tokens(tmp_path):
  template = (
    '{% for message in messages %}\n'
    '  {% if message.role == "tool" %}\n'
    '    {{ raise_exception("no tools here") }}\n'
    '  {% endif %}\n'
    '{{ bos_token }}{{ message.content | tojson }}{{ eos_token }}\n'
    '{% endfor %}\n'
    '{% if add_generation_prompt %}ab{% endif %}'
  )
  tokenizer = tokenizers.load(tiny_gguf(tmp_path, template=template))
  ids = tokenizer.prompt([{'role': 'user', 'content': 'é<'}])
  assert ids == tokenizer.encode('<|start|>"é<"<|end|>\nab')
  with pytest.raises(ValueError, match='template refuses: no tools here'):
    tokenizer.prompt([{'role': 'tool', 'content': 'x'}])


def test_a_chat_template_cannot_reach_into_python(tmp_path):
  template = '{{ messages.__class__.__mro__ }}'
  tokenizer = tokenizers.load(tiny_gguf(tmp_path, template=template))
  with pytest.raises(ValueError, match='template refuses'):
    tokenizer.prompt([])


def test_bpe_without_a_template_is_prompted_line_by_line(tmp_path):
  tokenizer = tokenizers.load(tiny_gguf(tmp_path))
  messages = [{'role': 'user', 'content': 'a'}] * 2
  assert tokenizer.prompt(messages) == [0, *tokenizer.encode('a\na')]


@pytest.mark.parametrize(
  'knobs,message',
  [
    ({'pre': 'mpt'}, "pre='mpt' is not one of ['gpt-2', 'smo"),
    ({'pre': None}, "pre=None is not one of ['gpt-2', 'smo"),
    ({'model': 'bert'}, "model='bert' is not one of ['gpt2', 'llama']"),
    ({'merges': None}, 'tokenizer.ggml.merges is missing'),
  ],
)
def test_a_rule_that_is_not_known_is_refused(tmp_path, knobs, message):
  with pytest.raises(ValueError) as error:
    tokenizers.load(tiny_gguf(tmp_path, **knobs))
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_another_kind_of_file_is_refused():
  with pytest.raises(ValueError, match=r"'.gguf', not with '.json'"):
    tokenizers.load('tokenizer.json')
