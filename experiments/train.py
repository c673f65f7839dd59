"""Runs a config: see README, and configs/ for what there is.

  python experiments/train.py --config configs/quickstart.py \
      --workdir runs/quickstart

Started again with the same command, a run goes on from its last checkpoint.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from grpo_jax import process

process.keep_memory()  # Before anything allocates.

from grpo_jax import fit  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file in configs/.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every file.
  try:
    fit.fit(_CONFIG.value.lock(), _WORKDIR.value)
  except (ValueError, FileNotFoundError) as e:
    raise SystemExit(f'error: {e}') from e


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main)
