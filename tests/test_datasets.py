import itertools
import json
import random
import re
import time

from absl import logging as absl_logging
import numpy as np
import pytest

from grpo_jax import datasets
from grpo_jax.datasets import chains, packing, sums

KNOBS = dict(problems=3000, heldout=0.2)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return datasets.load('chains', str(tmp_path_factory.mktemp('data')), **KNOBS)


def test_what_is_written_is_what_was_generated(dataset):
  unique = dict.fromkeys(chains.examples(problems=3000))
  stored = dataset.all('train') + dataset.all('heldout')
  assert len(stored) == len(unique) == len({e.prompt for e in stored})
  assert set(stored) == set(unique)


def test_columns_and_splits_come_back_from_disk(tmp_path, monkeypatch):
  given = [
    datasets.Example(f'{i} é?', 'a', 'b', {'n': [i, {'x': None}]}, split)
    for i, split in enumerate(['train', 'heldout', 'train'])
  ]
  monkeypatch.setattr(sums, 'examples', lambda: iter(given))
  loaded = datasets.load('sums', str(tmp_path))
  assert loaded.all('train') == [given[0], given[2]]
  assert loaded.all('heldout') == [given[1]]


def test_an_example_without_columns_has_none_and_all_can_be_hashed():
  bare = datasets.Example('1?', '1')
  assert bare == ('1?', '1', '', {}, '')
  full = bare._replace(columns={'n': [1]})
  assert len({bare, full, datasets.Example('1?', '1')}) == 2


def test_a_dataset_s_own_split_holds_and_held_out_wins():
  train, test, open_ = (
    [datasets.Example(f'{i} + {i + k}?', '', split=side) for i in range(50)]
    for k, side in ((1, 'train'), (2, 'heldout'), (3, ''))
  )
  turned = datasets.Example('3 + 1?', '', split='train')  # 1 + 3? is held out.
  twice = test[7]._replace(split='train')
  found = datasets.split([turned, twice, *train, *test, *open_], 0.5)
  assert set(test) < set(found['heldout'])
  assert set(train) < set(found['train'])
  assert {turned, twice}.isdisjoint(found['train'])
  assert len(found['train'] + found['heldout']) == 150
  assert set(open_) & set(found['train']) and set(open_) & set(found['heldout'])


def test_a_key_of_the_dataset_decides_what_is_the_same():
  boards = [datasets.Example(f'{n:09b}', '') for n in range(512)]
  spaced = [b._replace(prompt=' '.join(b.prompt)) for b in boards]
  found = datasets.split(spaced, 0.3, key=lambda prompt: prompt)
  assert 0.2 < len(found['heldout']) / 512 < 0.4
  assert {e.prompt for e in found['heldout']} | {
    e.prompt for e in found['train']
  } == {e.prompt for e in spaced}


def test_knobs_too_long_for_a_folder_still_name_it(tmp_path):
  loaded = [
    datasets.load('files', str(tmp_path / 'data'), path=path)
    for path in _long_paths(tmp_path)
  ]
  assert [d.all('train')[0].answer for d in loaded] == ['0', '1']
  names = [x.name for x in (tmp_path / 'data' / 'files').iterdir()]
  assert len(names) == 2 and max(map(len, names)) < 200


def _long_paths(folder):
  for k in range(2):
    path = folder / ('long' * 40) / f'{k}.jsonl'
    path.parent.mkdir(exist_ok=True)
    rows = [{'prompt': f'{i}?', 'answer': str(k)} for i in range(100)]
    path.write_text('\n'.join(map(json.dumps, rows)))
    yield str(path)


def test_no_problem_is_in_both_splits(dataset):
  train = {e.prompt for e in dataset.all('train')}
  heldout = {e.prompt for e in dataset.all('heldout')}
  assert not train & heldout
  assert 0.17 < len(heldout) / len(train | heldout) < 0.23


def test_order_and_number_of_problems_do_not_move_one_between_splits():
  many = list(chains.examples(problems=2000))
  few = datasets.split(reversed(many[:500]), 0.3)
  full = datasets.split(many, 0.3)
  for name in datasets.SPLITS:
    assert set(few[name]) <= set(full[name])


def test_repeated_problems_are_removed():
  few = list(chains.examples(problems=500))
  assert datasets.split(few * 2, 0.3) == datasets.split(few, 0.3)


