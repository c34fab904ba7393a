"""A TCP proxy in front of a broker, that hurts the connections of its clients when told to.

    proxy = TcpProxy(node.url)
    client(proxy.url)
    proxy.cut()                 # a reset, or with "fin" a regular end
    proxy.stall("up")           # what clients send isn't read any more; "down": what the broker sends
    proxy.resume()
    proxy.swallow()             # half-open: both ends keep a connection that leads nowhere; new ones work
    proxy.close()

Works in a thread of its own, on the loopback interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import urllib.parse
from collections.abc import Coroutine
from typing import Any

HOST = "127.0.0.1"
CHUNK = 0x10000  #: Bytes that are passed on at once.
PATIENCE = 10.0  #: Seconds that the thread gets for what it is told.
#: SO_LINGER: on, 0 seconds. Closing such a socket sends a reset.
RESET = struct.pack("ii", 1, 0)


class _Connection:
    """A client's, and the one to the broker that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self.client, self.broker = client, broker
        #: Nothing gets through any more, and neither end is told.
        self.swallowed = False

    def abort(self) -> None:
        for writer in (self.client, self.broker):
            writer.transport.abort()


class TcpProxy:
    """See the top of this file. Its methods can be called from any thread but its own."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._target = parts.hostname or HOST, parts.port or 5672
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flow = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.resume()
        self._server = self._do(asyncio.start_server(self._serve, HOST, 0))
        login = parts.netloc.rpartition("@")[0]
        self.url = parts._replace(netloc=f"{login}@{HOST}:{self._server.sockets[0].getsockname()[1]}").geturl()

    def cut(self, how: str = "rst") -> None:
        """End all connections of clients, and then those to the broker."""
        self._do(self._cut(how))

    def stall(self, direction: str) -> None:
        """Accept, and don't pass on what clients ("up") or the broker ("down") send: it waits until `resume`."""
        self._loop.call_soon_threadsafe(self._flow[direction].clear)

    def resume(self) -> None:
        for event in self._flow.values():
            self._loop.call_soon_threadsafe(event.set)

    def swallow(self) -> None:
        """The way of the present connections vanishes, as when a firewall forgets them: what is sent is
        acknowledged by TCP and goes nowhere, and no end hears of the other's. New connections work."""
        for connection in tuple(self._connections):
            connection.swallowed = True

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    async def _cut(self, how: str) -> None:
        for connection in tuple(self._connections):
            if how == "rst":
                sock = connection.client.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.client.transport.abort()
            else:
                connection.client.close()
        await asyncio.sleep(0)  # abort() closes the socket in the loop's next round

    async def _end(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # as above

    def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task that `_end` knows: asyncio's own of this coroutine can't be awaited from there.
        self._begin(self._connect(reader, writer))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:  # the broker is down, and so is the way to it
            writer.transport.abort()
            return
        connection = _Connection(writer, back)
        self._connections.add(connection)
        pumps = [
            self._begin(self._pump(connection, reader, back, "up")),
            self._begin(self._pump(connection, there, writer, "down")),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if connection.swallowed:
                await asyncio.wait(pumps)
        finally:
            connection.abort()
            self._connections.discard(connection)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flow[direction].wait()
                if not connection.swallowed:
                    writer.write(data)
                    await writer.drain()
