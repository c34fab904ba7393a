"""Send a mail by a task, and print the result. See tasks.py."""

import sys

from .kuyruk import RemoteException
from .tasks import app, send_mail

with app:
    try:
        print(send_mail.send_to_queue((sys.argv[1],), wait_result=10))
    except RemoteException as error:
        print(error.value)
