"""Recipes that take seconds, as configs: for tests, and for commands."""

from grpo_jax import config, pipeline
from grpo_jax.pipeline import but, stage


def get_config(arg=''):
  if arg == 'judged':
    return judged()
  c = tiny()
  small = but(c, model__sizes={'layers': 1})
  taught = but(small, steps=24, optim__lr=3e-3, rollout__group_size=8)
  return pipeline.recipe(
    table=c,
    base=stage('pretrain', c),
    zero=stage('grpo', c, 'base'),
    said=stage('sample', c, 'zero'),
    cold=stage('sft', c, 'base', 'said'),
    again=stage('evaluate', c, 'cold'),
    student=stage('pretrain', small),
    taught=stage('distill', taught, 'student', teacher='cold'),
  )


def judged():
  """The kinds that the other one does not have, long enough to be killed in."""
  c = tiny()
  c.checkpoint.every = 5
  c.preference.update(steps=60, rows=8, max_tokens=64, heldout=0.3)
  small = but(c, model__sizes={'layers': 1})
  return pipeline.recipe(
    base=stage('pretrain', c),
    pairs=stage(
      'sample', but(c, sample__problems=64, sample__margin=0.1), 'base'
    ),
    helpful=stage('reward_model', c, 'base', 'pairs'),
    student=stage('pretrain', small),
    taught=stage('distill', but(small, steps=40), 'student', teacher='base'),
  )


def tiny():
  c = config.default()
  c.data.update(prompts=8, knobs={'problems': 400})
  c.pretrain.update(steps=3, rows=8)
  c.rollout.update(group_size=2, max_tokens=16)
  c.eval.update(problems=8, batch=8, samples=2)
  c.sample.update(problems=16, keep=2)
  c.sample.least = {'format': 0.0}  # What it writes is never right.
  c.reward.truncated = -1.0  # Some are cut: there is something to learn.
  c.steps = 1
  return c
