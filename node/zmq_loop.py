"""ZeroMQ sockets on an asyncio loop: reading them, watching their events, and failing aloud.

Relies on plain non-blocking pyzmq sockets and `loop.add_reader`, which costs a quarter of what
`zmq.asyncio` does. A socket's FD is edge-triggered: it tells that something changed, not that
messages are waiting. So a `Reader` drains until the socket is empty, and asks the loop for another
turn where it stopped earlier.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Final, Self

import zmq

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType

_DRAIN_MESSAGES: Final = 256
_DRAIN_S: Final = 0.002
"""How long one drain may hold the loop, give or take a message; heartbeats are due every 50 ms."""
_EVENT: Final = struct.Struct("=HI")  # event, value: zmq_socket_monitor(3)


def cause_of(error: zmq.ZMQError | OSError | ValueError) -> str:
    """What went wrong, without its number and its place."""
    if isinstance(error, zmq.ZMQError):
        assert error.errno is not None, "libzmq names a cause"
        return zmq.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    return str(error)


class FailureGuard:
    """Hands the first exception of guarded code to `on_failure`; nothing guarded runs after it.

    Code that the loop calls has no caller who would notice: the loop would log the exception and go
    on with half a message handled.
    """

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._on_failure = on_failure
        self.failed = False

    def run(self, function: Callable[[], None]) -> None:
        """Call the function, unless something failed before."""
        if not self.failed:
            with self:
                function()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False  # nothing happened, or an interrupt, which is the loop's own business
        self.failed = True
        self._on_failure(error)
        return True


class SocketHub:
    """What the sockets of one transport share: a ZeroMQ context of their own, a loop, a guard."""

    def __init__(self, loop: asyncio.AbstractEventLoop, guard: FailureGuard) -> None:
        self.context = zmq.Context()
        self.loop = loop
        self.guard = guard
        self._monitors = itertools.count()

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """Make a socket that drops what is unsent when it is closed, instead of waiting."""
        made = self.context.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        return made

    def monitor_address(self) -> str:
        """Return an address that no other monitor of this context has or had."""
        return f"inproc://monitor-{next(self._monitors)}"

    def call_later(self, delay_s: float, function: Callable[[], None]) -> asyncio.TimerHandle:
        """Have the loop call a guarded function."""
        return self.loop.call_later(delay_s, self.guard.run, function)


class Reader:
    """Takes messages from a socket as they come, in turns that leave the loop room for others."""

    def __init__(
        self, hub: SocketHub, socket: zmq.Socket[bytes], read_one: Callable[[], bool]
    ) -> None:
        """Start reading. `read_one` takes one message in, or returns False when there is none."""
        self._loop = hub.loop
        self._guard = hub.guard
        self._read_one = read_one
        self._fd = socket.fileno()
        self._closed = False
        self._loop.add_reader(self._fd, self._drain)
        # What arrived before the reader was there may raise no edge any more.
        self._turn = self._loop.call_soon(self._drain)

    def close(self) -> None:
        """Stop reading. Must come before the socket is closed: its FD's number is then reused."""
        self._closed = True
        self._turn.cancel()
        self._loop.remove_reader(self._fd)

    def wake(self) -> None:
        """Read in the loop's next turn, for what else uses the socket may have taken its edge."""
        self._turn.cancel()
        self._turn = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._turn.cancel()  # this is it; an edge may have come first
        deadline = self._loop.time() + _DRAIN_S
        with self._guard:
            for _ in range(_DRAIN_MESSAGES):
                if self._closed or self._guard.failed or not self._read_one():
                    return
                if self._loop.time() >= deadline:
                    break
            self._turn = self._loop.call_soon(self._drain)


class Monitor:
    """Watches one socket's connections: libzmq tells their events on an inproc PAIR."""

    def __init__(
        self,
        hub: SocketHub,
        watched: zmq.Socket[bytes],
        events: int,
        on_event: Callable[[int], None],
    ) -> None:
        """Start watching; to miss nothing, before the socket is bound or connected."""
        self._watched = watched
        self._on_event = on_event
        self._pair = hub.socket(zmq.PAIR)
        # At a full PAIR libzmq's I/O thread would wait, holding a lock that closing needs.
        self._pair.setsockopt(zmq.RCVHWM, 0)
        address = hub.monitor_address()
        try:
            watched.monitor(address, events)
        except zmq.ZMQError:
            self._pair.close()
            raise
        self._pair.connect(address)
        self._reader = Reader(hub, self._pair, self._read_one)

    def close(self) -> None:
        """Stop watching. Must come before the watched socket is closed."""
        self._watched.disable_monitor()  # first: without a listener libzmq's thread would wait
        self._reader.close()
        self._pair.close()

    def _read_one(self) -> bool:
        try:
            event, _address = self._pair.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        self._on_event(_EVENT.unpack(event)[0])
        return True
