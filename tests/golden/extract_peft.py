"""Makes low-rank adapters with PEFT and keeps them, with what they compute.

  python tests/golden/extract_peft.py

Run with torch 2.13.0, transformers 5.24.0 and peft 0.21.2 (BSD-3-Clause and
Apache-2.0), on the CPU in float32. The models are those of models/ beside this
file; their adapters are of rank 2, alpha 3, on all seven projections, B random
too. Writes peft.npz, where <name> is a model:

  <name>.ids              [2, 16]
  <name>.logits           [2, 16, 300] float32, with the adapters apart
  <name>.merged           [2, 16, 300], after merge_and_unload
  <name>.tensor.<tensor>  those of adapter_model.safetensors, as PEFT names them
  <name>.config           adapter_config.json
"""

import pathlib
import tempfile

import numpy as np
import peft
import safetensors.numpy
import torch
import transformers

NAMES = ('llama_untied', 'qwen2', 'qwen3', 'gemma3')
TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
TARGETS += ['gate_proj', 'up_proj', 'down_proj']
HERE = pathlib.Path(__file__).parent


def main():
  out = {}
  for seed, name in enumerate(NAMES):
    torch.manual_seed(seed)
    base = transformers.AutoModelForCausalLM.from_pretrained(
      HERE / 'models' / name,
      dtype=torch.float32,
      attn_implementation='eager',
    )
    config = peft.LoraConfig(
      r=2, lora_alpha=3, target_modules=TARGETS, task_type='CAUSAL_LM'
    )
    model = peft.get_peft_model(base, config).eval()
    for key, weight in model.named_parameters():
      if '.lora_' in key:
        torch.nn.init.normal_(weight, std=0.3)
    ids = torch.randint(300, (2, 16))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
      model.save_pretrained(folder)
      folder = pathlib.Path(folder)
      tensors = safetensors.numpy.load_file(
        folder / 'adapter_model.safetensors'
      )
      out |= {
        f'{name}.ids': ids.numpy().astype(np.int32),
        f'{name}.logits': model(ids).logits.numpy(),
        f'{name}.config': (folder / 'adapter_config.json').read_text(),
      }
      out[f'{name}.merged'] = model.merge_and_unload()(ids).logits.numpy()
    out |= {f'{name}.tensor.{key}': x for key, x in tensors.items()}
  np.savez_compressed(HERE / 'peft.npz', **out)


if __name__ == '__main__':
  main()
