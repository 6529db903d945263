"""Listens: uvicorn in the node's own loop, without its signal handlers and its `serve`.

The node decides when to start and stop, so only uvicorn's parts are used: its protocol and the
ticking that renews its Date header. What is not HTTP is refused with problem details too.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

from node.api.app import Application
from node.api.host import HostCheck
from node.api.problems import TYPE_PREFIX, ProblemKind, make_problem
from node.api.reply import PROBLEM_JSON, encode_json
from node.api.shapes import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from node.api.interface import LedgerNode
    from node.api.reply import Event, Receive, Scope, Send

STOP_TIMEOUT_S: Final = 5.0
"""How long a stop waits for answers that are under way; then they hear "unknown"."""
KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept: longer than clients keep theirs, so that they close it."""

ARRIVAL_TIMEOUT_S: Final = 30
"""How long a request may take to arrive whole: one that never ends must not hold memory."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""How much of a request may be no body: request line, headers, chunk extensions, trailers."""

LINGER_S: Final = 5.0
"""How long what a client still sends is dropped after a last answer, so that it can read that."""

_FEED_BYTES: Final = 16 * 1024
"""How much is parsed between two looks at MAX_HEAD_BYTES; that limit is kept to within this."""
_CHUNK_FRAME_BYTES: Final = 12
"""What frames a chunk without extensions at most: eight digits and two line ends."""

_CLOSE_TIMEOUT_S: Final = 1.0
_TICKS_PER_SECOND: Final = 10
_BACKLOG: Final = 2048
_REFUSED: Final = {
    errno.EADDRINUSE: "is in use by another process",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.EACCES: "may not be used by this user",
}


