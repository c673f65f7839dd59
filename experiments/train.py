"""Runs a config: see README, and configs/ for what there is.

  python experiments/train.py --config configs/quickstart.py \
      --workdir runs/quickstart

Started again with the same command, a run goes on from its last checkpoint.
With --config.preference.path it trains a reward model, and else a policy.
With --preflight it samples one batch, and says in words what will go wrong.
Many hosts run it at the same time, each with this command; where no cluster
says who they are, with --coordinator, --processes and --process besides.
"""

from absl import flags

from grpo_jax import process

process.keep_memory()  # Before anything allocates.

from grpo_jax import (  # noqa: E402
  algorithms,
  build,
  command,
  fit,
  fit_preference,
  preflight,
)

_CONFIG = command.config_flag()
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')
_PROFILE = flags.DEFINE_bool(
  'profile', False, 'Write a trace of three RL steps to <workdir>/profile.'
)
_PREFLIGHT = flags.DEFINE_bool(
  'preflight', False, 'Sample one batch and say what is wrong; train nothing.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'host:port on which the first process listens.'
)
_PROCESSES = flags.DEFINE_integer(
  'processes', None, 'How many there are; 1 looks for no others.'
)
_PROCESS = flags.DEFINE_integer('process', None, 'Which this is, from 0.')


def main():
  config = algorithms.resolve(_CONFIG.value, command.given(_CONFIG)).lock()
  process.cut_cpu(build.cpu_devices(config))
  process.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  if _PREFLIGHT.value:
    preflight.preflight(config, _WORKDIR.value)
  elif config.preference.path:
    fit_preference.fit(config, _WORKDIR.value)
  else:
    fit.fit(config, _WORKDIR.value, _PROFILE.value)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config'])
  flags.register_multi_flags_validator(
    ['workdir', 'preflight'],
    lambda given: given['workdir'] or given['preflight'],
    'Flag --workdir must have a value other than None.',
  )
  command.run(main)
