"""Attention by kernels of others: splash on TPUs, and cuDNN's on GPUs.

Both go through the keys block by block (arxiv.org/abs/2205.14135), so that of
the logits no more than a block exists, and skip what the causal order or a
window rules out. They are called as the kernels of attention.py are, whose key
of dimensions holds here too; this file brings shared prompts, windows, padding
and meshes into the form that they know.

  splash    Pallas for TPUs, in jax.experimental
  cudnn     jax.nn.dot_product_attention

Three things hold for both. They run whole passes, and leave the steps of
decoding, with one query a row, to `plain`. A window is part of the compiled
kernel: with several of them each becomes a branch. And a prompt's keys and
values are copied for each row of its group, inside the layer only.
"""

from collections.abc import Callable
import functools

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
  splash_attention_mask,
)
import jax.numpy as jnp

from grpo_jax import sharding
from grpo_jax.models import attention, layers

KERNELS = {'splash': 'tpu', 'cudnn': 'gpu'}  # And the platform of each.


def splash(
  q_BKRTH: jax.Array,
  k_BKHS: jax.Array,
  v_BKHS: jax.Array,
  reach: attention.Reach,
  prompt: tuple[jax.Array, jax.Array, jax.Array] | None = None,
  *,
  interpret: bool = False,
) -> jax.Array:
  """As attention.plain, by the splash kernel; `interpret` runs it on a CPU.

  Raises ValueError for documents behind a prompt.
  """
  kernel = functools.partial(_splash, interpret=interpret)
  return _attend(kernel, q_BKRTH, k_BKHS, v_BKHS, reach, prompt)


def cudnn(
  q_BKRTH: jax.Array,
  k_BKHS: jax.Array,
  v_BKHS: jax.Array,
  reach: attention.Reach,
  prompt: tuple[jax.Array, jax.Array, jax.Array] | None = None,
  *,
  implementation: str = 'cudnn',
) -> jax.Array:
  """As attention.plain, by cuDNN; implementation='xla' runs on a CPU.

  Documents side by side need a mask of all pairs, as does 'xla'.

  Raises ValueError for documents behind a prompt.
  """
  kernel = functools.partial(_cudnn, implementation=implementation)
  return _attend(kernel, q_BKRTH, k_BKHS, v_BKHS, reach, prompt)


def _attend(kernel: Callable, q_BKRTH, k_BKHS, v_BKHS, reach, prompt):
  """kernel(by_head, by_row, window=...) on each device, with this layer's."""
  _, K, _, T, _ = q_BKRTH.shape
  if T == 1 or k_BKHS.shape[-1] > T:
    return attention.plain(q_BKRTH, k_BKHS, v_BKHS, reach, prompt)
  if prompt is not None and reach.segment_ids_BS is not None:
    raise ValueError(
      'segment_ids and a prompt at one time: only plain and chunked take both'
    )
  k_PKLH, v_PKHL, lengths_P = prompt or (None, None, None)
  by_head = q_BKRTH, k_BKHS, v_BKHS, k_PKLH, v_PKHL
  by_row = reach.segment_ids_BS, lengths_P
  # Rows of a group stay where their prompt is.
  rows = len(q_BKRTH if prompt is None else prompt[-1])

  def attend(window):
    bound = functools.partial(kernel, window=window)
    return sharding.by_rows_and_heads(bound, rows, K)(by_head, by_row)

  if not reach.windows or isinstance(reach.kind, int):
    y_BKRTH = attend(reach.window)
  else:
    branches = [functools.partial(attend, window) for window in reach.windows]
    y_BKRTH = jax.lax.switch(reach.kind, branches)
  return y_BKRTH.astype(layers.accumulator(q_BKRTH))