def test_the_same_words_in_another_order_stay_on_one_side():
  found = datasets.split(sums.examples(), 0.25)
  side = {e.prompt: name for name in found for e in found[name]}
  for a, b in itertools.product(range(10, 100), range(2, 10)):
    assert side[f'What is {a} + {b}?'] == side[f'What is {b} + {a}?']


def test_ids_name_prompts_in_32_bits():
  examples = list(chains.examples(problems=200))
  ids = {e.prompt: e.id for e in examples}
  assert len(set(ids.values())) == len(ids)
  assert all(0 <= i < 2**32 for i in ids.values())
  other = examples[0]._replace(answer='?', reasoning='?')
  assert other.id == examples[0].id
  # BLAKE2b of the text, four bytes: the noise of old runs depends on it.
  assert datasets.Example('What is 34 + 5?', '', '').id == 3671051297


def test_batches_are_a_pure_function_of_seed_and_cursor(dataset):
  batch = dataset.batch('train', 8, seed=3, cursor=40)
  dataset.batch('train', 5, seed=1, cursor=0)
  assert batch == dataset.batch('train', 8, seed=3, cursor=40)
  assert batch != dataset.batch('train', 8, seed=4, cursor=40)
  halves = [dataset.batch('train', 4, seed=3, cursor=c) for c in (40, 44)]
  assert batch == halves[0] + halves[1]


def test_each_process_can_ask_for_its_own_slice(dataset):
  whole = dataset.batch('train', 8, seed=0, cursor=0)
  assert whole[2:4] == dataset.batch('train', 2, seed=0, cursor=2)
  n = dataset.size('train')  # Across the border of two epochs too.
  whole = dataset.batch('train', 8, seed=0, cursor=n - 3)
  slices = [dataset.batch('train', 2, 0, n - 3 + 2 * p) for p in range(4)]
  assert whole == list(itertools.chain.from_iterable(slices))


def test_an_epoch_holds_every_example_once_and_the_next_is_shuffled_anew(
  dataset,
):
  n = dataset.size('heldout')
  epochs = [dataset.batch('heldout', n, seed=0, cursor=n * e) for e in (0, 1)]
  assert epochs[0] != epochs[1]
  for epoch in epochs:
    assert sorted(epoch) == sorted(dataset.all('heldout'))


