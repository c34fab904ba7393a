"""Observability: one task, watched by Sentry, Prometheus, OpenTelemetry and JSON logs.

    $ pip install ".[examples]"
    $ SENTRY_FILE=/dev/stdout python -m kuyruk_worker examples.observability.tasks   # one shell
    $ python -m examples.observability.send 6 3 6 0     # another: 6/3, and 6/0, which fails

The worker prints JSON lines; those about a task name it and its message. The failure is one event
for Sentry. http://127.0.0.1:9100/metrics counts both runs. The spans of the send and of the run (in
SPANS_FILE) have one trace id. With SENTRY_DSN events go to Sentry itself.

telemetry.py has the four recipes; each is a few receivers of kuyruk's signals.
"""

import logging

import kuyruk

from . import telemetry

config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)
telemetry.watch(app)


@app.task(queue="observability")
def divide(a: int, b: int) -> float:
    """Return a / b, or fail."""
    logging.getLogger(__name__).info("Dividing %d by %d", a, b)
    return a / b
