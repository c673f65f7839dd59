"""What a checkpoint says beside its vocabulary: its special tokens and chats.

  Special                     where texts begin and end, names, the template
  prompt(tokenizer, turns)    ids of a conversation that the model is to go on
  check(template, origin)     raises if a chat template is not Jinja

Templates find what transformers gives them: the names of special tokens,
raise_exception, strftime_now, tojson, {% generation %}, and no tools.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import datetime
import functools
import json

import jinja2
import jinja2.ext
import jinja2.sandbox


@dataclasses.dataclass(frozen=True)
class Special:
  """The named tokens are there for chat templates: {'bos_token': '<s>'}."""

  bos_id: int | None  # What a text starts with, if with anything.
  eos_ids: tuple[int, ...]
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  template: str | None = None  # Jinja.


def prompt(tokenizer, messages: Sequence[dict[str, str]]) -> list[int]:
  """Through the chat template, if there is one; it may raise ValueError.

  A template that says which day it is (strftime_now, as in Llama 3.2's) makes
  prompts that are other ones tomorrow.
  """
  special = tokenizer.special
  if special.template is None:
    return _plain(tokenizer, messages)
  try:
    text = _compiled(special.template).render(
      **special.names,
      messages=messages,
      tools=None,
      documents=None,
      add_generation_prompt=True,
    )
  except (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
  ) as error:
    reason = ' '.join(str(error).split())
    raise ValueError(f'the chat template refuses: {reason}') from error
  return tokenizer.encode(text)  # The template itself has written the BOS.


def check(template: str | None, origin: str) -> None:
  """Raises ValueError, which names where the template is from."""
  if template is None:
    return
  try:
    _compiled(template)
  except jinja2.TemplateSyntaxError as error:
    raise ValueError(
      f'{origin}: the chat template is not Jinja: {error.message} (line'
      f' {error.lineno})'
    ) from error


def decode(tokenizer, ids: Iterable[int]) -> str:
  """The text of the tokens' bytes."""
  # A model may have more ids than the tokenizer; the spare ones mean nothing.
  parts = [tokenizer.token_bytes[i] for i in ids if i < tokenizer.vocab_size]
  return b''.join(parts).decode('utf-8', 'replace')


def unknown(characters: Iterable[str], text: str) -> ValueError:
  """What `encode` raises."""
  shown = text if len(text) <= 60 else text[:60] + '...'
  return ValueError(
    'the tokenizer has no token for the characters'
    f' {sorted(characters)} of {shown!r}'
  )


def _plain(tokenizer, messages) -> list[int]:
  """For base models: the contents, line by line."""
  start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  text = '\n'.join(message['content'] for message in messages)
  return start + tokenizer.encode(text)


@functools.lru_cache
def _compiled(template: str) -> jinja2.Template:
  return _environment().from_string(template)


@functools.cache
def _environment() -> jinja2.Environment:
  """As chat templates expect it: sandboxed, blocks leave no blank lines."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[jinja2.ext.loopcontrols, _Generation],
  )
  environment.globals['raise_exception'] = _raise_exception
  environment.globals['strftime_now'] = lambda form: (
    datetime.datetime.now().strftime(form)
  )
  environment.filters['tojson'] = lambda value, **options: json.dumps(
    value, **({'ensure_ascii': False} | options)
  )
  return environment


class _Generation(jinja2.ext.Extension):
  """{% generation %} marks what the model has said; it writes nothing."""

  tags = {'generation'}

  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(['name:endgeneration'], drop_needle=True)


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)
