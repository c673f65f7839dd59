"""Copies the KL estimates, head statistics and averages that verl computed.

  python tests/golden/extract_kl.py FOLDER

FOLDER holds kl.{npz,json} and losses.{npz,json}, recorded by running verl
0.10.0.dev (commit 1dda039b9, Apache-2.0) on random inputs. Everything in kl.npz
is taken, and of losses.npz the calls of agg_loss alone. Writes kl.npz beside
this file:

  in.<input>               what was computed from, [B, T] or as named there
  verl.<function>.<part>   its results in float64, and `.f32` in float32
  agg.<input>              the losses that were averaged, and their mask, [B, T]
  <id>.grad                of a record of agg_loss, by the losses, [B, T]
  records                  JSON: the lists `kl` and `agg`, and the settings of
                           `compute_rewards` and `adaptive`
  origin                   versions, and sha256 of the source files
"""

import hashlib
import json
import pathlib
import sys

import numpy as np


def main(folder: pathlib.Path):
  arrays = np.load(folder / 'kl.npz')
  found = json.loads((folder / 'kl.json').read_text())
  losses = np.load(folder / 'losses.npz')
  averages = json.loads((folder / 'losses.json').read_text())['verl_agg']

  out = {name: arrays[name] for name in arrays.files}
  for part in ('loss_mat', 'loss_mask'):
    out[f'agg.{part}'] = losses[f'in.agg.{part}']
  for record in averages:
    out[f'{record["id"]}.grad'] = losses[f'{record["id"]}.grad']

  digests = [
    f'{name} sha256 {hashlib.sha256((folder / name).read_bytes()).hexdigest()}'
    for name in ('kl.npz', 'kl.json', 'losses.npz', 'losses.json')
  ]
  general = found['general']
  out['origin'] = np.array(
    f'verl {general["verl"]}, torch {general["torch"]}; {", ".join(digests)}'
  )
  records = {
    'kl': [record['kl_penalty'] for record in found['verl']],
    'compute_rewards': {'kl_ratio': found['compute_rewards']['kl_ratio']},
    'adaptive': {
      name: found['adaptive'][name]
      for name in ('init_kl_coef', 'target_kl', 'horizon')
    },
    'agg': averages,
  }
  out['records'] = np.array(json.dumps(records))
  np.savez_compressed(pathlib.Path(__file__).with_name('kl.npz'), **out)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
