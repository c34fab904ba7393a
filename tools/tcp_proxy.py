"""A TCP proxy in front of a broker, that hurts the connections of its clients when told to.

    proxy = TcpProxy(node.url)
    client(proxy.url)
    proxy.cut()                 # a reset, or with "fin" a regular end
    proxy.stall("up")           # what clients send isn't read any more; "down": what they get
    proxy.resume()
    proxy.swallow()             # half-open: connections lead nowhere, and no end hears of it
    proxy.down()                # refuse connections, and cut those that there are
    proxy.up()
    proxy.mute = True           # accept connections, and never answer
    proxy.close()

It reads the frames that pass, and can act at one of them:

    trap = proxy.at("Basic.Publish", "after", "rst")    # before the message's header and body
    trap.wait()                                         # a threading.Event: it has acted
    proxy.at("Basic.Deliver ContentBody", "half", "swallow")
    proxy.at("Connection.Tune", "before", "stall", seconds=0.2, nth=2)
    proxy.seen["Channel.Open"]                          # how many of them have passed

A frame has pamqp's name: that of its method, "ProtocolHeader", or "Heartbeat". The header and the
body of a message are named after the method that they belong to: "Basic.Publish ContentHeader".
"TCP" stands for the connection itself, as if it were the first frame that a client sends.

    slow = TcpProxy(node.url, rate=200_000)     # bytes a second, each way of each connection
    slow.rate = None                            # as fast as it can

Works in a thread of its own, on the loopback interface.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import ssl
import struct
import threading
import urllib.parse
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from pamqp import commands

HOST = "127.0.0.1"
CHUNK = 0x10000  #: Bytes that are passed on at once.
PATIENCE = 20.0  #: Seconds that the thread gets for what it is told.
LINGER = 0.01  #: Seconds in which the loop closes the sockets of aborted connections.
STEP = 0.01  #: Seconds between two writes to a slow way.
LATENESS = 0.1  #: Seconds for which such a write may be late and the way still keeps its rate.
#: SO_LINGER: on, 0 seconds. Closing such a socket sends a reset.
RESET = struct.pack("ii", 1, 0)
#: What makes the kernel keep little of what a client writes to a slow way: the size in bytes of the
#: buffer for what is received (the kernel doubles it), and of the largest segment.
SLOW_BUFFER, SLOW_SEGMENT = 4096, 1460

#: A frame's type, channel and size. One more byte ends it.
FRAME_HEADER = struct.Struct(">BHI")
METHOD, HEADER, BODY = 1, 2, 3
#: "AMQP" and a version: the first bytes of a client, and a broker's that wants another version.
PROTOCOL_HEADER, PROTOCOL_HEADER_SIZE = b"AMQP", 8

#: How much of a frame has passed when the proxy acts.
PLACES = {"before": 0.0, "half": 0.5, "after": 1.0}
#: What it does then: to the frame's connection, except that "down" is for all.
ACTIONS = ("rst", "fin", "stall", "stall other", "swallow", "down")
OTHER = {"up": "down", "down": "up"}


@dataclass(frozen=True)
class Trap:
    """What is to be done at a frame; see `TcpProxy.at`."""

    name: str
    place: str
    action: str
    seconds: float | None
    nth: int
    sprung: threading.Event = field(default_factory=threading.Event)


class _Frames:
    """One direction of a connection, cut into frames."""

    def __init__(self) -> None:
        # The beginning of a frame that isn't whole yet.
        self._rest = b""
        # By channel, what the next header and body belong to.
        self._methods: dict[int, str] = {}

    def split(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the bytes of each frame that is whole by now."""
        data, start = self._rest + data, 0
        while (size := self._size(data, start)) and start + size <= len(data):
            frame = data[start : start + size]
            start += size
            yield self._name(frame), frame
        self._rest = data[start:]

    def _size(self, data: bytes, start: int) -> int:
        """Return the size of the frame that starts there, in bytes; 0 while that isn't known."""
        if len(data) - start < FRAME_HEADER.size:
            return 0
        if data.startswith(PROTOCOL_HEADER, start):
            return PROTOCOL_HEADER_SIZE
        return FRAME_HEADER.size + int.from_bytes(data[start + 3 : start + 7], "big") + 1

    def _name(self, frame: bytes) -> str:
        if frame.startswith(PROTOCOL_HEADER):
            return "ProtocolHeader"
        kind, channel, _ = FRAME_HEADER.unpack_from(frame)
        if kind == METHOD:
            number = int.from_bytes(frame[FRAME_HEADER.size : FRAME_HEADER.size + 4], "big")
            method = commands.INDEX_MAPPING.get(number)
            self._methods[channel] = getattr(method, "name", f"method {number:#x}")
            return self._methods[channel]
        parts = {HEADER: " ContentHeader", BODY: " ContentBody"}
        return self._methods.get(channel, "") + parts[kind] if kind in parts else "Heartbeat"


