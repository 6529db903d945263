"""The ASGI application: the submit call first, everything else through Falcon's router.

Whatever goes wrong is answered as problem details. What has no answer of its own is the node's
fault: it is logged, answered with 500 and handed to `on_fault`. It does not stop the node: the loop
and the stores guard themselves, and a parser's fault must not be a client's means to do it.
Relies on `routes` for every call, and on Falcon for matching paths and methods.
"""

from __future__ import annotations

import asyncio
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self

import falcon
import falcon.asgi
import structlog

from node.api.body import ClientGoneError, Incoming, check_lengths, check_type, read_body
from node.api.explorer import load_explorer
from node.api.face import Asked, Face
from node.api.host import refuse_other_origin
from node.api.openapi import make_document
from node.api.problems import (
    HANDLED_ERRORS,
    ProblemError,
    ProblemKind,
    error_reply,
    fault_error,
    make_problem,
    problem_reply,
)
from node.api.query import decode_percent, parse_query
from node.api.reply import Reply, send_reply
from node.api.routes import ROUTES, SUBMIT_PATH
from node.api.submit import answer_submit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from types import TracebackType

    from node.api.face import Handler
    from node.api.interface import LedgerNode
    from node.api.reply import Event, Receive, Scope, Send
    from node.api.route import Route
    from node.api.shapes import Problem

_API_VERSION: Final = "1.0.0"
_HTTP_VERSIONS: Final = frozenset({"1.1", "1.0"})
_SUBMIT_RAW_PATH: Final = SUBMIT_PATH.encode("ascii")
_ALLOW_SUBMIT: Final = ((b"allow", b"POST, OPTIONS"),)
_READ_HEADERS: Final = ((b"x-content-type-options", b"nosniff"),)
_NEVER_KEPT: Final = (b"cache-control", b"no-store")
_CACHE_CONTROL: Final = b"cache-control"
_INCOMING: Final = "bitnexus.incoming"
"""Where the request's scope holds what arrives of it."""
_GET: Final = "GET"
_MAX_CHANGE_BYTES: Final = 16 << 10

STOPPING: Final = make_problem(ProblemKind.UNAVAILABLE, "this node is stopping", retry_after_s=1)
STOPPING_SUBMIT: Final = make_problem(
    ProblemKind.UNKNOWN,
    "unknown: this node is stopping, and what was sent may be recorded; retry with the same id",
    retry_after_s=1,
)
_STOPPING_CHANGE: Final = make_problem(
    ProblemKind.UNKNOWN,
    "unknown: this node is stopping, and what was asked may be done; list the members to find out",
)
INTERNAL: Final = make_problem(
    ProblemKind.INTERNAL,
    "this node is at fault and has logged why; what was sent may be recorded or done",
)

_log: Final = structlog.get_logger(__name__)


