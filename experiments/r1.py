r"""Carries out a recipe of stages, each of which is an ordinary run.

  python experiments/r1.py --config configs/r1_mini.py --workdir runs/r1

Every stage has a folder of its own in the workdir. Started again with the same
command, a recipe goes on where it was; stages that are done stay. It ends with
a table over the stages, and leaves it as table.json.
"""

import os

from absl import flags
import jax

from grpo_jax import process

process.keep_memory()  # Before anything allocates.

from grpo_jax import build, command, pipeline  # noqa: E402

_CONFIG = command.config_flag()
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the recipe.')


def main():
  c = _CONFIG.value
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    # Stages share programs: most of sampling and fine-tuning compile once.
    cache = os.path.abspath(os.path.join(_WORKDIR.value, 'compiled'))
    jax.config.update('jax_compilation_cache_dir', cache)
  pipeline.check(c, _WORKDIR.value)
  devices = (
    build.cpu_devices(pipeline.configure(c, name, _WORKDIR.value))
    for name in c.order
  )
  process.cut_cpu(min(devices))
  process.join()
  pipeline.carry_out(c, _WORKDIR.value)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  command.run(main)
