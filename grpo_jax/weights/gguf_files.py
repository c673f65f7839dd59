"""GGUF files (llama.cpp): tensors in any quantisation that `gguf` decodes."""

from collections.abc import Callable
import functools
import os

import gguf
import numpy as np

from grpo_jax.weights import families, paths
from grpo_jax.weights.source import Source, Tensor

# Llama 3.1 and 3.2; files hold the scales that follow from it instead.
_LLAMA3 = [(8.0, 1.0, 4.0, 8192.0), (32.0, 1.0, 4.0, 8192.0)]


def open_source(path: str | os.PathLike) -> Source:
  """A file whose header is read; see Source.

  Raises:
    ValueError: it is damaged, cut short, or of another architecture.
  """
  reader = open_gguf(path)
  architecture = _architecture(reader, path)
  names = families.gguf(architecture)
  tensors = {
    tensor.name: Tensor(
      shape=tuple(tensor.shape.tolist()[::-1]),  # The last axis comes first.
      dtype=tensor.tensor_type.name,
      readable=_is_readable(tensor.tensor_type),
    )
    for tensor in reader.tensors
  }
  for name, tensor in tensors.items():
    key = families.interleaved_heads(architecture, name)
    heads = metadata(reader, key) if key else 1
    rows = tensor.shape[0]
    if key and (not isinstance(heads, int) or heads < 1 or rows % (2 * heads)):
      raise ValueError(
        f'{path}: {key}={heads!r} does not divide the {rows} rows of'
        f' {name!r} into heads of even size'
      )
  return Source(
    path=os.fspath(path),
    architecture=architecture,
    names=names.ours,
    ignored=names.ignored,
    tensors=tensors,
    read=_reader(reader, architecture),
  )


