"""Problems from files: the user's own, GSM8K and MATH."""

import functools
import http.server
import json
import threading
import urllib.error

from hypothesis import given, settings
from hypothesis import strategies as st
import pyarrow
from pyarrow import parquet
import pytest

from grpo_jax import datasets
from grpo_jax.datasets import files, gsm8k, local, math


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def write_parquet(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return str(path)


ROWS = [
  {'question': f'{i} é?', 'answer': i, 'how': 'so', 'level': [i], 'x': None}
  for i in range(60)
]
KNOBS = {'prompt': 'question', 'reasoning': 'how'}


@pytest.mark.parametrize(
  'suffix,writer', [('jsonl', write), ('parquet', write_parquet)]
)
def test_rows_become_examples_and_other_columns_are_kept(
  tmp_path, suffix, writer
):
  path = writer(tmp_path / f'mine.{suffix}', ROWS)
  found = list(files.examples(path, **KNOBS))
  assert found == [
    datasets.Example(f'{i} é?', str(i), 'so', {'level': [i], 'x': None})
    for i in range(60)
  ]
  loaded = datasets.load('files', str(tmp_path / 'data'), path=path, **KNOBS)
  assert set(loaded.all('train') + loaded.all('heldout')) == set(found)


def test_a_path_is_a_file_a_folder_or_a_pattern(tmp_path):
  for name in ('b.jsonl', 'a.jsonl', 'deep/c.jsonl'):
    write(tmp_path / name, [{'prompt': name, 'answer': ''}])
  (tmp_path / 'notes.txt').write_text('no row')

  def names(path):
    return [e.prompt for e in files.examples(str(tmp_path / path))]

  assert names('b.jsonl') == ['b.jsonl']
  assert names('') == ['a.jsonl', 'b.jsonl', 'deep/c.jsonl']
  assert names('[ab]*') == ['a.jsonl', 'b.jsonl']
  assert names('**/c.jsonl') == ['deep/c.jsonl']


def test_a_changed_file_is_read_anew_and_the_same_one_is_not(tmp_path):
  calls = []

  def load():
    calls.clear()
    return datasets.load(
      'files',
      str(tmp_path / 'data'),
      progress=lambda *done: calls.append(done),
      path=path,
      **KNOBS,
    )

  path = write(tmp_path / 'mine.jsonl', ROWS)
  first = load()
  assert calls and load().all('train') == first.all('train') and not calls
  write(tmp_path / 'mine.jsonl', ROWS[:-1] + [ROWS[-1] | {'how': 'else'}])
  assert 'else' in {e.reasoning for e in load().all('train')} and calls


def test_a_column_can_tell_the_split(tmp_path):
  rows = [
    {'prompt': f'{i}?', 'answer': '', 'part': part}
    for i, part in enumerate(['train', 'test', 'train', 'validation'])
  ]
  path = write(tmp_path / 'mine.jsonl', rows)
  loaded = datasets.load('files', str(tmp_path / 'd'), path=path, split='part')
  assert [e.prompt for e in loaded.all('train')] == ['0?', '2?']
  assert [e.prompt for e in loaded.all('heldout')] == ['1?', '3?']


def test_what_json_does_not_know_is_kept_as_text(tmp_path):
  import datetime

  day = datetime.date(2020, 1, 2)
  rows = [{'prompt': '1?', 'answer': '1', 'day': day}]
  path = write_parquet(tmp_path / 'mine.parquet', rows)
  [example] = files.examples(path)
  assert example.columns == {'day': '2020-01-02'}


GOOD = '{"prompt": "1?", "answer": "1"}\n'


@pytest.mark.parametrize(
  'text,knobs,words',
  [
    (GOOD + '{"prompt": "2?"}', {}, ['line 2', "no column 'answer'", 'prompt']),
    (GOOD + '\n{"prompt"', {}, ['line 3', 'not JSON']),
    (GOOD + '[1, 2]', {}, ['line 2', "'[1, 2]' is not an object"]),
    (GOOD + '\udcff', {}, ['line 2', 'not JSON']),
    (GOOD, {'reasoning': 'how'}, ['line 1', "no column 'how'", 'prompt, ans']),
    (GOOD, {'split': 'answer'}, ['line 1', "split '1'", 'train, heldout, t']),
  ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, text, knobs, words):
  path = tmp_path / 'mine.jsonl'
  path.write_bytes(text.encode('utf-8', 'surrogateescape'))
  with pytest.raises(ValueError) as error:
    list(files.examples(str(path), **knobs))
  message = str(error.value)
  assert message.startswith(str(path)) and '\n' not in message
  assert [word for word in words if word not in message] == [], message


def test_a_bad_parquet_file_is_named(tmp_path):
  path = tmp_path / 'mine.parquet'
  path.write_bytes(b'no table at all')
  with pytest.raises(ValueError, match='mine.parquet: not Parquet: '):
    list(files.examples(str(path)))


def test_parquet_without_its_package_says_what_to_install(
  tmp_path, monkeypatch
):
  path = write_parquet(tmp_path / 'mine.parquet', ROWS)
  monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
  with pytest.raises(ValueError, match='mine.parquet needs: pip install pyarr'):
    list(files.examples(path))


SOLUTION = (
  'Half is 48/2 = <<48/2=24>>24 or <<20+4=24>>24.\n'
  'Both are <<48+24=72>>72.\n#### '
)


def gsm8k_rows(name, count=3):
  return [
    {'question': f' {name} {i}?', 'answer': f'{SOLUTION}1,{i:03}'}
    for i in range(count)
  ]


def expected_gsm8k(name, side):
  reasoning = 'Half is 48/2 = 24 or 24.\nBoth are 72.'
  return [
    datasets.Example(f'{name} {i}?', f'1{i:03}', reasoning, {}, side)
    for i in range(3)
  ]


def test_gsm8k_from_files_has_its_own_test_split(tmp_path):
  for name in ('train', 'test'):
    write(tmp_path / 'gsm8k' / f'{name}.jsonl', gsm8k_rows(name))
  loaded = datasets.load('gsm8k', str(tmp_path / 'd'), path=str(tmp_path))
  assert loaded.all('train') == expected_gsm8k('train', 'train')
  assert loaded.all('heldout') == expected_gsm8k('test', 'heldout')


def test_the_parquet_files_of_gsm8k_do_as_well(tmp_path):
  for name in ('train', 'test'):
    path = tmp_path / 'main' / f'{name}-00000-of-00001.parquet'
    write_parquet(path, gsm8k_rows(name))
  found = list(gsm8k.examples(str(tmp_path)))
  assert found == [
    *expected_gsm8k('test', 'heldout'),
    *expected_gsm8k('train', 'train'),
  ]


def test_one_file_alone_is_split_by_share(tmp_path):
  path = write(tmp_path / 'train.jsonl', gsm8k_rows('train', 200))
  loaded = datasets.load('gsm8k', str(tmp_path / 'd'), heldout=0.2, path=path)
  assert 20 < loaded.size('heldout') < 60


def test_gsm8k_through_tfds(tmp_path, monkeypatch):
  from tensorflow_datasets.text.gsm8k import gsm8k as published

  for name in ('train', 'test'):
    write(tmp_path / f'{name}.jsonl', gsm8k_rows(name))

  class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(
    ('127.0.0.1', 0), functools.partial(Quiet, directory=tmp_path)
  ) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/'
    monkeypatch.setenv('NO_PROXY', '*')
    monkeypatch.setattr(gsm8k, '_URL', url)
    urls = {name: f'{url}{name}.jsonl' for name in ('train', 'test')}
    monkeypatch.setattr(published, '_URLS', urls)
    monkeypatch.setattr(gsm8k, '_FOLDER', str(tmp_path / 'tfds'))
    found = list(gsm8k.examples())
    server.shutdown()
  expected = [
    *expected_gsm8k('train', 'train'),
    *expected_gsm8k('test', 'heldout'),
  ]
  assert sorted(found) == sorted(expected)
  assert list(gsm8k.examples()) == found  # Without the server.


def test_gsm8k_without_network_says_how_to_fetch_it(tmp_path, monkeypatch):
  def refuse(*args, **kwargs):
    raise urllib.error.URLError('no network')

  monkeypatch.setattr(gsm8k.urllib.request, 'urlopen', refuse)
  monkeypatch.setattr(gsm8k, '_FOLDER', str(tmp_path / 'tfds'))
  with pytest.raises(ValueError) as error:
    list(gsm8k.examples())
  for word in ('no download', 'grade_school_math/data/train.jsonl', "{'path'"):
    assert word in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['gsm8k', 'math', 'files'])
def test_files_that_are_missing_are_asked_for_in_one_line(tmp_path, name):
  path = str(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=rf'^{name}: path=.*nowhere') as error:
    datasets.load(name, str(tmp_path), path=path)
  assert '\n' not in str(error.value)
  if name != 'files':
    assert 'data.knobs' in str(error.value)


def test_an_answer_of_gsm8k_needs_its_mark(tmp_path):
  path = write(tmp_path / 'a.jsonl', [{'question': '1?', 'answer': 'It is 1'}])
  with pytest.raises(ValueError, match="line 1: no '####' in .*'It is 1'"):
    list(gsm8k.examples(path))


@pytest.mark.parametrize(
  'text,answer',
  [
    (r'So $\boxed{42}$.', '42'),
    (r'\boxed{1} or rather \boxed{\frac{1}{2}}.', r'\frac{1}{2}'),
    (r'\boxed{\text{a {b} c}} and {more}', r'\text{a {b} c}'),
    (r'\boxed{\left\{1, 2\right\}}', r'\left\{1, 2\right\}'),
    (r'\boxed{ 3 }', '3'),
    (r'\boxed 5$ is it', '5'),
    (r'\fbox{7}', '7'),
    (r'\boxed {8}', '8'),
    (r'\boxed{unclosed {9}', None),
    (r'no box {9}', None),
    ('', None),
  ],
)
def test_the_last_box_is_the_answer(text, answer):
  assert math.boxed(text) == answer


@given(
  st.recursive(
    st.sampled_from(['x', '1', r'\{', r'\}', r'\frac', ' ', '\n', 'é']),
    lambda part: st.one_of(
      st.lists(part, max_size=4).map(''.join),
      part.map(lambda inner: '{' + inner + '}'),
    ),
    max_leaves=20,
  ),
  st.text('x1$. ', max_size=5),
)
@settings(max_examples=300, deadline=None)
def test_any_balanced_text_comes_out_of_its_box(inner, after):
  assert math.boxed(rf'\boxed{{0}} = \boxed{{{inner}}}{after}') == inner.strip()


def test_math_from_the_original_folder_and_from_jsonl(tmp_path):
  problem = {'problem': 'Find x.', 'level': 'Level 3', 'type': 'Algebra'}
  for side, x in (('train', 1), ('test', 2)):
    path = tmp_path / 'MATH' / side / 'algebra' / '1.json'
    row = problem | {
      'problem': f'Find {x}.',
      'solution': f'It is \\boxed{{{x}}}',
    }
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(row, indent=2))
  loaded = datasets.load(
    'math', str(tmp_path / 'd'), path=str(tmp_path / 'MATH')
  )
  columns = {'level': 3, 'subject': 'Algebra'}
  for side, x in (('train', 1), ('heldout', 2)):
    assert loaded.all(side) == [
      datasets.Example(
        f'Find {x}.', str(x), f'It is \\boxed{{{x}}}', columns, side
      )
    ]
  row = {'problem': 'P', 'solution': r'\boxed{1}', 'subject': 'N', 'level': 5}
  path = write(tmp_path / 'x.jsonl', [row, row | {'level': 'Level ?'}])
  found = [e.columns for e in math.examples(path)]
  assert found == [{'level': n, 'subject': 'N'} for n in (5, 0)]
  path = write(tmp_path / 'y.jsonl', [row | {'solution': 'It is 1.'}])
  with pytest.raises(ValueError, match=r'y.jsonl, line 1: no \\boxed in'):
    list(math.examples(path))


def test_folders_and_names_tell_the_side_only_if_there_are_both(tmp_path):
  rows = [{'prompt': '1?', 'answer': ''}]
  for name in (
    'train/a.jsonl',
    'test/b.jsonl',
    'test/train_c.jsonl',
    'd.jsonl',
  ):
    write(tmp_path / name, rows)
  found = {file.name: side for file, side in local.sides(str(tmp_path))}
  assert found == {
    'a.jsonl': 'train',
    'b.jsonl': 'heldout',
    'train_c.jsonl': 'train',
    'd.jsonl': '',
  }
  found = local.sides(str(tmp_path / 'train'))
  assert [side for _, side in found] == ['']
