"""Runs a config: see README, and configs/ for what there is.

  python experiments/train.py --config configs/quickstart.py \
      --workdir runs/quickstart

Started again with the same command, a run goes on from its last checkpoint.
"""

from absl import flags

from grpo_jax import process

process.keep_memory()  # Before anything allocates.

from grpo_jax import command, fit  # noqa: E402

_CONFIG = command.config_flag()
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')


def main():
  fit.fit(_CONFIG.value.lock(), _WORKDIR.value)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  command.run(main)
