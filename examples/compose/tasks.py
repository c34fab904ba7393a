"""The tasks of the application in compose.yaml, where its start is described."""

import kuyruk

config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)


@app.task(queue="compose", max_run_time=10)
def add(a: int, b: int) -> int:
    """Return the sum."""
    return a + b
