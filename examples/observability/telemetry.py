"""Recipes for Sentry, Prometheus, OpenTelemetry and JSON logs. See tasks.py for how to run them."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import sentry_sdk
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from prometheus_client import REGISTRY, Counter, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from kuyruk import Kuyruk, LogContext, Worker, current_task, signals

TASKS = Counter("kuyruk_tasks", "Tasks that have ended", ["task", "outcome"])
TRACER = trace.get_tracer("kuyruk")


def watch(app: Kuyruk) -> None:
    """Connect all recipes to the signals of this application."""
    signals.worker_init.connect(log_as_json, app)
    signals.worker_start.connect(serve_metrics, app)
    signals.task_success.connect(lambda _, task, **__: count(task.name, "success"), app)
    signals.task_failure.connect(lambda _, task, **__: count(task.name, "failure"), app)
    set_up_sentry()
    signals.worker_failure.connect(report_to_sentry, app)
    set_up_tracing()
    signals.task_presend.connect(send_trace, app)
    signals.task_prerun.connect(start_span, app)
    signals.task_error.connect(record_error, app)
    signals.task_postrun.connect(end_span, app)


# --- JSON logs ---------------------------------------------------------------


class JsonFormatter(logging.Formatter):
    """Format a record as one line of JSON, with the task that it is about, if it is about one."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        facts |= {"text": record.getMessage()}
        about = {key: getattr(record, key, None) for key in ("task", "task_id", "queue")}
        facts |= {key: str(value) for key, value in about.items() if value is not None}
        facts |= {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps(facts)


def log_as_json(app: Kuyruk, worker: Worker) -> None:
    """Replace the log's handlers. The command line keeps what an application has set up."""
    handler = logging.StreamHandler()
    handler.addFilter(LogContext())
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


# --- Prometheus --------------------------------------------------------------


#: What `worker.stats` has that isn't counted up, but is so now.
GAUGES = {"waiting", "suspect", "stuck", "unsettled", "running", "healthy"}


class WorkerCollector(Collector):
    """Read `worker.stats` whenever Prometheus asks."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def collect(self) -> Iterator[Metric]:
        stats = self.worker.stats | {"healthy": self.worker.healthy}
        for name, value in (stats | {"running": len(stats["running"])}).items():
            family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
            yield family(f"kuyruk_worker_{name}", f"worker.stats[{name!r}]", value)


def count(task: str, outcome: str) -> None:
    TASKS.labels(task, outcome).inc()


def serve_metrics(app: Kuyruk, worker: Worker) -> None:
    """Serve this process's numbers. Several processes (-p) need a port each."""
    REGISTRY.register(WorkerCollector(worker))
    server, _ = start_http_server(int(os.environ.get("METRICS_PORT", "9100")), "127.0.0.1")
    logging.getLogger(__name__).info("Metrics at port %d", server.server_port)


# --- Sentry ------------------------------------------------------------------


class FileTransport(Transport):
    """Write events to a file instead of sending them: to try this, and for tests."""

    def capture_envelope(self, envelope: Envelope) -> None:
        if (event := envelope.get_event()) is not None:
            with open(os.environ["SENTRY_FILE"], "a") as file:
                file.write(json.dumps(event, default=str) + "\n")


def set_up_sentry() -> None:
    """Send to SENTRY_DSN. Without it nothing is sent; with SENTRY_FILE a file takes its place."""
    options: dict[str, Any] = {}
    if "SENTRY_FILE" in os.environ:
        options = {"dsn": "http://key@localhost/1", "transport": FileTransport}
    # It would import all web frameworks that are installed, of which a worker needs none.
    sentry_sdk.init(**options, auto_enabling_integrations=False)


def report_to_sentry(
    app: Kuyruk, worker: Worker, queue: str, description: Mapping[str, Any], exc_info: Any, **_: Any
) -> None:
    """Report the failure with its facts. Sentry drops the second report, that of the log."""
    with sentry_sdk.new_scope() as scope:
        scope.set_tag("queue", queue)
        scope.set_tag("task", f"{description.get('module')}.{description.get('function')}")
        scope.set_context("message", dict(description))
        scope.capture_exception(exc_info)


# --- OpenTelemetry -----------------------------------------------------------


def set_up_tracing() -> None:
    """Write spans to SPANS_FILE. In production use an exporter for your collector instead."""
    provider = TracerProvider()
    if "SPANS_FILE" in os.environ:
        file = open(os.environ["SPANS_FILE"], "a", buffering=1)  # noqa: SIM115
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(None) + "\n")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def send_trace(app: Kuyruk, description: dict[str, Any], **_: Any) -> None:
    """Have the current trace carried by the message's headers."""
    propagate.inject(description["headers"])


def start_span(app: Kuyruk, task: Any, **_: Any) -> None:
    """Begin a span for this try. Each run has a context of its own, so nothing leaks out of it."""
    run = current_task()
    parent = propagate.extract(run.headers if run is not None else {})
    span = TRACER.start_span(task.name, parent, trace.SpanKind.CONSUMER)
    context.attach(trace.set_span_in_context(span, parent))


def record_error(app: Kuyruk, exc_info: Any, **_: Any) -> None:
    trace.get_current_span().record_exception(exc_info[1])
    trace.get_current_span().set_status(trace.StatusCode.ERROR)


def end_span(app: Kuyruk, **_: Any) -> None:
    trace.get_current_span().end()