def _splash(by_head, by_row, *, window: int | None, interpret: bool):
  """Own keys behind those of the prompt, which are moved up to them.

      prompt   a b . .      keys      . . a b x y z
      own      x y z        queries           x y z

  So the distance between a query and a key is that of their places, and the
  gap is a segment that no query is in.
  """
  q_BKRTH, k_BKHS, v_BKHS, k_PKLH, v_PKHL = by_head
  ids_BS, lengths_P = by_row
  B, K, R, T, H = q_BKRTH.shape
  q_BNTH = q_BKRTH.reshape(B, K * R, T, H)
  k_BKSH, v_BKSH = k_BKHS.swapaxes(2, 3), v_BKHS.swapaxes(2, 3)
  L, ids_BT = 0, ids_BS
  if lengths_P is not None:
    P, _, L, _ = k_PKLH.shape
    gap_P = L - lengths_P

    def before(x_PKLH, own_BKTH):
      moved_PKLH = jax.vmap(functools.partial(jnp.roll, axis=1))(x_PKLH, gap_P)
      moved_BKLH = jnp.repeat(moved_PKLH, B // P, axis=0)
      return jnp.concatenate([moved_BKLH, own_BKTH], axis=2)

    k_BKSH = before(k_PKLH, k_BKSH)
    v_BKSH = before(v_PKHL.swapaxes(2, 3), v_BKSH)
    ids_BT = jnp.ones((B, T), jnp.int32)
    real_PL = (jnp.arange(L) >= gap_P[:, None]).astype(jnp.int32)
    real_BL = jnp.repeat(real_PL, B // P, axis=0)
    ids_BS = jnp.concatenate([real_BL, ids_BT], axis=1)

  # Up to the width of a TPU's registers. The keys of the filling are behind all
  # queries; its own queries are not looked at.
  q_BNTH, k_BKSH, v_BKSH = (
    _fill(x, 128, axis=2) for x in (q_BNTH, k_BKSH, v_BKSH)
  )
  segment_ids = None
  if ids_BS is not None:
    segment_ids = splash_attention_kernel.SegmentIds(
      *(_fill(ids, 128, axis=1, value=-1) for ids in (ids_BT, ids_BS))
    )
  kernel = _splash_kernel(
    K * R, q_BNTH.shape[2], k_BKSH.shape[2], L, window, interpret
  )
  y_BNTH = jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, segment_ids)
  return y_BNTH[:, :, :T].reshape(B, K, R, T, H)


def _splash_kernel(N, T, S, offset: int, window: int | None, interpret: bool):
  """For N heads of one row, whose first query is at the key `offset`."""
  if window is None or window >= S:
    mask = splash_attention_mask.CausalMask((T, S), offset)
  else:
    mask = splash_attention_mask.LocalMask((T, S), (window - 1, 0), offset)
  q, kv = (next(n for n in (512, 256, 128) if x % n == 0) for x in (T, S))
  return splash_attention_kernel.make_splash_mha(
    splash_attention_mask.MultiHeadMask([mask] * N),
    block_sizes=splash_attention_kernel.BlockSizes(
      block_q=q,
      block_kv=kv,
      block_q_dkv=q,
      block_kv_dkv=kv,
      block_q_dq=q,
      block_kv_dq=kv,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )


def _cudnn(by_head, by_row, *, window: int | None, implementation: str):
  """Own keys right behind the real ones of the prompt, the padding last.

      prompt   a b . .      keys      a b x y z . .
      own      x y z        queries   0 0 x y z . .

  The first query must be that of the first key, so that the prompt has queries
  of zeros, whose results are dropped.
  """
  q_BKRTH, k_BKHS, v_BKHS, k_PKLH, v_PKHL = by_head
  ids_BS, lengths_P = by_row
  B, K, R, T, H = q_BKRTH.shape
  N, L = K * R, 0 if lengths_P is None else k_PKLH.shape[2]
  q_BTNH = q_BKRTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
  k_BSKH, v_BSKH = (x.transpose(0, 3, 1, 2) for x in (k_BKHS, v_BKHS))
  # The gradient is there for even numbers of queries and keys only.
  even = functools.partial(_fill, multiple=2, axis=1)
  q_BTNH, k_BSKH, v_BSKH = map(even, (q_BTNH, k_BSKH, v_BSKH))
  attend = functools.partial(
    jax.nn.dot_product_attention, scale=1.0, implementation=implementation
  )
  if ids_BS is not None:
    reach = attention.Reach(
      even(ids_BS, value=-1), windows=() if window is None else (window,)
    )
    T_even = q_BTNH.shape[1]
    seen_B11TS = attention.own_seen(reach, T_even, T_even)
    y_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, mask=seen_B11TS[:, 0])
    return _heads_first(y_BTNH[:, :T], K)

  attend = functools.partial(attend, is_causal=True)
  if window is not None and window < L + T:
    attend = functools.partial(attend, local_window_size=(window - 1, 0))
  if lengths_P is None:
    return _heads_first(attend(q_BTNH, k_BSKH, v_BSKH)[:, :T], K)

  G = B // len(lengths_P)
  lengths_B = jnp.repeat(lengths_P, G)

  def behind(x_BLNH, own_BTNH):
    room = ((0, 0), (0, own_BTNH.shape[1]), (0, 0), (0, 0))
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
    return jax.vmap(put)(even(jnp.pad(x_BLNH, room)), own_BTNH, lengths_B)

  k_BLKH = jnp.repeat(k_PKLH.swapaxes(1, 2), G, axis=0)
  v_BLKH = jnp.repeat(v_PKHL.transpose(0, 3, 1, 2), G, axis=0)
  y_BSNH = attend(
    behind(jnp.zeros((B, L, N, H), q_BTNH.dtype), q_BTNH),
    behind(k_BLKH, k_BSKH),
    behind(v_BLKH, v_BSKH),
    query_seq_lengths=lengths_B + T,
    key_value_seq_lengths=lengths_B + T,
  )
  cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=T)
  return _heads_first(jax.vmap(cut)(y_BSNH, lengths_B), K)


def _heads_first(y_BTNH: jax.Array, K: int) -> jax.Array:
  """(B, T, K*R, H) -> (B, K, R, T, H)."""
  B, T, N, H = y_BTNH.shape
  return y_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def _fill(x: jax.Array, multiple: int, axis: int, value: int = 0) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % multiple)
  return jnp.pad(x, widths, constant_values=value)
