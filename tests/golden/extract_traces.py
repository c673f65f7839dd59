"""Packs eight short trainings of TRL: what went in, and what came out.

  python tests/golden/extract_traces.py FOLDER

FOLDER holds trace.json, init_model/ and <trace>.{npz,final.safetensors},
recorded by running GRPOTrainer.train() of TRL 1.16.0 with transformers 5.23.0
(both Apache-2.0) in float32 on a CPU, on a Llama of two layers with random
weights and on completions that were given to it. Writes traces.npz beside this
file:

  init            the initial weights, a float32 vector in the order of `names`
  <trace>.final   and those after the last step
  names           JSON: [name, shape] of each tensor of the checkpoint
  rollouts        JSON: of each generation the prompts [P] and completions
                  [P][G] as token ids, and the rewards [P][G]
  records         JSON: of each trace its name, config, steps (loss of each
                  call, rows of the generation in each, gradient norm before
                  clipping) and `noise`, how far a second run of TRL with
                  another attention kernel was from the first
  origin          versions, and sha256 of the source files
"""

import hashlib
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file

CONFIG = ('loss_type', 'beta', 'use_bias_correction_kl', 'num_iterations')
CONFIG += ('steps_per_generation', 'gradient_accumulation_steps')
CONFIG += ('learning_rate', 'weight_decay', 'adam_beta1', 'adam_beta2')
CONFIG += ('adam_epsilon', 'max_grad_norm', 'optim', 'temperature', 'epsilon')
CONFIG += ('epsilon_high', 'scale_rewards', 'mask_truncated_completions')
CONFIG += ('max_completion_length',)
GROUP = 4


def vector(path: pathlib.Path, names: list) -> np.ndarray:
  tensors = load_file(path)
  assert sorted(tensors) == sorted(name for name, _ in names)
  return np.concatenate([tensors[name].ravel() for name, _ in names])


def grouped(rollout: dict) -> dict:
  """Rows of a generation, whose groups are consecutive, as [P][G]."""
  prompts = rollout['prompt_ids']
  groups = range(0, len(prompts), GROUP)
  assert all(prompts[i : i + GROUP] == GROUP * [prompts[i]] for i in groups)
  return {
    'prompts': [prompts[i] for i in groups],
    'completions': [rollout['completion_ids'][i : i + GROUP] for i in groups],
    'rewards': [rollout['rewards'][i : i + GROUP] for i in groups],
  }


def rows_of(call: np.ndarray, rollout: dict) -> list[int]:
  """Where the completions of a call, padded, are in their generation."""
  rows = []
  for ids in call.tolist():
    matches = [
      row
      for row, completion in enumerate(rollout['completion_ids'])
      if ids[: len(completion)] == completion
    ]
    rows.append(max(matches, key=lambda i: len(rollout['completion_ids'][i])))
  return rows


def record(trace: dict, arrays, rollouts: list) -> dict:
  config = {name: trace['config'][name] for name in CONFIG}
  calls = config['gradient_accumulation_steps']
  generation = config['steps_per_generation'] * config['num_iterations']
  steps = []
  for number, step in enumerate(trace['steps']):
    indices = range(number * calls, (number + 1) * calls)
    rollout = number * calls // generation
    steps.append(
      {
        'rollout': rollout,
        'losses': [trace['loss_per_call'][i] for i in indices],
        'rows': [
          rows_of(arrays[f'call{i}.completion_ids'], rollouts[rollout])
          for i in indices
        ],
        'grad_norm': step['grad_norm_before_clip'],
      }
    )
  noise = [step['eager_vs_sdpa'] for step in trace['steps']]
  return {
    'name': trace['name'],
    'config': config,
    'steps': steps,
    'noise': {
      'loss': max(trace['loss_abs_diff_eager_vs_sdpa']),
      'grad_norm_rel': max(step['grad_norm_rel'] for step in noise),
      'param_max_abs': noise[-1]['param_max_abs'],
      'param_rel_l2': noise[-1]['param_rel_l2'],
    },
  }


def main(folder: pathlib.Path):
  found = json.loads((folder / 'trace.json').read_text())
  init = folder / 'init_model' / 'model.safetensors'
  names = [[name, list(x.shape)] for name, x in load_file(init).items()]
  out = {'init': vector(init, names)}
  files, records = [init, folder / 'trace.json'], []
  for trace in found['traces']:
    name = trace['name']
    arrays = np.load(folder / f'{name}.npz')
    records.append(record(trace, arrays, found['rollouts']))
    final = folder / f'{name}.final.safetensors'
    out[f'{name}.final'] = vector(final, names)
    files += [folder / f'{name}.npz', final]

  digests = [
    f'{file.name} sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}'
    for file in files
  ]
  general = found['general']
  versions = [f'{k} {general[k]}' for k in ('trl', 'torch', 'transformers')]
  out['origin'] = np.array(', '.join(versions + digests))
  out['names'] = np.array(json.dumps(names))
  rollouts = [grouped(rollout) for rollout in found['rollouts']]
  out['rollouts'] = np.array(json.dumps(rollouts))
  out['records'] = np.array(json.dumps(records))
  path = pathlib.Path(__file__).with_name('traces.npz')
  np.savez_compressed(path, **out)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
