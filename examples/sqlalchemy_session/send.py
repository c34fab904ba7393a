"""Change a balance by a number, and print the result. See tasks.py."""

import sys

from kuyruk import RemoteException

from .tasks import app, change_balance

with app:
    try:
        print(change_balance.send_to_queue(("ann", int(sys.argv[1])), wait_result=10))
    except RemoteException as error:
        print(f"failed: {error.value}")
