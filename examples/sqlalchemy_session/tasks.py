"""SQLAlchemy: a session for each try of a task, committed if it returns, else rolled back.

    $ pip install ".[examples]"
    $ python -m kuyruk_worker examples.sqlalchemy_session.tasks      # one shell
    $ python -m examples.sqlalchemy_session.send 30 -50 -10          # another

The second change fails and leaves the balance at 30: this prints 30, a failure, and 20.

The database is the file accounts.sqlite3 in the worker's folder, or where DATABASE_URL says.

A task that runs with EAGER or `apply` has a session of its own as well. The module that guards the
connections of SQLAlchemy isn't cut by a time limit: see UNSAFE_MODULES.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import kuyruk

P = ParamSpec("P")
R = TypeVar("R")

config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)
kuyruk.UNSAFE_MODULES.add("sqlalchemy.pool")

engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///accounts.sqlite3"))
make_session = sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"

    name: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


def with_session(f: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Call the function with a session of its own, in one transaction. Put it below `app.task`."""

    @wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with make_session.begin() as session:  # commits, or rolls back and raises
            return f(session, *args, **kwargs)

    del call.__dict__["__wrapped__"]  # else its signature would be that of `f`, with the session
    return call


@app.task(queue="sqlalchemy_session", max_run_time=30)
@with_session
def change_balance(session: Session, name: str, amount: int) -> int:
    """Return the new balance. Raises ValueError if it isn't enough, and changes nothing."""
    account = session.get(Account, name, with_for_update=True)
    if account is None:
        account = Account(name=name, balance=0)
        session.add(account)
    account.balance += amount
    session.flush()
    if account.balance < 0:
        raise ValueError(f"{name} has only {account.balance - amount}")
    return account.balance


def create_tables(sender: kuyruk.Kuyruk, worker: kuyruk.Worker) -> None:
    """Create what is missing, in the process of the worker (connections mustn't cross a fork)."""
    Base.metadata.create_all(engine)


kuyruk.signals.worker_start.connect(create_tables, app)
