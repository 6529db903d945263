"""What the table of calls is made of: a call, and each of its answers.

Relies on the types of handlers and parameters alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from node.api.reply import JSON, PROBLEM_JSON
from node.api.shapes import Problem

if TYPE_CHECKING:
    from node.api.face import Handler
    from node.api.query import Parameter

PROBLEM_TYPE: Final = PROBLEM_JSON.decode("ascii")


@dataclass(frozen=True, slots=True)
class Answer:
    """One status a call may answer with; `shapes` are the JSON it may hold, if it is JSON."""

    status: int
    description: str
    shapes: tuple[type, ...] = ()
    media_type: str = JSON.decode("ascii")


@dataclass(frozen=True, slots=True)
class Route:
    """One call. `path_parameters` describes each `{name}` of the path."""

    method: str
    path: str
    operation_id: str
    summary: str
    answers: tuple[Answer, ...]
    handler: Handler | None
    parameters: tuple[Parameter, ...] = ()
    path_parameters: tuple[tuple[str, str], ...] = ()
    body: tuple[type, ...] = ()
    is_body_required: bool = True


def refusal(status: int, description: str) -> Answer:
    """Return an answer of problem details."""
    return Answer(status, description, (Problem,), PROBLEM_TYPE)
