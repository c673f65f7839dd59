r"""A published checkpoint that always says \boxed{25}, for evaluations.

Its layers add nothing, so that a token depends on the one before it alone.
"""

import numpy as np
import safetensors_written as written
import tokenizer_files

SAYS = r'\boxed{25}'  # No character twice: each knows what comes next.
_D, _F, _H, _END = 64, 16, 16, 1
_CONFIG = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'hidden_act': 'silu',
  'hidden_size': _D,
  'intermediate_size': _F,
  'head_dim': _H,
  'num_attention_heads': 1,
  'num_key_value_heads': 1,
  'num_hidden_layers': 1,
  'max_position_embeddings': 4096,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10000.0,
  'tie_word_embeddings': False,
  'bos_token_id': 0,
  'eos_token_id': _END,
}
_CHAT = (
  '{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}'
  'assistant:'
)


def write(folder):
  """Writes weights and tokenizer, and returns the folder."""
  core = tokenizer_files.byte_level()
  V = core.get_vocab_size()
  said = [core.token_to_id(x) for x in SAYS]
  embed_VD, unembed_VD = np.zeros((V, _D)), np.zeros((V, _D))
  embed_VD[:, 0] = 1  # Any other token: it begins.
  for i, token in enumerate(said, 1):
    embed_VD[token] = np.eye(_D)[i]
  for i, token in enumerate([*said, _END]):
    unembed_VD[token, i] = 10  # Times 8, from the norm: 80 nats.
  layer = {
    'input_layernorm': np.ones(_D),
    'post_attention_layernorm': np.ones(_D),
    'self_attn.q_proj': np.zeros((_H, _D)),
    'self_attn.k_proj': np.zeros((_H, _D)),
    'self_attn.v_proj': np.zeros((_H, _D)),
    'self_attn.o_proj': np.zeros((_D, _H)),
    'mlp.gate_proj': np.zeros((_F, _D)),
    'mlp.up_proj': np.zeros((_F, _D)),
    'mlp.down_proj': np.zeros((_D, _F)),
  }
  tensors = {
    'model.embed_tokens.weight': embed_VD,
    'model.norm.weight': np.ones(_D),
    'lm_head.weight': unembed_VD,
    **{f'model.layers.0.{name}.weight': x for name, x in layer.items()},
  }
  written.write_folder(folder, _CONFIG | {'vocab_size': V}, tensors)
  named = {'bos_token': '<|begin|>', 'eos_token': '<|end|>'}
  return tokenizer_files.folder(folder, core, named | {'chat_template': _CHAT})
