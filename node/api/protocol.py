"""The protocol of one connection: uvicorn's, with answers of our own to what is not HTTP.

What is not HTTP, too large or too slow is answered with problem details, in its turn, as the last
answer of its connection. Relies on uvicorn, and on httptools for parsing.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from node.api.problems import TYPE_PREFIX, ProblemKind, make_problem
from node.api.reply import PROBLEM_JSON, encode_json
from node.api.shapes import Problem

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from node.api.reply import Event, Receive, Scope, Send

ARRIVAL_TIMEOUT_S: Final = 30
"""How long a request may take to arrive whole: one that never ends must not hold memory."""

UNREAD_TIMEOUT_S: Final = 60
"""How long a client may leave answers unread once its network's buffers are full: they hold memory,
and to close such a connection would wait for the client for as long as it likes."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""How much of a request may be no body: request line, headers, chunk extensions, trailers."""

_FEED_BYTES: Final = 16 * 1024
"""How much is parsed between two looks at MAX_HEAD_BYTES; that limit is kept to within this."""
_CHUNK_FRAME_BYTES: Final = 12
"""What frames a chunk without extensions at most: eight digits and two line ends."""

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


class LedgerProtocol(HttpToolsProtocol):
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
    _unread_since: float | None = None
    """When the client stopped reading, or was to be closed; None while it reads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Expect a first request."""
        super().connection_made(transport)
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self._begun_at = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for the end of this connection."""
        super().connection_lost(exc)
        self.gone.set_result(None)

    def pause_writing(self) -> None:
        """Note when the client stopped reading."""
        super().pause_writing()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        """Note that it reads again."""
        super().resume_writing()
        self._unread_since = None

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

    def abort_if_unread_since(self, deadline: float) -> None:
        """Cut off a client that leaves its answers unread, also the last one before a close."""
        if self._unread_since is None:
            if self.transport.is_closing():
                self._unread_since = self.loop.time()
        elif self._unread_since <= deadline:
            self.transport.abort()

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
