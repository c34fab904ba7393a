"""The dashboard of examples/, used as a person would use it, in headless Chromium.

    $ make browser      sets up everything, Chromium too, and runs this (half a minute)

Starts a private RabbitMQ, a worker and the dashboard; looks at the page, presses "requeue" and
"delete", looks again, and ends everything. Writes the picture docs/dashboard.png. Exit code 1: a
check failed, or something is missing, which is said.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
from lab import Failure
from rabbitmq_node import RabbitmqNode

PICTURE = Path(lab.ROOT) / "docs" / "dashboard.png"
PATIENCE = 30.0  #: Seconds that something that must happen may take.


class Browser:
    """Headless Chromium, driven over two pipes (--remote-debugging-pipe): no driver is needed."""

    def __init__(self, program: str, folder: Path) -> None:
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        # The program finds its pipes at the descriptors 3 and 4, where a shell puts them.
        command = (
            f'exec "$0" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage'
            f' --user-data-dir="$1" --remote-debugging-pipe about:blank 3<&{reads} 4>&{writes}'
        )
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, str(folder)],
            stdin=null, stdout=null, stderr=null, pass_fds=(reads, writes),
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        self._number, self._buffer = 0, b""
        self._session: dict[str, str] = {}
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def ask(self, method: str, **params: Any) -> Any:
        """Send a command of Chrome's DevTools protocol; return its answer. Events are skipped."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(request).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                data = os.read(self._from, 1 << 20)
                if not data:
                    raise Failure("Chromium has ended")
                self._buffer += data
            text, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise Failure(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression; None while a page is changing."""
        with contextlib.suppress(Failure):
            return self.ask("Runtime.evaluate", expression=script)["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Wait until the expression is true in the page."""
        wait_until(lambda: self.evaluate(script), script)

    def save_picture(self, path: Path) -> None:
        size = {"width": 1100, "height": 560, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        data = self.ask("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._session = {}
        with contextlib.suppress(Failure, OSError):
            self.ask("Browser.close")
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            os.close(self._to)
            os.close(self._from)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"this didn't become true in {PATIENCE:g} seconds: {what}")
        time.sleep(0.05)


@contextlib.contextmanager
def running(*arguments: str, folder: Path, env: dict[str, str], until: str) -> Iterator[str]:
    """A Python program that runs until the end of the block; gives its log's line with `until`."""
    log = str(folder / f"{arguments[1]}.log")
    with lab.Process([sys.executable, *arguments], log, env, cwd=str(folder)) as process:
        try:
            yield process.wait_for(until)
        finally:
            process.stop()


def check(browser: Browser, address: str, folder: Path) -> None:
    """Look at the page and press its buttons."""
    page = 'document.getElementById("{}").innerText'
    failed, now = page.format("failed"), page.format("running")
    browser.ask("Page.navigate", url=address)
    browser.wait_for(f'{failed}.split("FileNotFoundError").length == 3')
    browser.wait_for(f'{now}.includes("wait_for")')
    browser.save_picture(PICTURE)
    (folder / "report.txt").write_text("it is back")
    row = '[...document.querySelectorAll("#failed tr")].find(r => r.innerText.includes("{}"))'
    for name, action in (("report", "requeue"), ("photo", "delete")):
        button = f'{row.format(name)}.querySelector("button[value={action}]")'
        browser.evaluate(f"{button}.click()")
        browser.wait_for(f"document.querySelector('.message')?.innerText.startsWith('{action}')")
        browser.wait_for(f'!{failed}.includes("{name}")')
    # The page renews itself: what has ended leaves it, without a click.
    (folder / "go").touch()
    browser.wait_for(f'!{now}.includes("wait_for")')


def run(program: str) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        node = stack.enter_context(RabbitmqNode())
        env = lab.environment(KUYRUK_RABBIT_URL=node.url, RUNNING_FOLDER=folder / "running")
        tasks, dashboard = "examples.dashboard.tasks", "examples.dashboard.dashboard"
        options: Any = {"folder": folder, "env": env}
        worker = running("-m", "kuyruk_worker", tasks, until="Consuming dashboard", **options)
        stack.enter_context(worker)
        server = running("-m", dashboard, tasks, "--port", "0", until="Dashboard: ", **options)
        address = stack.enter_context(server).partition(": ")[2]
        send = f"from {tasks} import app, read, wait_for\n"
        send += "with app: read('report.txt'); read('photo.png'); wait_for('go')"
        subprocess.run([sys.executable, "-c", send], cwd=folder, env=env, check=True)
        browser = stack.enter_context(contextlib.closing(Browser(program, folder / "profile")))
        check(browser, address, folder)


def check_all() -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise Failure("There is no Chromium: as root, apt-get install chromium")
    run(program)
    lab.say(f"The dashboard was seen, and its buttons did what they say: {PICTURE.name}")


if __name__ == "__main__":
    sys.exit(lab.main("browser_check", check_all))
