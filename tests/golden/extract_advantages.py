"""Takes the advantages that TRL and verl computed, every record of them.

  python tests/golden/extract_advantages.py FOLDER

FOLDER holds advantages.npz and advantages.json, recorded by running TRL 1.16.0
and verl 0.10.0.dev (both Apache-2.0) in float64. Writes advantages.npz beside
this file:

  verl.<case>.<input>     [B] or [B, T]; `uid` names the group of a row
  trl.<case>.rewards      [P, G, R], of R reward functions; NaN is unscored
  trl.<case>.weights      [R]
  trl.rloo_kl.<input>     [N, T], log-probabilities for the KL in the reward
  <id>                    the advantages, [B, T] of verl and [N] of TRL
  records                 JSON list: id, case, our name and knobs for what was
                          run, and how far the source's own float32 is off
  origin                  versions, and sha256 of the source files
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

VERL_INPUTS = (
  'token_level_rewards response_mask uid old_log_probs sum_pi_squared '
  'rollout_is_weights reward_baselines comp_a comp_b'
).split()
TRL = {
  'sum_then_normalize_group': {'name': 'grpo'},
  'sum_then_normalize_batch': {'name': 'batch_scaled'},
  'sum_then_normalize_none': {'name': 'dr_grpo'},
  'normalize_then_sum': {'name': 'gdpo'},
}


def of_trl(record: dict) -> dict:
  """Our words for a record of TRL."""
  c = record['config']
  if record['trainer'] == 'GRPO':
    return TRL[record['id'].split('.grpo_')[1]]
  words = {'name': 'rloo', 'normalize': c['normalize_advantages']}
  # What happens to the reward before the estimator sees it.
  words['clip'] = c.get('reward_clip_range')
  words['kl_coef'] = c['beta']
  return words


def of_verl(record: dict) -> dict:
  """The same for verl, which gives a lone completion its reward."""
  hyper = record['hyper']
  tag = record['id'].split('.', 2)[2]
  if tag.startswith('grpo_passk'):
    return {'name': 'passk', 'scaled': hyper['norm_adv_by_std_in_grpo']}
  if tag.startswith('grpo'):
    if not hyper['norm_adv_by_std_in_grpo']:
      return {'name': 'dr_grpo', 'keep_lone': True}
    return {'name': 'grpo', 'eps': hyper['epsilon'], 'keep_lone': True}
  if tag.startswith('rloo'):
    return {'name': 'rloo', 'keep_lone': tag == 'rloo'}
  if tag.startswith('reinforce_plus_plus_gamma'):
    return {'name': 'reinforce_pp', 'gamma': hyper['gamma']}
  if 'optimal_token_baseline' in tag:
    return {
      'name': 'optimal_token_baseline',
      'zero_tail': hyper['handle_zero_tail'],
      'close_holes': tag.startswith('tir'),
      'eps': hyper['epsilon'],
      'keep_lone': True,
      'corrected': hyper['rollout_is_weights'],
    }
  if tag.startswith('gdpo'):
    weights = hyper['gdpo_reward_weights'] or [1.0, 1.0]
    return {
      'name': 'gdpo',
      'over_tokens': True,
      'eps': hyper['epsilon'],
      'keep_lone': True,
      'part_weights': dict(
        zip(hyper['gdpo_reward_keys'], weights, strict=True)
      ),
    }
  return {
    'opo': {'name': 'opo', 'keep_lone': True},
    'gpg': {'name': 'gpg', 'f_norm': hyper.get('f_norm'), 'keep_lone': True},
    'reinforce_plus_plus_baseline': {
      'name': 'reinforce_pp_baseline',
      'keep_lone': True,
    },
    'remax': {'name': 'remax'},
    'gae_gamma0.97_lam0.9': {'name': 'gae'},
  }[tag]


def main(folder: pathlib.Path):
  arrays = np.load(folder / 'advantages.npz')
  found = json.loads((folder / 'advantages.json').read_text())
  out, records = {}, []
  for record in found['verl'] + found['trl']:
    name = record['id']
    words = of_trl(record) if name.startswith('trl') else of_verl(record)
    words |= {'id': name, 'case': record['case']}
    if 'raises' in record:
      records.append(words | {'raises': record['raises']})
      continue
    words['off'] = record['max_abs_f32_minus_f64']
    words['forced_f32'] = record.get('forced_f32', False)
    records.append(words)
    out[name] = arrays[f'{name}.adv']

  for name in {record['case'] for record in found['verl']}:
    for part in VERL_INPUTS:
      out[f'verl.{name}.{part}'] = arrays[f'in.{name}.{part}']
  for record in found['trl']:
    case = record['case']
    rewards_NR = arrays[f'trl_in.{case}.rewards_per_func']
    G, R = record['num_generations'], rewards_NR.shape[1]
    out[f'trl.{case}.rewards'] = rewards_NR.reshape(-1, G, R)
    out[f'trl.{case}.weights'] = arrays[f'trl_in.{case}.reward_weights']
  for part in ('old_per_token_logps', 'ref_per_token_logps'):
    out[f'trl.rloo_kl.{part}'] = arrays[f'trl_in.rloo_kl.{part}']

  digests = [
    f'{name} sha256 {hashlib.sha256((folder / name).read_bytes()).hexdigest()}'
    for name in ('advantages.npz', 'advantages.json')
  ]
  versions = found['general']
  out['origin'] = np.array(
    f'TRL {versions["trl"]}, verl {versions["verl"]}, '
    f'torch {versions["torch"]}; {", ".join(digests)}'
  )
  out['records'] = np.array(json.dumps(records))
  target = pathlib.Path(__file__).with_name('advantages.npz')
  np.savez_compressed(target, **dict(sorted(out.items())))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
