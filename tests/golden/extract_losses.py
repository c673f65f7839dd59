"""Picks the losses that TRL and verl computed for the variants that we have.

  python tests/golden/extract_losses.py FOLDER

FOLDER holds losses.{npz,json} and kl.{npz,json}, recorded by running TRL 1.16.0
and verl 0.10.0.dev (both Apache-2.0) in float64 on the same random inputs.
Every record that `of_trl` or `of_verl` can say in our words is taken. Writes
losses.npz beside this file:

  <case>.<input>        [B, T], what the loss is computed from
  <id>.loss, <id>.grad  and the gradient with respect to log_prob, [B, T]
  kl.<name>.value       and .grad_sum, of the KL estimates, [B, T]
  records               JSON list: id, case, and our names for what was run
  origin                versions, and sha256 of the source files
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

INPUTS = ('log_prob', 'old_log_prob', 'ref_log_prob', 'advantages')
INPUTS += ('response_mask',)
TRL_MEANS = {
  'grpo': 'sequence_mean',
  'bnpo': 'token_mean',
  'dapo': 'token_mean',
  'dr_grpo': 'constant_length',
}
VERL_LOSSES = {'vanilla': 'ppo_clip', 'gpg': 'reinforce'}
VERL_MEANS = {
  'token-mean': 'token_mean',
  'seq-mean-token-mean': 'sequence_mean',
  'seq-mean-token-sum-norm': 'constant_length',
}


def of_trl(record: dict, tokens: int) -> dict | None:
  """Our words for a record of TRL; None if it has what we do not."""
  c = record['resolved']
  if (
    record['trainer'] != 'GRPO'
    or c['loss_type'] not in TRL_MEANS
    or c['importance_sampling_level'] != 'token'
    or c['delta'] is not None  # A second, outer clip.
    or (c['beta'] and c['use_bias_correction_kl'])  # KL times the ratio.
    or c['entropy_coef']
    or c['top_entropy_quantile'] != 1
    or c['off_policy_mask_threshold'] is not None
    or record['importance_sampling_ratio'] is not None
    # A call that is only part of a larger batch.
    or record['current_gradient_accumulation_steps'] != 1
    or record['num_items_in_batch'] != tokens
  ):
    return None
  mean = {'name': TRL_MEANS[c['loss_type']]}
  if mean['name'] == 'constant_length':
    mean['length'] = c['max_completion_length']
  loss = {'name': 'ppo_clip', 'clip_low': c['epsilon']}
  loss['clip_high'] = c['epsilon_high']
  on_policy = record['old_per_token_logps'] is None
  return {
    'loss': loss,
    'aggregate': mean,
    'kl_coef': c['beta'],
    'old': 'log_prob' if on_policy else 'old_log_prob',
    'rows': 'all',
  }


def of_verl(record: dict) -> dict | None:
  """The same for verl. Its sequence means leave empty completions out."""
  c = record['resolved']
  if (
    record['loss'] not in VERL_LOSSES
    or record['agg'] not in VERL_MEANS
    or (record['loss'] == 'vanilla' and c['clip_ratio_c'] < 1e12)  # Dual clip.
    or record['rollout_is_weights']
    or record['global_batch_info']
  ):
    return None
  loss = {'name': VERL_LOSSES[record['loss']]}
  if loss['name'] == 'ppo_clip':
    loss |= {
      'clip_low': c['clip_ratio_low'],
      'clip_high': c['clip_ratio_high'],
    }
  mean = VERL_MEANS[record['agg']]
  return {
    'loss': loss,
    'aggregate': {'name': mean},
    'kl_coef': 0.0,
    'old': 'old_log_prob',
    'rows': 'all' if mean == 'token_mean' else 'with tokens',
  }


def main(folder: pathlib.Path):
  arrays = np.load(folder / 'losses.npz')
  found = json.loads((folder / 'losses.json').read_text())
  out, records = {}, []
  for record in found['trl'] + found['verl']:
    name, case = record['id'], record['case']
    tokens = arrays[f'in.{case}.response_mask'].sum()
    words = (
      of_trl(record, tokens) if name.startswith('trl') else of_verl(record)
    )
    if words is None:
      continue
    records.append({'id': name, 'case': case} | words)
    for part in ('loss', 'grad'):
      out[f'{name}.{part}'] = arrays[f'{name}.{part}']
    for part in INPUTS:
      out[f'{case}.{part}'] = arrays[f'in.{case}.{part}']

  estimates = np.load(folder / 'kl.npz')
  for part in ('logprob', 'ref_logprob'):
    out[f'kl.{part}'] = estimates[f'in.{part}']
  for name in ('k2', 'k3'):
    for part in ('value', 'grad_sum'):
      out[f'kl.{name}.{part}'] = estimates[f'verl.{name}.{part}']

  digests = [
    f'{name} sha256 {hashlib.sha256((folder / name).read_bytes()).hexdigest()}'
    for name in ('losses.npz', 'losses.json', 'kl.npz', 'kl.json')
  ]
  versions = found['general']
  out['origin'] = np.array(
    f'TRL {versions["trl"]}, verl {versions["verl"]}, '
    f'torch {versions["torch"]}; {", ".join(digests)}'
  )
  out['records'] = np.array(json.dumps(records))
  np.savez_compressed(pathlib.Path(__file__).with_name('losses.npz'), **out)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
