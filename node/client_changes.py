"""One change of the cluster's way to the node that leads, and what its fate is where that is open.

Unlike a transaction a change has no id, so it is made again only where it is certain that it was
not made: a node was not reached, said that it does not lead, or refused for a reason that passes.
Where a request may have arrived and no answer says what became of it, the caller must look. Relies
on httpx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx

from node.api.problems import PASSING_REASONS, TYPE_PREFIX, ProblemKind
from node.client_errors import ProtocolError, UnavailableError, UnknownChangeFateError
from node.client_nodes import NOT_SENT, RETRIED, Failure, OutOfTimeError, problem_of

if TYPE_CHECKING:
    from node.api.shapes import Problem
    from node.client_nodes import Course, Nodes, Request

MAX_MOVES: Final = 3
"""How often the nodes may send a call on, one after the other, before it begins anew."""

_REDIRECT: Final = 307
_REFUSED: Final = 409
_NOT_MADE: Final = frozenset(
    TYPE_PREFIX + kind
    for kind in (ProblemKind.NO_LEADER, ProblemKind.UNAVAILABLE, ProblemKind.TOO_SLOW)
)
_PAUSE_S: Final = 0.2


async def make_change(nodes: Nodes, request: Request, course: Course) -> httpx.Response:
    """Return the answer of the node that leads, which may be a refusal.

    Raises:
        UnavailableError: no node that leads was found in time; nothing is changed.
        UnknownChangeFateError: it may be changed.
    """
    while True:
        url = nodes.url(course.begin())
        response: httpx.Response | None = None
        try:
            response = await _follow(nodes, url, request, course)
        except NOT_SENT as error:
            failure = Failure(_words(error), may_be_recorded=False)
        except httpx.RequestError as error:
            detail = f"the change may be made: {_words(error)}"
            raise UnknownChangeFateError(detail) from error
        else:
            problem = None if response.is_success else problem_of(response)
            if problem is None or not _may_try_again(problem):
                return response
            detail = problem.detail
            if problem.status == _REDIRECT:
                detail += ", but another node answers there; ask the leader itself with --node"
            failure = Failure(detail, may_be_recorded=False, retry_after_s=_wait_s(problem))
        try:
            await course.go_on(failure)
        except OutOfTimeError as error:
            if response is not None and response.status_code == _REFUSED:
                return response
            raise UnavailableError(error.failure.detail) from error


async def _follow(nodes: Nodes, url: str, request: Request, course: Course) -> httpx.Response:
    """Return the answer at the end of where the nodes send the call; raises httpx.RequestError."""
    response = await nodes.attempt(url, request, course.left_s())
    for _ in range(MAX_MOVES):
        if response.status_code != _REDIRECT:
            break
        url = _location(response, request)
        response = await nodes.attempt(url, request, course.left_s())
    return response


def _words(error: httpx.RequestError) -> str:
    """Return what went wrong, and where: a call may have been sent on."""
    where = error.request.url.copy_with(query=None)
    return f"{where}: {type(error).__name__} {error}".rstrip()


def _may_try_again(problem: Problem) -> bool:
    """Whether a change is certainly not made and may be later; raises UnknownChangeFateError."""
    if problem.status == _REDIRECT or problem.type in _NOT_MADE:
        return True
    if problem.status in RETRIED:
        raise UnknownChangeFateError(f"the change may be made: {problem.detail}")
    return problem.status == _REFUSED and problem.reason in PASSING_REASONS


def _wait_s(problem: Problem) -> float | None:
    """Return how long the leader's refusal is to be waited out; None is for trying elsewhere."""
    return _PAUSE_S if problem.status == _REFUSED else None


def _location(response: httpx.Response, request: Request) -> str:
    """Return the node that a call is sent on to. The query is made anew: less time is left now."""
    location = response.headers.get("location", "")
    if not location:
        raise ProtocolError(f"{response.url.host} sends the call on and does not say where")
    target = response.url.join(location)
    path = target.raw_path.partition(b"?")[0].decode("ascii")
    if target.scheme not in {"http", "https"} or not path.endswith(request.path):
        raise ProtocolError(f"{response.url.host} sends the call to another one: {target}")
    origin = target.copy_with(raw_path=path.removesuffix(request.path).encode("ascii") or b"/")
    return str(origin).rstrip("/")