class _Connection:
    """A connection of a client, and the one to the broker that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.broker: asyncio.StreamWriter | None = None
        #: Nothing gets through any more, and neither end is told.
        self.swallowed = False
        #: The directions in which nothing is passed on until it is resumed.
        self.stalled: set[str] = set()
        self.ended = False  #: By the proxy. Nothing is passed on any more.
        #: The loop's time when a slow way is free again, by direction.
        self.free_at = {"up": 0.0, "down": 0.0}

    def end(self, how: str) -> None:
        """End the client's connection by a reset ("rst"), a regular end ("fin"), or as it comes
        (""), and the other."""
        if self.ended and how:
            return
        self.ended = True
        sock = self.client.get_extra_info("socket")
        # Without a socket it has just ended by itself.
        if how == "rst" and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if how == "fin":
            self.client.close()
        else:
            self.client.transport.abort()
        if self.broker is not None:
            self.broker.transport.abort()


class TcpProxy:
    """See the top of this file. Its methods can be called from any thread but its own."""

    def __init__(
        self,
        url: str,
        host: str = HOST,
        tls: ssl.SSLContext | None = None,
        rate: float | None = None,
    ) -> None:
        """host: that it listens at. tls: that it speaks with its clients. rate: bytes a second."""
        parts = urllib.parse.urlsplit(url)
        self._target = parts.hostname or HOST, parts.port or 5672
        self._host, self._port, self._tls = host, 0, tls
        self.accepted = 0  #: Connections so far.
        self.mute = False  #: Accept connections, and never answer.
        self.rate = rate  #: Bytes a second in each direction of a connection; None: no limit.
        self._is_slow = rate is not None
        #: How many frames of each name have come from clients and the broker.
        self.seen: collections.Counter[str] = collections.Counter()
        self._traps: list[Trap] = []  # those that haven't acted yet
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stalled: set[str] = set()  # directions, in all connections
        self._resumed = asyncio.Event()  # set, and replaced, at each `resume`
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._socket = self._bind()
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
        listen = asyncio.start_server(self._serve, sock=self._socket, ssl=self._tls)
        self._server = self._do(listen)
        self._port = self._server.sockets[0].getsockname()[1]

    def down(self) -> None:
        """Refuse connections, and cut those that there are."""
        self._loop.call_soon_threadsafe(self._stop_listening)
        self.cut()

    def cut(self, how: str = "rst") -> None:
        """End all connections of clients, by a reset or by a regular end ("fin"), and then those to
        the broker."""
        self._do(self._cut(how))

    def stall(self, direction: str) -> None:
        """Accept, and don't pass on what clients ("up") or the broker ("down") send."""
        # It waits until `resume`.
        self._loop.call_soon_threadsafe(self._stalled.add, direction)

    def resume(self) -> None:
        """End all stalls, a trap's too."""
        self._loop.call_soon_threadsafe(self._resume)

    def swallow(self) -> None:
        """Let the way of the present connections vanish. New ones work."""
        # As when a firewall forgets them: what is sent is acknowledged by TCP and goes nowhere, and
        # no end hears of the other's.
        for connection in tuple(self._connections):
            connection.swallowed = True

    def at(
        self, name: str, place: str, action: str, seconds: float | None = None, nth: int = 1
    ) -> threading.Event:
        """Act once, at the nth frame of that name that passes from now on, in whichever connection.

        `place`: "before" or "after" it, or when "half" of it has passed. `action`: what happens to
        its connection: "rst", "fin", "swallow", "stall" (the direction of the frame, for so many
        seconds), "stall other" (the other one); or to all connections: "down". Returns an event
        that is set when it has acted.
        """
        if place not in PLACES or action not in ACTIONS:
            raise ValueError(f"place: {place!r}, of {[*PLACES]}; action: {action!r}, of {ACTIONS}")
        trap = Trap(name, place, action, seconds, self.seen[name] + nth)
        self._traps.append(trap)
        return trap.sprung

    def close(self) -> None:
        self.down()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._socket.close()

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def _stop_listening(self) -> None:
        self._server.close()
        self._socket.close()
        self._socket = self._bind()  # so that nobody else gets the port meanwhile

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._is_slow:  # inherited by the connections
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SLOW_SEGMENT)
        sock.bind((self._host, self._port))
        return sock

    async def _cut(self, how: str) -> None:
        for connection in tuple(self._connections):
            connection.end(how)
        await asyncio.sleep(0)  # abort() closes the socket in the loop's next round

    def _resume(self, connections: set[_Connection] | None = None) -> None:
        if connections is None:
            self._stalled.clear()
        for connection in self._connections if connections is None else connections:
            connection.stalled.clear()
        self._resumed.set()
        self._resumed = asyncio.Event()

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
                await self._write_frame(connection, "up", "TCP", b"")
                pumps = [
                    self._begin(self._pump(connection, reader, "up")),
                    self._begin(self._pump(connection, there, "down")),
                ]
                # One end ends the other, but for a way that has vanished.
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                if connection.swallowed:
                    await asyncio.wait(pumps)
        finally:
            connection.end("")
            self._connections.discard(connection)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, direction: str
    ) -> None:
        """Pass on what comes, frame by frame."""
        frames = _Frames()
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                for name, frame in frames.split(data):
                    await self._write_frame(connection, direction, name, frame)

    async def _write_frame(
        self, connection: _Connection, direction: str, name: str, frame: bytes
    ) -> None:
        """Write a frame, and do what is to be done at it."""
        self.seen[name] += 1
        # Two traps may be at one frame: what is written of it for the first is not for the second.
        written = 0
        for trap in [t for t in self._traps if (t.name, t.nth) == (name, self.seen[name])]:
            self._traps.remove(trap)
            place = max(written, int(len(frame) * PLACES[trap.place]))
            await self._write(connection, direction, frame[written:place])
            written = place
            await self._spring(connection, direction, trap)
        await self._write(connection, direction, frame[written:])

    async def _spring(self, connection: _Connection, direction: str, trap: Trap) -> None:
        if trap.action == "swallow":
            connection.swallowed = True
        elif trap.action.startswith("stall"):
            connection.stalled.add(direction if trap.action == "stall" else OTHER[direction])
            if trap.seconds is not None:
                self._loop.call_later(trap.seconds, self._resume, {connection})
        elif trap.action == "down":
            self._stop_listening()
            await self._cut("rst")
        else:
            connection.end(trap.action)
        trap.sprung.set()
        await asyncio.sleep(0)

    async def _write(self, connection: _Connection, direction: str, data: bytes) -> None:
        while data:
            while direction in self._stalled | connection.stalled:
                await self._resumed.wait()
            if connection.ended:
                raise ConnectionResetError
            step = CHUNK if self.rate is None else max(1, int(self.rate * STEP))
            piece, data = data[:step], data[step:]
            writer = connection.broker if direction == "up" else connection.client
            if not connection.swallowed and writer is not None:
                writer.write(piece)
                await writer.drain()
            if self.rate is not None:
                now, free_at = self._loop.time(), connection.free_at[direction]
                free_at = max(free_at, now - LATENESS) + len(piece) / self.rate
                connection.free_at[direction] = free_at
                await asyncio.sleep(free_at - now)