def test_draws_cross_the_border_of_epochs():
  n, seed = 5, 7
  expected = [
    int(np.random.default_rng([seed, i // n]).permutation(n)[i % n])
    for i in range(3, 3 + 17)
  ]
  assert datasets.draw(n, 17, seed, cursor=3).tolist() == expected
  assert datasets.draw(n, 0, seed, cursor=3).tolist() == []


def test_a_second_load_reads_and_does_not_generate(tmp_path):
  calls = []

  def note(done, total):
    calls.append((done, total))

  def load(**knobs):
    return datasets.load('chains', str(tmp_path), progress=note, **knobs)

  first = load(problems=1200)
  total = first.size('train') + first.size('heldout')
  assert calls == [(500, total), (1000, total), (total, total)]
  calls.clear()
  assert load(problems=1200).all('train') == first.all('train')
  assert not calls


@pytest.mark.parametrize(
  'knobs', [dict(seed=1), dict(terms_max=5), dict(heldout=0.3)]
)
def test_a_changed_knob_generates_anew(tmp_path, knobs):
  first = datasets.load('chains', str(tmp_path), problems=300)
  other = datasets.load('chains', str(tmp_path), **{'problems': 300, **knobs})
  assert first.all('heldout') != other.all('heldout')


def test_a_changed_version_generates_anew(tmp_path, monkeypatch):
  calls = []

  def note(done, total):
    calls.append((done, total))

  def load():
    datasets.load('sums', str(tmp_path), progress=note)

  load()
  monkeypatch.setattr(sums, 'VERSION', '9.0.0')
  calls.clear()
  load()
  assert calls


def test_an_interrupted_preparation_is_redone(tmp_path):
  def interrupt(done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    datasets.load('chains', str(tmp_path), progress=interrupt, problems=2000)
  loaded = datasets.load('chains', str(tmp_path), problems=2000)
  assert loaded.all('train')
  assert not list(tmp_path.rglob('*incomplete*'))


def test_a_preparation_that_was_overtaken_reads_what_the_other_wrote(tmp_path):
  def other_process(done, total):
    datasets.load('chains', str(tmp_path), problems=600)

  mine = datasets.load(
    'chains', str(tmp_path), progress=other_process, problems=600
  )
  others = datasets.load('chains', str(tmp_path), problems=600)
  assert mine.all('heldout') == others.all('heldout')


def test_preparing_and_reading_say_nothing(tmp_path, capfd, caplog):
  absl_logging.use_absl_handler()
  for _ in range(2):
    datasets.load('sums', str(tmp_path)).batch('train', 4, seed=0, cursor=0)
  assert capfd.readouterr() == ('', '')
  assert not [r for r in caplog.records if r.levelname != 'INFO']


@pytest.mark.parametrize(
  ('name', 'knobs', 'message'),
  [
    ('chain', {}, r"^no dataset 'chain'; there are chains, count"),
    ('packing', {}, r"^no dataset 'packing'; there are .*, math, mixture"),
    ('store', {}, r"^no dataset 'store'; there are .*, sums, two_scripts$"),
    ('sums', {'digit': 2}, r"no knob 'digit'; it has digits, problems"),
    ('sums', {'digits': '2+x'}, r"^digits='2\+x' must be like '2\+1'"),
    ('sums', {'digits': '2'}, r"^digits='2' must be like '2\+1'"),
    ('sums', {'heldout': 1.5}, r'^heldout=1.5 is not a share'),
    ('sums', {'heldout': 1e-9}, r'^heldout=1e-09 of 1440 leaves no held'),
    ('sums', {'problems': 0}, r'^problems=0 must be at least 1'),
    ('chains', {'problems': 0}, r'^problems=0 must be at least 1'),
    ('chains', {'terms_min': 9}, r'^terms_min=9 must be from 1 to terms_m'),
    ('chains', {'terms_min': 0}, r'^terms_min=0 must be from 1 to terms_m'),
  ],
)
def test_bad_names_and_knobs_are_refused_in_one_line(
  tmp_path, name, knobs, message
):
  with pytest.raises(ValueError, match=message) as caught:
    datasets.load(name, str(tmp_path), **knobs)
  assert '\n' not in str(caught.value)


def test_every_equation_of_a_chain_is_true_and_leads_to_the_answer():
  for example in chains.examples(problems=3000, seed=5):
    prompt = r'Start at (\d): ((?:[-+*]\d ?)+)\. Last digit\?'
    start, operations = re.fullmatch(prompt, example.prompt).groups()
    value = start
    steps = example.reasoning.split(';')
    for operation, step in zip(operations.split(), steps, strict=True):
      left, right = step.split('=')
      assert left == value[-1] + operation
      assert eval(left) == int(right) >= 0
      assert operation not in ('*0', '*1', '+0', '-0')
      assert not left.startswith('0*')
      value = right
    assert example.answer == value[-1]


def test_chain_lengths_are_uniform_and_answers_spread():
  examples = list(chains.examples(problems=8000))
  lengths = [e.reasoning.count('=') for e in examples]
  counts = np.bincount(lengths, minlength=8)
  assert not counts[:4].any() and len(counts) == 8
  np.testing.assert_allclose(counts[4:] / 8000, 0.25, atol=0.02)
  answers = np.bincount([int(e.answer) for e in examples], minlength=10)
  assert answers.min() > 0.06 * 8000 and answers.max() < 0.14 * 8000


def test_the_last_operations_of_a_chain_do_not_tell_the_answer():
  # A guess from the last two, learnt on one half and scored on the other.
  examples = list(chains.examples(problems=20_000))
  seen = {}

  def key(example):
    return tuple(example.prompt.split('.')[0].split()[-2:])

  for e in examples[::2]:
    seen.setdefault(key(e), []).append(e.answer)
  guess = {k: max(set(v), key=v.count) for k, v in seen.items()}
  right = [guess.get(key(e)) == e.answer for e in examples[1::2]]
  assert np.mean(right) < 0.24


@pytest.mark.parametrize(
  ('digits', 'count'), [('2+1', 1440), ('1+1+1', 512), ('2+2', 8100)]
)
def test_a_small_space_of_sums_is_enumerated_and_right(digits, count):
  examples = list(sums.examples(digits))
  assert len(set(examples)) == len(examples) == count
  for prompt, answer, reasoning, *_ in examples:
    summands = re.findall(r'\d+', prompt)
    assert prompt == f'What is {" + ".join(summands)}?'
    assert int(answer) == sum(map(int, summands))
    assert reasoning == prompt[len('What is ') : -1] + ' = ' + answer
    assert sorted(map(len, summands)) == sorted(map(int, digits.split('+')))


def test_a_large_space_of_sums_is_drawn():
  examples = list(sums.examples('3+3', problems=500))
  assert len(examples) == 500 and len(set(examples)) > 490
  assert examples == list(sums.examples('3+3', problems=500))
  assert examples != list(sums.examples('3+3', problems=500, seed=1))


def test_a_quarter_of_the_sums_is_enough_to_evaluate(tmp_path):
  assert (
    datasets.load('sums', str(tmp_path), heldout=0.25).size('heldout') > 300
  )


def documents(n, low=20, high=70, seed=0):
  rng = random.Random(seed)
  return [
    [rng.randrange(1000) for _ in range(rng.randint(low, high))]
    for _ in range(n)
  ]


def unpack(packed):
  """Documents by a plain loop over every token, checking what surrounds it."""
  found = []
  for tokens, segments, positions in zip(
    *map(np.ndarray.tolist, packed), strict=True
  ):
    last = 0
    for token, segment, position in zip(
      tokens, segments, positions, strict=True
    ):
      if segment == 0:
        assert token == position == 0
      elif segment == last:
        assert position == len(found[-1])
        found[-1].append(token)
      else:
        assert segment == last + 1 and position == 0
        found.append([token])
      last = segment or None  # A token after padding would break the sum.
  return found


@pytest.mark.parametrize('width', [70, 100, 128, 512])
def test_packing_loses_nothing_and_mixes_nothing(width):
  given = documents(700)
  packed = packing.pack(given, width)
  assert {a.dtype for a in packed} == {np.dtype(np.int32)}
  assert {a.shape[1] for a in packed} == {width}
  assert sorted(unpack(packed)) == sorted(given)


def test_packing_is_deterministic_and_keeps_the_order_roughly():
  given = [[i] * len(d) for i, d in enumerate(documents(2000))]
  packed = packing.pack(given, 128)
  for array, again in zip(packed, packing.pack(given, 128), strict=True):
    np.testing.assert_array_equal(array, again)
  order = [document[0] for document in unpack(packed)]
  assert np.abs(np.array(order) - np.arange(2000)).max() < 200


def test_rows_are_full_to_97_percent():
  packed = packing.pack(documents(1000), 128)
  assert np.mean(packed.segment_ids_BT > 0) > 0.97


def test_packing_few_documents_works():
  assert packing.pack([], 8).tokens_BT.shape == (0, 8)
  packed = packing.pack([[5, 6, 7], [8, 9], [4]], 7)
  assert packed.tokens_BT.tolist() == [[5, 6, 7, 8, 9, 4, 0]]
  assert packed.segment_ids_BT.tolist() == [[1, 1, 1, 2, 2, 3, 0]]
  assert packed.positions_BT.tolist() == [[0, 1, 2, 0, 1, 0, 0]]


def test_packing_is_fast():
  given = documents(20_000)
  start = time.process_time()
  packing.pack(given, 128)
  assert time.process_time() - start < 1.5  # 0.15 s on a quiet CPU.


@pytest.mark.parametrize('length', [0, 9])
def test_a_document_that_does_not_fit_a_row_is_refused(length):
  with pytest.raises(ValueError, match=f'1 has {length} tokens, a row takes 1'):
    packing.pack([[1], [2] * length], 8)


def test_rows_are_served_in_shuffled_epochs():
  packed = packing.pack(documents(100), 128)
  n = len(packed.tokens_BT)
  epoch = packed.batch(n, seed=0, cursor=n)
  assert sorted(epoch.tokens_BT.tolist()) == sorted(packed.tokens_BT.tolist())
  first, second = (packed.batch(4, seed=0, cursor=n + c) for c in (0, 4))
  for whole, a, b in zip(epoch, first, second, strict=True):
    np.testing.assert_array_equal(whole[:8], np.concatenate([a, b]))
