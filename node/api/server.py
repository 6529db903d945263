"""Listens: uvicorn in the node's own loop, without its signal handlers and its `serve`.

The node decides when to start and stop, so only uvicorn's parts are used: its protocol and the
ticking that renews its Date header. What is not HTTP is refused with problem details too.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

from node.api.app import Application
from node.api.problems import ProblemKind, make_problem
from node.api.reply import PROBLEM_JSON, encode_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.api.interface import LedgerNode
    from node.api.shapes import Problem

STOP_TIMEOUT_S: Final = 5.0
"""How long a stop waits for answers that are under way; then they hear "unknown"."""
KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept: longer than clients keep theirs, so that they close it."""

ARRIVAL_TIMEOUT_S: Final = 30
"""How long a request may take to arrive whole: one that never ends must not hold memory."""

_CLOSE_TIMEOUT_S: Final = 1.0
_TICKS_PER_SECOND: Final = 10
_BACKLOG: Final = 2048
_REFUSED: Final = {
    errno.EADDRINUSE: "is in use by another process",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.EACCES: "may not be used by this user",
}


class ListenError(OSError):
    """The address cannot be listened on; the text is one line fit for a terminal."""

    def __init__(self, host: str, port: int, cause: OSError) -> None:
        reason = _REFUSED.get(cause.errno or 0, str(cause))
        super().__init__(cause.errno, f"HTTP address {host} port {port} {reason}")
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
    ) -> None:
        """Nothing is opened before `start`; port 0 lets the system choose.

        `on_failure` hears of every fault of our own in answering; without it such a fault is
        logged and answered with 500, and the node goes on.
        """
        self.host = host
        self.port = port
        self._node = node
        self._on_failure = on_failure
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
        config = Config(
            Application(self._node, on_failure=self._on_failure),
            http=_Protocol,
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
    for connection in list(server.server_state.connections):
        # Closes what is idle, and what is busy after its answer.
        connection.shutdown()
    tasks = set(server.server_state.tasks)
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=_CLOSE_TIMEOUT_S)


async def _close_connections(server: Server) -> None:
    """Close once what is written has been sent; a client that does not read is cut off."""
    connections = [one for one in server.server_state.connections if isinstance(one, _Protocol)]
    for connection in connections:
        connection.transport.close()
    if connections:
        gone = [connection.gone for connection in connections]
        await asyncio.wait(gone, timeout=_CLOSE_TIMEOUT_S)
    for connection in connections:
        connection.transport.abort()


class _Server(Server):
    """uvicorn's server, which also refuses clients that take too long to send a request."""

    async def on_tick(self, counter: int) -> bool:
        """Look at every connection; called ten times a second, acts once a second."""
        if counter % _TICKS_PER_SECOND == 0:
            deadline = asyncio.get_running_loop().time() - ARRIVAL_TIMEOUT_S
            for connection in list(self.server_state.connections):
                assert isinstance(connection, _Protocol)
                connection.refuse_if_begun_before(deadline)
        return await super().on_tick(counter)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol; what is not HTTP, or arrives too slowly, it answers with a problem.

    One look at all connections each second is cheaper than a timer for each request, and it also
    ends those that send a header byte by byte or nothing at all.
    """

    _begun_at: float | None = None
    """When the request began that has not arrived whole; None between requests."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Expect a first request."""
        super().connection_made(transport)
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self._begun_at = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for the end of this connection."""
        super().connection_lost(exc)
        self.gone.set_result(None)

    def on_message_begin(self) -> None:
        """Note when a request began to arrive."""
        super().on_message_begin()
        self._begun_at = self.loop.time()

    def on_message_complete(self) -> None:
        """Note that it has arrived."""
        super().on_message_complete()
        self._begun_at = None

    def refuse_if_begun_before(self, deadline: float) -> None:
        """Answer 408 and close if a request is too slow, unless it is we who do not read."""
        if self._begun_at is None or self._begun_at > deadline or self.flow.read_paused:
            return
        detail = f"the request did not arrive whole within {ARRIVAL_TIMEOUT_S} s"
        self._refuse(make_problem(ProblemKind.TOO_SLOW, detail))

    def send_400_response(self, msg: str) -> None:
        """Answer and close: what comes next on this connection cannot be understood."""
        self._refuse(make_problem(ProblemKind.INVALID_REQUEST, msg))

    def _refuse(self, problem: Problem) -> None:
        body = encode_json(problem)
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            f"content-type: {PROBLEM_JSON.decode()}\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address; raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
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
