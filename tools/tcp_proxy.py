"""A TCP proxy in front of a broker, that hurts the connections of its clients when told to.

    proxy = TcpProxy(node.url)
    client(proxy.url)
    proxy.cut()                 # a reset, or with "fin" a regular end
    proxy.stall("up")           # what clients send isn't read any more; "down": what the broker sends
    proxy.resume()
    proxy.swallow()             # half-open: both ends keep a connection that leads nowhere; new ones work
    proxy.down()                # refuse connections, and cut those that there are
    proxy.up()
    proxy.mute = True           # accept connections, and never answer
    proxy.close()

Works in a thread of its own, on the loopback interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import urllib.parse
from collections.abc import Coroutine
from typing import Any

HOST = "127.0.0.1"
CHUNK = 0x10000  #: Bytes that are passed on at once.
PATIENCE = 20.0  #: Seconds that the thread gets for what it is told.
LINGER = 0.01  #: Seconds in which the loop closes the sockets of aborted connections.
#: SO_LINGER: on, 0 seconds. Closing such a socket sends a reset.
RESET = struct.pack("ii", 1, 0)


class _Connection:
    """A client's, and the one to the broker that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.broker: asyncio.StreamWriter | None = None
        #: Nothing gets through any more, and neither end is told.
        self.swallowed = False

    def abort(self) -> None:
        for writer in (self.client, self.broker):
            if writer is not None:
                writer.transport.abort()


class TcpProxy:
    """See the top of this file. Its methods can be called from any thread but its own."""

    def __init__(self, url: str, host: str = HOST, tls: ssl.SSLContext | None = None) -> None:
        """host: that it listens at. tls: that it speaks with its clients."""
        parts = urllib.parse.urlsplit(url)
        self._target = parts.hostname or HOST, parts.port or 5672
        self._host, self._port, self._tls = host, 0, tls
        self.accepted = 0  #: Connections so far.
        self.mute = False  #: Accept connections, and never answer.
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flow = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.resume()
        self.up()
        login = parts.netloc.rpartition("@")[0] or "guest:guest"
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'amqps' if tls else 'amqp'}://{login}@{shown}:{self._port}/"

    @property
    def open(self) -> int:
        """How many connections of clients there are."""
        return len(self._connections)

    def up(self) -> None:
        """Listen, at the port that it has always had."""
        self._server = self._do(asyncio.start_server(self._serve, self._host, self._port, ssl=self._tls))
        self._port = self._server.sockets[0].getsockname()[1]

    def down(self) -> None:
        """Refuse connections, and cut those that there are."""
        self._loop.call_soon_threadsafe(self._server.close)
        self.cut()

    def cut(self, how: str = "rst") -> None:
        """End all connections of clients, by a reset or by a regular end ("fin"), and then those to the broker."""
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
        self.down()
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
                if sock is not None:  # else it has just ended by itself
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
        await asyncio.sleep(LINGER)

    def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = _Connection(writer)
        self._connections.add(connection)
        # A task that `_end` knows: asyncio's own of this coroutine can't be awaited from there.
        self._begin(self._connect(connection, reader))

    async def _connect(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        try:
            with contextlib.suppress(OSError):  # the broker is down, and so is the way to it
                while self.mute and await reader.read(CHUNK):
                    pass
                there, connection.broker = await asyncio.open_connection(*self._target)
                await self._pass_on(connection, reader, there, connection.broker)
        finally:
            connection.abort()
            self._connections.discard(connection)

    async def _pass_on(
        self,
        connection: _Connection,
        client: asyncio.StreamReader,
        there: asyncio.StreamReader,
        broker: asyncio.StreamWriter,
    ) -> None:
        """Until one end has ended; of what is swallowed, until both have."""
        pumps = [
            self._begin(self._pump(connection, client, broker, "up")),
            self._begin(self._pump(connection, there, connection.client, "down")),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        if connection.swallowed:
            await asyncio.wait(pumps)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flow[direction].wait()
                if not connection.swallowed:
                    writer.write(data)
                    await writer.drain()
