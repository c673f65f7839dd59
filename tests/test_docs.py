"""docs/: the config reference is what its script writes, and links lead on."""

import importlib.util
import re

import command
import pytest

from grpo_jax import config

DOCS = command.ROOT / 'docs'
PAGES = sorted(DOCS.glob('*.md'))


@pytest.fixture(scope='module')
def reference():
  path = DOCS / 'config_reference.py'
  spec = importlib.util.spec_from_file_location('config_reference', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_config_reference_is_up_to_date(reference):
  assert reference.PAGE.read_text() == reference.page(), (
    'run: python docs/config_reference.py'
  )


def test_every_knob_is_in_it_and_nearly_all_are_explained(reference):
  page = reference.page()
  c = config.default()
  names = {k for k, _ in _flat(c)}
  rows = dict(re.findall(r'^\| `([\w.]+)` \| `.*?` \| (.*) \|$', page, re.M))
  assert names == set(rows)
  silent = {name for name, said in rows.items() if not said}
  # Names of choices are explained below their tables.
  silent -= {name for name in silent if name.endswith('.name')}
  assert silent <= {
    'reward.answer',
    'reward.format',
    'loss.clip_low',
    'loss.clip_high',
    *(f'mesh.{axis}' for axis in c.mesh),
  }


def _flat(node, above=''):
  for name, value in node.items():
    if hasattr(value, 'items') and len(value):
      yield from _flat(value, f'{above}{name}.')
    else:
      yield above + name, value


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
  for path in re.findall(r'\]\(([^)#:]+)\)', page.read_text()):
    assert (DOCS / path).exists(), path


@pytest.mark.parametrize('page', ['troubleshooting.md', 'how_a_step_works.md'])
def test_knobs_that_pages_speak_of_exist(page):
  text = (DOCS / page).read_text()
  c = config.default()
  for knob in re.findall(r'`c\.([\w.]+)', text):
    node = c
    for name in knob.rstrip('.').split('.'):
      assert name in node, knob
      node = node[name]