def read_sizes(path: str | os.PathLike) -> tuple[str, dict]:
  """models/<name>.py and fields of its Sizes, as config_in.read gives them."""
  reader = open_gguf(path)
  architecture = _architecture(reader, path)
  module = families.GGUF[architecture]
  shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}

  def read(key, default=None):
    value = metadata(reader, f'{architecture}.{key}', default)
    if value is None:
      raise ValueError(f'{path}: no {architecture}.{key} in the header')
    return value

  width, heads = read('embedding_length'), read('attention.head_count')
  turned = read('rope.dimension_count', width // heads)
  head_size = read('attention.key_length', turned)
  for key, found, wanted in [
    (
      'rope.dimension_count',
      read('rope.dimension_count', head_size),
      head_size,
    ),
    (
      'attention.value_length',
      read('attention.value_length', head_size),
      head_size,
    ),
    ('expert_count', read('expert_count', 0), 0),
    ('attn_logit_softcapping', read('attn_logit_softcapping', 0), 0),
    ('final_logit_softcapping', read('final_logit_softcapping', 0), 0),
  ]:
    if found != wanted:
      raise ValueError(
        f'{path}: {architecture}.{key}={found!r} is not supported, only'
        f' {wanted!r}'
      )
  if 'token_embd.weight' not in shapes:
    raise ValueError(f"{path}: no tensor 'token_embd.weight'")
  sizes = {
    'layers': read('block_count'),
    'width': width,
    'heads': heads,
    'kv_heads': read('attention.head_count_kv', heads),
    'head_size': head_size,
    'feed_forward': read('feed_forward_length'),
    'vocab_size': shapes['token_embd.weight'][1],
    'norm_eps': read('attention.layer_norm_rms_epsilon'),
    'tied': 'output.weight' not in shapes,
    'rope_linear': _linear_rope(read, path, architecture),
  }
  sizes['norm_eps'] = _short(sizes['norm_eps'])
  if module == 'gemma3':
    # llama.cpp knows by the number of layers which of them is scaled otherwise.
    largest = sizes['layers'] == 62
    return module, sizes | {
      'query_scale': float(width // heads if largest else head_size),
      'window': read('attention.sliding_window'),
      'global_every': read('attention.sliding_window_pattern', 6),
      'rope_theta': _short(read('rope.freq_base', 1e6)),
      'local_rope_theta': _short(read('rope.freq_base_swa', 1e4)),
    }
  return module, sizes | {
    'qkv_bias': architecture == 'qwen2',
    'qk_norm': architecture == 'qwen3',
    'window': read('attention.sliding_window', 0),
    'rope_theta': _short(read('rope.freq_base', 1e4)),
    'rope_llama3': _llama3_rope(reader, path, head_size, read),
  }


def open_gguf(path: str | os.PathLike) -> gguf.GGUFReader:
  """The parsed header and the mapped tensors of a whole GGUF file."""
  found = paths.resolve(path)
  stat = found.stat()
  return _open_gguf(found, (stat.length, stat.mtime))


def metadata(reader: gguf.GGUFReader, key: str, default=None):
  """A value of the header as a Python object."""
  field = reader.get_field(key)
  return default if field is None else field.contents()


@functools.lru_cache(maxsize=1)  # It takes seconds; tokenizer and weights ask.
def _open_gguf(path, stamp) -> gguf.GGUFReader:
  with path.open('rb') as file:
    magic = file.read(4)
  if magic != b'GGUF':
    raise ValueError(
      f"{path} is not a GGUF file: it starts with {magic!r}, not b'GGUF'"
    )
  try:
    with paths.on_disk(path) as file:
      return gguf.GGUFReader(file)
  except (ValueError, LookupError, OverflowError) as error:
    raise ValueError(
      f'{path} is cut short or damaged: its {stamp[0]} bytes do not hold what'
      f' its header announces ({error})'
    ) from error


def _architecture(reader, path) -> str:
  architecture = metadata(reader, 'general.architecture')
  if architecture not in families.GGUF:
    raise ValueError(
      f'{path}: general.architecture={architecture!r} is not one of'
      f' {[*families.GGUF]}'
    )
  return architecture


def _reader(
  reader: gguf.GGUFReader, architecture: str
) -> Callable[[str, tuple[slice, ...]], np.ndarray]:
  """Reads a part; the tensor whose parts are asked for stays converted."""
  tensors = {tensor.name: tensor for tensor in reader.tensors}

  @functools.lru_cache(maxsize=1)
  def whole(name):
    tensor = tensors[name]
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if key := families.interleaved_heads(architecture, name):
      values = _half_rotation(values, metadata(reader, key))
    added = families.offset(architecture, name)
    return values - added if added else values

  return lambda name, at: whole(name)[at]


def _half_rotation(values, heads):
  """Reorders rows from interleaved rotary pairs to halves of each head.

  A head of size 6 has its rows as 0 3 1 4 2 5 in the file.
  """
  pairs = values.reshape(heads, -1, 2, values.shape[-1])
  return pairs.swapaxes(1, 2).reshape(values.shape)


def _linear_rope(read, path, architecture) -> float:
  kind = read('rope.scaling.type', 'none')
  if kind not in ('none', 'linear'):
    raise ValueError(
      f'{path}: {architecture}.rope.scaling.type={kind!r} is not supported,'
      " only 'none' or 'linear'"
    )
  return float(read('rope.scaling.factor')) if kind == 'linear' else 1.0


def _llama3_rope(reader, path, head_size, read) -> tuple[float, ...]:
  """Which of _LLAMA3 the scales in the file come from, if there are any."""
  found = [x for x in reader.tensors if x.name == 'rope_freqs.weight']
  if not found:
    return ()
  scales = gguf.quants.dequantize(found[0].data, found[0].tensor_type)
  theta = read('rope.freq_base', 1e4)
  waves = 2 * np.pi * theta ** (np.arange(0, head_size, 2) / head_size)
  for factor, low, high, length in _LLAMA3:
    mix = np.clip((length / waves - low) / (high - low), 0, 1)
    expected = 1 / ((1 - mix) / factor + mix)
    if scales.shape == expected.shape and np.allclose(scales, expected, 1e-3):
      return factor, low, high, length
  raise ValueError(
    f"{path}: 'rope_freqs.weight' are not the scales of Llama 3.1 or 3.2, the"
    ' only ones that are known'
  )


def _short(value: float) -> float:
  """The header's float32 as the number that was meant: 1e-5, not 9.9999e-6."""
  return float(str(np.float32(value)))


@functools.cache
def _is_readable(kind: gguf.GGMLQuantizationType) -> bool:
  _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
  try:
    gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
  except NotImplementedError:
    return False
  return True
