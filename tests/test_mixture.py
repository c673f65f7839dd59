"""Mixtures: shares, order, and that no source trains on what another holds."""

from collections import Counter
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from grpo_jax import datasets
from grpo_jax.datasets import countdown, mixture, sums

KNOBS = {
  'sums': {'weight': 2.0, 'digits': '2+1'},
  'hard': {'name': 'chains', 'problems': 300},
  'countdown': {'weight': 0.5, 'problems': 200, 'style': 'terse'},
}


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('data'))
  return datasets.load('mixture', folder, heldout=0.2, **KNOBS)


def test_every_source_is_there_with_its_name_and_its_own_columns(mixed):
  for split in datasets.SPLITS:
    found = {}
    for example in mixed.all(split):
      found.setdefault(example.columns['source'], []).append(example)
    assert set(found) == set(KNOBS)
    # In turn, so that the first ones show every source.
    first = [e.columns['source'] for e in mixed.all(split)[:6]]
    assert first == [*KNOBS] * 2
    assert all(
      {'numbers', 'target'} < set(e.columns) for e in found['countdown']
    )
    assert all(set(e.columns) == {'source'} for e in found['hard'])
  alone = datasets.split(countdown.examples(problems=200, style='terse'), 0.2)
  ours = {
    e.prompt for e in mixed.all('heldout') if e.columns['source'] == 'countdown'
  }
  assert ours == {e.prompt for e in alone['heldout']}


def test_shares_are_exact_in_every_block(mixed):
  assert mixed.block == (4, 2, 1)
  batch = mixed.batch('train', 700, seed=3, cursor=7 * 5)
  for i in range(0, 700, 7):
    counts = Counter(e.columns['source'] for e in batch[i : i + 7])
    assert counts == {'sums': 4, 'hard': 2, 'countdown': 1}
  orders = {
    tuple(e.columns['source'] for e in batch[i : i + 7])
    for i in range(0, 700, 7)
  }
  assert len(orders) > 30
  other = mixed.batch('train', 700, seed=4, cursor=7 * 5)
  assert [e.columns['source'] for e in other] != [
    e.columns['source'] for e in batch
  ]


def test_slices_of_a_batch_are_the_batch(mixed):
  whole = mixed.batch('train', 8, seed=0, cursor=0)
  assert whole[2:4] == mixed.batch('train', 2, seed=0, cursor=2)
  assert whole != mixed.batch('train', 8, seed=1, cursor=0)
  # Over more than two epochs of the smallest source.
  whole = mixed.batch('heldout', 300, seed=5, cursor=11)
  for size in (1, 13, 100):
    slices = [
      mixed.batch('heldout', min(size, 300 - i), 5, 11 + i)
      for i in range(0, 300, size)
    ]
    assert list(itertools.chain.from_iterable(slices)) == whole
  assert mixed.batch('train', 0, seed=0, cursor=3) == []


def test_each_source_goes_through_its_own_problems_epoch_by_epoch(mixed):
  batch = mixed.batch('train', 5000, seed=2, cursor=0)
  for i, source in enumerate(KNOBS):
    mine = [e.prompt for e in batch if e.columns['source'] == source]
    n = mixed.sources[i].size('train')
    every = {e.prompt for e in mixed.sources[i].all('train')}
    assert len(mine) > 2 * n
    assert set(mine[:n]) == set(mine[n : 2 * n]) == every
    assert mine[:n] != mine[n : 2 * n]


def test_no_problem_comes_twice_before_the_size_is_reached(mixed):
  for split in datasets.SPLITS:
    size = mixed.size(split)
    assert size > 50
    for seed in range(3):
      prompts = [e.prompt for e in mixed.batch(split, size, seed, 0)]
      assert len(set(prompts)) == size


@given(
  st.lists(
    st.floats(0.1, 20).map(lambda w: round(w, 3)), min_size=1, max_size=5
  )
)
@settings(max_examples=100, deadline=None)
def test_shares_are_as_near_as_a_thousandth(weights):
  block = mixture.shares({str(i): w for i, w in enumerate(weights)})
  assert min(block) >= 1 and sum(block) <= 1000
  for count, weight in zip(block, weights, strict=True):
    assert abs(count / sum(block) - weight / sum(weights)) < 1e-3


