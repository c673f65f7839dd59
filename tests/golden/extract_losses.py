"""Copies the losses that TRL and verl computed, with their calls in our words.

  python tests/golden/extract_losses.py FOLDER

FOLDER holds losses.{npz,json}, recorded by running TRL 1.16.0 and verl
0.10.0.dev (both Apache-2.0) in float64 and float32 on the same random inputs.
All 312 records of TRL and all 541 of verl's losses are taken; verl's 15 of its
averages alone are too. Writes losses.npz beside this file:

  <case>.<input>   [B, T] or [B, 1], what the loss is computed from
  values           [records], the loss
  grads            [distinct, B, T], gradients by log_prob; `grad` of a record
                   is its place here
  entropy_grads    [distinct, B, T], gradients by entropies, where there are any
  errors           [records, 2], how far the source's own float32 is from its
                   float64: of the loss, and the gradient by its greatest entry
  agg.<input>      what verl's averages are computed from
  records          JSON list: id, case, and our names for what was run
  averages         JSON list: the same for the averages alone, with the value
  origin           versions, and sha256 of the source files

In a record `scale` is what a source divides by and we do not (the pieces of a
larger batch), and `empty` names what an empty completion adds to the value.
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

INPUTS = ('log_prob', 'old_log_prob', 'ref_log_prob', 'advantages')
INPUTS += ('response_mask', 'entropies', 'is_weights', 'is_weights_seq')
TRL_MEANS = {
  'grpo': 'sequence_mean',
  'sapo': 'sequence_mean',
  'bnpo': 'token_mean',
  'dapo': 'token_mean',
  'cispo': 'token_mean',
  'vespo': 'token_mean',
  'dr_grpo': 'constant_length',
  'luspo': 'sequence_sum',
}
VERL_MEANS = {
  'token-mean': 'token_mean',
  'token-sum': 'token_sum',
  'seq-mean-token-mean': 'sequence_mean',
  'seq-mean-token-sum': 'sequence_sum',
  'seq-mean-token-sum-norm': 'constant_length',
}


def of_trl(record: dict, tokens: int) -> dict:
  """Our words for a record of TRL."""
  c = record['resolved']
  words = {
    'loss': trl_loss(record['trainer'], c),
    'aggregate': {'name': 'sequence_mean', 'empty': 'count'},
    'kl_coef': c['beta'],
    'scale': 1.0,
  }
  if record['old_per_token_logps'] is None:
    words['old'] = 'log_prob'
  if record['trainer'] != 'GRPO':
    words['empty'] = 'its advantage'  # The loss of a completion's ratio of 1.
  if record['trainer'] == 'RLOO':
    return words

  weighted = record['trainer'] == 'GRPO' and c['use_bias_correction_kl']
  words['kl'] = {'name': 'k3'}
  if weighted:
    level = c['importance_sampling_level'].replace('sequence', 'mean')
    words['kl'] = {'name': 'k3_weighted', 'level': level, 'exponent_cap': None}
  if c['top_entropy_quantile'] < 1:
    words['select'] = {'name': 'high_entropy'}
    words['select']['share'] = c['top_entropy_quantile']
  elif c['off_policy_mask_threshold'] is not None:
    words['select'] = {'name': 'off_policy_sequences'}
    words['select']['threshold'] = c['off_policy_mask_threshold']
  if record['importance_sampling_ratio']:
    words['correction'] = record['importance_sampling_ratio']
  if record['trainer'] != 'GRPO':
    return words

  mean = {'name': TRL_MEANS[c['loss_type']]}
  if mean['name'] != 'token_mean':
    mean['empty'] = 'count'
  if mean['name'] == 'constant_length':
    mean['length'] = c['max_completion_length']
  pieces = record['current_gradient_accumulation_steps']
  words['aggregate'] = mean
  words['scale'] = 1 / pieces
  if c['loss_type'] in ('dapo', 'cispo', 'vespo'):
    windows = c['steps_per_generation'] / pieces
    words['scale'] = windows * tokens / record['num_items_in_batch']
  words['entropy_coef'] = c['entropy_coef'] / pieces
  return words


def trl_loss(trainer: str, c: dict) -> dict:
  """Our policy loss for a configuration of TRL, whose ratios have no clamp."""
  low, high = c['epsilon'], c['epsilon_high']
  clip = {'clip_low': low, 'clip_high': low if high is None else high}
  if trainer == 'RLOO':
    return {'name': 'ppo_clip', 'level': 'sum', 'clamp': None} | clip
  if trainer == 'GMPO':
    return {'name': 'gmpo', 'clamp': None} | clip
  kind = c['loss_type']
  level = c['importance_sampling_level'].replace('sequence', 'mean')
  at = {'level': level, 'clamp': None}
  if kind == 'vespo':
    knobs = {f'k_{ours}': c[f'vespo_k_{theirs}'] for ours, theirs in SIGNS}
    for ours, theirs in SIGNS:
      knobs[f'lambda_{ours}'] = c[f'vespo_lambda_{theirs}']
    return {'name': 'vespo'} | knobs
  if kind == 'sapo':
    taus = {f'tau_{a}': c[f'sapo_temperature_{b}'] for a, b in SIGNS}
    return {'name': 'sapo'} | at | taus
  if kind == 'cispo':
    return {'name': 'cispo_cap', 'cap': high} | at
  if c['delta'] is not None:
    assert level == 'token'
    return {'name': 'two_sided', 'delta': c['delta'], 'clamp': None} | clip
  if kind == 'luspo':
    return {'name': 'luspo'} | at | clip
  if level == 'mean':
    return {'name': 'gspo', 'clamp': None} | clip
  return {'name': 'ppo_clip'} | at | clip


SIGNS = (('good', 'pos'), ('bad', 'neg'))


def of_verl(record: dict, tokens: int, completions: int) -> dict:
  """The same for verl, whose sequence means leave empty completions out."""
  c, agg = record['resolved'], record['agg']
  clip = {'clip_low': c['clip_ratio_low'], 'clip_high': c['clip_ratio_high']}
  clamped = {'clamp': 20.0}
  words = {}
  match record['loss']:
    case 'vanilla' if c['clip_ratio_c'] >= 1e12:
      words['loss'] = {'name': 'ppo_clip', 'level': 'token'} | clip | clamped
    case 'vanilla':
      words['loss'] = {'name': 'dual_clip', 'cap': c['clip_ratio_c']}
      words['loss'] |= clip | clamped
    case 'gspo':
      words['loss'] = {'name': 'gspo_token', 'clamp': 10.0} | clip
    case 'sapo':
      taus = {f'tau_{a}': c[f'tau_{b}'] for a, b in SIGNS}
      words['loss'] = {'name': 'sapo', 'level': 'token'} | taus | clamped
    case 'gpg':
      words['loss'] = {'name': 'reinforce'}
    case 'cispo':
      words['loss'] = {'name': 'cispo'} | clip | clamped
    case 'geo_mean':
      words['loss'] = {'name': 'gmpo', 'clamp': None} | clip
    case 'dppo_tv' | 'dppo_kl' as name:
      words['loss'] = {'name': name, 'cap': c['clip_ratio_c']} | clip | clamped
    case 'dro':
      words['loss'] = {'name': 'dro', 'beta': c['dro_beta']}
    case 'kl_cov':
      words['loss'] = {'name': 'kl_cov', 'coef': c['ppo_kl_coef']}
      words['loss']['clamp'] = None
      words['select'] = {'name': 'top_covariance', 'share': c['kl_cov_ratio']}
    case 'clip_cov':
      words['loss'] = {'name': 'ppo_clip', 'level': 'token'} | clip
      words['loss']['clamp'] = None
      words['select'] = {'name': 'clip_cov', 'share': c['clip_cov_ratio']}
      words['select'] |= {'low': c['clip_cov_lb'], 'high': c['clip_cov_ub']}
      words['select'] |= clip
    case unknown:
      raise ValueError(f'a loss of verl without our words: {unknown!r}')
  if record['rollout_is_weights']:
    words['correction'] = 'is_weights'
  if record['loss'] == 'geo_mean':  # It has its own average, of all rows.
    mean = {'name': 'sequence_mean', 'empty': 'count'}
    return words | {'aggregate': mean, 'scale': 1.0}
  if record['loss'] in ('gspo', 'sapo'):
    agg = 'seq-mean-token-mean'
  return words | verl_mean(
    agg, record['global_batch_info'], tokens, completions
  )


def verl_mean(agg: str, whole: dict, tokens: int, completions: int) -> dict:
  """verl's average. `whole` are sizes of the batch of which this is a part."""
  mean = {'name': VERL_MEANS[agg]}
  if not mean['name'].startswith('token'):
    mean['empty'] = 'skip'
  if mean['name'] == 'constant_length':
    mean['length'] = whole.get('loss_scale_factor')
  scale = whole.get('dp_size', 1)
  if agg == 'token-mean':
    scale *= tokens / whole.get('batch_num_tokens', tokens)
  elif agg != 'token-sum':
    scale *= completions / whole.get('global_batch_size', completions)
  return {'aggregate': mean, 'scale': scale}


