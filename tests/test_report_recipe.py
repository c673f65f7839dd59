"""The report of a recipe: its diagram, its table, what its stages answer."""

import json

import browser
import command
import numpy as np
import pytest
import reported
from test_report import frame, lightness, packed, tab, texts  # noqa: F401

from grpo_jax import report
from grpo_jax.report import recipes

POLICIES = [
  name for name, kind, _ in reported.STAGES if kind in reported.POLICIES
]
DONE = 7  # Stages of the second seed; the next one is begun.


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """A recipe that was carried out."""
  return reported.recipe(tmp_path_factory.mktemp('one') / 'r1')


@pytest.fixture(scope='module')
def one_page(one):
  return report.write([one])


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """Two seeds, one of them in progress."""
  folder = tmp_path_factory.mktemp('two')
  return [
    reported.recipe(folder / 'r1_0', 0),
    reported.recipe(folder / 'r1_1', 1, done=DONE),
  ]


# What is read.


def test_a_stage_says_what_it_takes_from_which_other(one):
  stages = recipes.read([one])['recipe']['stages']
  assert [stage['name'] for stage in stages] == [x for x, *_ in reported.STAGES]
  found = {stage['name']: stage for stage in stages}
  assert found['base']['from'] == []
  assert found['sft']['from'] == [
    ['base', 'start'],
    ['rl_1_said', 'data'],
    ['base_told', 'data'],
  ]
  assert found['rl_2']['from'] == [['sft', 'start'], ['helpful', 'judge']]
  assert found['on_policy']['from'] == [
    ['student', 'start'],
    ['rl_2', 'teacher'],
  ]
  assert found['on_policy']['what'] == 'distill of student towards rl_2'
  assert [x['name'] for x in stages if x['policy']] == POLICIES


def test_stages_with_metrics_are_runs_and_those_of_one_stage_a_group(two):
  found = recipes.read(two)
  first, second = found['recipe']['seeds']
  assert [*first['runs']] == POLICIES
  names = [found['runs'][i]['name'] for i in second['runs'].values()]
  assert names == [f'r1_1/{x}' for x in POLICIES[:5]]
  assert [group['name'] for group in found['groups']] == POLICIES
  rl_1 = [first['runs']['rl_1'], second['runs']['rl_1']]
  assert {'name': 'rl_1', 'runs': rl_1} in found['groups']


def test_a_stage_is_done_in_progress_or_not_begun(two):
  state = recipes.read(two)['recipe']['seeds'][1]['state']
  names = [name for name, *_ in reported.STAGES]
  expected = ['done'] * DONE + ['in progress']
  expected += ['not begun'] * (len(names) - len(expected))
  assert [state[name] for name in names] == expected


def test_rows_are_those_of_the_table_and_else_computed(tmp_path):
  """Both when it was written before the last stages were done."""
  path = reported.recipe(tmp_path / 'r1')
  row = {
    'stage': 'base',
    'what': 'pretrain',
    'accuracy': 0.123,
    'accuracy_interval': [0.1, 0.2],
    'reasoning': 0.5,
    'length': 3.0,
    'parts': {'format': None},
  }
  (path / 'table.json').write_text(json.dumps([row]))
  found = recipes.read([path])['recipe']['seeds'][0]['table']
  assert found['base'] == row
  file = path / 'table' / 'rl_1' / 'evaluations' / 'after.json'
  e = json.loads(file.read_text())
  own = found['rl_1']
  assert own['accuracy'] == np.mean(e['correct_NG'])
  assert own['length'] == np.mean(e['lengths_NG'])
  assert own['parts'].keys() == e['parts'].keys() - {'answer'}  # Accuracy.
  for name in own['parts']:
    score = e['parts'][name]
    assert own['parts'][name] == pytest.approx(np.nanmean(score)), name


def test_heads_are_words_and_a_penalty_is_best_where_it_is_least(one):
  found = {x['name']: x for x in recipes.read([one])['recipe']['parts']}
  heads = {name: x['head'] for name, x in found.items()}
  assert heads['language'] == 'readability'
  assert heads['reflection'] == 'reflection words'
  assert heads['long'] == 'long'
  assert [name for name, x in found.items() if x['less']] == ['long']


