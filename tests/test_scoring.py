"""Host rewards in a run: between compiled halves, and side by side."""

import json
import sys

import jax
import numpy as np
import pytest

from grpo_jax import build, config, fit, train

sys.path.append('configs')
import quickstart  # noqa: E402

pytestmark = pytest.mark.slow


def make_config(reward, **host):
  c = quickstart.get_config('smoke')
  c.reward = {'answer': 1.0} | reward
  c.rollout.update(group_size=4, max_tokens=12)
  c.data.prompts = 4
  c.pretrain.steps = 0
  c.host.update(workers=2, **host)
  return c


def iterate(c, folder, steps=1, heard=None):
  """News of the last of some iterations; `heard` gets the metrics of each."""
  heard = [] if heard is None else heard
  run = build.build(c, str(folder), jax.devices()[:1])
  with jax.set_mesh(run.mesh):
    compiled = train.compile_steps(run)
    try:
      state = compiled.start_rl(train.start(run))
      for step in range(steps):
        examples = build.train_examples(run, step)
        prompts = run.encode(examples)
        state, news = compiled.iterate(state, prompts, examples)
        heard.append(news.metrics)
    finally:
      compiled.close()
  return run, examples, jax.device_get((state, news))


def test_the_host_scores_what_the_device_sampled(tmp_path):
  reward = {
    'short': {'function': 'mine:brevity', 'per_token': 0.5, 'weight': 0.25},
    'trl': {'function': 'mine:of_trl', 'signature': 'trl'},
    'verl': {'function': 'mine:of_verl', 'signature': 'verl', 'weight': 0},
  }
  run, examples, (_, news) = iterate(make_config(reward), tmp_path)
  rolled, parts = news.rollout, news.rewards.parts
  np.testing.assert_array_equal(parts['short'], -0.5 * rolled.lengths_PG)
  for p, example in enumerate(examples):
    for g in range(4):
      ids = rolled.tokens_PGT[p, g, : rolled.lengths_PG[p, g]]
      written = run.tokenizer.decode(ids.tolist())
      assert parts['trl'][p, g] == written.count(example.answer)
      assert parts['verl'][p, g] == (example.answer in written)
  total_PG = parts['answer'] + 0.25 * parts['short'] + parts['trl']
  np.testing.assert_allclose(news.rewards.total_PG, total_PG, rtol=1e-6)
  assert not news.failures
  assert 0 <= news.metrics['host/hidden'] <= 1


def test_pieces_change_nothing_but_the_time(tmp_path):
  reward = {'short': {'function': 'mine:brevity', 'weight': 0.1}}
  found = [
    iterate(make_config(reward, pieces=pieces), tmp_path / str(pieces), 2)[2]
    for pieces in (1, 4)
  ]
  (state, news), (state_4, news_4) = found
  np.testing.assert_array_equal(
    news.rollout.tokens_PGT, news_4.rollout.tokens_PGT
  )
  jax.tree.map(np.testing.assert_array_equal, news.rewards, news_4.rewards)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    state.params,
    state_4.params,
  )


def test_a_host_reward_of_one_device_part_equals_that_part(tmp_path):
  """The same training, whichever side scores."""
  host = make_config({'short': {'function': 'mine:brevity', 'weight': 0.0}})
  device = make_config({})
  state, _ = iterate(host, tmp_path / 'host', 2)[2]
  expected, _ = iterate(device, tmp_path / 'device', 2)[2]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    state.params,
    expected.params,
  )


def test_a_run_survives_what_its_reward_does(tmp_path):
  reward = {'bad': {'function': 'mine:fragile', 'seconds': 0.3}}
  c = make_config(reward)
  c.data.prompts = 16  # Over 8 devices, in two pieces.
  summary = fit.fit(c.lock(), str(tmp_path))
  assert summary is not None
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  failures = (tmp_path / 'failures.jsonl').read_text().splitlines()
  failures = [json.loads(line) for line in failures]
  rows = [json.loads(line) for line in lines]
  for kind in ('hung', 'raised'):
    count = sum(failure['kind'] == kind for failure in failures)
    assert sum(row[f'host/{kind}'] for row in rows) == count > 0
  assert {row['kind'] for row in failures} == {'hung', 'raised'}
  assert {row['part'] for row in failures} == {'bad'}
  assert any(row['text'] for row in failures)
  for row in rows:
    failed = sum(failure['step'] == row['step'] for failure in failures)
    assert row['reward/bad_unscored'] >= failed / 64
    assert row['reward/unscored'] == 0  # The answer is scored all the same.


def test_the_device_samples_while_the_host_scores(tmp_path):
  """With -s it prints what RESULTS.md records."""
  hidden = {}
  for pieces in (1, 4):
    c = make_config({'slow': {'function': 'mine:slow'}}, pieces=pieces)
    c.rollout.max_tokens = 512
    c.reward.slow.delay = 0.02  # Seconds; 16 completions, 2 workers.
    heard = []
    _, _, (_, news) = iterate(c, tmp_path / str(pieces), 6, heard)
    # Who else computes here hides less, and never more.
    hidden[pieces] = max(float(x['host/hidden']) for x in heard)
    names = ('time/rollout', 'time/reward', 'host/seconds', 'host/hidden')
    print(pieces, {name: round(news.metrics[name], 3) for name in names})
  assert hidden[1] < 0.1
  assert hidden[4] > 0.3  # All but the last piece, if the device takes longer.


@pytest.mark.parametrize(
  'change,words',
  [
    ({'function': 'mine'}, "'module:function'"),
    ({'function': 'no_such_module:f'}, 'no_such_module'),
    ({'function': 'mine:no_such_function'}, 'no_such_function'),
    ({'function': 'mine:brevity', 'signature': 'x'}, 'score, trl, verl'),
    ({'function': 'mine:brevity', 'speed': 1}, 'speed'),
    ({'function': 'mine:brevity', 'seconds': 0}, 'seconds'),
  ],
)
def test_what_cannot_work_is_one_line_before_anything_compiles(
  tmp_path, change, words
):
  c = make_config({'mine': change})
  with pytest.raises(ValueError, match=words) as error:
    config.check(c)
    run = build.build(c, str(tmp_path), jax.devices()[:1])
    train.compile_steps(run)
  assert '\n' not in str(error.value)


def test_pieces_must_divide_the_prompts():
  c = make_config({'mine': {'function': 'mine:brevity'}}, pieces=3)
  with pytest.raises(ValueError, match='host.pieces=3'):
    config.check(c)
