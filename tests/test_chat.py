"""Chat templates, over a tokenizer of 256 bytes and two control tokens."""

import datetime

import pytest
import tokenizer_files

from grpo_jax import tokenizers

TURN = [{'role': 'user', 'content': 'é<'}]


def rendered(folder, template, messages=TURN):
  """What the template makes of the turns, as the tokenizer reads it."""
  path = tokenizer_files.tiny_gguf(folder, template=template)
  tokenizer = tokenizers.load(path)
  names = {0: '<|start|>', 1: '<|end|>'}
  return b''.join(
    names[i].encode() if i in names else tokenizer.token_bytes[i]
    for i in tokenizer.prompt(messages)
  ).decode()


def test_a_template_says_itself_whether_a_text_starts(tmp_path):
  assert rendered(tmp_path, 'a') == 'a'
  assert rendered(tmp_path, '{{ bos_token }}a') == '<|start|>a'


def test_there_are_no_tools_and_the_answer_is_to_begin(tmp_path):
  template = (
    '{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}'
  )
  assert rendered(tmp_path, template) == 'True True True'


def test_a_template_can_tell_the_day(tmp_path):
  days = {datetime.datetime.now().strftime('%d %b %Y')}
  found = rendered(tmp_path, '{{ strftime_now("%d %b %Y") }}')
  days.add(datetime.datetime.now().strftime('%d %b %Y'))  # At midnight: two.
  assert found in days


def test_json_keeps_characters_unless_told(tmp_path):
  assert rendered(tmp_path, '{{ "é<" | tojson }}') == '"é<"'
  told = '{{ "é" | tojson(ensure_ascii=true) }}'
  assert rendered(tmp_path, told) == '"\\u00e9"'


def test_what_the_model_said_may_be_marked(tmp_path):
  template = (
    '{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}'
    '{% break %}{% endfor %}!'
  )
  assert rendered(tmp_path, template, TURN * 2) == 'é<!'


@pytest.mark.parametrize(
  'template,reason',
  [
    ('{{ raise_exception("no\nsystem turn") }}', 'no system turn'),
    ('{{ messages[0]["content"] + 1 }}', 'can only concatenate str'),
    ('{{ messages[7].content }}', 'has no element 7'),
    ('{{ 1 // 0 }}', 'division'),
    ('{{ messages.append(1) }}', "'append' of 'list' object is unsafe"),
  ],
)
def test_a_template_s_complaint_is_one_line(tmp_path, template, reason):
  with pytest.raises(ValueError) as error:
    rendered(tmp_path, template)
  assert str(error.value).startswith('the chat template refuses: ')
  assert reason in str(error.value)
  assert '\n' not in str(error.value)


def test_a_template_that_is_not_jinja_is_refused_when_it_is_read(tmp_path):
  path = tokenizer_files.tiny_gguf(tmp_path, template='a\n{% endfor %}')
  with pytest.raises(ValueError, match='tiny.gguf: .*not Jinja.*line 2'):
    tokenizers.load(path)
