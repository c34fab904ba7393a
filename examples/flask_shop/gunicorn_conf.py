"""gunicorn's configuration: a worker of kuyruk in each of its processes. See main.py."""

from typing import Any

bind = "127.0.0.1:8000"
workers = 2
threads = 4
graceful_timeout = 30  # longer than the worker's running tasks get


def post_fork(server: Any, worker: Any) -> None:
    """Start it here: threads don't survive a fork."""
    from examples.flask_shop.main import start_worker

    start_worker()


def worker_exit(server: Any, worker: Any) -> None:
    from examples.flask_shop.main import stop_worker

    stop_worker()
    server.log.info("The worker of kuyruk has stopped: %s", worker.pid)
