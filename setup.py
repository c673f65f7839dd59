"""Installs grpo_jax; configs/ and experiments/ are run from the clone."""

import setuptools

setuptools.setup(
  name='grpo_jax',
  version='0.1.0',
  description='Reinforcement learning on language models in JAX (GRPO)',
  license='Apache-2.0',
  packages=setuptools.find_packages(include=['grpo_jax', 'grpo_jax.*']),
  package_data={'grpo_jax.report': ['*.html', '*.css', '*.js']},
  python_requires='>=3.11',
  install_requires=[
    'jax>=0.10',
    'flax>=0.12',
    'optax>=0.2.6',
    'orbax-checkpoint>=0.11',
    'ml-collections>=1.0',
    'absl-py',
    'numpy',
    'etils[epath]',
    'sentencepiece>=0.2',
    'protobuf',  # Their files.
    'tokenizers',  # BPE of published checkpoints.
    'jinja2',  # Their chat templates.
    'gguf>=0.17',  # Their weights,
    'safetensors>=0.8',  # and those of Hugging Face's folders.
    'tensorflow-datasets>=4.9.9',
    'interegular>=0.3.3',  # Regular expressions as automata.
    'importlib_resources',  # TFDS without TensorFlow imports it.
    'rich',
    'tensorboardX',
  ],
  extras_require={
    'test': [
      'pytest',
      'pytest-xdist',
      'hypothesis',
      'ruff',
      'mypy>=2',
      'setuptools>=70.1',  # Builds the wheel, without a network.
      'math-verify>=0.9',
      'reasoning-gym>=0.1.25',
      'matplotlib',
      'nbclient',  # Runs the notebooks, in a kernel:
      'ipykernel',
    ],
    # Host rewards; those that run code need bubblewrap, a Debian package.
    'rewards': ['math-verify>=0.9', 'reasoning-gym>=0.1.25'],
    'plot': ['matplotlib'],
    'hub': ['huggingface_hub'],  # model.init='hf://ORGANISATION/NAME'
    'tpu': ['jax[tpu]'],
    'plan': ['libtpu'],  # The TPU's compiler, for where there is no TPU.
    'cuda': ['jax[cuda12]'],
  },
)
