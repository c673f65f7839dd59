"""A Llama in float64 NumPy, one row at a time: the oracle of other tests."""

import numpy as np


def hidden(params, ids, *, heads, kv_heads, theta=10_000.0, eps=1e-5):
  """The last hidden states of one row of tokens, (tokens, width)."""
  w = {k: np.asarray(v, np.float64) for k, v in params['layers'].items()}
  x = np.asarray(params['embed'], np.float64)[np.asarray(ids)]
  for y in range(len(w['q'])):
    h = norm(x, w['attn_norm'][y], eps)
    q = rotate(split(h @ w['q'][y], heads), theta)
    k = rotate(split(h @ w['k'][y], kv_heads), theta)
    v = split(h @ w['v'][y], kv_heads)
    out = np.zeros_like(q)
    for t in range(len(x)):
      for n in range(heads):
        m = n * kv_heads // heads
        scores = k[: t + 1, m] @ q[t, n] / np.sqrt(q.shape[-1])
        share = np.exp(scores - scores.max())
        out[t, n] = share / share.sum() @ v[: t + 1, m]
    x = x + out.reshape(len(x), -1) @ w['o'][y]
    h = norm(x, w['mlp_norm'][y], eps)
    gate = h @ w['gate'][y]
    gate = gate / (1 + np.exp(-gate))
    x = x + (gate * (h @ w['up'][y])) @ w['down'][y]
  return norm(x, np.asarray(params['final_norm'], np.float64), eps)


def logits(params, ids, **sizes):
  head = params['unembed'] if 'unembed' in params else params['embed'].T
  return hidden(params, ids, **sizes) @ np.asarray(head, np.float64)


def log_softmax(x):
  x = x - x.max(axis=-1, keepdims=True)
  return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def norm(x, scale, eps):
  return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * scale


def split(x, heads):
  return x.reshape(len(x), heads, -1)


def rotate(x, theta):
  """Pairs (i, i + half) turn by position * theta^(-2i / size)."""
  T, _, size = x.shape
  half = size // 2
  out = np.zeros_like(x)
  for t in range(T):
    for i in range(half):
      angle = t * theta ** (-2 * i / size)
      a, b = x[t, :, i], x[t, :, i + half]
      out[t, :, i] = a * np.cos(angle) - b * np.sin(angle)
      out[t, :, i + half] = b * np.cos(angle) + a * np.sin(angle)
  return out