def test_what_is_no_recipe_or_another_one_is_refused(tmp_path, one):
  run = reported.workdir(tmp_path / 'run', steps=2)
  with pytest.raises(ValueError, match='run has no recipe.json'):
    report.write([one, run])
  other = reported.recipe(tmp_path / 'other', 1, done=0, order=['base'])
  with pytest.raises(ValueError, match='other has another recipe than '):
    report.write([one, other])


def test_the_command_takes_a_recipe(tmp_path):
  path = reported.recipe(tmp_path / 'r1', done=1)
  done = command.run('experiments/report.py', str(path))
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'{path / "report.html"}\n'
  assert packed(path / 'report.html')['recipe']['seeds'][0]['name'] == 'r1'


# In a browser.

needs_browser = pytest.mark.skipif(
  not browser.PATH, reason='no chromium (apt-get install chromium)'
)


@pytest.fixture
def page(tab, one_page):  # noqa: F811
  yield from shown(tab, one_page)


@pytest.fixture
def seeds(tab, two):  # noqa: F811
  yield from shown(tab, report.write(two))


def shown(tab, path):  # noqa: F811
  tab.size(1600)
  tab.prefer('light')
  tab.open(path, 'document.body.dataset.ready')
  tab.requests.clear()
  yield tab
  assert tab.errors == [] and tab.requests == []
  assert 'grpo_jax' in tab.run('document.title')


def boxes(page) -> dict[str, list[float]]:
  """Stage -> left, top, right, bottom."""
  return page.run(
    'Object.fromEntries([...document.querySelectorAll(".stage")].map((x) => {'
    'const b = x.querySelector("rect").getBoundingClientRect();'
    'return [x.dataset.stage, [b.left, b.top, b.right, b.bottom]] }))'
  )


@needs_browser
@pytest.mark.parametrize('width', [400, 800, 1600])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_every_box_is_after_all_that_it_takes_from(page, width, scheme):
  page.size(width)
  page.prefer(scheme)
  frame(page)
  frame(page)
  assert (lightness(page) < 60) == (scheme == 'dark')
  found = boxes(page)
  assert len(found) == len(reported.STAGES)
  side = 0 if width == 1600 else 1  # From left to right, or downwards.
  for name, _, takes in reported.STAGES:
    for source in ','.join(takes.values()).split(','):
      if source:
        assert found[name][side] > found[source][side + 2]
  names = list(found)
  for i, a in enumerate(names):
    for b in names[:i]:
      (l, t, r, u), (l2, t2, r2, u2) = found[a], found[b]
      assert r <= l2 or r2 <= l or u <= t2 or u2 <= t, (a, b)
  assert min(x[0] for x in found.values()) >= 0
  assert max(x[2] for x in found.values()) <= width
  assert page.run('document.documentElement.scrollWidth') == width
  # No arrow passes through a box that it has nothing to do with.
  through = page.run(
    '[...document.querySelectorAll(".diagram [data-from]")].flatMap((g) => {'
    'const path = g.querySelector(".arrow"), at = path.getScreenCTM();'
    'const boxes = [...document.querySelectorAll(".stage")].filter((x) =>'
    ' ![g.dataset.from, g.dataset.to].includes(x.dataset.stage));'
    'return Array.from({ length: 200 }, (_, i) => path.getPointAtLength('
    ' i / 199 * path.getTotalLength()).matrixTransform(at)).flatMap((p) =>'
    ' boxes.filter((x) => { const b = x.getBoundingClientRect();'
    ' return p.x > b.left && p.x < b.right && p.y > b.top && p.y < b.bottom })'
    ' .map((x) => [g.dataset.from, g.dataset.to, x.dataset.stage])) })'
  )
  assert through == []


@needs_browser
def test_arrows_have_a_style_each_and_a_legend(page):
  styles = page.run(
    '[...document.querySelectorAll(".diagram [data-from]")].map((x) =>'
    ' [x.dataset.from, x.dataset.to, x.querySelector(".arrow").classList[1],'
    ' getComputedStyle(x.querySelector(".arrow")).strokeDasharray])'
  )
  expected = [
    (source, name, how)
    for name, _, takes in reported.STAGES
    for how, sources in takes.items()
    for source in sources.split(',')
  ]
  assert sorted(tuple(x[:3]) for x in styles) == sorted(expected)
  dashes = {how: dash for _, _, how, dash in styles}
  assert dashes['start'] == 'none' and len(set(dashes.values())) == 4
  legend = texts(page, '.legend span')
  assert [x.split(':')[0] for x in legend[:4]] == [
    'start',
    'data',
    'teacher',
    'judge',
  ]


