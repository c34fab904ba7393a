"""Send some `divide`s, each in a span, and print their results and traces. See tasks.py."""

import sys

from opentelemetry import trace

import kuyruk

from .tasks import app, divide

numbers = list(map(int, sys.argv[1:]))
with app:
    for a, b in zip(numbers[::2], numbers[1::2], strict=True):
        with trace.get_tracer(__name__).start_as_current_span("request") as span:
            try:
                result = divide.send_to_queue((a, b), wait_result=30)
                outcome = f"result {result}"
            except kuyruk.RemoteException as error:
                outcome = f"failed {error.type}"
            print(f"{outcome}, trace {span.get_span_context().trace_id:032x}")