def main(folder: pathlib.Path):
  arrays = np.load(folder / 'losses.npz')
  found = json.loads((folder / 'losses.json').read_text())
  out = {
    f'{case}.{part}': arrays[f'in.{case}.{part}']
    for case in found['inputs']
    for part in INPUTS
  }
  records, values, grads, entropy_grads, errors = [], [], [], [], []
  for record in found['trl'] + found['verl']:
    name, case = record['id'], record['case']
    mask_BT = out[f'{case}.response_mask']
    tokens, rows = int(mask_BT.sum()), int(mask_BT.any(axis=1).sum())
    trl = name.startswith('trl.')
    words = of_trl(record, tokens) if trl else of_verl(record, tokens, rows)
    for part in ('candidates', 'selected'):
      if f'{name}.{part}' in arrays:
        words[part] = arrays[f'{name}.{part}'].tolist()
    grad_BT = arrays[f'{name}.grad']
    assert not grad_BT[mask_BT == 0].any()
    words['grad'] = place(grads, grad_BT)
    if words.get('entropy_coef'):
      more_BT = arrays[f'{name}.grad_entropy']
      words['entropy_grad'] = place(entropy_grads, more_BT)
    records.append({'id': name, 'case': case} | words)
    value = arrays[f'{name}.loss']
    values.append(value)
    errors.append(
      (
        abs(arrays[f'{name}.loss.f32'] - value),
        np.max(np.abs(arrays[f'{name}.grad.f32'] - grad_BT))
        / max(np.max(np.abs(grad_BT)), 1e-30),
      )
    )

  out |= {f'agg.{x}': arrays[f'in.agg.{x}'] for x in ('loss_mat', 'loss_mask')}
  mask_BT = out['agg.loss_mask']
  tokens, rows = int(mask_BT.sum()), int(mask_BT.any(axis=1).sum())
  averages = [
    {'id': r['id'], 'value': r['value']}
    | verl_mean(r['agg'], r['kwargs'], tokens, rows)
    for r in found['verl_agg']
  ]
  digests = [
    f'{name} sha256 {hashlib.sha256((folder / name).read_bytes()).hexdigest()}'
    for name in ('losses.npz', 'losses.json')
  ]
  versions = found['general']
  out |= {
    'values': np.array(values),
    'grads': np.array(grads),
    'entropy_grads': np.array(entropy_grads),
    'errors': np.array(errors, np.float32),
    'records': np.array(json.dumps(records)),
    'averages': np.array(json.dumps(averages)),
    'origin': np.array(
      f'TRL {versions["trl"]}, verl {versions["verl"]}, '
      f'torch {versions["torch"]}; {", ".join(digests)}'
    ),
  }
  np.savez_compressed(pathlib.Path(__file__).with_name('losses.npz'), **out)


def place(found: list, array: np.ndarray) -> int:
  """Where an array stands in a list, to whose end a new one goes."""
  for i, other in enumerate(found):
    if np.array_equal(other, array):
      return i
  found.append(array)
  return len(found) - 1


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
