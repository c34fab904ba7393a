"""A package that has its own copy of kuyruk, beside which no other needs to be installed.

    $ cp -r examples/vendored shop
    $ cp kuyruk.py kuyruk_worker.py shop/           # into the package; pip install amqpstorm, too
    $ python -m shop.kuyruk_worker shop.tasks       # one shell
    $ python -m shop.send me@home.org               # another: prints "sent to me@home.org"

With an embedded worker or for sending alone, kuyruk.py is enough.
"""

from . import kuyruk
from .kuyruk.exceptions import Discard

config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)


@app.task(queue="vendored", fail_delay=60)
def send_mail(address: str) -> str:
    """Return what was done. What isn't an address is never tried again."""
    if "@" not in address:
        raise Discard(f"no address: {address}")
    return f"sent to {address}"
