"""The benchmark on its smallest shape: what it prints, writes and refuses."""

import json

import command
import pytest

pytestmark = pytest.mark.slow

KEYS = {'step_s_min', 'step_s_median', 'rollout_s_min', 'update_s_min'}
KEYS |= {'floor_s', 'matmul_gflops', 'read_gbps', 'thin_matmul_gflops'}
KEYS |= {'reward_s_min', 'tokens_per_s', 'compile_s', 'peak_memory_gb'}


def benchmark(*arguments):
  return command.run(
    'experiments/benchmark.py', '--shape', 'S0', '--runs', '3', *arguments
  )


def test_a_step_is_timed_with_its_parts_and_its_floor(tmp_path):
  out = tmp_path / 'out.json'
  done = benchmark('--suite', 'step', '--json', str(out))
  assert done.returncode == 0, done.stderr
  r = json.loads(out.read_text())
  assert r.keys() >= KEYS
  assert all(r[name] > 0 for name in KEYS)
  assert r['step_s_min'] <= r['step_s_median']
  parts = r['rollout_floor_s'] + r['update_floor_s']
  assert r['floor_s'] == pytest.approx(parts)
  # Nothing is faster than its floor, and 2 * 4 * 8 tokens are a step.
  assert r['rollout_s_min'] > r['rollout_floor_s']
  assert r['update_s_min'] > r['update_floor_s']
  assert r['tokens_per_s'] == pytest.approx(64 / r['step_s_min'])
  for word in ('step', 'rollout', 'reward', 'update', 'x floor', 'machine:'):
    assert word in done.stdout


def test_a_rollout_alone_is_timed(tmp_path):
  out = tmp_path / 'out.json'
  longer = ('--completion', '10', '--stages', '2')
  done = benchmark('--suite', 'rollout', *longer, '--json', str(out))
  assert done.returncode == 0, done.stderr
  r = json.loads(out.read_text())
  assert 'rollout_s_min' in r and 'update_s_min' not in r
  assert r['tokens_per_s'] == pytest.approx(80 / r['rollout_s_min'])


def test_a_peer_runs_in_turn_with_ours(tmp_path):
  script, out = tmp_path / 'peer.py', tmp_path / 'out.json'
  script.write_text("print('step s: [9.0, 3.0, 2.0, 2.5]')")
  done = benchmark(
    *('--against', str(script), '--pairs', '2', '--json', str(out)),
    *('--microbatches', '2'),
  )
  assert done.returncode == 0, done.stderr
  r = json.loads(out.read_text())
  assert [pair['theirs'] for pair in r['pairs']] == [
    {'min': 2.0, 'median': 2.5}
  ] * 2
  for pair, ratio in zip(r['pairs'], r['ratio_min'], strict=True):
    assert ratio == pytest.approx(2.0 / pair['ours']['min'])
  assert 'pair 2: ours' in done.stdout


def test_a_peer_may_print_json_and_takes_its_own_arguments(tmp_path):
  script, out = tmp_path / 'peer.py', tmp_path / 'out.json'
  script.write_text(
    'import json, sys\n'
    'print(json.dumps(dict(step_s_median=float(sys.argv[2]), step_s_min=1)))'
  )
  done = benchmark(
    '--against', f'{script} --beta 4', '--pairs', '1', '--json', str(out)
  )
  assert done.returncode == 0, done.stderr
  pair = json.loads(out.read_text())['pairs'][0]
  assert pair['theirs'] == {'min': 1, 'median': 4.0}


def test_a_peer_that_fails_is_quoted(tmp_path):
  script = tmp_path / 'peer.py'
  script.write_text("raise ImportError('no such peer')")
  done = benchmark('--against', str(script), '--pairs', '1')
  assert done.returncode != 0
  assert done.stderr.splitlines()[-1].endswith('no such peer')
  assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
  'arguments',
  [
    ('--runs', '0'),
    ('--stages', '0'),
    ('--microbatches', '0'),
    ('--suite', 'rollout', '--against', 'x.py'),
  ],
)
def test_what_makes_no_sense_is_refused(arguments):
  done = benchmark(*arguments)
  assert done.returncode == 2
  assert 'error: --' in done.stderr


def test_pieces_that_prompts_cannot_be_cut_into_are_refused():
  done = benchmark('--microbatches', '3')  # Of 2 prompts.
  assert done.returncode == 2
  assert 'error: data.prompts=2' in done.stderr
  assert 'Traceback' not in done.stderr


def test_scoring_on_the_device_is_set_against_python(tmp_path):
  out = tmp_path / 'out.json'
  done = command.run(
    'experiments/benchmark_rewards.py',
    *('--completions', '32', '--tokens', '128', '--shape', 'S0'),
    *('--runs', '2', '--json', str(out)),
  )
  assert done.returncode == 0, done.stderr
  r = json.loads(out.read_text())
  python = r['python_detokenise_s'] + r['python_score_s']
  assert r['ratio'] == pytest.approx(python / r['device_s_min'])
  assert r['share'] == pytest.approx(r['device_s_min'] / r['iteration_s'])
  assert r['share'] < 0.05
  assert 'times as long' in done.stdout and 'share of an iter' in done.stdout
