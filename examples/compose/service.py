"""An HTTP service: /add?a=1&b=2 answers with the sum, /health whether RabbitMQ is reached.

$ python -m examples.compose.service 127.0.0.1 8000
"""

import http.server
import signal
import sys
import threading
import urllib.parse

import kuyruk

from .tasks import add, app


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        try:
            if url.path == "/health":
                app.queue_stats()
                self.answer(200, "ok")
            elif url.path == "/add":
                numbers = int(query["a"]), int(query["b"])
                self.answer(200, add.send_to_queue(numbers, wait_result=5))
            else:
                self.answer(404, "not found")
        except (KeyError, ValueError):
            self.answer(400, "a and b are whole numbers")
        except (kuyruk.ResultTimeout, kuyruk.BrokerError, OSError):
            self.answer(503, "try again later")

    def answer(self, status: int, value: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f"{value}\n".encode())


def main() -> None:
    host, port = sys.argv[1:]
    with app, http.server.ThreadingHTTPServer((host, int(port)), Handler) as server:
        stop = threading.Thread(target=server.shutdown)
        signal.signal(signal.SIGTERM, lambda *_: stop.start())  # as `docker stop` asks
        server.serve_forever()


if __name__ == "__main__":
    main()
