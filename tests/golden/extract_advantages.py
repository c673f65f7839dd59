"""Picks the advantages that TRL and verl computed for our estimators.

  python tests/golden/extract_advantages.py FOLDER

FOLDER holds advantages.npz and advantages.json, recorded by running TRL 1.16.0
and verl 0.10.0.dev (both Apache-2.0) in float64 on the same random rewards.
Writes advantages.npz beside this file: `<case>/rewards` are [P, G] (NaN is
unscored), `<case>/<codebase>.<estimator>` the advantages, `origin` says where
they come from and the source's sha256.
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

TRL = {
  'trl.grpo': 'grpo_sum_then_normalize_group',
  'trl.dr_grpo': 'grpo_sum_then_normalize_none',
  'trl.rloo': 'rloo_norm0',
}
TRL_CASES = (
  'single_G8',
  'nan_G4',
  'pairs_G2',
  'equal_nonrepresentable_G7',
  'multi3_G4',
  'multi3_weighted_G4',
  'multi3_nan_weighted_G4',
)
VERL = {'verl.grpo': 'grpo_std1', 'verl.dr_grpo': 'grpo_std0'}
VERL['verl.rloo'] = 'rloo'
VERL_CASES = ('equal_groups_sorted', 'pairs_G2')


def main(folder: pathlib.Path):
  source = folder / 'advantages.npz'
  arrays = np.load(source)
  records = json.loads((folder / 'advantages.json').read_text())
  versions = records['general']
  out = {}

  for case in TRL_CASES:
    [G] = {r['num_generations'] for r in records['trl'] if r['case'] == case}
    rewards_BR = arrays[f'trl_in.{case}.rewards_per_func']
    out[f'{case}/rewards'] = rewards_BR.reshape(-1, G, rewards_BR.shape[1])
    out[f'{case}/weights'] = arrays[f'trl_in.{case}.reward_weights']
    for name, tag in TRL.items():
      out[f'{case}/{name}'] = arrays[f'trl.{case}.{tag}.adv'].reshape(-1, G)

  for case in VERL_CASES:
    uid_B = arrays[f'in.{case}.uid']
    order_B = np.argsort(uid_B, kind='stable')
    P = len(np.unique(uid_B))
    mask_BT = arrays[f'in.{case}.response_mask'][order_B]
    rewards_B = arrays[f'in.{case}.token_level_rewards'].sum(1)[order_B]
    out[f'verl_{case}/rewards'] = rewards_B.reshape(P, -1, 1)
    out[f'verl_{case}/weights'] = np.ones(1)
    first_B = mask_BT.argmax(1)  # The advantage is the same on every token.
    for name, tag in VERL.items():
      adv_BT = arrays[f'verl.{case}.{tag}.adv'][order_B]
      adv_B = adv_BT[np.arange(len(first_B)), first_B]
      assert np.array_equal(adv_BT, adv_B[:, None] * mask_BT), (case, tag)
      out[f'verl_{case}/{name}'] = adv_B.reshape(P, -1)

  digest = hashlib.sha256(source.read_bytes()).hexdigest()
  out['origin'] = np.array(
    f'TRL {versions["trl"]}, verl {versions["verl"]}, '
    f'torch {versions["torch"]}; advantages.npz sha256 {digest}'
  )
  np.savez_compressed(pathlib.Path(__file__).with_name('advantages.npz'), **out)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
