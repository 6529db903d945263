"""Listens: uvicorn in the node's own loop, without its signal handlers and its `serve`.

The node decides when to start and stop, so only uvicorn's parts are used: its protocol and the
ticking that renews its Date header. What is not HTTP is refused with problem details too.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from uvicorn.config import Config
from uvicorn.server import Server

from node.api.app import Application
from node.api.express import KEEP_ALIVE_S, Express, ExpressProtocol
from node.api.host import HostCheck
from node.api.protocol import ARRIVAL_TIMEOUT_S, UNREAD_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from node.api.interface import LedgerNode

STOP_TIMEOUT_S: Final = 5.0
"""How long a stop waits for answers that are under way; then they hear "unknown"."""
LINGER_S: Final = 5.0
"""How long what a client still sends is dropped after a last answer, so that it can read that."""

_CLOSE_TIMEOUT_S: Final = 1.0
_TICKS_PER_SECOND: Final = 10
_BACKLOG: Final = 2048
_MAX_CONNECTIONS: Final = 4096
_REFUSED: Final = {
    errno.EADDRINUSE: "is in use by another process",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.EACCES: "may not be used by this user",
}


class ListenError(OSError):
    """The address cannot be listened on; the text is one line fit for a terminal."""

    def __init__(self, host: str, port: int, cause: OSError, *, what: str = "HTTP") -> None:
        reason = _REFUSED.get(cause.errno or 0, str(cause))
        super().__init__(cause.errno, f"{what} address {host} port {port} {reason}")
        self.host = host
        self.port = port

    def __str__(self) -> str:
        """Return the line without the number in front that OSError puts there."""
        return str(self.strerror)


class ApiServer:
    """The HTTP face of one node, in the loop that starts it."""

    def __init__(
        self,
        node: LedgerNode,
        host: str,
        port: int,
        *,
        on_failure: Callable[[BaseException], None] | None = None,
        on_fault: Callable[[BaseException], None] | None = None,
        more_metrics: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Nothing is opened before `start`; port 0 lets the system choose.

        `more_metrics` gives numbers to show beside the node's own.
        `on_failure` hears that the face as a whole cannot go on; `on_fault` of every fault of our
        own in answering one request, which is logged and answered with 500 all the same.
        """
        self.host = host
        self.port = port
        self._node = node
        self._on_failure = on_failure
        self._on_fault = on_fault
        self._more_metrics = more_metrics
        self._listener: socket.socket | None = None
        self._server: Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where the face is reached, without a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Bind and listen; `port` is then the one listened on. Raises ListenError."""
        assert self._server is None
        listener = _bind(self.host, self.port)
        self.port = listener.getsockname()[1]
        check_host = HostCheck(self.host)
        application = Application(
            self._node,
            check_host=check_host,
            on_fault=self._on_fault,
            more_metrics=self._more_metrics,
        )
        # A quarter of the process's descriptors: the client port may have half, the node the rest.
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        express = Express(
            application.face,
            check_host=check_host,
            report=application.report,
            max_connections=min(_MAX_CONNECTIONS, files // 4),
        )
        config = Config(
            application,
            http=partial(ExpressProtocol, express),  # type: ignore[arg-type] # makes a protocol too
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        config.load()
        server = _Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        self._listener, self._server = listener, server
        self._ticking = asyncio.get_running_loop().create_task(server.main_loop())
        self._ticking.add_done_callback(self._on_ticking_end)

    async def stop(self) -> None:
        """Take no new connection, finish what is under way within STOP_TIMEOUT_S, and close."""
        listener, server, ticking = self._listener, self._server, self._ticking
        if listener is None or server is None or ticking is None:
            return
        self._listener = self._server = self._ticking = None
        ticking.cancel()
        for listening in server.servers:
            listening.close()
        listener.close()
        await _finish_requests(server)
        await _close_connections(server)

    def _on_ticking_end(self, ticking: asyncio.Task[None]) -> None:
        """Ticking ends by `stop` alone; anything else is a fault of our own."""
        if ticking.cancelled():
            return
        fault = ticking.exception()
        assert fault is not None
        if self._on_failure is None:
            raise fault
        self._on_failure(fault)


async def _finish_requests(server: Server) -> None:
    """Let what is under way end; at the deadline cancel it, which makes it answer at once."""
    connections = _connections_of(server)
    for connection in connections:
        # Closes what is idle, and what is busy after its answer.
        connection.shutdown()
    tasks = set(server.server_state.tasks)
    answers = [connection.answered() for connection in connections]
    under_way: set[asyncio.Future[None]] = {one for one in answers if one is not None} | tasks
    if not under_way:
        return
    await asyncio.wait(under_way, timeout=STOP_TIMEOUT_S)
    for connection in connections:
        connection.answer_stopping()
    late = {task for task in tasks if not task.done()}
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=_CLOSE_TIMEOUT_S)


async def _close_connections(server: Server) -> None:
    """Close once what is written has been sent; a client that does not read is cut off."""
    connections = _connections_of(server)
    for connection in connections:
        connection.transport.close()
    if connections:
        gone = [connection.gone for connection in connections]
        await asyncio.wait(gone, timeout=_CLOSE_TIMEOUT_S)
    for connection in connections:
        connection.transport.abort()


def _connections_of(server: Server) -> list[ExpressProtocol]:
    return [one for one in server.server_state.connections if isinstance(one, ExpressProtocol)]


class _Server(Server):
    """uvicorn's server, which also drops clients that take too long to send or to read."""

    async def on_tick(self, counter: int) -> bool:
        """Look at every connection; called ten times a second, acts once a second."""
        if counter % _TICKS_PER_SECOND == 0:
            now = asyncio.get_running_loop().time()
            for connection in _connections_of(self):
                connection.refuse_if_begun_before(now - ARRIVAL_TIMEOUT_S)
                connection.close_if_lingering_since(now - LINGER_S)
                connection.close_if_idle_since(now - KEEP_ALIVE_S)
                connection.abort_if_unread_since(now - UNREAD_TIMEOUT_S)
        return await super().on_tick(counter)


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address; raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: asyncio turns Nagle's algorithm off only for a socket that says TCP,
    # and an answer's second part would wait 40 ms for the acknowledgement of its first.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A port whose last connections are still in TIME_WAIT is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.settimeout(0)
        # Listening here rather than in uvicorn: a port taken meanwhile is refused with our error.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(host, port, error) from error
    return listener