@needs_browser
def test_a_click_on_a_box_goes_to_the_run_of_the_stage(page):
  page.click('.stage[data-stage="rl_1"]')
  frame(page)
  [row] = texts(page, '#table tr.chosen')
  assert row.startswith('rl_1')
  seen = page.run(
    '(() => { const b = document.querySelector("#table tr.chosen")'
    '.getBoundingClientRect(); return b.top > 0 && b.bottom < innerHeight })()'
  )
  assert seen
  chosen = page.run('document.querySelector("#run").selectedOptions[0].text')
  assert chosen == 'rl_1'
  assert texts(page, '#stage')[0].startswith('rl_1 grpo of cold_start. done.')
  page.click('.stage[data-stage="zero_said"]')  # Nothing was trained there.
  assert 'It has no curves.' in texts(page, '#stage')[0]
  assert texts(page, '#table tr.chosen') == []
  page.run('document.querySelector(".stage[data-stage=base]").focus()')
  for kind in ('keyDown', 'keyUp'):
    page.call('Input.dispatchKeyEvent', type=kind, key='Enter')
  assert texts(page, '#table tr.chosen')[0].startswith('base')


@needs_browser
def test_the_best_of_a_column_is_bold(page, one):
  table = recipes.read([one])['recipe']['seeds'][0]['table']
  heads = texts(page, '#compared thead th')
  rows = texts(page, '#compared tbody tr')
  assert [x.split('  ')[0] for x in rows] == POLICIES
  # By hand: accuracy is 1 from the sixth policy on, nothing is long at first.
  bold = page.run(
    '[...document.querySelectorAll("#compared tbody tr")].map((row) =>'
    ' [...row.cells].map((cell) => cell.classList.contains("number") &&'
    ' cell.querySelector("b") != null))'
  )
  columns = dict(zip(heads, np.array(bold).T.tolist(), strict=True))
  assert columns['accuracy'] == [
    table[name]['accuracy'] == 1.0 for name in POLICIES
  ]
  assert columns['long'] == [i == 0 for i in range(8)]
  assert columns['readability'] == [i == 7 for i in range(8)]
  assert columns['length, tokens'] == [False] * 8
  low, high = table['base']['accuracy_interval']
  expected = f'{100 * low:.1f}–{100 * high:.1f}'
  assert expected in rows[0]


@needs_browser
def test_answers_of_all_stages_stand_under_each_other(page, one):
  """Problem 2 comes first: wrong and direct, wrong with reasoning, right."""
  assert texts(page, '#answers .problems [aria-pressed="true"]') == [
    'What is 2 + 3?'
  ]
  found = texts(page, '.said-by')
  assert len(found) == len(POLICIES)
  for i, (name, text) in enumerate(zip(POLICIES, found, strict=True)):
    assert text.startswith(f'{name} {"✓ right" if i >= 2 else "✗ wrong"}')
  assert (
    page.run('document.querySelectorAll(".said-by details[open]").length') == 7
  )
  assert texts(page, '.said-by .said') == ['wait'] * 7
  assert 'right' in page.run(
    'document.querySelectorAll(".said-by .answer")[2].className'
  )
  page.choose('#problem', '4')
  assert (
    texts(page, '.said-by .cut') == ['cut at the limit, before it ended'] * 8
  )
  page.click('[aria-label="next problem"]')
  said = [reported.HOSTILE[i] or '(empty)' for i in range(8)]
  for text, block in zip(said, texts(page, '.said-by'), strict=True):
    assert text[:20].replace('<think>', '') in block
  assert (
    page.run('document.querySelectorAll("main img, main script").length') == 0
  )
  page.click('[aria-label="next problem"]')
  assert texts(page, '#answers .prompt b') == ['What is 0 + 3?']


