"""Hugging Face folders written and read by hand, as the format says.

A file is 8 bytes of length, a header of JSON, and the numbers behind it.
"""

import json
import struct

import numpy as np

from grpo_jax import models

_DTYPES = {'F32': np.float32, 'F16': np.float16, 'F64': np.float64}
_NORMS = {
  'attn_norm': 'input_layernorm',
  'q_norm': 'self_attn.q_norm',
  'k_norm': 'self_attn.k_norm',
}
_MATRICES = {
  'q': 'self_attn.q_proj',
  'k': 'self_attn.k_proj',
  'v': 'self_attn.v_proj',
  'o': 'self_attn.o_proj',
  'gate': 'mlp.gate_proj',
  'up': 'mlp.up_proj',
  'down': 'mlp.down_proj',
}


def header(path):
  """Name -> dtype, shape and bounds; and where the numbers begin."""
  with path.open('rb') as file:
    (size,) = struct.unpack('<Q', file.read(8))
    content = json.loads(file.read(size))
  content.pop('__metadata__', None)
  return content, 8 + size


def raw(folder):
  """Tensor -> its dtype and bytes, from all files of a folder."""
  found = {}
  for path in sorted(folder.glob('*.safetensors')):
    rows, start = header(path)
    data = path.read_bytes()
    for name, row in rows.items():
      first, end = row['data_offsets']
      found[name] = (
        row['dtype'],
        row['shape'],
        data[start + first : start + end],
      )
  return found


def read(folder):
  """Tensor -> float32 array."""
  arrays = {}
  for name, (dtype, shape, data) in raw(folder).items():
    if dtype == 'BF16':  # The upper half of a float32.
      wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
      arrays[name] = wide.view(np.float32).reshape(shape)
    else:
      values = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
      arrays[name] = values.astype(np.float32)
  return arrays


def write(path, tensors, dtype='F32'):
  """Tensor -> float32 array; bfloat16 has what it cannot hold cut off."""
  rows, data = {}, b''
  for name, array in tensors.items():
    array = np.ascontiguousarray(array, np.float32)
    kind = dtype
    if isinstance(dtype, dict):
      kind = dtype[name]
    if kind == 'BF16':
      part = (array.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    elif kind in _DTYPES:
      part = array.astype(_DTYPES[kind]).tobytes()
    else:
      part = bytes(array.size)
    offsets = [len(data), len(data) + len(part)]
    rows[name] = {
      'dtype': kind,
      'shape': [*array.shape],
      'data_offsets': offsets,
    }
    data += part
  text = json.dumps(rows).encode()
  text += b' ' * (-len(text) % 8)
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)


def write_folder(folder, config, tensors, dtype='F32', files=1):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  if files == 1:
    write(folder / 'model.safetensors', tensors, dtype)
    return folder
  index = {}
  for i in range(files):
    name = f'model-{i + 1:05}-of-{files:05}.safetensors'
    part = {x: tensors[x] for x in [*tensors][i::files]}
    write(folder / name, part, dtype)
    index |= dict.fromkeys(part, name)
  content = json.dumps({'metadata': {}, 'weight_map': index})
  (folder / 'model.safetensors.index.json').write_text(content)
  return folder


def params_of(tensors, prefix='model.', head='lm_head.weight'):
  """Our tree of what a folder holds, layer by layer."""
  gemma = any('post_feedforward_layernorm' in name for name in tensors)
  norms = dict(_NORMS)
  if gemma:
    norms['attn_post_norm'] = 'post_attention_layernorm'
    norms['mlp_norm'] = 'pre_feedforward_layernorm'
    norms['mlp_post_norm'] = 'post_feedforward_layernorm'
  else:
    norms['mlp_norm'] = 'post_attention_layernorm'
  count = 0
  while f'{prefix}layers.{count}.mlp.up_proj.weight' in tensors:
    count += 1
  layers = {}
  for y in range(count):

    def keep(ours, theirs, turn=False, y=y):
      name = f'{prefix}layers.{y}.{theirs}'
      if name in tensors:
        array = tensors[name].T if turn else tensors[name]
        layers.setdefault(ours, []).append(array)

    for ours, theirs in norms.items():
      keep(ours, f'{theirs}.weight')
    for ours, theirs in _MATRICES.items():
      keep(ours, f'{theirs}.weight', turn=True)
    for ours in 'qkv':
      keep(f'{ours}_bias', f'self_attn.{ours}_proj.bias')
  params = {
    'embed': tensors[f'{prefix}embed_tokens.weight'],
    'layers': {name: np.stack(arrays) for name, arrays in layers.items()},
    'final_norm': tensors[f'{prefix}norm.weight'],
  }
  if head in tensors:
    params['unembed'] = tensors[head].T
  return params


def model_of(params):
  """A models.Model with a table of these shapes, and nothing else."""
  axes = {
    'embed': ('vocab', 'embed'),
    'unembed': ('embed', 'vocab'),
    'o': ('layers', 'heads', 'embed'),
    'down': ('layers', 'mlp', 'embed'),
    'gate': ('layers', 'embed', 'mlp'),
    'up': ('layers', 'embed', 'mlp'),
    'q': ('layers', 'embed', 'heads'),
    'k': ('layers', 'embed', 'kv_heads'),
    'v': ('layers', 'embed', 'kv_heads'),
  }

  def row(name, array):
    nothing = (None,) * array.ndim
    return models.Param(array.shape, axes.get(name, nothing), None)

  def rows(tree):
    return {
      name: rows(x) if isinstance(x, dict) else row(name, x)
      for name, x in tree.items()
    }

  return models.Model(
    table=rows(params),
    vocab_size=len(params['embed']),
    apply=None,
    init_cache=None,
    head=None,
  )
