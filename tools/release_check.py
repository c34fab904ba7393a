"""`make release-check`: whether what would be published can be installed, and works.

    python tools/release_check.py

Builds the source distribution, and the wheel from it, into dist/, and has twine check both. Then
installs the wheel into a fresh virtual environment, without a package index: its dependencies come
from a folder that pip has filled before. There the demo's tasks run in a worker of the wheel, with
a private RabbitMQ, and mypy reads a program that uses the wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lab
from lab import Failure, say
from rabbitmq_node import RabbitmqNode

ROOT = Path(lab.ROOT)
#: Seconds that one step may take.
PATIENCE = 600.0

#: Runs in the fresh environment, from a folder in which no kuyruk.py lies.
SENDER = """
import sys
import kuyruk
import tasks
assert kuyruk.__file__.startswith(sys.prefix), kuyruk.__file__
print(tasks.checksum.send_to_queue((sys.argv[1],), wait_result=60)["sha256"])
"""
#: A line that mypy accepts, and one that it must not.
RIGHT = "import tasks\ntasks.checksum('path')\n"
WRONG = "import tasks\ntasks.checksum(1)\n"


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Return what the command has printed. Raises Failure if it fails."""
    options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "timeout": PATIENCE}
    process = subprocess.run(command, cwd=cwd, env=env, text=True, **options)
    if process.returncode:
        text = " ".join(map(str, command))
        raise Failure(f"{text} ended with {process.returncode}:\n{process.stdout}")
    return str(process.stdout)


def build(folder: Path) -> Path:
    """Build both distributions into the folder, have them checked, and return the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    files = sorted(folder.iterdir())
    say(f"built {', '.join(file.name for file in files)}")
    print(run(sys.executable, "-m", "twine", "check", "--strict", *files), end="", flush=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Return the Python of a fresh environment that has the wheel, installed without an index."""
    # So nothing but what the wheel names is there: it is downloaded before.
    pip = ("-m", "pip", "--disable-pip-version-check")
    run(sys.executable, *pip, "download", "--quiet", "--dest", folder / "wheels", wheel)
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(python, *pip, "install", "--no-index", "--find-links", folder / "wheels", wheel)
    run(python, *pip, "check")
    say("installed the wheel without an index")
    return python


def run_tasks(python: Path, folder: Path) -> None:
    """Have a worker of the wheel compute the checksum of a file, and compare it."""
    # Settings of whoever runs this must not reach it, nor this checkout by its path.
    with RabbitmqNode() as node:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("KUYRUK_", "PYTHON"))}
        env["KUYRUK_RABBIT_URL"] = node.url
        command = [str(python.parent / "kuyruk-worker"), "tasks", "-t", "2"]
        with lab.Process(command, str(folder / "worker.log"), env, cwd=str(folder)) as worker:
            found = run(python, "-c", SENDER, ROOT / "LICENSE", cwd=folder, env=env).strip()
            code = worker.stop()
            expected = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
            if (found, code) != (expected, 0):
                text = f"the checksum is {found}, not {expected}, and the worker ended with {code}"
                raise Failure(f"{text}:\n{worker.text}")
    say("a worker of the wheel has run the demo's task, and ended with 0")


def read_types(python: Path, folder: Path) -> None:
    """Have mypy read programs that use the wheel: one that is right, and one that isn't."""
    # Without the stubs everything would be Any, and both would be right.
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", python)
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(WRONG)
    run(*command, "right.py", cwd=folder)
    try:
        run(*command, "wrong.py", cwd=folder)
    except Failure as error:
        if 'has incompatible type "int"; expected "str"' not in str(error):
            raise
    else:
        raise Failure(f"mypy doesn't know the types of the wheel: it accepts\n{WRONG}")
    say("mypy knows the types of the wheel")


def check(options: argparse.Namespace) -> None:
    # It publishes nothing.
    with tempfile.TemporaryDirectory(prefix="kuyruk-release-") as name:
        folder = Path(name)
        shutil.copy(ROOT / "examples" / "checksums" / "tasks.py", folder)
        python = install(build(ROOT / "dist"), folder)
        run_tasks(python, folder)
        read_types(python, folder)
    say("all is well; twine upload dist/* would publish it")


if __name__ == "__main__":
    sys.exit(lab.main(check))
