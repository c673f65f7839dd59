r"""Chromium without a window, driven over the DevTools protocol.

The protocol goes through two pipes (--remote-debugging-pipe), so that nothing
but the browser is needed: Debian's package is chromium. README's pictures are

  python tests/browser.py report.html light.png light 1240x860 runs
  python tests/browser.py report.html dark.png dark 1240x860 completions \
      'open(0, 47)'

which are the page, the file, the colours, the window, the section on top and
what to run before.
"""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
PATH = next(filter(None, map(shutil.which, NAMES)), None)
_FLAGS = (
  '--headless',
  '--no-sandbox',  # Its sandbox does not start for root in a container,
  '--disable-gpu',
  '--disable-dev-shm-usage',  # where /dev/shm is small as well.
  '--hide-scrollbars',
  '--no-first-run',
  '--force-color-profile=srgb',
  '--remote-debugging-pipe',
)


class Page:
  """One tab. `errors` has what its console and its exceptions said."""

  def __init__(self, send: int, receive: int):
    self._send, self._receive, self._rest = send, receive, b''
    self._count, self._session, self.errors = 0, None, []
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self._session = self.call(
      'Target.attachToTarget', targetId=target, flatten=True
    )['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')
    self.requests = []  # Addresses that anything asked for.

  def call(self, method: str, **params) -> dict[str, Any]:
    """Sends a command and waits for what it returns."""
    self._count += 1
    message = {'id': self._count, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._send, json.dumps(message).encode() + b'\0')
    while True:
      found = self._read()
      if found.get('id') == self._count:
        if 'error' in found:
          raise RuntimeError(f'{method}: {found["error"]}')
        return found['result']
      self._hear(found.get('method'), found.get('params'))

  def _read(self) -> dict[str, Any]:
    while b'\0' not in self._rest:
      more = os.read(self._receive, 1 << 20)
      if not more:
        raise RuntimeError('the browser has ended')
      self._rest += more
    message, _, self._rest = self._rest.partition(b'\0')
    return json.loads(message)

  def _hear(self, method: str, params: dict[str, Any]) -> None:
    if method == 'Runtime.exceptionThrown':
      details = params['exceptionDetails']
      text = details.get('exception', {}).get('description', details['text'])
      self.errors.append(text)
    elif method == 'Runtime.consoleAPICalled' and params['type'] == 'error':
      self.errors.append(json.dumps(params['args']))
    elif method == 'Log.entryAdded' and params['entry']['level'] == 'error':
      self.errors.append(params['entry']['text'])
    elif method == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'])

  def run(self, expression: str) -> Any:
    """The value of a JavaScript expression; a promise is waited for."""
    found = self.call(
      'Runtime.evaluate',
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    if 'exceptionDetails' in found:
      raise RuntimeError(f'{expression}: {found["exceptionDetails"]}')
    return found['result'].get('value')

  def wait(self, expression: str, seconds: float = 30) -> Any:
    """Until the expression is true."""
    end = time.monotonic() + seconds
    while not (value := self.run(expression)):
      if time.monotonic() > end:
        raise TimeoutError(f'{expression}; errors: {self.errors}')
      time.sleep(0.02)
    return value

  def open(self, path: pathlib.Path, ready: str) -> None:
    self.errors.clear()
    self.call('Page.navigate', url=path.resolve().as_uri())
    self.wait(f'document.readyState === "complete" && {ready}')

  def size(self, width: int, height: int = 900) -> None:
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )

  def prefer(self, scheme: str) -> None:
    """'light' or 'dark', as the system would say."""
    feature = {'name': 'prefers-color-scheme', 'value': scheme}
    self.call('Emulation.setEmulatedMedia', features=[feature])

  def click(self, selector: str, index: int = 0) -> None:
    """A click of the mouse in the middle of an element."""
    at = f'document.querySelectorAll({json.dumps(selector)})[{index}]'
    self.run(f'{at}.scrollIntoView({{block: "center"}})')
    self.run('new Promise((done) => requestAnimationFrame(done))')
    x, y = self.run(
      f'(() => {{ const b = {at}.getBoundingClientRect();'
      'return [b.x + b.width / 2, b.y + b.height / 2] })()'
    )
    for kind in ('mousePressed', 'mouseReleased'):
      self.call(
        'Input.dispatchMouseEvent',
        type=kind,
        x=x,
        y=y,
        button='left',
        clickCount=1,
      )

  def type(self, selector: str, text: str) -> None:
    """Types into a field, in the place of what is there."""
    self.run(f'document.querySelector({json.dumps(selector)}).select()')
    self.call('Input.insertText', text=text)

  def choose(self, selector: str, value: str) -> None:
    """An option of a select, by its value."""
    self.run(
      f'(() => {{ const s = document.querySelector({json.dumps(selector)});'
      f's.value = {json.dumps(value)};'
      'for (const e of ["input", "change"]) s.dispatchEvent(new Event(e)) })()'
    )

  def picture(self, path: pathlib.Path) -> None:
    found = self.call('Page.captureScreenshot', format='png')
    path.write_bytes(base64.b64decode(found['data']))


@contextlib.contextmanager
def page():
  """Starts a browser, and ends it."""
  theirs, send = os.pipe()
  receive, answer = os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    line = [PATH, *_FLAGS, f'--user-data-dir={profile}', 'about:blank']
    # The browser reads from 3 and writes to 4.
    bash = f'exec 3<&{theirs} 4>&{answer}; exec "$@"'
    process = subprocess.Popen(
      ['bash', '-c', bash, 'bash', *line],
      pass_fds=(theirs, answer),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(answer)
    try:
      yield Page(send, receive)
    finally:
      os.close(send)  # It ends when nobody can speak to it any more.
      try:
        process.wait(10)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
      os.close(receive)


def main(
  source: str,
  out: str,
  scheme: str,
  size: str,
  section: str,
  script: str = 'null',
):
  with page() as tab:
    tab.size(*map(int, size.split('x')))
    tab.prefer(scheme)
    tab.open(pathlib.Path(source), 'document.body.dataset.ready')
    tab.run(script)
    tab.run(f'document.getElementById({section!r}).scrollIntoView()')
    tab.run('new Promise((done) => requestAnimationFrame(done))')
    tab.picture(pathlib.Path(out))


if __name__ == '__main__':
  main(*sys.argv[1:])