class Application:
    """The ASGI application of one node."""

    def __init__(
        self,
        node: LedgerNode,
        *,
        check_host: Callable[[Scope], None],
        on_fault: Callable[[BaseException], None] | None = None,
        more_metrics: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`on_fault` hears of every fault of our own; without it such a fault is only logged.

        `check_host` raises ProblemError for a request that is meant for another server.
        """
        self.face = Face(node, load_explorer(), _openapi_document())
        self._check_host = check_host
        self._on_fault = on_fault
        self.face = Face(node, load_explorer(), _openapi_document(), more_metrics)
        self._falcon = _make_falcon(self.face)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        is_submit = scope["raw_path"] == _SUBMIT_RAW_PATH
        stopping = STOPPING_SUBMIT if is_submit else _stopping(scope["method"])
        async with _Boundary(self.face, send, stopping, self.report) as boundary:
            refusal = self._refusal(scope)
            if refusal is not None:
                await boundary.reply(refusal)
            elif is_submit:
                await self._submit(scope, receive, boundary)
            else:
                incoming = Incoming(receive)
                await self._falcon(_inner_scope(scope, incoming), incoming.first, boundary.send)

    def report(self, fault: Exception) -> None:
        """Log a fault of our own in answering one request, and tell the owner."""
        _log.error("a request failed by a fault of this node", exc_info=fault)
        if self._on_fault is not None:
            self._on_fault(fault)

    def _refusal(self, scope: Scope) -> Reply | None:
        """The answer to a request that no handler should see."""
        if scope["http_version"] not in _HTTP_VERSIONS:
            return problem_reply(make_problem(ProblemKind.VERSION, "this is HTTP/1.1 and 1.0"))
        try:
            self._check_host(scope)
        except ProblemError as error:
            return error_reply(error)
        return None

    async def _submit(self, scope: Scope, receive: Receive, boundary: _Boundary) -> None:
        if scope["method"] != "POST":
            await boundary.reply(_other_method(scope["method"]))
            return
        try:
            reply = await answer_submit(self.face.node, scope, receive)
        except HANDLED_ERRORS as error:
            reply = error_reply(error)
        await boundary.reply(reply)


class _Boundary:
    """Where an exception that nobody expected ends: logged, answered, and told to `on_fault`.

    Also where a request ends that was still open when the server stopped: the client hears that
    the fate of what it sent is unknown.
    """

    __slots__ = ("_face", "_has_begun", "_report", "_send", "_stopping")

    def __init__(
        self,
        face: Face,
        send: Send,
        stopping: Problem,
        report: Callable[[Exception], None],
    ) -> None:
        self._face = face
        self._send = send
        self._stopping = stopping
        self._report = report
        self._has_begun = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if fault is None:
            return False
        if isinstance(fault, ClientGoneError):
            return True
        if isinstance(fault, asyncio.CancelledError):
            await self._answer(self._stopping)
            return True
        if not isinstance(fault, Exception):
            return False
        self._report(fault)
        await self._answer(INTERNAL)
        return True

    async def send(self, message: Event) -> None:
        """Send an event of an answer, and note that it has begun."""
        if message["type"] == "http.response.start":
            self._begin(message["status"])
        await self._send(message)

    async def reply(self, reply: Reply) -> None:
        """Send a whole answer."""
        self._begin(reply.status)
        await send_reply(self._send, reply)

    def _begin(self, status: int) -> None:
        self._has_begun = True
        self._face.counts.add(status)

    async def _answer(self, problem: Problem) -> None:
        # Half an answer cannot be taken back: the server then closes the connection.
        if not self._has_begun:
            await self.reply(problem_reply(problem))


class _Resource:
    """One path of the table as Falcon wants it: an `on_` for each method that works there.

    HEAD is GET without the body, as everywhere.
    """

    def __init__(self, face: Face, routes: Iterable[Route]) -> None:
        for route in routes:
            assert route.handler is not None
            respond = _responder(face, route, route.handler)
            setattr(self, f"on_{route.method.lower()}", respond)
            if route.method == _GET:
                self.on_head = respond


def _responder(face: Face, route: Route, handler: Handler) -> Callable[..., Awaitable[None]]:
    """Return what answers a call with what its handler makes of the request."""

    async def respond(
        request: falcon.asgi.Request, response: falcon.asgi.Response, **parts: str
    ) -> None:
        scope = request.scope
        path = {name: _decode_part(name, part) for name, part in parts.items()}
        query = parse_query(scope["query_string"], route.parameters)
        body = b"" if route.method == _GET else await _read_change(scope, route)
        answer = handler(face, Asked(path, query, scope, body))
        _fill(response, answer if isinstance(answer, Reply) else await answer)

    return respond


async def _read_change(scope: Scope, route: Route) -> bytes:
    """Return the body of a call that changes something.

    Raises ProblemError where the call may not have that body, or another site's page sent it.
    """
    refuse_other_origin(scope)
    check_lengths(scope["headers"], limit_bytes=_MAX_CHANGE_BYTES)
    body = await read_body(scope[_INCOMING], limit_bytes=_MAX_CHANGE_BYTES)
    if body and not route.body:
        raise fault_error(ProblemKind.INVALID_REQUEST, "body", "must not be there")
    if body or (route.body and route.is_body_required):
        check_type(scope["headers"])
    return body


@cache
def _openapi_document() -> bytes:
    return make_document(ROUTES, version=_API_VERSION)


def _make_falcon(face: Face) -> falcon.asgi.App[Any, Any]:
    app = falcon.asgi.App()
    app.set_error_serializer(_serialize_error)
    for kind in HANDLED_ERRORS:
        app.add_error_handler(kind, _answer_error)
    app.add_error_handler(Exception, _raise_error)
    routes: dict[str, list[Route]] = {}
    for route in ROUTES:
        if route.handler is not None:
            routes.setdefault(route.path, []).append(route)
    for path, of_path in routes.items():
        app.add_route(path, _Resource(face, of_path))
    return app


async def _answer_error(
    _request: falcon.asgi.Request,
    response: falcon.asgi.Response,
    error: Any,  # noqa: ANN401 - one of HANDLED_ERRORS
    _parts: dict[str, Any],
) -> None:
    _fill(response, error_reply(error))


async def _raise_error(
    _request: falcon.asgi.Request,
    _response: falcon.asgi.Response,
    error: Exception,
    _parts: dict[str, Any],
) -> None:
    """Hand what nobody expected on to the boundary, which Falcon's own handler would hide."""
    raise error


def _serialize_error(
    request: falcon.Request, response: falcon.Response, error: falcon.HTTPError
) -> None:
    """Turn Falcon's own refusals (no such path, no such method) into our problems."""
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            problem = make_problem(ProblemKind.NOT_FOUND, f"there is no {request.path[:200]}")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"{request.method} does not work here; the Allow header says what does"
            problem = make_problem(ProblemKind.METHOD_NOT_ALLOWED, detail)
        case _:
            problem = make_problem(ProblemKind.INVALID_REQUEST, str(error.title))
    _fill(response, problem_reply(problem))


def _fill(response: falcon.Response, reply: Reply) -> None:
    """Put an answer into Falcon's response."""
    response.status = reply.status
    response.data = reply.body
    response.content_type = reply.content_type.decode("ascii")
    headers = reply.headers
    if not any(name == _CACHE_CONTROL for name, _ in headers):
        # What is read here changes with the next block.
        headers = (*headers, _NEVER_KEPT)
    for name, value in (*headers, *_READ_HEADERS):
        response.set_header(name.decode("ascii"), value.decode("ascii"))


def _inner_scope(scope: Scope, incoming: Incoming) -> dict[str, Any]:
    """Let Falcon match the path as it was sent: a user id may hold an encoded slash."""
    return {**scope, "path": scope["raw_path"].decode("ascii", "replace"), _INCOMING: incoming}


def _stopping(method: str) -> Problem:
    return STOPPING if method in {_GET, "HEAD", "OPTIONS"} else _STOPPING_CHANGE


def _decode_part(name: str, part: str) -> str:
    try:
        return decode_percent(part)
    except ValueError:
        detail = "is not percent-encoded UTF-8"
        raise fault_error(ProblemKind.INVALID_REQUEST, f"path.{name}", detail) from None


def _other_method(method: str) -> Reply:
    if method == "OPTIONS":
        return Reply(HTTPStatus.OK, b"", b"text/plain", _ALLOW_SUBMIT)
    detail = f"{method} does not work here; the Allow header says what does"
    return problem_reply(make_problem(ProblemKind.METHOD_NOT_ALLOWED, detail), _ALLOW_SUBMIT)