_HEAD_TOO_LARGE: Final = Problem(
    type=TYPE_PREFIX + "head-too-large",
    title="Too much beside the body",
    status=int(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    detail=f"request line, headers, chunk extensions and trailers exceed {MAX_HEAD_BYTES} bytes",
)
_UPGRADE_UNSUPPORTED: Final = Problem(
    type=TYPE_PREFIX + "upgrade-unsupported",
    title="Only HTTP/1.1 is spoken here",
    status=int(HTTPStatus.NOT_IMPLEMENTED),
    detail="Upgrade is not supported: send plain HTTP/1.1",
)


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
        application = Application(
            self._node,
            check_host=HostCheck(self.host),
            on_fault=self._on_fault,
            more_metrics=self._more_metrics,
        )
        config = Config(
            application,
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
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, _Protocol)
                connection.refuse_if_begun_before(now - ARRIVAL_TIMEOUT_S)
                connection.close_if_lingering_since(now - LINGER_S)
        return await super().on_tick(counter)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol; what is not HTTP, too large or too slow, it answers with a problem.

    A refusal is the last answer on its connection and comes in its turn, after the answers to the
    requests before it. One look at all connections each second is cheaper than a timer for each
    request, and it also ends those that send a header byte by byte or nothing at all.
    """

    _begun_at: float | None = None
    """When the request began that has not arrived whole; None between requests."""
    _arriving: RequestResponseCycle | None = None
    """The request whose head has arrived and whose body has not; None otherwise."""
    _serving: RequestResponseCycle | None = None
    """The request that the application answers now, or answered last."""
    _refusal: Problem | None = None
    """A refusal that waits for its turn."""
    _head_bytes: int = 0
    """What has come of the arriving request that is no body, counted generously."""
    _is_deaf: bool = False
    """Whether what still comes is dropped unread."""
    _closes_after_answer: bool = False
    """Whether the answer under way was begun before its request had arrived, and is the last."""
    _lingering_since: float | None = None
    """When the last answer was given; None before."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Expect a first request."""
        super().connection_made(transport)
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self._begun_at = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for the end of this connection."""
        super().connection_lost(exc)
        self.gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Parse in small parts: the parser joins what it gets of a header, however long."""
        for start in range(0, len(data), _FEED_BYTES):
            if self._is_deaf:
                return
            part = data[start : start + _FEED_BYTES]
            self._head_bytes += len(part)
            super().data_received(part)
            # What began within this part was not counted from its first byte.
            self._head_bytes = max(0, self._head_bytes)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Note when a request began to arrive."""
        super().on_message_begin()
        self._begun_at = self.loop.time()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Hand the request on, unless it asks for another protocol (RFC 9110 §7.8, §9.3.6).

        The parser takes what follows such a head for that protocol, so its body would be lost.
        """
        if self.parser.should_upgrade():
            self._refuse(_UPGRADE_UNSUPPORTED)
            return
        super().on_headers_complete()
        self._arriving = self.cycle

    def on_chunk_header(self) -> None:
        """Take the frame of a chunk for body: a body in many small chunks is no fault."""
        self._head_bytes -= _CHUNK_FRAME_BYTES

    def on_body(self, body: bytes) -> None:
        """Take the body out of the count of what is none."""
        super().on_body(body)
        self._head_bytes -= len(body)

    def on_message_complete(self) -> None:
        """Note that it has arrived."""
        if self._is_deaf:
            return
        super().on_message_complete()
        self._begun_at = None
        self._arriving = None

    def on_response_complete(self) -> None:
        """Go on with the next request, or hang up after the last answer."""
        if self._closes_after_answer:
            self.pipeline.clear()
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._closes_after_answer:
            self._hang_up()
        elif self._refusal is not None and self._is_turn():
            self._answer_refusal(self._refusal)

    def refuse_if_begun_before(self, deadline: float) -> None:
        """Answer 408 and close if a request is too slow, unless it is we who do not read."""
        if self._begun_at is None or self._begun_at > deadline or self.flow.read_paused:
            return
        detail = f"the request did not arrive whole within {ARRIVAL_TIMEOUT_S} s"
        self._refuse(make_problem(ProblemKind.TOO_SLOW, detail))

    def close_if_lingering_since(self, deadline: float) -> None:
        """Close what the client has not closed after the last answer."""
        if self._lingering_since is not None and self._lingering_since <= deadline:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer and close: what comes next on this connection cannot be understood."""
        self._refuse(make_problem(ProblemKind.INVALID_REQUEST, msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the client has its answer, and a log it can fill at will helps nobody."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - as uvicorn's
        self._serving = cycle
        super()._start_asgi_task(cycle, partial(self._serve, cycle, app))

    async def _serve(
        self,
        cycle: RequestResponseCycle,
        app: Any,  # noqa: ANN401 - as uvicorn's
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Run the application; an answer begun before its request has arrived is the last one."""
        if not cycle.more_body:
            await app(scope, receive, send)
            return

        async def send_last(event: Event) -> None:
            if event["type"] != "http.response.start" or not cycle.more_body:
                await send(event)
                return
            self._closes_after_answer = True
            await send({**event, "headers": [*event["headers"], (b"connection", b"close")]})
            # uvicorn would close with input unread, which resets the connection: we do it.
            cycle.keep_alive = True

        await app(scope, receive, send_last)

    def _is_turn(self) -> bool:
        """Whether no request before the arriving one waits for its answer."""
        serving = self._serving
        return serving is None or serving.response_complete or serving is self._arriving

    def _refuse(self, problem: Problem) -> None:
        """Give the last answer of this connection, now or in its turn; parse nothing more."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self._begun_at = None
        self._refusal = problem
        if self._is_turn():
            self._answer_refusal(problem)

    def _answer_refusal(self, problem: Problem) -> None:
        """Write the refusal, unless an answer to this request has begun: there is only one."""
        serving = self._serving
        if serving is None or serving.response_complete or not serving.response_started:
            self.transport.write(_refusal_bytes(problem))
        self._hang_up()

    def _hang_up(self) -> None:
        """Send no more, and drop what comes until the client closes or LINGER_S are over.

        To close with input unread would reset the connection, and with it the answer
        (RFC 9112 §9.6).
        """
        self._is_deaf = True
        self._begun_at = None
        self._refusal = None
        self._lingering_since = self.loop.time()
        serving = self._serving
        if serving is not None and not serving.response_complete:
            serving.disconnected = True
            serving.waiting_for_100_continue = False
            serving.message_event.set()
        self.flow.resume_reading()
        self.transport.write_eof()


def _refusal_bytes(problem: Problem) -> bytes:
    body = encode_json(problem)
    head = (
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
        f"content-type: {PROBLEM_JSON.decode()}\r\n"
        f"content-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


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
