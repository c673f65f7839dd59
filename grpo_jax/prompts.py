"""Examples -> what the model reads: prompts for RL, documents to imitate.

chat(question) -> turns         instruction and worked examples come first
to_ids(question) -> ids         through the chat template, or one of our own
encode(examples) -> Prompts
answered(example) -> texts      prompt, and what a good model would say
document(prompt, completion) -> ids, with the token that ends it

A template is chosen by `c.data.template`: '' for the chat template of the
tokenizer alone, a name of PLAIN for base models (the whole text, past the chat
template), a name of SYSTEM for chat models (their system turn), or a text of
your own with {question} in it, which is plain too. To add one, give it a name.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from grpo_jax.datasets import Example
from grpo_jax.types import Prompts

Chat = list[dict[str, str]]

_R1_ZERO = (  # Table 1 of the paper on DeepSeek-R1 (arxiv.org/abs/2501.12948).
  'A conversation between User and Assistant. The user asks a question, and '
  'the Assistant solves it. The assistant first thinks about the reasoning '
  'process in the mind and then provides the user with the answer. The '
  'reasoning process and answer are enclosed within <think> </think> and '
  '<answer> </answer> tags, respectively, i.e., <think> reasoning process here '
  '</think> <answer> answer here </answer>.'
)
_BOXED = (
  'Please reason step by step, and put your final answer within \\boxed{}.'
)

PLAIN = {
  'r1_zero': _R1_ZERO + ' User: {question}. Assistant:',
  # As TinyZero and nano-aha-moment ask. They begin the completion with <think>
  # themselves; here that is left to the model, and the format reward sees it.
  'countdown': (
    'A conversation between User and Assistant. The user asks a question, and '
    'the Assistant solves it. The assistant first thinks about the reasoning '
    'process in the mind and then provides the user with the answer.\nUser: '
    '{question} Show your work in <think> </think> tags. And return the final '
    'answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 '
    '</answer>.\nAssistant: Let me solve this step by step.\n'
  ),
  # Qwen 2.5 Math's chat, spelt out: its base models know it from pre-training
  # (understand-r1-zero, arxiv.org/abs/2503.20783).
  'qwen_boxed': (
    f'<|im_start|>system\n{_BOXED}<|im_end|>\n<|im_start|>user\n{{question}}'
    '<|im_end|>\n<|im_start|>assistant\n'
  ),
  'question_answer': 'Question: {question}\nAnswer:',
}

SYSTEM = {
  'r1_chat': _R1_ZERO,
  'open_r1': (  # huggingface/open-r1, its recipes for GRPO.
    'You are a helpful AI Assistant that provides well-reasoned and detailed '
    'responses. You first think about the reasoning process as an internal '
    'monologue and then provide the user with the answer. Respond in the '
    'following format: <think>\n...\n</think>\n<answer>\n...\n</answer>'
  ),
  'boxed': _BOXED,
}


def check(template: str, instruction: str, shots: Sequence) -> None:
  """Raises ValueError for a template that is not there or has no room."""
  if not template or template in SYSTEM:
    if template and instruction:
      raise ValueError(
        f'data.template={template!r} is an instruction itself: '
        f'data.instruction={instruction!r} must go'
      )
    return
  if template not in PLAIN and '{question}' not in template:
    raise ValueError(
      f'data.template={template!r} is not one of '
      f'{", ".join([*PLAIN, *SYSTEM])}, nor a text with {{question}} in it'
    )
  if instruction or shots:
    raise ValueError(
      f'data.template={template!r} is the whole prompt: data.instruction and '
      'data.shots must be empty'
    )


def to_ids(
  question: str,
  tokenizer,
  template: str = '',
  instruction: str = '',
  shots: Sequence[tuple[str, str]] = (),
) -> list[int]:
  """Token ids of the whole prompt."""
  if not template or template in SYSTEM:
    instruction = SYSTEM.get(template, instruction)
    return tokenizer.prompt(chat(question, instruction, shots))
  start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  return start + tokenizer.encode(fill(template, question))


def fill(template: str, question: str) -> str:
  """The text around and with the question, as far as it is ours to write."""
  if not template:
    return question
  if template in SYSTEM:
    return f'{SYSTEM[template]}\n{question}'
  return PLAIN.get(template, template).replace('{question}', question)


def chat(
  question: str,
  instruction: str = '',
  shots: Sequence[tuple[str, str]] = (),
) -> Chat:
  """Turns of a conversation whose next turn is the completion."""
  turns = [('system', instruction)] if instruction else []
  for shot_question, shot_completion in shots:
    turns += [('user', shot_question), ('assistant', shot_completion)]
  turns.append(('user', question))
  return [{'role': role, 'content': content} for role, content in turns]


def encode(
  examples: Sequence[Example | None],
  to_ids: Callable[[str], list[int]],
  max_prompt: int,
  answer_bytes: int,
  refer: Callable[
    [Sequence[Example]], dict[str, list[list[int]]]
  ] = lambda _: {},
  widths: Mapping[str, int] = MappingProxyType({}),
  rows: Sequence[int] | None = None,
) -> Prompts:
  """Arrays (NumPy) of the examples' prompts and reference answers.

  Args:
    examples: P of them; None is a row that another process fills.
    to_ids: question -> token ids of the whole prompt.
    max_prompt: L, tokens.
    answer_bytes: C, at least as many as the longest answer has.
    refer: what the parts of the reward want to know of each example.
    widths: N, at least as many as any example has of it.
    rows: places of the examples in the training split, if that is where they
      are from.

  Raises:
    ValueError: a prompt or answer is longer than that.
  """
  P = len(examples)
  tokens_PL = np.zeros((P, max_prompt), np.int32)
  lengths_P = np.zeros(P, np.int32)
  answers_PC = np.zeros((P, answer_bytes), np.uint8)
  ids_P = np.zeros(P, np.uint32)
  known = {p: example for p, example in enumerate(examples) if example}
  for p, example in known.items():
    ids, answer = to_ids(example.prompt), example.answer.encode()
    if len(ids) > max_prompt:
      raise ValueError(
        f'a prompt of {len(ids)} tokens is longer than '
        f'data.max_prompt={max_prompt}: {example.prompt[:60]!r}'
      )
    if len(answer) > answer_bytes:
      raise ValueError(
        f'an answer of {len(answer)} bytes is longer than {answer_bytes}: '
        f'{example.answer[:60]!r}'
      )
    tokens_PL[p, : len(ids)] = ids
    lengths_P[p] = len(ids)
    answers_PC[p, : len(answer)] = list(answer)
    ids_P[p] = example.id
  references = {}
  for name, told in refer(list(known.values())).items():
    references[name] = np.full((P, widths[name]), -1, np.int32)
    for p, one in zip(known, told, strict=True):
      references[name][p, : len(one)] = one
  rows_P = np.full(P, -1, np.int32)
  if rows is not None:
    rows_P[:] = rows
  return Prompts(tokens_PL, lengths_P, ids_P, answers_PC, references, rows_P)


def completion(example: Example, reasoned: bool) -> str:
  """What a good model would say, with or without working it out."""
  thought = f'<think>{example.reasoning}</think>' if reasoned else ''
  return f'{thought}<answer>{example.answer}</answer>'


def reasons(example: Example, share: float) -> bool:
  """Whether this example's document works the answer out; fixed by its id."""
  return example.id < share * 2**32


def answered(example: Example, reasoned_share: float) -> tuple[str, str]:
  """The problem, and what a model should say to it.

  Raises ValueError if it is to work the answer out and the dataset does not say
  how.
  """
  reasoned = reasons(example, reasoned_share)
  if reasoned and not example.reasoning:
    raise ValueError(
      f'pretrain.reasoned={reasoned_share} needs a dataset with reasoning, '
      f'and there is none for {example.prompt[:60]!r}: set it to 0'
    )
  return example.prompt, completion(example, reasoned)


def document(
  prompt: str, completion: str, to_ids: Callable[[str], list[int]], tokenizer
) -> list[int]:
  """Token ids of prompt, completion and stop token.

  Both parts are encoded apart, as they meet in RL.
  """
  ids = to_ids(prompt) + tokenizer.encode(completion)
  return ids + [tokenizer.eos_ids[0]]
