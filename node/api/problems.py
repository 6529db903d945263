"""Every kind of problem the HTTP face answers with (RFC 9457), and what becomes of our own errors.

Relies on `shapes` for the JSON and on `reply` for the answer. A `ProblemError` is the one
exception a handler raises for what is the client's to mend.
"""

from __future__ import annotations

from enum import StrEnum, unique
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

import msgspec

from consensus.changes import ChangeError, ChangeRefusal
from node.api.reply import PROBLEM_JSON, Reply, encode_json
from node.api.shapes import Fault, Problem
from node.outcomes import (
    LedgerError,
    NoLeaderError,
    Refusal,
    RefusalReason,
    UnknownChangeError,
)
from node.uuid7 import uuid_text
from storage.errors import BlockNotFoundError, DamagedBlockError

if TYPE_CHECKING:
    from collections.abc import Iterable

TYPE_PREFIX: Final = "urn:bitnexus:problem:"


@unique
class ProblemKind(StrEnum):
    """The closed set of problems; the `type` of a problem is `TYPE_PREFIX` and the value."""

    INVALID_JSON = "invalid-json"
    INVALID_CONTENT = "invalid-content"
    INVALID_REQUEST = "invalid-request"
    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    MISDIRECTED = "misdirected"
    VERSION = "http-version"
    TOO_SLOW = "too-slow"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type"
    QUEUE_FULL = "queue-full"
    INTERNAL = "internal"
    UNKNOWN = "unknown"
    UNAVAILABLE = "unavailable"
    NO_LEADER = "no-leader"
    NOT_LEADER = "not-leader"
    CROSS_ORIGIN = "cross-origin"
    UNKNOWN_MEMBER = "unknown-member"
    INVALID_CHANGE = "invalid-change"
    CHANGE_REFUSED = "change-refused"


