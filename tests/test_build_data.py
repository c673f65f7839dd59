"""What the parts of a config on data and devices become in a run."""

import numpy as np
import pytest

from grpo_jax import build, config, prompts


def small(**data):
  c = config.default()
  c.tokenizer.vocab_size = 150
  c.data.update(max_prompt=500, **data)
  return c.lock()


MIXED = {
  'chains': {'weight': 2.0, 'problems': 300},
  'countdown': {'problems': 200, 'style': 'terse'},
}


@pytest.mark.parametrize(
  'template', ['', 'r1_zero', 'open_r1', 'Q: {question}']
)
def test_a_mixture_is_read_through_a_template(tmp_path, template):
  c = small(name='mixture', knobs=MIXED, template=template)
  run = build.build(c, str(tmp_path))
  examples = build.train_examples(run, step=3)
  assert {e.columns['source'] for e in examples} == set(MIXED)
  batch = build.train_batch(run, step=3)
  for p, example in enumerate(examples):
    ids = batch.tokens_PL[p, : batch.lengths_P[p]].tolist()
    text = prompts.fill(template, example.prompt)
    assert run.tokenizer.decode(ids) == text
  np.testing.assert_array_equal(batch.ids_P, [e.id for e in examples])


def test_documents_to_pretrain_on_need_reasoning_where_they_reason(tmp_path):
  rows = ''.join(f'{{"prompt": "{i}?", "answer": "1"}}\n' for i in range(100))
  (tmp_path / 'mine.jsonl').write_text(rows)
  c = config.default()
  c.data.update(name='files', knobs={'path': str(tmp_path / 'mine.jsonl')})
  c.pretrain.steps = 1
  with pytest.raises(ValueError, match=r'^pretrain.reasoned=0.4 needs a data'):
    build.build(c, str(tmp_path / 'run'))
  c.pretrain.reasoned = 0.0
  assert build.build(c, str(tmp_path / 'run')).documents is not None


def test_a_template_is_checked_with_the_config():
  with pytest.raises(
    ValueError, match="^data.template='r1' is not one of r1_z"
  ):
    config.check(small(template='r1'))


def test_a_run_of_a_mixture_goes_on_with_the_same_config(tmp_path):
  for _ in range(2):
    c = small(name='mixture', knobs=MIXED)
    run = build.build(c, str(tmp_path))
  c = small(name='mixture', knobs=MIXED | {'countdown': {'problems': 100}})
  with pytest.raises(ValueError, match='data.knobs.countdown.problems is 200 '):
    build.build(c, str(tmp_path))
  assert run.dataset.size('train') > 100


@pytest.mark.parametrize(
  'kernel,dtype,words',
  [
    ('splash', 'float32', ['needs tpu devices', 'are cpu', "['plain', 'chunk"]),
    ('cudnn', 'bfloat16', ['needs gpu devices', 'are cpu', "['plain', 'chunk"]),
  ],
)
def test_a_kernel_is_for_its_own_devices(kernel, dtype, words, tmp_path):
  c = config.default()
  c.model.update(attention=kernel, dtype=dtype)
  with pytest.raises(ValueError) as error:
    build.build(c, str(tmp_path))
  message = str(error.value)
  assert message.startswith(f'model.attention={kernel!r} needs')
  assert [word for word in words if word not in message] == []
  assert not list(tmp_path.iterdir())


def test_cudnn_is_for_bfloat16():
  c = config.default()
  c.model.attention = 'cudnn'
  with pytest.raises(ValueError, match="needs model.dtype='bfloat16', not 'fl"):
    build._check_kernel(c, 'gpu')
  c.model.dtype = 'bfloat16'
  build._check_kernel(c, 'gpu')
  c.model.attention = 'splash'
  with pytest.raises(ValueError, match=r"of \['plain', 'chunked', 'cudnn'\]"):
    build._check_kernel(c, 'gpu')
