"""Takes the tiny published checkpoints of every family, and what they compute.

  python tests/golden/extract_models.py FOLDER

FOLDER holds a folder for each model: random weights, written by transformers
5.23.0 (Apache-2.0) with save_pretrained, and its float32 results on the CPU.
Copies config.json and model.safetensors to models/<name>/ beside this file and
writes models.npz:

  <name>.ids        [3, 24], rows padded on the left with 0, 7 and 15 tokens
  <name>.mask       [3, 24], 1 is a token
  <name>.labels     [3, 24], -100 is no target; position t is a target of t - 1
  <name>.logits     [3, 24, 300] float32
  <name>.greedy     [3, 8], the continuation that its own cache gives
  <name>.grads      norms of d nll_sum, one a tensor, in the order of `tensors`
  <name>.json       nll_sum, and the names of the tensors
  origin            sha256 of the source files
"""

import hashlib
import json
import pathlib
import shutil
import sys

import numpy as np

NAMES = (
  'llama_untied llama_tied_llama3rope qwen2 qwen3 gemma3 gemma3_linear8'
).split()
HERE = pathlib.Path(__file__).parent


def main(folder: pathlib.Path):
  out, origin = {}, {}
  for name in NAMES:
    source = folder / name
    (HERE / 'models' / name).mkdir(parents=True, exist_ok=True)
    for file in ('config.json', 'model.safetensors'):
      shutil.copyfile(source / file, HERE / 'models' / name / file)
    arrays = np.load(source / 'logits.npz')
    told = json.loads((source / 'reference.json').read_text())
    out |= {
      f'{name}.ids': arrays['input_ids'].astype(np.int32),
      f'{name}.mask': arrays['attention_mask'].astype(bool),
      f'{name}.labels': arrays['labels'].astype(np.int32),
      f'{name}.logits': arrays['logits'],
      f'{name}.greedy': arrays['greedy_ids'].astype(np.int32),
      f'{name}.grads': np.array([g['grad_l2'] for g in told['grads'].values()]),
      f'{name}.json': json.dumps(
        {'nll_sum': told['nll_sum'], 'tensors': list(told['grads'])}
      ),
    }
    for file in ('logits.npz', 'reference.json', 'model.safetensors'):
      data = (source / file).read_bytes()
      origin[f'{name}/{file}'] = hashlib.sha256(data).hexdigest()
  np.savez_compressed(HERE / 'models.npz', origin=json.dumps(origin), **out)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
