"""Checksums of files: a small application. `make demo` sends it real files.

    $ python -m kuyruk_worker examples.checksums.tasks      # in the project's folder
    $ python -c "from examples.checksums.tasks import *; checksum_into('README.md', 'sums.json')"

A path means a file on the worker's machine. Settings come from the environment: KUYRUK_RABBIT_URL
says where RabbitMQ is.
"""

import hashlib
import json
import os
from typing import TypedDict

import kuyruk

#: Bytes read at once: a file is never in memory as a whole.
CHUNK = 256 * 1024

config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)


class Facts(TypedDict):
    """What is found out about a file."""

    path: str
    sha256: str
    bytes: int
    lines: int  # newline characters, as `wc -l` counts


def examine(path: str) -> Facts:
    """Read a file. Raises OSError."""
    digest, size, lines = hashlib.sha256(), 0, 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            lines += chunk.count(b"\n")
    return {"path": path, "sha256": digest.hexdigest(), "bytes": size, "lines": lines}


@app.task(queue="checksums", retry=1, max_run_time=60)
def checksum(path: str) -> Facts:
    """For a caller that waits for the result."""
    return examine(path)


@app.task(queue="checksums", retry=1, max_run_time=60)
def checksum_into(path: str, report: str) -> None:
    """For a caller that doesn't wait: appends the result to a file, as one line of JSON.

    A message can be delivered twice, so a line can be there twice: readers take either.
    """
    line = json.dumps(examine(path)).encode() + b"\n"
    file = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line)  # one write to the end: lines of several threads don't mix
    finally:
        os.close(file)
