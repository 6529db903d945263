"""An answer as bytes, and how it goes out over ASGI. Relies on msgspec for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import TypeAlias

    Scope: TypeAlias = MutableMapping[str, Any]
    Event: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Event]]
    Send: TypeAlias = Callable[[Event], Awaitable[None]]

JSON: Final = b"application/json"
PROBLEM_JSON: Final = b"application/problem+json"

_JSON_ENCODER: Final = msgspec.json.Encoder()


class Reply(msgspec.Struct, frozen=True):
    """A complete answer. `headers` are those beside Content-Type and Content-Length."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def encode_json(value: msgspec.Struct) -> bytes:
    """Encode a shape."""
    return _JSON_ENCODER.encode(value)


def json_reply(status: int, value: msgspec.Struct) -> Reply:
    """Return a shape as an answer."""
    return Reply(status, _JSON_ENCODER.encode(value))


async def send_reply(send: Send, reply: Reply) -> None:
    """Send an answer, whole."""
    headers = [
        (b"content-type", reply.content_type),
        (b"content-length", b"%d" % len(reply.body)),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
