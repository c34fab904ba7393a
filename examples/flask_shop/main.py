"""A shop with Flask on gunicorn: each of gunicorn's processes has a worker of its own.

    $ pip install ".[examples]"
    $ python -m gunicorn -c python:examples.flask_shop.gunicorn_conf \\
        examples.flask_shop.main:service
    $ curl "http://127.0.0.1:8000/price?amount=3"        # {"price": 29.7}
    $ curl http://127.0.0.1:8000/health                  # {"healthy": true, "pid": 4711, ...}

gunicorn_conf.py starts the worker after gunicorn's fork and stops it before the process ends.
"""

import os
from typing import Any

from flask import Flask, request

import kuyruk

config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)
service = Flask(__name__)


@app.task(queue="flask_shop", max_run_time=10)
def calculate_price(amount: int) -> float:
    """Return the price of so many items, with a discount. Raises ValueError."""
    if amount < 1:
        raise ValueError("at least one item")
    return round(amount * (10 if amount < 3 else 9.9), 2)


def start_worker() -> None:
    worker = app.extensions["worker"] = app.worker(threads=2)
    worker.start()


def stop_worker() -> None:
    """Stop the worker; running tasks get ten seconds."""
    if worker := app.extensions.pop("worker", None):
        worker.stop(timeout=10)
    app.close()


@service.get("/price")
def price() -> tuple[dict[str, Any], int]:
    """Wait for the result, up to five seconds."""
    amount = request.args.get("amount", 1, int)
    try:
        return {"price": calculate_price.send_to_queue((amount,), wait_result=5)}, 200
    except kuyruk.RemoteException as error:
        return {"error": error.value}, 400
    except (kuyruk.ResultTimeout, kuyruk.BrokerError):
        return {"error": "Try again later"}, 503


@service.get("/health")
def health() -> tuple[dict[str, Any], int]:
    """Answer for a health check: 503 if this process's worker doesn't consume."""
    worker: kuyruk.Worker | None = app.extensions.get("worker")
    if worker is None or not worker.healthy:
        return {"healthy": False, "pid": os.getpid()}, 503
    return {"healthy": True, "pid": os.getpid(), **worker.stats}, 200
