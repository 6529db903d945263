"""The short way of a hot request: from the connection to the node and back, without ASGI.

A submit, a receipt or a history that comes whole, alone and plain (`heads` says what that is) is
answered right here: no task and no event for a submit, and for every answer one write. All else
goes the whole way: what comes in a pipeline or in pieces, in chunks, with `Expect` or
`Connection: close`, what is too large, and what is at fault. Both ways share the handlers and what
they answer. Bytes reach the parser only where they are not answered here, so it always stands at
the beginning of a request when one is. Relies on `protocol` for the whole way.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from node.api.app import INTERNAL, STOPPING, STOPPING_SUBMIT
from node.api.heads import HeadReader, ReadCall
from node.api.json_input import read_at_once
from node.api.problems import HANDLED_ERRORS, error_reply, problem_reply
from node.api.protocol import LedgerProtocol
from node.api.submit import refuse_while_full, submit_reply
from node.uuid7 import new_transaction_id

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType

    from node.api.face import Face
    from node.api.heads import HotHead
    from node.api.json_input import Submission
    from node.api.reply import Reply, Scope
    from node.api.submit import Options
    from node.outcomes import Outcome
    from node.submissions import Submission as Call

KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept: longer than clients keep theirs, so that they close it."""

_READ_FIELDS: Final = b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n"
_CLOSE_FIELD: Final = b"connection: close\r\n"


class Express:
    """What the connections of one server share."""

    def __init__(
        self,
        face: Face,
        *,
        check_host: Callable[[Scope], None],
        report: Callable[[Exception], None],
        max_connections: int,
    ) -> None:
        """`report` takes a fault of our own."""
        self.face = face
        self.max_connections = max_connections
        self.report = report
        self.read_head = HeadReader(check_host).read
        self._defaults: list[tuple[bytes, bytes]] = []
        self._openings: dict[tuple[int, bytes], bytes] = {}

    def answer(
        self, reply: Reply, defaults: list[tuple[bytes, bytes]], more_fields: bytes
    ) -> bytes:
        """Return a whole answer; `defaults` are the fields of every answer, such as Date.

        They are a new list whenever they change, so what does not change is made once for each.
        """
        if defaults is not self._defaults:
            self._defaults = defaults
            self._openings.clear()
        kind = (reply.status, reply.content_type)
        opening = self._openings.get(kind)
        if opening is None:
            fields = b"".join(b"%b: %b\r\n" % field for field in defaults)
            opening = STATUS_LINE[reply.status] + fields
            opening += b"content-type: %b\r\n" % reply.content_type
            self._openings[kind] = opening
        for field in reply.headers:
            more_fields += b"%b: %b\r\n" % field
        body = reply.body
        return b"%bcontent-length: %d\r\n%b\r\n%b" % (opening, len(body), more_fields, body)


