"""Name, schedule and clipping -> an optax gradient transformation."""

import jax
import optax

from grpo_jax.types import Params


def make(
  *,
  name: str = 'adamw',
  lr: float,
  steps: int,
  schedule: str = 'constant',
  warmup: int = 0,
  final: float = 0.1,
  clip_norm: float | None = 1.0,
  weight_decay: float = 0.0,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """An optimizer.

  Args:
    name: 'adamw' or 'sgd'.
    lr: the greatest learning rate.
    steps: optimizer steps over which the schedule runs.
    schedule: 'constant', 'linear' or 'cosine', after the warm-up.
    warmup: steps from 0 to lr.
    final: the last learning rate as a share of lr (linear and cosine).
    clip_norm: greatest global norm of a gradient; None for no clipping.
    weight_decay: of matrices; vectors (norms, biases) do not decay.
    b1: decay of Adam's first moment, or SGD's momentum.
    b2: decay of Adam's second moment.
    eps: added to Adam's denominator.

  Raises:
    ValueError: for an unknown name or schedule.
  """
  rate = _schedule(schedule, lr, steps, warmup, final)
  match name:
    case 'adamw':
      rule = optax.adamw(
        rate, b1, b2, eps, weight_decay=weight_decay, mask=_matrices
      )
    case 'sgd':
      rule = optax.sgd(rate, momentum=b1 or None)
    case _:
      raise ValueError(f"optim.name={name!r} is not 'adamw' or 'sgd'")
  if clip_norm is None:
    return rule
  return optax.chain(optax.clip_by_global_norm(clip_norm), rule)


def _schedule(name, lr, steps, warmup, final) -> optax.Schedule:
  rest = max(steps - warmup, 1)
  match name:
    case 'constant':
      after = optax.constant_schedule(lr)
    case 'linear':
      after = optax.linear_schedule(lr, lr * final, rest)
    case 'cosine':
      after = optax.cosine_decay_schedule(lr, rest, alpha=final)
    case _:
      raise ValueError(
        f"optim.schedule={name!r} is not 'constant', 'linear' or 'cosine'"
      )
  ramp = optax.linear_schedule(0.0, lr, max(warmup, 1))
  return optax.join_schedules([ramp, after], [warmup])


def _matrices(params: Params) -> Params:
  """True for what decays. Norms are stacked over layers, hence the name."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: (
      not jax.tree_util.keystr(path).rstrip("']").endswith('norm')
    ),
    params,
  )