_MEANING: Final[dict[ProblemKind, tuple[HTTPStatus, str]]] = {
    ProblemKind.INVALID_JSON: (HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    ProblemKind.INVALID_CONTENT: (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "The body does not say what can be recorded",
    ),
    ProblemKind.INVALID_REQUEST: (HTTPStatus.BAD_REQUEST, "The request is not valid"),
    ProblemKind.NOT_FOUND: (HTTPStatus.NOT_FOUND, "There is nothing here"),
    ProblemKind.METHOD_NOT_ALLOWED: (
        HTTPStatus.METHOD_NOT_ALLOWED,
        "This method does not work here",
    ),
    ProblemKind.MISDIRECTED: (
        HTTPStatus.MISDIRECTED_REQUEST,
        "The request is meant for another server",
    ),
    ProblemKind.VERSION: (
        HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
        "This version of HTTP is not spoken here",
    ),
    ProblemKind.TOO_SLOW: (HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time"),
    ProblemKind.CONFLICT: (HTTPStatus.CONFLICT, "The id is taken by other content"),
    ProblemKind.TOO_LARGE: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Too large"),
    ProblemKind.UNSUPPORTED_MEDIA_TYPE: (
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "The body is not of a type that is taken here",
    ),
    ProblemKind.QUEUE_FULL: (HTTPStatus.TOO_MANY_REQUESTS, "The queue is full"),
    ProblemKind.INTERNAL: (HTTPStatus.INTERNAL_SERVER_ERROR, "The node is at fault"),
    ProblemKind.UNKNOWN: (HTTPStatus.SERVICE_UNAVAILABLE, "It may be done, or not"),
    ProblemKind.UNAVAILABLE: (HTTPStatus.SERVICE_UNAVAILABLE, "This node cannot do that now"),
    ProblemKind.NO_LEADER: (HTTPStatus.SERVICE_UNAVAILABLE, "The cluster has no leader now"),
    ProblemKind.NOT_LEADER: (HTTPStatus.TEMPORARY_REDIRECT, "Another node leads"),
    ProblemKind.CROSS_ORIGIN: (HTTPStatus.FORBIDDEN, "Another site's page may not do that"),
    ProblemKind.UNKNOWN_MEMBER: (HTTPStatus.NOT_FOUND, "There is no such member"),
    ProblemKind.INVALID_CHANGE: (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "The change makes no sense for these members",
    ),
    ProblemKind.CHANGE_REFUSED: (HTTPStatus.CONFLICT, "The change is not made"),
}

_KIND_OF_REASON: Final = {
    RefusalReason.CONFLICT: ProblemKind.CONFLICT,
    RefusalReason.QUEUE_FULL: ProblemKind.QUEUE_FULL,
    RefusalReason.UNKNOWN: ProblemKind.UNKNOWN,
    RefusalReason.UNAVAILABLE: ProblemKind.UNAVAILABLE,
}
_KIND_OF_CHANGE: Final = {
    ChangeRefusal.UNKNOWN_MEMBER: ProblemKind.UNKNOWN_MEMBER,
    ChangeRefusal.INVALID: ProblemKind.INVALID_CHANGE,
}
"""All others are CHANGE_REFUSED."""
PASSING_REASONS: Final = frozenset(
    {
        ChangeRefusal.TRANSFER_UNDER_WAY,
        ChangeRefusal.CHANGE_UNDER_WAY,
        ChangeRefusal.NO_COMMIT_IN_TERM,
    }
)
"""Refusals that pass by themselves within moments: asking again is the thing to do."""
assert set(_MEANING) == set(ProblemKind)
assert set(_KIND_OF_REASON) == set(RefusalReason)

_RETRY_AFTER_S: Final = 1
"""What a client is told to wait where the node gave no time of its own."""


class ProblemError(Exception):
    """A request that is refused. `headers` go with the answer."""

    def __init__(self, problem: Problem, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(f"{problem.status} {problem.detail}")
        self.problem = problem
        self.headers = headers


def make_problem(
    kind: ProblemKind,
    detail: str,
    *,
    errors: Iterable[Fault] = (),
    retry_after_s: int | None = None,
) -> Problem:
    """Return the problem of a kind, with its status and title."""
    status, title = _MEANING[kind]
    return Problem(
        type=TYPE_PREFIX + kind,
        title=title,
        status=int(status),
        detail=detail,
        errors=tuple(errors),
        retry_after_s=retry_after_s,
    )


def fault_error(kind: ProblemKind, path: str, detail: str) -> ProblemError:
    """Return the error for one fault at a place; the detail names the place too."""
    fault = Fault(path=path, detail=detail)
    return ProblemError(make_problem(kind, f"{path}: {detail}", errors=[fault]))


def refusal_problem(refusal: Refusal) -> Problem:
    """Return what a transaction without a receipt is answered with."""
    kind = _KIND_OF_REASON[refusal.reason]
    status, title = _MEANING[kind]
    retry_after_s = refusal.retry_after_s
    if retry_after_s is None and kind is not ProblemKind.CONFLICT:
        retry_after_s = _RETRY_AFTER_S
    return Problem(
        type=TYPE_PREFIX + kind,
        title=title,
        status=int(status),
        detail=_refusal_detail(refusal),
        id=uuid_text(refusal.id),
        retry_after_s=retry_after_s,
    )


def change_problem(error: ChangeError) -> Problem:
    """Return what a change of the members that is not made is answered with."""
    kind = _KIND_OF_CHANGE.get(error.reason, ProblemKind.CHANGE_REFUSED)
    retry_after_s = _RETRY_AFTER_S if error.reason in PASSING_REASONS else None
    problem = make_problem(kind, error.detail, retry_after_s=retry_after_s)
    return msgspec.structs.replace(problem, reason=error.reason.value)


def problem_reply(problem: Problem, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    """Return a problem as the whole answer, with Retry-After where waiting helps."""
    if problem.retry_after_s is not None:
        headers = (*headers, (b"retry-after", b"%d" % problem.retry_after_s))
    return Reply(problem.status, encode_json(problem), PROBLEM_JSON, headers)


Handled: TypeAlias = (
    ProblemError | LedgerError | ChangeError | BlockNotFoundError | DamagedBlockError
)


def error_reply(error: Handled) -> Reply:
    """Return the answer to an error that a handler may raise."""
    headers = error.headers if isinstance(error, ProblemError) else ()
    return problem_reply(error_problem(error), headers)


def error_problem(error: Handled) -> Problem:
    """Return the problem that an error stands for."""
    match error:
        case ProblemError():
            return error.problem
        case NoLeaderError():
            detail = f"{error}; ask again, or read with consistency=local"
            return _passing(ProblemKind.NO_LEADER, detail)
        case UnknownChangeError():
            detail = f"unknown: {error}; list the members to find out"
            return make_problem(ProblemKind.UNKNOWN, detail)
        case ChangeError():
            return change_problem(error)
        case LedgerError():
            return _passing(ProblemKind.UNAVAILABLE, str(error))
        case BlockNotFoundError():
            return make_problem(ProblemKind.NOT_FOUND, str(error))
        case DamagedBlockError():
            return _passing(ProblemKind.UNAVAILABLE, f"{error}; ask another node")
        case _:
            assert_never(error)


HANDLED_ERRORS: Final = (
    ProblemError,
    LedgerError,
    ChangeError,
    BlockNotFoundError,
    DamagedBlockError,
)
"""`Handled`, to be caught. Anything else that a handler raises is the node's own fault."""


def _passing(kind: ProblemKind, detail: str) -> Problem:
    return make_problem(kind, detail, retry_after_s=_RETRY_AFTER_S)


def _refusal_detail(refusal: Refusal) -> str:
    if refusal.reason is RefusalReason.UNKNOWN:
        return f"unknown: {refusal.detail}"
    return refusal.detail
