"""The client port: ZeroMQ for clients that record at high rates, under CURVE, by our own hand.

Clients are ordinary libzmq DEALERs; on this side there is no libzmq, whose ROUTER a client can
abort and whose unfinished messages nobody bounds (see ARCHITECTURE.md). The port listens, admits
connections, gives each of them its turns, looks at their times, and counts. What a client does
wrong costs it its connection and nobody else anything.

Relies on `node.port_connection` for one connection, and on a node as `node.api.interface` has it.
Runs on the loop that starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections import Counter
from typing import TYPE_CHECKING, Final, Self

import structlog

from node.api.server import ListenError
from node.client_keys import parse_key
from node.config import join_address
from node.curve import Keys
from node.port_connection import Connection
from node.port_limits import Dropped, LargeRoom, PortLimits, source_of
from node.zmtp import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from node.api.interface import LedgerNode
    from node.identity import Identity

_log: Final = structlog.get_logger("client_port")
_BACKLOG: Final = 2_048
_CLOSE_S: Final = 1.0


class ClientPort:
    """Listens at one address and serves each client that its keys let in."""

    def __init__(
        self,
        node: LedgerNode,
        *,
        host: str,
        port: int,
        identity: Identity,
        client_keys: Collection[bytes] = (),
        limits: PortLimits | None = None,
    ) -> None:
        """Nothing is opened before `start`; port 0 lets the system choose.

        By its `identity` clients know the node; `client_keys` are the Curve25519 public keys of
        those who are let in, 32 bytes each. Without any, everybody is.
        """
        self.node = node
        self.host = host
        self.port = port
        self.keys = Keys.of(parse_key(identity.curve_secret_z85.decode("ascii")))
        self._public_key = identity.public_key
        self.limits = limits or PortLimits()
        self.room = LargeRoom(self.limits.large_total_bytes)
        self.dropped: Counter[str] = Counter()
        self.requests = self.transactions = 0
        self._client_keys = frozenset(client_keys)
        self._accepted = self._turned_away = 0
        self._connections: dict[Connection, str] = {}
        self._by_source: Counter[str] = Counter()
        self._has_changed = asyncio.Event()
        self._awake: dict[Connection, None] = {}
        self._answering: dict[Connection, None] = {}
        self._is_turn_due = self._is_flush_due = False
        self._server: asyncio.Server | None = None

    @property
    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    @property
    def url(self) -> str:
        """Where clients find the port, and by what key they know that it is this node's."""
        return f"tcp://{join_address(self.host, self.port)}?key={self._public_key.hex()}"

    @property
    def metrics(self) -> dict[str, int]:
        """Counters and gauges by name; every reason to drop is there from the start."""
        reasons = [*Fault, *Dropped]
        return {
            "client_connections": len(self._connections),
            "client_connections_accepted_total": self._accepted,
            "client_connections_turned_away_total": self._turned_away,
            "client_requests_total": self.requests,
            "client_transactions_total": self.transactions,
        } | {f"client_dropped_{reason}_total": self.dropped[reason] for reason in reasons}

    async def start(self) -> None:
        """Bind and listen; `port` is then the one listened on. Raises ListenError."""
        self._loop = asyncio.get_running_loop()
        # Whatever clients do, half of the process's descriptors are left to the node itself.
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_connections = min(self.limits.connections, files // 2)
        listener = _bind(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._server = await self._loop.create_server(
            lambda: Connection(self), sock=listener, backlog=_BACKLOG
        )
        self._tick = self._loop.call_later(self.limits.tick_s, self._look_at_times)

    async def stop(self) -> None:
        """Take nothing new, let what is under way be answered within `stop_s`, and close."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self._tick.cancel()
        server.close()
        for connection in list(self._connections):
            connection.stop()
        await self._wait_until(lambda: not self._is_answering(), self.limits.stop_s)
        for connection in list(self._connections):
            connection.give_up_calls()
            connection.close()
        await self._wait_until(lambda: not self._connections, _CLOSE_S)
        for connection in list(self._connections):
            connection.abort()
        await server.wait_closed()

    # What connections call

    def allows(self, client_key: bytes) -> bool:
        """Whether a client with that key is let in."""
        return not self._client_keys or client_key in self._client_keys

    def admit(self, connection: Connection, host: str) -> bool:
        """Counts a new connection in; False where there are enough, in all or from that source.

        Where there are enough in all, the oldest of those that have not said who they are gives
        way: strangers that only connect, however many, keep nobody out who has a key.
        """
        source = source_of(host)
        is_free = self._by_source[source] < self.limits.connections_per_source
        if is_free and len(self._connections) >= self._max_connections:
            is_free = self._crowd_out_stranger()
        if not is_free:
            self._turned_away += 1
            return False
        self._accepted += 1
        self._connections[connection] = source
        self._by_source[source] += 1
        return True

    def _crowd_out_stranger(self) -> bool:
        """Drops the oldest connection in its handshake; False where all are through it."""
        for connection in self._connections:
            if connection.is_stranger:
                connection.drop(Dropped.CROWDED_OUT)
                self.forget(connection)
                return True
        return False

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        source = self._connections.pop(connection, None)
        if source is None:
            return
        self._by_source[source] -= 1
        if not self._by_source[source]:
            del self._by_source[source]
        self._awake.pop(connection, None)
        self._answering.pop(connection, None)
        self.room.leave(connection)
        self._has_changed.set()

    def wake(self, connection: Connection) -> None:
        """The connection has work to do: it gets a turn."""
        self._awake[connection] = None
        self._schedule_turn()

    def flush_soon(self, connection: Connection) -> None:
        """The connection has answers: they leave with all others that this turn makes ready."""
        self._answering[connection] = None
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def guard(self, connection: Connection) -> _Guard:
        """Keeps an exception of our own from the loop and the node; it costs the connection."""
        return _Guard(connection)

    # Turns and times

    def _schedule_turn(self) -> None:
        if not self._is_turn_due:
            self._is_turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Each connection with work does a slice of it, the longest waiting ones first."""
        self._is_turn_due = False
        deadline = self.now + self.limits.turn_s
        for connection in list(self._awake):
            self._awake.pop(connection, None)
            has_more = False
            with self.guard(connection):
                has_more = connection.work()
            if has_more:
                self._awake[connection] = None
            if self.now >= deadline:
                break
        if self._awake:
            self._schedule_turn()

    def _flush(self) -> None:
        self._is_flush_due = False
        answering, self._answering = self._answering, {}
        for connection in answering:
            with self.guard(connection):
                connection.flush()
        self._has_changed.set()

    def _look_at_times(self) -> None:
        self._tick = self._loop.call_later(self.limits.tick_s, self._look_at_times)
        now = self.now
        for connection in list(self._connections):
            with self.guard(connection):
                connection.look_at_times(now)
        self._bound_unsent()

    def _bound_unsent(self) -> None:
        """Drops those who read least, until what waits for clients that do not read is bounded."""
        unsent = {one: size for one in self._connections if (size := one.unsent_bytes)}
        total = sum(unsent.values())
        for connection in sorted(unsent, key=unsent.__getitem__, reverse=True):
            if total <= self.limits.unsent_total_bytes:
                return
            total -= unsent[connection]
            connection.drop(Dropped.UNREAD)

    async def _wait_until(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        """Waits for that, looking again whenever answers left or a connection went."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not is_done():
                    self._has_changed.clear()
                    await self._has_changed.wait()

    def _is_answering(self) -> bool:
        return any(connection.is_answering for connection in self._connections)


class _Guard:
    """Ends a connection in whose service something of ours failed, and logs it."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        _log.error("a client's connection failed by a fault of this node", exc_info=error)
        self._connection.drop(Dropped.NODE_FAULT)
        return True


def _bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address; raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, or asyncio leaves Nagle's algorithm on; see `node.api.server`.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets have it from the listener: a client without PING may be gone unseen.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.bind((host, port))
        listener.settimeout(0)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(host, port, error, what="client") from error
    return listener
