"""Examples -> what the model reads: prompts for RL, documents to imitate.

chat(question) -> turns     instruction and worked examples come first
encode(examples) -> Prompts
document(example) -> ids    prompt, completion and the token that ends it
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from grpo_jax.datasets import Example
from grpo_jax.types import Prompts

Chat = list[dict[str, str]]


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
  examples: Sequence[Example],
  to_ids: Callable[[str], list[int]],
  max_prompt: int,
  answer_bytes: int,
  refer: Callable[
    [Sequence[Example]], dict[str, list[list[int]]]
  ] = lambda _: {},
  widths: Mapping[str, int] = MappingProxyType({}),
) -> Prompts:
  """Arrays (NumPy) of the examples' prompts and reference answers.

  Args:
    examples: P of them.
    to_ids: question -> token ids of the whole prompt.
    max_prompt: L, tokens.
    answer_bytes: C, at least as many as the longest answer has.
    refer: what the parts of the reward want to know of each example.
    widths: N, at least as many as any example has of it.

  Raises:
    ValueError: a prompt or answer is longer than that.
  """
  P = len(examples)
  tokens_PL = np.zeros((P, max_prompt), np.int32)
  lengths_P = np.zeros(P, np.int32)
  answers_PC = np.zeros((P, answer_bytes), np.uint8)
  for p, example in enumerate(examples):
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
  ids_P = np.array([example.id for example in examples], np.uint32)
  references = {}
  for name, rows in refer(examples).items():
    references[name] = np.full((P, widths[name]), -1, np.int32)
    for row_N, row in zip(references[name], rows, strict=True):
      row_N[: len(row)] = row
  return Prompts(tokens_PL, lengths_P, ids_P, answers_PC, references)


def completion(example: Example, reasoned: bool) -> str:
  """What a good model would say, with or without working it out."""
  thought = f'<think>{example.reasoning}</think>' if reasoned else ''
  return f'{thought}<answer>{example.answer}</answer>'


def reasons(example: Example, share: float) -> bool:
  """Whether this example's document works the answer out; fixed by its id."""
  return example.id < share * 2**32


def document(example: Example, tokenizer, reasoned_share: float) -> list[int]:
  """Token ids of prompt, completion and stop token.

  Both parts are encoded apart, as they meet in RL.
  """
  text = completion(example, reasons(example, reasoned_share))
  prompt_ids = tokenizer.prompt(chat(example.prompt))
  return prompt_ids + tokenizer.encode(text) + [tokenizer.eos_ids[0]]