@needs_browser
def test_problems_that_tell_a_story_are_suggested_first(page):
  """From wrong and direct through reasoning to right, without turning back."""
  worst_to_best = [
    [(0, 0), (0, 1), (0, 1)],  # Nobody is right,
    [(1, 0), (0, 0), (1, 0)],  # it turns twice,
    [(1, 0), (1, 0), (0, 1)],  # once,
    [(0, 0), (1, 1), (0, 1)],  # reasoning helped and then did not,
    [(0, 0), (1, 1), (1, 1)],  # it helped at once,
    [(0, 0), (0, 1), (1, 1)],  # after an error.
  ]
  found = [
    page.run(
      'telltale('
      + json.dumps([{'right': [r], 'reasons': [d]} for r, d in stages])
      + ', 0)'
    )
    for stages in worst_to_best
  ]
  assert found[0] == 0 and found == sorted(set(found))


@needs_browser
def test_reflection_goes_through_the_rl_stages(page):
  names = ['r1_zero', 'rl_1', 'rl_2', 'on_policy']
  assert texts(page, '#reflections text.border') == names
  x = page.run(
    '[...document.querySelectorAll("#reflections line.border")].map((x) =>'
    ' +x.getAttribute("x1"))'
  )
  assert x == sorted(x) and np.ptp(np.diff(x)) < 1
  drawn = page.run(
    '[...document.querySelectorAll("#reflections path.mean")].map((x) =>'
    ' x.getBBox().x)'
  )
  assert all(begin < at for begin, at in zip(x, drawn, strict=True))
  assert all(at < end for end, at in zip(x[1:], drawn[:-1], strict=True))
  page.run('document.querySelector("#reflections svg").scrollIntoView()')
  page.click('#reflections svg')  # The middle of four times eight steps.
  run = page.run('document.querySelector("#where").selectedOptions[0].text')
  at = page.run('document.querySelector("#from").value')
  assert (run, at) in [('rl_1', '8'), ('rl_2', '2')]


@needs_browser
def test_seeds_are_means_with_their_range(seeds, two):
  rows = texts(seeds, '#compared tbody tr')
  assert 'grpo of base, 2 of 2 seeds' in rows[1]
  assert '41.7%  33.3–50.0' in rows[1]  # 2 and 3 of 6 problems.
  assert 'judged by helpful, 1 of 2 seeds' in rows[5]
  assert len(boxes(seeds)) == len(reported.STAGES)
  seeds.click('.stage[data-stage="sft"]')
  assert 'r1_0: done. r1_1: in progress.' in texts(seeds, '#stage')[0]
  assert len(texts(seeds, '.said-by')) == 8
  seeds.choose('#answers-seed', '1')
  assert len(texts(seeds, '.said-by')) == 4


@needs_browser
@pytest.mark.parametrize('done', [-1, 0, 1])
def test_a_recipe_that_has_just_begun_is_shown(tab, tmp_path, done):  # noqa: F811
  path = reported.recipe(tmp_path / 'r1', done=done)
  tab.open(report.write([path]), 'document.body.dataset.ready')
  assert tab.errors == []
  counted = texts(tab, '#recipe p')[0]
  begun = {-1: '12 not begun.', 0: '1 in progress, 11 not begun.'}
  assert counted == begun.get(done, '1 done, 1 in progress, 10 not begun.')
  [waiting] = [x for x in texts(tab, '#stages p') if 'Not compared' in x]
  assert waiting.startswith(f'Not compared yet: {POLICIES[max(done, 0)]}, ')


@needs_browser
def test_many_problems_are_comfortable(tab, tmp_path):  # noqa: F811
  path = report.write([reported.recipe(tmp_path / 'r1', problems=600)])
  seen = []
  for _ in range(2):
    tab.open(path, 'document.body.dataset.ready')
    seen.append(tab.run('+document.body.dataset.ready'))
  spent = tab.run(
    '(() => { const begun = performance.now(), s ='
    ' document.querySelector("#problem"); for (let i = 0; i < 20; i++) {'
    ' s.value = i; s.dispatchEvent(new Event("change")) }'
    ' return (performance.now() - begun) / 20 })()'
  )
  print(f'all after {seen} ms, a problem {spent:.1f} ms')
  assert spent < 50 and min(seen) < 3000 and tab.errors == []
