"""Reads the body of a request within limits, and refuses one that is not JSON by its own word.

Relies on ASGI as uvicorn speaks it; the server bounds the time a body may take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from node.api.problems import ProblemError, ProblemKind, fault_error, make_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.api.reply import Event, Receive

_JSON_TYPES: Final = frozenset({b"application/json", b"application/json; charset=utf-8"})


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete: nobody to answer."""


class Incoming:
    """What arrives of a request whose first event a router takes, to be read whole after that."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._first: Event | None = None

    async def first(self) -> Event:
        """Return the first event, and keep it for whoever reads."""
        self._first = await self._receive()
        return self._first

    async def __call__(self) -> Event:
        """Return the next event, from the first on."""
        event, self._first = self._first, None
        return await self._receive() if event is None else event


def check_lengths(headers: Sequence[tuple[bytes, bytes]], *, limit_bytes: int) -> None:
    """Refuse a body that says it is too long, or that is encoded; raises ProblemError."""
    for name, value in headers:
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise _unsupported("Transfer-Encoding must be chunked, or none")
        if name == b"content-length":
            # The HTTP parser has refused what is no number.
            if int(value) > limit_bytes:
                raise _too_large(limit_bytes)
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise _unsupported("Content-Encoding must be identity")


def check_type(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse a body that is not JSON by its own word; raises ProblemError."""
    types = [value for name, value in headers if name == b"content-type"]
    if len(types) > 1:
        raise _unsupported("Content-Type is given twice")
    if not types or (types[0] not in _JSON_TYPES and not _is_json_type(types[0])):
        raise _unsupported("Content-Type must be application/json, in UTF-8")


async def read_body(receive: Receive, *, limit_bytes: int) -> bytes:
    """Return the whole body; most arrive with their first event.

    Raises ProblemError for one that is too long, and ClientGoneError.
    """
    body, has_more = await _next_part(receive)
    if not has_more:
        return body
    parts = [body]
    size_bytes = len(body)
    while has_more:
        body, has_more = await _next_part(receive)
        parts.append(body)
        size_bytes += len(body)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
    return b"".join(parts)


def _is_json_type(content_type: bytes) -> bool:
    media_type, *parameters = content_type.lower().split(b";")
    charsets = [value for value in map(bytes.strip, parameters) if value.startswith(b"charset=")]
    is_utf_8 = all(value.strip(b'"') in {b"charset=utf-8", b'charset="utf-8'} for value in charsets)
    return media_type.strip() == b"application/json" and is_utf_8


async def _next_part(receive: Receive) -> tuple[bytes, bool]:
    """Return the next bytes of the body, and whether more will come."""
    event = await receive()
    if event["type"] == "http.disconnect":
        raise ClientGoneError
    return event.get("body", b""), event.get("more_body", False)


def _too_large(limit_bytes: int) -> ProblemError:
    return fault_error(ProblemKind.TOO_LARGE, "$", f"has more than {limit_bytes} bytes")


def _unsupported(detail: str) -> ProblemError:
    return ProblemError(make_problem(ProblemKind.UNSUPPORTED_MEDIA_TYPE, detail))
