"""Runs TRL's and verl's code for off-policy weights on random log-ratios.

  python tests/golden/extract_off_policy.py TRL VERL

TRL is trl/trainer/grpo_trainer.py of TRL 1.16.0, VERL the folder verl/ of verl
0.9.1 (both Apache-2.0, from their wheels); it needs torch. The lines and
functions in question are cut out of the files and executed as they are, in
float64. Writes off_policy.npz beside this file:

  trainer, sampler, mask   log-probs of both, and which count, [B, T]
  <id>                     the weights, [B, T]
  records                  JSON: id, and the settings of the source
  metrics                  JSON: what verl says of the untruncated weights
  origin                   versions, and sha256 of the source files
"""

import ast
import hashlib
import json
import math
import pathlib
import sys
import textwrap
import types
import typing

import numpy as np
import torch

TRL_MODES = ('token_truncate', 'token_mask')
TRL_MODES += ('sequence_truncate', 'sequence_mask')
TRL_BOUNDS = ((None, 3.0), (0.5, 1.5))
VERL_THRESHOLDS = (2.0, 1.1, '0.5_5.0')
VERL_RATIOS = 'trainer/ppo/rollout_corr_helper.py'
VERL_MEANS = 'utils/torch_functional.py'


def inputs():
  """Log-probs of trainer and sampler, and mask; padding holds other numbers.

  Row 0 is full, 1 has one token, 2 none, 3 a hole; row 4 drifts far, both up
  and down, and row 5 is on-policy.
  """
  rng = np.random.default_rng(41)
  sampler = rng.normal(-2, 1, (8, 12))
  sizes = np.array([0.3, 0.3, 0.3, 0.05, 1.5, 0.0, 0.01, 0.1])
  trainer = sampler + sizes[:, None] * rng.normal(size=(8, 12))
  lengths = np.array([12, 1, 0, 12, 10, 7, 12, 5])
  mask = (np.arange(12) < lengths[:, None]).astype(float)
  mask[3, 4:7] = 0
  trainer = np.where(mask, trainer, rng.normal(size=(8, 12)))
  return [torch.from_numpy(np.float64(x)) for x in (trainer, sampler, mask)]


def functions_of(source: str, wanted: set, names: dict) -> dict:
  """Executes the functions and constants of a module that are wanted."""
  found = [
    node
    for node in ast.parse(source).body
    if getattr(node, 'name', None) in wanted
    or (isinstance(node, ast.Assign) and node.targets[0].id in wanted)
  ]
  exec(compile(ast.Module(found, []), 'cut', 'exec'), names)
  return names


def run_trl(source: str, trainer, sampler, mask):
  """Yields (id, settings, weights) of the lines in the trainer's method."""
  start = source.index('per_token_logps_diff = (old_per_token_logps -')
  end = source.index('# Compute the per-token log probabilities for the ref')
  lines = textwrap.dedent(' ' * 16 + source[start:end].rstrip())
  for mode in TRL_MODES:
    for low, high in TRL_BOUNDS:
      names = {
        'torch': torch,
        'math': math,
        'old_per_token_logps': trainer,
        'sampling_per_token_logps': sampler,
        'mask': mask,
        'self': types.SimpleNamespace(
          vllm_importance_sampling_mode=mode,
          vllm_importance_sampling_clip_min=low,
          vllm_importance_sampling_clip_max=high,
        ),
      }
      exec(lines, names)
      weights = names['vllm_importance_sampling_ratio'].expand_as(mask)
      settings = {'mode': mode, 'clip_min': low, 'clip_max': high}
      yield f'trl.{mode}.{low}_{high}', settings, weights


def verl_functions(folder: pathlib.Path) -> dict:
  means = functions_of(
    (folder / VERL_MEANS).read_text(),
    {'masked_sum', 'masked_mean'},
    {'torch': torch},
  )
  names = {name: getattr(typing, name) for name in ('Any', 'Optional')}
  names |= {'torch': torch, 'verl_F': types.SimpleNamespace(**means)}
  wanted = {'SAFETY_BOUND', '_parse_rollout_is_threshold'}
  wanted |= {'compute_rollout_correction_weights', 'compute_is_metrics'}
  wanted |= {'compute_offpolicy_metrics'}
  return functions_of((folder / VERL_RATIOS).read_text(), wanted, names)


def main(trl: pathlib.Path, verl: pathlib.Path):
  trainer, sampler, mask = inputs()
  out = {'trainer': trainer, 'sampler': sampler, 'mask': mask}
  records = []
  for name, settings, weights in run_trl(trl.read_text(), *out.values()):
    out[name] = weights
    records.append({'id': name, 'source': 'trl'} | settings)
  names = verl_functions(verl)
  compute = names['compute_rollout_correction_weights']
  for level in ('token', 'sequence'):
    for threshold in VERL_THRESHOLDS:
      weights, _ = compute(trainer - sampler, mask, level, threshold)
      name = f'verl.{level}.{threshold}'
      out[name] = weights
      settings = {'level': level, 'threshold': threshold}
      records.append({'id': name, 'source': 'verl'} | settings)
  metrics = names['compute_offpolicy_metrics'](trainer, sampler, mask)
  _, of_tokens = compute(trainer - sampler, mask, 'token', 1e9)
  size = of_tokens['rollout_is_eff_sample_size']
  metrics = {'chi2_token': metrics['chi2_token'], 'eff_sample_size': size}

  digests = [
    f'{file.name} sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}'
    for file in (trl, verl / VERL_RATIOS, verl / VERL_MEANS)
  ]
  out = {name: array.numpy() for name, array in out.items()}
  out['records'] = np.array(json.dumps(records))
  out['metrics'] = np.array(json.dumps(metrics))
  out['origin'] = np.array(
    f'TRL 1.16.0, verl 0.9.1, torch {torch.__version__}; {", ".join(digests)}'
  )
  path = pathlib.Path(__file__).with_name('off_policy.npz')
  np.savez_compressed(path, **out)


if __name__ == '__main__':
  main(*map(pathlib.Path, sys.argv[1:]))
