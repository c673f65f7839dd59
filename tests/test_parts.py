"""Packages made here that ship a file in parts."""

import hashlib
import importlib

import pytest

from grpo_jax import weights

PARTS = [b'GGUF' + bytes(3), b'two', b'and three']
PATH = 'package:tiny_model/tiny.gguf'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'grpo_jax'


def install(folder, monkeypatch, parts=PARTS, digest=None):
  """A package with a checksum, and beside it one for each part."""
  digest = digest or hashlib.sha256(b''.join(PARTS)).hexdigest()
  data = folder / 'tiny_model' / 'data'
  data.mkdir(parents=True)
  (data.parent / '__init__.py').write_text('raise ImportError\n')
  (data / 'SHA256SUMS').write_text(f'{digest}  tiny.gguf\n')
  for i, part in enumerate(parts):
    data = folder / f'tiny_model_part{i + 1}' / 'data'
    data.mkdir(parents=True)
    (data.parent / '__init__.py').write_text('raise ImportError\n')
    if part is not None:
      (data / f'tiny.gguf.part{i:02}').write_bytes(part)
  monkeypatch.syspath_prepend(folder)
  importlib.invalidate_caches()


def test_parts_become_one_file_in_the_cache(tmp_path, monkeypatch, cache):
  install(tmp_path, monkeypatch)
  found = weights.resolve(PATH)
  assert found.read_bytes() == b''.join(PARTS)
  assert [x.name for x in (cache / 'tiny_model').iterdir()] == ['tiny.gguf']


def test_a_file_that_is_there_is_not_made_again(tmp_path, monkeypatch):
  install(tmp_path, monkeypatch)
  stamp = weights.resolve(PATH).stat().mtime
  assert weights.resolve(PATH).stat().mtime == stamp


def test_a_file_cut_short_is_made_again(tmp_path, monkeypatch):
  install(tmp_path, monkeypatch)
  weights.resolve(PATH).write_bytes(b'GG')
  assert weights.resolve(PATH).read_bytes() == b''.join(PARTS)


def test_a_wrong_checksum_leaves_nothing(tmp_path, monkeypatch, cache):
  install(tmp_path, monkeypatch, digest='ab' * 32)
  with pytest.raises(ValueError, match=f'SHA-256 .*, {"ab" * 32} expected'):
    weights.resolve(PATH)
  assert not [*(cache / 'tiny_model').iterdir()]


def test_a_missing_part_is_named(tmp_path, monkeypatch):
  install(tmp_path, monkeypatch, parts=[PARTS[0], None, PARTS[2]])
  with pytest.raises(FileNotFoundError, match='part 01 is in none of its 3'):
    weights.resolve(PATH)


def test_a_package_without_file_and_parts_is_refused(tmp_path, monkeypatch):
  install(tmp_path, monkeypatch, parts=[])
  with pytest.raises(FileNotFoundError, match="has no file 'tiny.gguf', and"):
    weights.resolve(PATH)
