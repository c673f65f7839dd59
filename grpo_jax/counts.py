"""How many operations and bytes an RL step needs at the least.

From the model's table and the sizes of a batch, not from compiled code, whose
own counts take a loop's body once. A multiply-add is two operations. What is
counted is what the algorithm asks for: each prompt once per group, each
completion token once in the rollout and three times (forward, and twice that
backward) in the update, attention over the keys that a token may see, and the
reference where there is a KL term. What an implementation adds to that (norms,
softmax, padding, recomputation) is not: it is what separates it from the floor.

Counts serve MFU, the share of the device's peak that a run makes use of, and
the floor that experiments/benchmark.py sets times against.
"""

from collections.abc import Mapping, Sequence
import math
from typing import NamedTuple

import jax

from grpo_jax import models
from grpo_jax.models import Model


class Counts(NamedTuple):
  """Of one RL step of all devices together."""

  rollout: float  # Operations of matrix products.
  update: float
  rollout_bytes: float  # Weights, and keys and values, read while decoding.


def step(
  model: Model,
  *,
  prompts: int,
  group_size: int,
  prompt_tokens: float,
  completion_tokens: float,
  reference: bool = False,
  passes: int = 1,
  bytes_per_number: int = 4,
) -> Counts:
  """Counts one step.

  Args:
    model: of the policy.
    prompts: P.
    group_size: G.
    prompt_tokens: of a prompt, in the mean.
    completion_tokens: of a completion, in the mean.
    reference: whether a KL term has the reference score the completions.
    passes: times that the update goes through the batch.
    bytes_per_number: of weights, keys and values in use.
  """
  P, L, T = prompts, prompt_tokens, completion_tokens
  B = P * group_size
  body, head = _weights(model)
  pairs_in_prompt, pairs = P * L * L / 2, B * T * (L + T / 2)
  attention = 2 * model.products_per_pair * (pairs_in_prompt + pairs)
  forward = 2 * body * (P * L + B * T) + 2 * head * B * T + attention
  read = T * (body + head)
  read += 0.5 * model.products_per_pair * (P * L * T + B * T * T / 2)
  return Counts(
    rollout=forward,
    update=forward * (3 * passes + reference),
    rollout_bytes=read * bytes_per_number,
  )


def utilisation(
  model: Model,
  devices: Sequence[jax.Device],
  numbers: Mapping[str, float],
  *,
  dtype: str,
  seconds: float,
  **sizes,
) -> dict[str, float]:
  """What a step made of its devices, as far as the backend tells.

  Args:
    model: of the policy.
    devices: all that the step ran on.
    numbers: metrics of the step, the lengths of prompts and completions.
    dtype: of its matrix products.
    seconds: that it took.
    **sizes: the other arguments of `step`.

  Returns:
    time/mfu, the share of the devices' promised operations that the step's own
    are; time/memory_gb, the most that the first device has held so far. Either
    is missing where it is unknown.
  """
  found = {}
  best = peak(devices[0], dtype)
  if best is not None:
    needed = step(
      model,
      prompt_tokens=numbers['rollout/prompt_length'],
      completion_tokens=numbers['rollout/length'],
      **sizes,
    )
    operations = needed.rollout + needed.update
    found['time/mfu'] = operations / (seconds * best * len(devices))
  memory = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in memory:
    found['time/memory_gb'] = memory['peak_bytes_in_use'] / 1e9
  return found


def peak(device: jax.Device, dtype: str) -> float | None:
  """Operations a second that the maker promises; None where it is unknown."""
  rates = _PEAK_BF16.get(device.device_kind)
  if rates is None:
    return None
  return rates * 1e12 * (1.0 if dtype == 'bfloat16' else 0.5)


# device_kind -> dense bfloat16 teraflop/s from the data sheets. Float32 is
# taken as half of it, an upper bound.
_PEAK_BF16: Mapping[str, float] = {
  'TPU v2': 45,
  'TPU v3': 123,
  'TPU v4': 275,
  'TPU v5 lite': 197,
  'TPU v5e': 197,
  'TPU v5': 459,
  'TPU v5p': 459,
  'TPU v6 lite': 918,
  'TPU v6e': 918,
  'NVIDIA A100-SXM4-40GB': 312,
  'NVIDIA A100-SXM4-80GB': 312,
  'NVIDIA H100 80GB HBM3': 989,
  'NVIDIA H200': 989,
}


def _weights(model: Model) -> tuple[int, int]:
  """Numbers that a token is multiplied with: in the layers, and in the head."""
  params = models.abstract_params(model)
  head = math.prod(jax.eval_shape(model.head, params).shape)
  matrices = sum(
    math.prod(row.shape)
    for row in jax.tree.leaves(model.table, is_leaf=_is_row)
    if 'layers' in row.axes and None not in row.axes
  )
  return matrices, head


def _is_row(node) -> bool:
  return isinstance(node, models.Param)
