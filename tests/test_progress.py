import io

import pytest
import rich.console

from grpo_jax import progress


@pytest.fixture
def screen(monkeypatch):
  """What is printed, with or without a terminal."""

  def use(terminal: bool) -> io.StringIO:
    out = io.StringIO()
    console = rich.console.Console(
      file=out, force_terminal=terminal, width=100, highlight=False
    )
    monkeypatch.setattr(progress, 'console', console)
    return out

  return use


def test_without_a_terminal_there_is_a_line_now_and_then_and_at_the_end(screen):
  out = screen(terminal=False)
  with progress.bar('RL', 100, every=3600) as advance:
    for i in range(100):
      advance(i + 1, note='reward 0.50')
  lines = out.getvalue().splitlines()
  assert lines == ['RL: 100/100, 0 s, reward 0.50']


def test_every_step_has_a_line_where_asked_for(screen):
  out = screen(terminal=False)
  with progress.bar('RL', 3, every=0.0) as advance:
    for i in range(3):
      advance(i + 1)
  first, _, last = out.getvalue().splitlines()
  assert first == 'RL: 1/3, 0 s left'
  assert last == 'RL: 3/3, 0 s'


def test_a_run_that_goes_on_does_not_count_what_was_done_as_fast(screen):
  out = screen(terminal=False)
  with progress.bar('RL', 100, done=98, every=0.0) as advance:
    advance(99)
  assert out.getvalue() == 'RL: 99/100, 0 s left\n'


def test_a_terminal_gets_a_bar_with_the_note(screen):
  out = screen(terminal=True)
  with progress.bar('RL', 4) as advance:
    advance(4, note='reward 0.50')
  assert '4/4' in out.getvalue() and 'reward 0.50' in out.getvalue()


@pytest.mark.parametrize(
  'text, thought, answer',
  [
    ('<think>1+1=2</think><answer>2</answer>', '1+1=2', '2'),
    ('<answer>2</answer>', None, '2'),
    ('no tags', None, 'no tags'),
    ('[red]<think>[/]</think> x', '[red]<think>[/]', 'x'),
  ],
)
def test_a_completion_has_its_thought_set_apart(screen, text, thought, answer):
  out = screen(terminal=False)
  progress.completion('1 + 1?', text, '2', right=answer == '2')
  lines = out.getvalue().splitlines()
  assert '1 + 1?' in lines
  assert ('  thinks   ' + str(thought) in lines) == (thought is not None)
  verdict = 'right' if answer == '2' else 'wrong, it is 2'
  assert f'  answers  {answer}  ({verdict})' in lines


def test_the_table_shows_a_share_of_no_completions_as_a_dash(screen):
  out = screen(terminal=False)
  names = ('accuracy', 'accuracy_reasoned', 'reasoning', 'length', 'reward')
  summary = {f'{n}_{w}': 0.5 for n in names for w in ('before', 'after')}
  summary |= {'accuracy_direct_before': 0.25, 'accuracy_direct_after': None}
  progress.before_and_after(summary)
  (direct,) = [x for x in out.getvalue().splitlines() if 'without' in x]
  assert '25.0%' in direct and ' - ' in direct
