"""Examples as arrays and documents."""

import jax
import numpy as np
import pytest

from grpo_jax import prompts
from grpo_jax.datasets import Example

EXAMPLES = [
  Example('3 + 4?', '7', '3+4=7'),
  Example('√4?', '√4', 'a'),
  Example('?', '', ''),
]


class Bytes:
  """A tokenizer whose tokens are bytes; a prompt is its turns in brackets."""

  eos_ids = (300, 301)

  def encode(self, text):
    return list(text.encode())

  def prompt(self, chat):
    return self.encode(''.join(f'[{t["role"]}:{t["content"]}]' for t in chat))


def test_a_chat_has_instruction_then_examples_then_the_question():
  turns = prompts.chat('Q', 'Be brief.', [('q1', 'a1'), ('q2', 'a2')])
  assert [(turn['role'], turn['content']) for turn in turns] == [
    ('system', 'Be brief.'),
    ('user', 'q1'),
    ('assistant', 'a1'),
    ('user', 'q2'),
    ('assistant', 'a2'),
    ('user', 'Q'),
  ]
  assert prompts.chat('Q') == [{'role': 'user', 'content': 'Q'}]


def test_prompts_and_answers_are_rows_with_lengths():
  found = prompts.encode(EXAMPLES, lambda text: list(text.encode()), 8, 5)
  assert found.tokens_PL.shape == (3, 8) and found.tokens_PL.dtype == np.int32
  assert found.answers_PC.shape == (3, 5)
  assert found.answers_PC.dtype == np.uint8
  for p, example in enumerate(EXAMPLES):
    length = found.lengths_P[p]
    assert (
      bytes(found.tokens_PL[p, :length].tolist()) == example.prompt.encode()
    )
    answer = example.answer.encode()
    assert bytes(found.answers_PC[p]) == answer.ljust(5, b'\0')
    assert found.ids_P[p] == example.id
  assert found.ids_P.dtype == np.uint32 and len(set(found.ids_P)) == 3


def test_an_example_has_the_same_row_wherever_it_stands():
  def to_ids(text):
    return list(text.encode())

  def refer(examples):
    return {'sizes': [list(map(len, example[:2])) for example in examples]}

  found, turned = (
    prompts.encode(examples, to_ids, 8, 5, refer, {'sizes': 3})
    for examples in (EXAMPLES, EXAMPLES[::-1])
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a[::-1], b), turned, found
  )
  assert found.references['sizes'][0].tolist() == [
    *map(len, EXAMPLES[0][:2]),
    -1,
  ]


@pytest.mark.parametrize(
  'max_prompt,answer_bytes,words',
  [
    (5, 9, ['6 tokens', 'data.max_prompt=5', "'3 + 4?'"]),
    (9, 3, ['4 bytes', 'longer than 3', "'√4'"]),
  ],
)
def test_what_does_not_fit_is_refused_by_name_and_never_cut(
  max_prompt, answer_bytes, words
):
  with pytest.raises(ValueError) as error:
    prompts.encode(
      EXAMPLES, lambda text: list(text.encode()), max_prompt, answer_bytes
    )
  assert '\n' not in str(error.value)
  assert all(word in str(error.value) for word in words)


def test_a_prompt_that_just_fits_is_taken():
  found = prompts.encode(EXAMPLES, lambda text: list(text.encode()), 6, 4)
  assert found.lengths_P[0] == 6


def test_a_document_is_prompt_completion_and_stop_token():
  found = prompts.document(EXAMPLES[0], Bytes(), reasoned_share=1.0)
  text = b'[user:3 + 4?]<think>3+4=7</think><answer>7</answer>'
  assert found == [*text, 300]
  found = prompts.document(EXAMPLES[0], Bytes(), reasoned_share=0.0)
  assert found == [*b'[user:3 + 4?]<answer>7</answer>', 300]


def test_the_share_that_reasons_is_fixed_by_the_problem():
  examples = [Example(f'{i}?', '', '') for i in range(2000)]
  some = {e.id for e in examples if prompts.reasons(e, 0.4)}
  more = {e.id for e in examples if prompts.reasons(e, 0.6)}
  assert some < more
  assert len(some) / 2000 == pytest.approx(0.4, abs=0.04)
  assert len(more) / 2000 == pytest.approx(0.6, abs=0.04)
