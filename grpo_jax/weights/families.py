"""What the files of each model family call a parameter, in both formats.

One table for each file in models/: our name -> the name in Hugging Face's files
and the name in GGUF files, where {} is the layer. Which table a file takes is
said by the architecture that it names itself: `model_type` in config.json,
`general.architecture` in a GGUF header.

To add a family, add a table and a row of HUGGING_FACE or GGUF; what its sizes
are called is in config_json.py and gguf_files.py.
"""

from typing import NamedTuple

import numpy as np


class Names(NamedTuple):
  """Of a file's tensors, what each is for."""

  ours: dict[str, str]  # Parameter -> tensor; {} is the layer.
  ignored: str = r'(?!)'  # Regular expression: tensors that nobody misses.


_SHARED = {
  'embed': ('model.embed_tokens', 'token_embd'),
  'layers/attn_norm': ('model.layers.{}.input_layernorm', 'blk.{}.attn_norm'),
  'layers/q': ('model.layers.{}.self_attn.q_proj', 'blk.{}.attn_q'),
  'layers/k': ('model.layers.{}.self_attn.k_proj', 'blk.{}.attn_k'),
  'layers/v': ('model.layers.{}.self_attn.v_proj', 'blk.{}.attn_v'),
  'layers/q_norm': ('model.layers.{}.self_attn.q_norm', 'blk.{}.attn_q_norm'),
  'layers/k_norm': ('model.layers.{}.self_attn.k_norm', 'blk.{}.attn_k_norm'),
  'layers/o': ('model.layers.{}.self_attn.o_proj', 'blk.{}.attn_output'),
  'layers/gate': ('model.layers.{}.mlp.gate_proj', 'blk.{}.ffn_gate'),
  'layers/up': ('model.layers.{}.mlp.up_proj', 'blk.{}.ffn_up'),
  'layers/down': ('model.layers.{}.mlp.down_proj', 'blk.{}.ffn_down'),
  'final_norm': ('model.norm', 'output_norm'),
  'unembed': ('lm_head', 'output'),
}

_LLAMA = _SHARED | {
  'layers/q_bias': ('model.layers.{}.self_attn.q_proj', 'blk.{}.attn_q'),
  'layers/k_bias': ('model.layers.{}.self_attn.k_proj', 'blk.{}.attn_k'),
  'layers/v_bias': ('model.layers.{}.self_attn.v_proj', 'blk.{}.attn_v'),
  'layers/mlp_norm': (
    'model.layers.{}.post_attention_layernorm',
    'blk.{}.ffn_norm',
  ),
}

_GEMMA3 = _SHARED | {
  'layers/attn_post_norm': (
    'model.layers.{}.post_attention_layernorm',
    'blk.{}.post_attention_norm',
  ),
  'layers/mlp_norm': (
    'model.layers.{}.pre_feedforward_layernorm',
    'blk.{}.ffn_norm',
  ),
  'layers/mlp_post_norm': (
    'model.layers.{}.post_feedforward_layernorm',
    'blk.{}.post_ffw_norm',
  ),
}

_TABLES = {'llama': _LLAMA, 'gemma3': _GEMMA3}

# The architecture that a file names -> the file in models/.
HUGGING_FACE = {
  'llama': 'llama',  # SmolLM2 too.
  'mistral': 'llama',
  'qwen2': 'llama',
  'qwen3': 'llama',
  'gemma3_text': 'gemma3',
  'gemma3': 'gemma3',  # With images: the text part.
}
GGUF = {
  'llama': 'llama',  # Mistral too.
  'qwen2': 'llama',
  'qwen3': 'llama',
  'gemma3': 'gemma3',
}


def hugging_face(architecture: str, tensors=()) -> Names:
  """The names in a folder of that `model_type`, where `tensors` are."""
  names = _column(HUGGING_FACE[architecture], 0)
  ignored = r'.*\.rotary_emb\.inv_freq'  # Older files have that constant.
  if architecture == 'gemma3':
    names = {ours: _of_text_part(name, tensors) for ours, name in names.items()}
    ignored += r'|(model\.)?(vision_tower|multi_modal_projector)\..*'
  return Names(names, ignored)


def gguf(architecture: str) -> Names:
  """The names in a file of that `general.architecture`."""
  # The scales of llama3's rotary positions: read as sizes, in gguf_files.py.
  return Names(_column(GGUF[architecture], 1), r'rope_freqs\.weight')


def interleaved_heads(architecture: str, tensor: str) -> str:
  """The key with its number of heads, if its rows are in another order.

  Files of llama.cpp have the two rows that turn together beside each other;
  only those that its architecture 'llama' reads.
  """
  if architecture == 'llama' and tensor.endswith('attn_q.weight'):
    return 'llama.attention.head_count'
  if architecture == 'llama' and tensor.endswith('attn_k.weight'):
    return 'llama.attention.head_count_kv'
  return ''


def offset(architecture: str, tensor: str) -> np.float32:
  """What a GGUF file has added to a tensor: Gemma's norms are 1 + scale."""
  added = architecture == 'gemma3' and tensor.endswith('norm.weight')
  return np.float32(added)


def _column(module: str, i: int) -> dict[str, str]:
  return {
    ours: theirs[i] + ('.bias' if ours.endswith('_bias') else '.weight')
    for ours, theirs in _TABLES[module].items()
  }


def _of_text_part(name: str, tensors) -> str:
  """The newer spelling starts with 'model.language_model.'."""
  if any(x.startswith('model.language_model.') for x in tensors):
    return name.replace('model.', 'model.language_model.', 1)
  return f'language_model.{name}'
