"""A dashboard for an application's queues, in one file, with Python's own HTTP server.

    $ python -m kuyruk_worker examples.dashboard.tasks                    # one shell
    $ python -m examples.dashboard.dashboard examples.dashboard.tasks     # another
    Dashboard: http://127.0.0.1:8080/?token=...
    $ python -m examples.dashboard.tasks         # a third: a task that fails, and one that waits

The page shows how many messages wait in each queue, how many consumers it has, the failed messages
with their reason, each with buttons to requeue or delete it, and the tasks that are running now in
the workers. It renews itself every two seconds, unless the mouse is over it.

Running tasks: RabbitMQ doesn't know them, so a worker must show them. Call `announce(app)` in the
module of the tasks; then each worker writes its running tasks to a file in RUNNING_FOLDER (a folder
that workers and dashboard share: a temporary one by default, so on one machine).

It listens at 127.0.0.1 only, and takes requests that have the token (a random one, or what
DASHBOARD_TOKEN says). Buttons are POST requests, whose token no other site can know.
"""

import argparse
import contextlib
import hmac
import html
import http.server
import json
import os
import secrets
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kuyruk
from kuyruk_worker import find_app

FOLDER = Path(os.environ.get("RUNNING_FOLDER", Path(tempfile.gettempdir()) / "kuyruk-running"))
MOST_SHOWN = 50  #: Failed messages of each queue that a page shows.
MAX_BODY = 10_000  #: Bytes of a request's form.

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>kuyruk</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em; color: #222 }}
h2 {{ margin: 1.6em 0 .4em; font-size: 1.1em }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{
  text-align: left; padding: .35em .8em; border-bottom: 1px solid #ddd; vertical-align: top
}}
th {{ background: #f4f4f4 }} td.bad {{ color: #b00020; font-weight: 600 }}
form {{ display: inline }} pre {{ white-space: pre-wrap; margin: .4em 0; font-size: 12px }}
.message {{ background: #eef6ee; padding: .5em 1em }}
</style></head><body><h1>kuyruk</h1>{message}
<h2>Queues</h2>
<table id="queues"><tr><th>queue<th>waiting<th>consumers<th>failed</tr>{queues}</table>
<h2>Running tasks</h2>
<table id="running"><tr><th>task<th>id<th>queue<th>seconds<th>worker</tr>{running}</table>
<h2>Failed messages</h2>
<table id="failed"><tr><th>queue<th>task<th>reason<th>failed at<th></tr>{failed}</table>
<script>setInterval(() => {{
  if (!document.querySelector("body:hover, details[open]")) location.replace(location.href)
}}, 2000)</script></body></html>"""


# --- In a worker -------------------------------------------------------------


def announce(app: kuyruk.Kuyruk, interval: float = 1.0) -> None:
    """Let each worker of this application write its running tasks to a file, every second."""

    def start(sender: kuyruk.Kuyruk, worker: kuyruk.Worker) -> None:
        ended = threading.Event()
        writer = threading.Thread(target=write_running, args=(worker, ended, interval), daemon=True)
        writer.start()
        app.extensions[f"dashboard-{id(worker)}"] = writer, ended

    def stop(sender: kuyruk.Kuyruk, worker: kuyruk.Worker) -> None:
        writer, ended = app.extensions.pop(f"dashboard-{id(worker)}")
        ended.set()
        writer.join(interval)  # it removes its file

    kuyruk.signals.worker_start.connect(start, app)
    kuyruk.signals.worker_shutdown.connect(stop, app)


def write_running(worker: kuyruk.Worker, ended: threading.Event, interval: float) -> None:
    """Write until the worker has ended, and remove the file then."""
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = FOLDER / f"{os.getpid()}-{id(worker)}.json"
    while True:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(worker.stats["running"]))
        new.replace(path)  # a reader sees the old or the new, never a half
        if ended.wait(interval):
            break
    path.unlink(missing_ok=True)


def read_running(oldest: float = 10.0) -> list[dict[str, Any]]:
    """Return the running tasks of all workers, but not of those that died seconds ago."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        with contextlib.suppress(OSError):  # its worker has ended in between
            if time.time() - path.stat().st_mtime < oldest:
                tasks = json.loads(path.read_text())
                found += [{**task, "worker": path.stem.partition("-")[0]} for task in tasks]
    return found


# --- The page ----------------------------------------------------------------


def make_row(*cells: object) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(str(cell))}' for cell in cells)}</tr>"


def make_buttons(queue: str, id: str, token: str) -> str:
    """Return a form with two buttons. Everything in it may come from a stranger's message."""
    fields = {"queue": queue, "id": id, "token": token}
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{html.escape(value)}">'
        for name, value in fields.items()
    )
    buttons = "".join(
        f'<button name="do" value="{do}">{do}</button>' for do in ("requeue", "delete")
    )
    return f'<form method="post" action="/">{hidden}{buttons}</form>'


def list_failed(app: kuyruk.Kuyruk, queue: str, token: str) -> str:
    rows = []
    with contextlib.closing(app.failed_messages(queue)) as messages:
        for number, message in enumerate(messages):
            if number == MOST_SHOWN:
                rows.append(make_row(queue, "...", "there are more", "", ""))
                break
            reason = html.escape(f"{message.exception}: {message.value}")
            if message.traceback:
                text = html.escape(message.traceback)
                reason = f"<details><summary>{reason}</summary><pre>{text}</pre></details>"
            call = html.escape(f"{message.task} {message.args} {message.kwargs}")
            buttons = make_buttons(queue, message.id, token) if message.id else ""
            when = html.escape(str(message.failed_at))
            rows.append(
                f"<tr><td>{html.escape(queue)}<td>{call}<td>{reason}<td>{when}<td>{buttons}</tr>"
            )
    return "".join(rows)


def make_page(app: kuyruk.Kuyruk, token: str, message: str = "") -> str:
    stats = app.queue_stats()
    queues = "".join(
        make_row(name, *("-" if n is None else n for n in numbers))
        for name, numbers in stats.items()
    )
    running = [(t["task"], t["id"], t["queue"], t["seconds"], t["worker"]) for t in read_running()]
    return PAGE.format(
        message=f'<p class="message">{html.escape(message)}</p>' if message else "",
        queues=queues,
        running="".join(make_row(*task) for task in running),
        failed="".join(list_failed(app, name, token) for name, n in stats.items() if n.failed),
    )


def act(app: kuyruk.Kuyruk, do: str, queue: str, id: str) -> str:
    """Requeue or delete a failed message; return what has happened."""
    if do not in ("requeue", "delete"):
        return f"There is no action {do!r}"
    with contextlib.closing(app.failed_messages(queue)) as messages:
        for message in messages:
            if message.id == id:
                message.requeue() if do == "requeue" else message.delete()
                return f"{do}: {message.task} [{id}]"
    return f"Message {id!r} isn't in {queue + '.failed'!r} any more"


# --- The server --------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer requests that have the token, for the `Kuyruk` of the server."""

    server: "Dashboard"

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path != "/":
            self.answer(404, "There is only one page, /")
        elif self.is_allowed(query):
            page = self.ask(make_page, self.server.token, query.get("message", ""))
            if page is not None:
                self.answer(200, page)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length) <= MAX_BODY):
            self.answer(400, "The form is missing or too large")
            return
        form = dict(urllib.parse.parse_qsl(self.rfile.read(int(length)).decode(errors="replace")))
        if self.is_allowed(form):
            message = self.ask(act, *(form.get(key, "") for key in ("do", "queue", "id")))
            if message is not None:
                query = urllib.parse.urlencode({"token": self.server.token, "message": message})
                self.send_response(303)  # so that reloading the page doesn't repeat it
                self.send_header("Location", f"/?{query}")
                self.end_headers()

    def ask(self, f: Callable[..., str], *args: str) -> str | None:
        """Return what a function says that asks RabbitMQ; None: it can't be asked. Then answer."""
        try:
            with self.server.lock:
                return f(self.server.app, *args)
        except (OSError, ValueError, kuyruk.KuyrukError) as error:
            self.answer(503, f"{error} (reload this page to try again)")
            return None

    def is_allowed(self, fields: dict[str, str]) -> bool:
        """Return whether the token is right. If not, answer."""
        given = fields.get("token", "").encode()
        allowed = hmac.compare_digest(given, self.server.token.encode())
        if not allowed:
            self.answer(403, "The token is missing or wrong: use the address that was printed")
        return allowed

    def answer(self, status: int, text: str) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        self.send_header(
            "Content-Type", f"text/{'html' if status == 200 else 'plain'}; charset=utf-8"
        )
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Referrer-Policy", "no-referrer")  # the token is in the address
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the token is in the address."""


class Dashboard(http.server.ThreadingHTTPServer):
    def __init__(self, app: kuyruk.Kuyruk, port: int, token: str) -> None:
        self.app, self.token = app, token
        # While one request looks at failed messages, RabbitMQ shows them to no other.
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)


def main() -> None:
    parser = argparse.ArgumentParser(description="A dashboard for an application's queues.")
    parser.add_argument("module", help="the module of the tasks, as for the worker")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    _, app = find_app(args.module)
    token = os.environ.get("DASHBOARD_TOKEN") or secrets.token_urlsafe()
    with app, Dashboard(app, args.port, token) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"Dashboard: http://127.0.0.1:{server.server_port}/?token={token}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
