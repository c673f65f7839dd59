"""gs:// as a folder of this machine."""

from etils.epath import backend
from fsspec.implementations import local


class _Bucket(local.LocalFileSystem):
  cachable = False
  folder = ''

  def _strip_protocol(self, path):
    return str(path).replace('gs://', f'{self.folder}/')


def put_at(folder, monkeypatch):
  """From now on gs://NAME is folder/NAME."""
  bucket = _Bucket()
  bucket.folder = str(folder)
  monkeypatch.setattr(
    backend.fsspec_backend, '_get_filesystem', lambda name: bucket
  )
