"""Change a balance by some numbers, and print each result. See tasks.py."""

import sys

from kuyruk import RemoteException

from .tasks import app, change_balance

with app:
    for amount in map(int, sys.argv[1:]):
        try:
            print(change_balance.send_to_queue(("ann", amount), wait_result=30))
        except RemoteException as error:
            print(f"failed: {error.value}")
