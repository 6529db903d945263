"""What every handler is given: the face it belongs to, and what was asked of it.

Relies on the node's interface alone. A handler takes both and returns a `Reply`, at once or to be
awaited; it raises one of `problems.HANDLED_ERRORS` for everything that has an answer of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from node.api.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from node.api.explorer import Explorer
    from node.api.interface import LedgerNode
    from node.api.query import Query
    from node.api.reply import Scope


class AnswerCounts:
    """How many answers of each status code the face has given."""

    def __init__(self) -> None:
        self.by_status: dict[int, int] = {}

    def add(self, status: int) -> None:
        """Count one answer."""
        self.by_status[status] = self.by_status.get(status, 0) + 1


@dataclass(frozen=True, slots=True)
class Face:
    """The HTTP face of one node: what it shows, and what it was made with."""

    node: LedgerNode
    explorer: Explorer
    openapi: bytes
    more_metrics: Callable[[], Mapping[str, int]] = dict
    counts: AnswerCounts = field(default_factory=AnswerCounts)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked: the parts of the path by name, decoded, the query, and the body of a change.

    `scope` is the request as it came, for answers that send the client elsewhere.
    """

    path: Mapping[str, str]
    query: Query
    scope: Scope
    body: bytes = b""


Handler: TypeAlias = Callable[[Face, Asked], Reply | Awaitable[Reply]]