class ExpressProtocol(LedgerProtocol):
    """One connection, on which hot requests go the short way while nothing else is under way."""

    _is_between: bool = True
    """Whether the parser has seen all of the last request and nothing of the next."""
    _first: HotHead | None = None
    """The head of a hot request whose body is not all there; its bytes are in `_parts`."""
    _is_busy: bool = False
    """Whether a hot request waits for its answer."""
    _more_fields: bytes = b""
    _submission: Submission | None = None
    _call: Call | None = None
    _reading: asyncio.Task[None] | None = None
    """What the hot request under way is: a submit, known to the node as `_call`, or a read."""
    _closes: bool = False
    """Whether the answer under way is the last."""
    _ended: asyncio.Future[None] | None = None
    """Done when the hot request under way is over, where somebody asked."""
    _idle_since: float | None = None
    """Since when nothing is under way, where uvicorn's own clock for that does not run: the last
    answer went the short way, or only empty lines came since."""

    def __init__(self, express: Express, **of_uvicorn: Any) -> None:  # noqa: ANN401 - as uvicorn's
        super().__init__(**of_uvicorn)
        self._express = express
        self._guard = _Guard(self)
        self._parts: list[bytes] = []
        self._held: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Expect a first request, or turn away one connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self._express.max_connections:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Answer a hot request here, and let everything else go the whole way."""
        if self._is_busy or self._held:
            # One answer after the other, and no more is read until its turn comes.
            self._held.append(data)
            self.flow.pause_reading()
            return
        first = self._first
        if first is not None:
            if self._is_deaf:
                return
            self._parts.append(data)
            data = b"".join(self._parts)
        elif self._may_begin():
            first = self._express.read_head(data)
        if first is None or len(data) > first.whole_bytes:
            self._take_whole_way(data)
        elif len(data) == first.whole_bytes:
            self._serve_hot(first, data)
        elif self._first is None:
            self._first = first
            self._parts.append(data)
            self._note_begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what is under way: nobody would hear the answer."""
        super().connection_lost(exc)
        call, reading = self._call, self._reading
        self._held.clear()
        self._end()
        if call is not None:
            self._express.face.node.abandon(call)
        if reading is not None:
            reading.cancel()

    def shutdown(self) -> None:
        """Close when the answer under way is given, or now."""
        if self._first is not None:
            self._take_whole_way(b"".join(self._parts))
        if self._is_busy:
            self._closes = True
        else:
            super().shutdown()

    def answered(self) -> asyncio.Future[None] | None:
        """Return what is done when the hot request under way is over; None without one."""
        if self._is_busy and self._ended is None:
            self._ended = self.loop.create_future()
        return self._ended

    def answer_stopping(self) -> None:
        """Answer what is still under way: the server stops."""
        call, reading = self._call, self._reading
        if not self._is_busy:
            return
        self._answer(problem_reply(STOPPING if call is None else STOPPING_SUBMIT))
        if call is not None:
            self._express.face.node.abandon(call)
        if reading is not None:
            reading.cancel()

    def close_if_idle_since(self, deadline: float) -> None:
        """Close a connection that nobody has used since."""
        if self._idle_since is not None and self._idle_since <= deadline:
            self.transport.close()

    def fail(self, fault: Exception) -> None:
        """Take a fault of our own: it must not be a client's means to stop the node."""
        self._express.report(fault)
        if self._is_busy:
            self._answer(problem_reply(INTERNAL))
        else:
            self.transport.close()

    def _may_begin(self) -> bool:
        """Whether nothing is under way and the answer can leave at once."""
        return self._is_idle() and not self.flow.write_paused

    def _is_idle(self) -> bool:
        """Whether no request is under way and none has begun."""
        serving = self._serving
        is_answered = serving is None or serving.response_complete
        return self._is_between and is_answered and not self._is_deaf

    def _take_whole_way(self, data: bytes) -> None:
        self._first = None
        self._parts.clear()
        self._idle_since = None
        super().data_received(data)
        self._is_between = self._begun_at is None
        if self._is_idle():
            # Empty lines begin no request (RFC 9112 §2.2), and must not stop the clock for good.
            self._idle_since = self.loop.time()

    def _note_begin(self) -> None:
        """Note that a request has begun to arrive: other clocks watch over it now."""
        self._begun_at = self.loop.time()
        self._idle_since = None
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()

    def _serve_hot(self, head: HotHead, data: bytes) -> None:
        self._first = None
        self._parts.clear()
        self._note_begin()
        self._begun_at = None
        self._is_busy = True
        call = head.call
        with self._guard:
            if isinstance(call, ReadCall):
                self._more_fields = _READ_FIELDS
                self._reading = self.loop.create_task(self._read(call))
            else:
                self._more_fields = b""
                self._submit(call, data[head.head_bytes :])

    def _submit(self, options: Options, body: bytes) -> None:
        node = self._express.face.node
        try:
            refuse_while_full(node)
            self._submission = submission = read_at_once(body, new_transaction_id)
            call = node.begin_submit(
                submission.transactions,
                wait=options.wait,
                timeout_s=options.timeout_s,
                on_done=partial(self._on_outcomes, submission),
            )
        except HANDLED_ERRORS as error:
            self._answer(error_reply(error))
            return
        if self._is_busy:
            self._call = call

    def _on_outcomes(self, submission: Submission, outcomes: list[Outcome]) -> None:
        """Answer with what became of a submit; whoever calls this must not hear of our faults.

        One that was answered by a fault of ours may have outcomes still: they answer no other.
        """
        if submission is not self._submission:
            return
        with self._guard:
            self._answer(submit_reply(submission, outcomes))

    async def _read(self, call: ReadCall) -> None:
        with self._guard:
            try:
                answer = call.handler(self._express.face, call.asked)
                reply = await answer  # type: ignore[misc] # the hot reads are all coroutines
            except HANDLED_ERRORS as error:
                reply = error_reply(error)
            self._answer(reply)

    def _answer(self, reply: Reply) -> None:
        more_fields = self._more_fields
        if self._closes:
            more_fields += _CLOSE_FIELD
        self._express.face.counts.add(reply.status)
        answer = self._express.answer(reply, self.server_state.default_headers, more_fields)
        self._end()
        self.transport.write(answer)
        if self._closes:
            self.transport.close()
            return
        self._idle_since = self.loop.time()
        if self._held:
            # Not from here: this may be called while the node is at work.
            self.loop.call_soon(self._go_on)

    def _end(self) -> None:
        """Nothing is under way any more."""
        self._is_busy = False
        self._submission = self._call = self._reading = None
        if self._ended is not None:
            self._ended.set_result(None)
            self._ended = None

    def _go_on(self) -> None:
        """Take what came while an answer was under way."""
        data = b"".join(self._held)
        self._held.clear()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self.data_received(data)


class _Guard:
    """Where an exception that nobody expected ends."""

    __slots__ = ("_connection",)

    def __init__(self, connection: ExpressProtocol) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(fault, Exception):
            return False
        self._connection.fail(fault)
        return True
