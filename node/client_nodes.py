"""One call's way through several nodes: which is tried, what is tried again, and when to give up.

What makes an attempt the last is for the caller to say; everything else is decided here. A call
that ran out of time says whether anything may have been recorded by it. Relies on httpx.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpx
import msgspec

from node.api.problems import TYPE_PREFIX, ProblemKind
from node.api.shapes import MAX_TIMEOUT_MS, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})
"""The status codes after which another attempt may succeed."""

_JSON_HEADERS: Final = {"content-type": "application/json"}
_KEEP_ALIVE_S: Final = 60.0
"""Below the server's own, so that no request meets a connection that is being closed."""
_CONNECT_TIMEOUT_S: Final = 2.0
_GRACE_S: Final = 1.0
"""What an answer may take beyond the time the node was given."""
_SHORTEST_ATTEMPT_S: Final = 0.001
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0

_TOO_MANY: Final = 429
NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""After these the node has heard nothing of the request."""
_NOT_RECORDED: Final = frozenset(
    TYPE_PREFIX + kind
    for kind in (ProblemKind.QUEUE_FULL, ProblemKind.UNAVAILABLE, ProblemKind.TOO_SLOW)
)


@dataclass(frozen=True, slots=True)
class Request:
    """One call, the same at every node. A timed one tells the node how long it may take."""

    method: str
    path: str
    body: bytes | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    is_timed: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt is not the last. `retry_after_s` is set where the ledger asked to wait."""

    detail: str
    may_be_recorded: bool
    retry_after_s: float | None = None


class OutOfTimeError(Exception):
    """The deadline came before a final answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Rota:
    """Which of several nodes is tried next; a call starts where the last one ended."""

    def __init__(self, count: int, *, attempt_timeout_s: float) -> None:
        self.count = count
        self.attempt_timeout_s = attempt_timeout_s
        self.sleep = asyncio.sleep
        self._current = 0

    @property
    def current(self) -> int:
        """The node that is tried next, by its place among the URLs."""
        return self._current

    def leave(self, node: int) -> None:
        """Try the node after this one from now on, unless another call has moved on already."""
        if self._current == node:
            self._current = (node + 1) % self.count


class Nodes(Rota):
    """The nodes of one ledger by their HTTP, and the connections to them."""

    def __init__(self, urls: Sequence[str], *, attempt_timeout_s: float) -> None:
        super().__init__(len(urls), attempt_timeout_s=attempt_timeout_s)
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._http = httpx.AsyncClient(
            limits=httpx.Limits(keepalive_expiry=_KEEP_ALIVE_S),
            trust_env=False,
            verify=_tls_context(urls),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def exchange(
        self, request: Request, course: Course, is_final: Callable[[httpx.Response], bool]
    ) -> httpx.Response:
        """Try node after node until one gives a final answer; raises OutOfTimeError."""
        while True:
            url = self._urls[course.begin()]
            try:
                response = await self.attempt(url, request, course.attempt_s())
            except httpx.RequestError as error:
                detail = f"{url}: {type(error).__name__} {error}".rstrip()
                failure = Failure(detail, not isinstance(error, NOT_SENT))
            else:
                if is_final(response):
                    return response
                failure = failure_of(problem_of(response))
            await course.go_on(failure)

    def url(self, node: int) -> str:
        """Return where a node is."""
        return self._urls[node]

    async def attempt(self, url: str, request: Request, attempt_s: float) -> httpx.Response:
        """Make a request at one node, once; raises httpx.RequestError."""
        parameters = dict(request.parameters)
        if request.is_timed:
            parameters["timeout_ms"] = str(min(MAX_TIMEOUT_MS, max(1, int(attempt_s * 1000))))
        return await self._http.request(
            request.method,
            url + request.path,
            params=parameters,
            content=request.body,
            headers=_JSON_HEADERS if request.body is not None else None,
            timeout=httpx.Timeout(attempt_s + _GRACE_S, connect=min(_CONNECT_TIMEOUT_S, attempt_s)),
        )


class Course:
    """The attempts of one call: how long each may take, the pauses between them, and the end."""

    def __init__(self, nodes: Rota, timeout_s: float) -> None:
        self._nodes = nodes
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout_s
        self._node = nodes.current
        self._moves = 0
        self._pause_s = _FIRST_PAUSE_S
        self._may_be_recorded = False

    def begin(self) -> int:
        """Begin an attempt; returns the node it is to be made at."""
        self._node = self._nodes.current
        return self._node

    def attempt_s(self) -> float:
        """Return how long the attempt that begins now may take."""
        return min(self.left_s(), max(_SHORTEST_ATTEMPT_S, self._nodes.attempt_timeout_s))

    def left_s(self) -> float:
        """Return how long an attempt may take that is the last in any case."""
        return max(_SHORTEST_ATTEMPT_S, self._deadline - self._loop.time())

    async def go_on(self, failure: Failure) -> None:
        """Prepare the next attempt: another node, or a pause. Raises OutOfTimeError."""
        self._may_be_recorded = self._may_be_recorded or failure.may_be_recorded
        pause_s = self._next_pause(failure)
        if self._loop.time() + pause_s >= self._deadline:
            raise OutOfTimeError(Failure(failure.detail, self._may_be_recorded))
        if pause_s > 0:
            await self._nodes.sleep(pause_s)

    def _next_pause(self, failure: Failure) -> float:
        """Move on where that can help, and return how long to wait before the next attempt."""
        if failure.retry_after_s is not None:
            # The queue is the leader's: every node would say the same.
            return failure.retry_after_s
        self._nodes.leave(self._node)
        self._moves += 1
        if self._moves % self._nodes.count:
            return 0.0
        # Every node was tried: back off, each client at another moment.
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)
        return pause_s


def _tls_context(urls: Sequence[str]) -> ssl.SSLContext:
    """Return what TLS is checked with. Without an https URL that is nobody: it loads in no time."""
    if any(url.startswith("https:") for url in urls):
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def failure_of(problem: Problem) -> Failure:
    """Return what a problem that is not final means for the next attempt."""
    wait_s = None
    if problem.status == _TOO_MANY:
        seconds = problem.retry_after_s
        wait_s = _LONGEST_PAUSE_S if seconds is None else float(seconds)
    return Failure(problem.detail, problem.type not in _NOT_RECORDED, wait_s)


def worse_of(one: Failure | None, other: Failure) -> Failure:
    """Return two failures as one: the longest wait, and unknown if either is."""
    if one is None:
        return other
    waits = [wait for wait in (one.retry_after_s, other.retry_after_s) if wait is not None]
    may_be_recorded = one.may_be_recorded or other.may_be_recorded
    return Failure(one.detail, may_be_recorded, max(waits, default=None))


def problem_of(response: httpx.Response) -> Problem:
    """Return the problem in an answer; what stands before a node may answer without one."""
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        detail = f"{response.url.host} answered {response.status_code} without problem details"
        problem = Problem(type="about:blank", title="", status=response.status_code, detail=detail)
    header = response.headers.get("retry-after", "")
    if header.isascii() and header.isdigit():
        # The header is the standard's word, which anything in between also speaks.
        problem = msgspec.structs.replace(problem, retry_after_s=int(header))
    return problem
