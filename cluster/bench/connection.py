"""One HTTP connection without a library in its way: bytes out, a status and a body back.

For latencies of one client and for large bodies, where what a client library does would be measured
too. It blocks, so it runs in threads. Relies on answers that have a Content-Length, as ours have.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from cluster.bench.errors import BenchError

if TYPE_CHECKING:
    from types import TracebackType

_HEAD_END: Final = b"\r\n\r\n"
_STATUS: Final = slice(9, 12)
"""Where the status stands in `HTTP/1.1 200 OK`."""
_LENGTH: Final = b"\r\ncontent-length:"
_READ_BYTES: Final = 1 << 16
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body."""

    status: int
    body: bytes


def make_post(url: str, body: bytes) -> bytes:
    """The bytes of a POST of JSON."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    head = (
        f"POST {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def split_answer(data: bytes) -> tuple[Answer, int] | None:
    """The first answer in what has come, and how many bytes it takes; None while it is not whole.

    Raises:
        BenchError: it has no Content-Length.
    """
    end = data.find(_HEAD_END)
    if end < 0:
        return None
    head = data[: end + 2].lower()
    start = head.find(_LENGTH)
    if start < 0:
        raise BenchError("an answer has no Content-Length")
    start += len(_LENGTH)
    body = end + len(_HEAD_END)
    whole = body + int(head[start : head.index(b"\r\n", start)])
    if len(data) < whole:
        return None
    return Answer(int(data[_STATUS]), data[body:whole]), whole


class Connection:
    """A connection to the server of a URL. Use with `with`."""

    def __init__(self, url: str) -> None:
        """Connect; raises OSError."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(self, request: bytes) -> Answer:
        """Send a request and wait for its answer; raises OSError and BenchError."""
        self._socket.sendall(request)
        data = b""
        while True:
            part = self._socket.recv(_READ_BYTES)
            if not part:
                raise BenchError("the server closed the connection before it had answered")
            data += part
            found = split_answer(data)
            if found is not None:
                assert found[1] == len(data), "one request has one answer"
                return found[0]

    def __enter__(self) -> Self:
        """Take it up."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self._socket.close()
