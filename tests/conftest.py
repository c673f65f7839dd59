"""Every test sees 8 CPU devices, so that sharding needs no second process."""

import jax

from grpo_jax import process

process.keep_memory()
jax.config.update('jax_num_cpu_devices', 8)