@pytest.mark.parametrize(
  'weights,block',
  [([1], (1,)), ([2.0, 1.0], (2, 1)), ([0.3, 0.7], (3, 7)), ([5, 5], (1, 1))],
)
def test_simple_weights_give_small_blocks(weights, block):
  assert mixture.shares({str(i): w for i, w in enumerate(weights)}) == block


def words(example):
  return sorted(example.prompt.replace('?', ' ').split())


def test_what_one_source_holds_out_no_other_trains_on(tmp_path, monkeypatch):
  # Sums with a split of their own beside sums that are split by their words.
  rows = list(sums.examples('1+1'))
  side = {True: 'heldout', False: 'train'}

  def own(digits='1+1', problems=1, seed=0):
    if digits == '1+1':
      return iter(rows)
    odd = [e._replace(split=side[i % 3 == 0]) for i, e in enumerate(rows)]
    return (e._replace(prompt=e.prompt[:-1] + ' ?') for e in odd)

  monkeypatch.setattr(sums, 'examples', own)
  mixed = datasets.load(
    'mixture',
    str(tmp_path),
    heldout=0.3,
    plain={'name': 'sums'},
    own={'name': 'sums', 'digits': 'x'},
  )
  train, held = (
    {tuple(words(e)) for e in mixed.all(split)} for split in datasets.SPLITS[:2]
  )
  assert train and held and not train & held
  assert len(train | held) == len({tuple(words(e)) for e in rows})


def test_the_same_problem_of_two_sources_comes_once(tmp_path):
  mixed = datasets.load(
    'mixture',
    str(tmp_path),
    a={'name': 'chains', 'problems': 300},
    b={'name': 'chains', 'problems': 600},
  )
  for split in datasets.SPLITS:
    prompts = [e.prompt for e in mixed.all(split)]
    assert len(set(prompts)) == len(prompts)
  assert mixed.sources[0].size('train') + mixed.sources[1].size('train') < 620


def test_other_weights_read_the_same_store_and_other_knobs_do_not(tmp_path):
  calls = []

  def load(**knobs):
    calls.clear()
    return datasets.load(
      'mixture',
      str(tmp_path),
      progress=lambda *done: calls.append(done),
      sums=knobs,
      chains={'problems': 300},
    )

  load(digits='1+1')
  assert calls
  assert load(digits='1+1', weight=3).block == (3, 1) and not calls
  load(digits='2+1')
  assert calls


@pytest.mark.parametrize(
  'knobs,message',
  [
    ({}, r'^a mixture needs data.knobs = '),
    ({'sums': 2.0}, r'^mixture: sums=2.0 must be a dict'),
    ({'sums': {'weight': 0}}, r'^mixture: weight=0 of sums must be above 0'),
    ({'summs': {}}, r"^no dataset 'summs'; there are chains"),
    ({'sums': {'digit': 1}}, r"^dataset sums has no knob 'digit'"),
    ({'x': {'name': 'mixture'}}, r'^mixture: x is a mixture itself'),
    ({'sums': {'digits': '2'}}, r"^mixture: sums: digits='2' must be like"),
    (
      {'sums': {}, 'chains': {'weight': 1e-4}},
      r"^mixture: the weights {'sums': 1.0, 'chains': 0.0001} differ by more",
    ),
    (
      {'sums': {'digits': '1+1'}, 'x': {'name': 'sums', 'digits': '1+1'}},
      r'^mixture: x has no train problem that the others leave',
    ),
  ],
)
def test_mixtures_that_cannot_be_are_refused_in_one_line(
  tmp_path, knobs, message
):
  with pytest.raises(ValueError, match=message) as error:
    datasets.load('mixture', str(tmp_path), **knobs)
  assert '\n' not in str(error.value)


def test_far_into_a_run_a_batch_is_as_quick(mixed):
  far = mixed.batch('train', 8, seed=0, cursor=10**12)
  assert far == mixed.batch('train', 8, seed=0, cursor=10**12)
  assert np.unique([e.prompt for e in far]).size == 8
