"""`make browser`: the dashboard of examples/, used as a person would use it, in headless Chromium.

    python tools/browser_check.py

Starts a private RabbitMQ, a worker and the dashboard; looks at the page, presses "requeue" and
"delete", looks again, and ends everything. Writes the picture docs/dashboard.png. It takes half a
minute.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab
from lab import Failure
from rabbitmq_node import RabbitmqNode

PICTURE = Path(lab.ROOT) / "docs" / "dashboard.png"
SIZE = {"width": 1100, "height": 560}


@contextlib.contextmanager
def running(*arguments: str, folder: Path, env: dict[str, str], until: str) -> Iterator[str]:
    """Run a Python program until the end of the block; give its log's line with `until`."""
    log = str(folder / f"{arguments[1]}.log")
    with lab.Process([sys.executable, *arguments], log, env, cwd=str(folder)) as process:
        try:
            yield process.wait_for(until)
        finally:
            process.stop()


def check(page: Any, address: str, folder: Path) -> None:
    """Look at the page and press its buttons. What doesn't come true in 30 seconds raises."""
    text = 'document.getElementById("{}").innerText'
    failed, now = text.format("failed"), text.format("running")
    page.goto(address)
    page.wait_for_function(f'{failed}.split("FileNotFoundError").length == 3')
    page.wait_for_function(f'{now}.includes("wait_for")')
    page.screenshot(path=PICTURE)
    (folder / "report.txt").write_text("it is back")
    for name, action in (("report", "requeue"), ("photo", "delete")):
        row = page.locator("#failed tr").filter(has_text=name)
        row.locator(f'button[value="{action}"]').click()
        page.locator(".message").filter(has_text=action).wait_for()
        page.wait_for_function(f'!{failed}.includes("{name}")')
    # The page renews itself: what has ended leaves it, without a click.
    (folder / "go").touch()
    page.wait_for_function(f'!{now}.includes("wait_for")')


def run(options: argparse.Namespace) -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise Failure("There is no Chromium: as root, apt-get install chromium")
    # Not an import statement: only `make browser` installs it, and the types are checked without.
    playwright = importlib.import_module("playwright.sync_api")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        node = stack.enter_context(RabbitmqNode())
        env = lab.environment(KUYRUK_RABBIT_URL=node.url, RUNNING_FOLDER=folder / "running")
        tasks, dashboard = "examples.dashboard.tasks", "examples.dashboard.dashboard"
        own: Any = {"folder": folder, "env": env}
        worker = running("-m", "kuyruk_worker", tasks, until="Consuming dashboard", **own)
        stack.enter_context(worker)
        server = running("-m", dashboard, tasks, "--port", "0", until="Dashboard: ", **own)
        address = stack.enter_context(server).partition(": ")[2]
        send = f"from {tasks} import app, read, wait_for\n"
        send += "with app: read('report.txt'); read('photo.png'); wait_for('go')"
        subprocess.run([sys.executable, "-c", send], cwd=folder, env=env, check=True)
        chromium = stack.enter_context(playwright.sync_playwright()).chromium
        browser = chromium.launch(executable_path=program, args=["--no-sandbox"])
        stack.callback(browser.close)
        try:
            check(browser.new_page(viewport=SIZE), address, folder)
        except playwright.Error as error:
            raise Failure(str(error)) from error
    lab.say(f"The dashboard was seen, and its buttons did what they say: {PICTURE.name}")


if __name__ == "__main__":
    sys.exit(lab.main(run))
