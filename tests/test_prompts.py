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

  bos_id = 299
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
    prompts.encode(examples, to_ids, 8, 5, refer, {'sizes': 3}, rows)
    for examples, rows in ((EXAMPLES, [7, 8, 9]), (EXAMPLES[::-1], [9, 8, 7]))
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a[::-1], b), turned, found
  )
  assert found.rows_P.tolist() == [7, 8, 9]
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


def document(example, reasoned_share, template=''):
  prompt, completion = prompts.answered(example, reasoned_share)

  def to_ids(question):
    return prompts.to_ids(question, Bytes(), template)

  return prompts.document(prompt, completion, to_ids, Bytes())


def test_a_document_is_prompt_completion_and_stop_token():
  found = document(EXAMPLES[0], reasoned_share=1.0)
  text = b'[user:3 + 4?]<think>3+4=7</think><answer>7</answer>'
  assert found == [*text, 300]
  found = document(EXAMPLES[0], reasoned_share=0.0)
  assert found == [*b'[user:3 + 4?]<answer>7</answer>', 300]


def test_the_share_that_reasons_is_fixed_by_the_problem():
  examples = [Example(f'{i}?', '', '') for i in range(2000)]
  some = {e.id for e in examples if prompts.reasons(e, 0.4)}
  more = {e.id for e in examples if prompts.reasons(e, 0.6)}
  assert some < more
  assert len(some) / 2000 == pytest.approx(0.4, abs=0.04)
  assert len(more) / 2000 == pytest.approx(0.6, abs=0.04)


def test_a_plain_template_is_the_whole_prompt_past_the_chat_template():
  ids = prompts.to_ids('3 + 4?', Bytes(), 'r1_zero')
  text = bytes(ids[1:]).decode()
  assert ids[0] == 299
  assert text.startswith('A conversation between User and Assistant. The user ')
  assert '<think> </think> and <answer> </answer> tags' in text
  assert text.endswith(
    '<answer> answer here </answer>. User: 3 + 4?. Assistant:'
  )


def test_a_system_template_is_the_first_turn_of_the_chat():
  ids = prompts.to_ids('3 + 4?', Bytes(), 'boxed', shots=[('1?', '1')])
  assert bytes(ids).decode() == (
    '[system:Please reason step by step, and put your final answer within '
    '\\boxed{}.][user:1?][assistant:1][user:3 + 4?]'
  )


def test_without_a_template_the_chat_is_as_it_was():
  ids = prompts.to_ids('3 + 4?', Bytes(), '', 'Be brief.', [('1?', '1')])
  chat = prompts.chat('3 + 4?', 'Be brief.', [('1?', '1')])
  assert ids == Bytes().prompt(chat)


@pytest.mark.parametrize('template', [*prompts.PLAIN, 'Q: {question} A: {x}'])
def test_any_question_stands_in_a_plain_template_as_it_is(template):
  question = r'Is \frac{1}{2} of {question} "{}" 50%?'
  text = bytes(prompts.to_ids(question, Bytes(), template)[1:]).decode()
  parts = prompts.PLAIN.get(template, template).split('{question}')
  assert text == question.join(parts) and len(parts) == 2


@pytest.mark.parametrize(
  'template', [*prompts.PLAIN, *prompts.SYSTEM, '', '{question}!']
)
def test_known_templates_and_texts_with_a_question_pass(template):
  prompts.check(template, '', ())
  assert '{question}' not in prompts.SYSTEM.get(template, '')


@pytest.mark.parametrize(
  'template,instruction,shots,words',
  [
    ('r1_zer', '', (), ["data.template='r1_zer'", 'r1_zero, countdown']),
    ('Answer: {q}', '', (), ["'Answer: {q}'", '{question}']),
    ('open_r1', 'Be brief.', (), ["'open_r1'", "data.instruction='Be brief.'"]),
    ('r1_zero', 'Be brief.', (), ["'r1_zero'", 'must be empty']),
    ('{question}!', '', (('1?', '1'),), ["'{question}!'", 'data.shots']),
  ],
)
def test_templates_that_cannot_be_are_refused_in_one_line(
  template, instruction, shots, words
):
  with pytest.raises(ValueError) as error:
    prompts.check(template, instruction, shots)
  assert '\n' not in str(error.value)
  assert all(word in str(error.value) for word in words)


def test_rows_of_other_processes_are_left_empty():
  def encode(examples):
    return prompts.encode(
      examples,
      Bytes().encode,
      max_prompt=9,
      answer_bytes=4,
      refer=lambda some: {'length': [[len(x.prompt)] for x in some]},
      widths={'length': 1},
    )

  whole, part = encode(EXAMPLES), encode([None, EXAMPLES[1], None])
  for full, own in zip(*map(jax.tree.leaves, (whole, part)), strict=True):
    assert own.shape == full.shape and own.dtype == full.dtype
    np.testing.assert_array_equal(own[1], full[1])
    assert len(set(own[[0, 2]].ravel().tolist())) == 1  # Padding.


def test_documents_have_the_prompt_of_rl():
  found = document(EXAMPLES[0], 0.0, 'question_answer')
  text = b'Question: 3 + 4?\nAnswer:<answer>7</answer>'
  assert found == [299, *text, 300]


def test_a_document_that_should_reason_needs_reasoning():
  bare = Example('3 + 4?', '7')
  assert document(bare, reasoned_share=0.0)
  with pytest.raises(ValueError, match=r"^pretrain.reasoned=1.0 .* '3 \+ 4\?'"):
    document(bare, reasoned_share=1.0)
