"""A shop with Django: a request saves an order, and a worker packs it.

    $ pip install ".[examples]"
    $ export DJANGO_SETTINGS_MODULE=examples.django_shop.settings
    $ python -m django migrate --run-syncdb
    $ python -m kuyruk_worker examples.django_shop.tasks     # one shell
    $ python -m django runserver 8000                        # another
    $ curl -X POST http://127.0.0.1:8000/buy/book            # a third: {"id": 1}
    $ curl http://127.0.0.1:8000/order/1                     # {"item": "book", "packed": true}

The task is sent by transaction.on_commit: an order that is rolled back is never packed. If RabbitMQ
can't be reached then, the request fails although the order is saved: let cron look for orders that
nobody packs. The settings of kuyruk are among Django's, as KUYRUK_WORKER_THREADS.
"""

from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.db import close_old_connections

import kuyruk

if not apps.ready and not apps.app_configs:  # the worker's command line knows nothing of Django
    django.setup()

from .models import Order

PREFIX = "KUYRUK_"
config = kuyruk.Config()
config.from_dict(
    {
        key.removeprefix(PREFIX): getattr(settings, key)
        for key in dir(settings)
        if key.startswith(PREFIX)
    }
)
app = kuyruk.Kuyruk(config)


def renew_connections(sender: kuyruk.Kuyruk, **_: Any) -> None:
    """Close connections that are broken or too old, as Django does between two requests.

    In a worker only: a task that runs with EAGER or `apply` uses the connection of its caller,
    which may be in a transaction.
    """
    run = kuyruk.current_task()
    if run is not None and run.queue is not None:
        close_old_connections()


kuyruk.signals.task_prerun.connect(renew_connections, app)
kuyruk.signals.task_postrun.connect(renew_connections, app)


@app.task(queue="django_shop", retry=1)
def pack(number: int) -> None:
    """Pack the order. It may run twice: then it is packed already."""
    Order.objects.filter(pk=number).update(packed=True)
