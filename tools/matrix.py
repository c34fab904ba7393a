"""Run the tests with each Python at hand and with the oldest and newest amqpstorm that is allowed.

    make matrix                                 the whole suite, for each
    make matrix ARGS='-k "config or message"'   a part of it (arguments of pytest)

The Pythons from 3.11 on are looked for in PATH and in ~/.pyenv. Each combination has a virtual
environment below .venv-matrix, which is kept: a second run takes no time for it. The exit code is 1
if the tests of one failed, or none ran.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
MINORS = range(11, 15)


def find_pythons() -> dict[str, Path]:
    """Return the newest of each minor version: {"3.12": Path(...)}."""
    found = {}
    for minor in (f"3.{number}" for number in MINORS):
        of_pyenv = Path.home().glob(f".pyenv/versions/{minor}.*/bin/python")
        in_path = shutil.which(f"python{minor}")
        for path in (*sorted(of_pyenv, reverse=True), *([Path(in_path)] if in_path else [])):
            test = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
            command: list[str | Path] = [path, "-c", test]
            if subprocess.run(command, capture_output=True, text=True).stdout.strip() == minor:
                found[minor] = path
                break
    return found


def amqpstorm_bounds() -> list[str]:
    """Return the oldest and the newest that are allowed, as pip takes them."""
    bounds = next(text for text in PROJECT["dependencies"] if text.startswith("amqpstorm"))
    oldest = re.search(r">=([\d.]+)", bounds)
    assert oldest is not None
    return [f"amqpstorm=={oldest[1]}", bounds]


def make_venv(python: Path, amqpstorm: str, folder: Path) -> Path:
    """Return the Python of a virtual environment with what the tests need."""
    inner = folder / "bin" / "python"
    if not inner.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    others = [text for text in PROJECT["dependencies"] if not text.startswith("amqpstorm")]
    extras = PROJECT["optional-dependencies"]
    wanted = [amqpstorm, *others, *extras["dev"], *extras["examples"]]
    command = [inner, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    subprocess.run(command, check=True)
    return inner


def run_tests(name: str, python: Path, amqpstorm: str, arguments: list[str]) -> tuple[bool, str]:
    """Return whether they passed, and the last line about them."""
    folder = HERE / ".venv-matrix" / name
    print(f"=== {name}", flush=True)
    try:
        inner = make_venv(python, amqpstorm, folder)
    except (OSError, subprocess.CalledProcessError) as error:
        return False, f"no virtual environment: {error}"
    command: list[str | Path] = [inner, "-m", "pytest", "-q", *arguments]
    environment = {**os.environ, "PATH": f"{inner.parent}{os.pathsep}{os.environ['PATH']}"}
    last = ""
    with subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode == 0, last


def main() -> int:
    rows = []
    for minor, python in find_pythons().items():
        for kind, amqpstorm in zip(("oldest", "newest"), amqpstorm_bounds(), strict=True):
            name, began = f"{minor}-{kind}", time.monotonic()
            passed, last = run_tests(name, python, amqpstorm, sys.argv[1:])
            rows.append((name, passed, f"{time.monotonic() - began:.0f} s", last))
    print(f"\n{'Python-amqpstorm':18}{'':8}{'':>7}")
    for name, passed, seconds, last in rows:
        print(f"{name:18}{'passed' if passed else 'FAILED':8}{seconds:>7}  {last}")
    if not rows:
        print(f"no Python from 3.{MINORS[0]} to 3.{MINORS[-1]} was found")
    return 0 if rows and all(passed for _, passed, _, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
