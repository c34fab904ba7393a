"""Tasks to look at in the dashboard: one fails until a file exists, one waits for a file.

$ python -m examples.dashboard.tasks         # sends one of each; `touch go` ends the second
"""

import time
from pathlib import Path

import kuyruk

from . import dashboard

config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)
dashboard.announce(app, interval=0.2)


@app.task(queue="dashboard")
def read(name: str) -> str:
    """Return what is in the file."""
    return Path(name).read_text()


@app.task(queue="dashboard")
def wait_for(name: str) -> None:
    """Wait until the file exists."""
    while not Path(name).exists():
        time.sleep(0.05)


if __name__ == "__main__":
    with app:
        read("report.txt")
        wait_for("go")
