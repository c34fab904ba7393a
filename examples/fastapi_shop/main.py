"""A shop with FastAPI whose worker runs in the same process, started and stopped by its lifespan.

    $ pip install ".[examples]"
    $ python -m uvicorn examples.fastapi_shop.main:service
    $ curl "http://127.0.0.1:8000/price?amount=3"        # {"price": 29.7}
    $ curl http://127.0.0.1:8000/health                  # {"healthy": true, ...}

kuyruk's calls block until RabbitMQ has answered, so a coroutine hands them to a thread: the event
loop goes on meanwhile. (In a plain `def` endpoint FastAPI does that by itself.)
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.concurrency import run_in_threadpool

import kuyruk

config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)


@app.task(queue="fastapi_shop", max_run_time=10)
def calculate_price(amount: int) -> float:
    """Return the price of so many items, with a discount. Raises ValueError."""
    if amount < 1:
        raise ValueError("at least one item")
    return round(amount * (10 if amount < 3 else 9.9), 2)


@asynccontextmanager
async def lifespan(service: FastAPI) -> AsyncIterator[None]:
    """Run a worker as long as the service runs. Tasks that run at its end get ten seconds."""
    worker = service.state.worker = app.worker(threads=2)
    worker.start()
    yield
    await run_in_threadpool(worker.stop, timeout=10)
    await run_in_threadpool(app.close)


service = FastAPI(lifespan=lifespan)


@service.get("/price")
async def price(amount: int) -> dict[str, float]:
    """Wait for the result, up to five seconds, without blocking the loop."""
    try:
        result = await run_in_threadpool(
            lambda: calculate_price.send_to_queue((amount,), wait_result=5)
        )
        return {"price": result}
    except kuyruk.RemoteException as error:
        raise HTTPException(400, error.value) from error
    except (kuyruk.ResultTimeout, kuyruk.BrokerError) as error:
        raise HTTPException(503, "Try again later") from error


@service.get("/health")
async def health() -> dict[str, Any]:
    """Answer for a health check. This doesn't block, so it needs no thread."""
    worker: kuyruk.Worker = service.state.worker
    if not worker.healthy:
        raise HTTPException(503, "The worker doesn't consume")
    return {"healthy": True, **worker.stats}
