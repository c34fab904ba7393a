"""Send one `divide` inside a span, and print the result and the trace's id. See tasks.py."""

import sys

from opentelemetry import trace

import kuyruk

from .tasks import app, divide

with app, trace.get_tracer(__name__).start_as_current_span("request") as span:
    print(f"trace {span.get_span_context().trace_id:032x}")
    try:
        a, b = map(int, sys.argv[1:])
        print(f"result {divide.send_to_queue((a, b), wait_result=10)}")
    except kuyruk.RemoteException as error:
        print(f"failed {error.type}")
