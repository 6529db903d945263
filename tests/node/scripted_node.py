"""A server that answers HTTP requests from a script, for the client's retries.

Each step of the script answers one request: with a status, headers and a body, or by closing the
connection without a word. Relies on asyncio streams alone; it knows just enough HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


@dataclass(frozen=True)
class Answer:
    """A step that answers. The body is JSON unless it is given as bytes."""

    status: int
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


class HangUp:
    """A step that closes the connection once the request is read."""


class Silence:
    """A step that never answers."""


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    target: str
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def query(self) -> dict[str, str]:
        """The parameters."""
        query = self.target.partition("?")[2]
        return dict(part.split("=") for part in query.split("&") if part)


Step = Answer | HangUp | Silence


class ScriptedNode:
    """Listens on a free port; `async with`. A step may be made from the request it answers."""

    def __init__(self, *script: Step | Callable[[Seen], Step]) -> None:
        self._script = list(script)
        self._writers: list[asyncio.StreamWriter] = []
        self.seen: list[Seen] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()
        assert kind is not None or not self._script, "steps are left over"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while head := await _read_head(reader):
            request_line, *lines = head.decode("ascii").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines if line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            method, target, _ = request_line.split(" ")
            self.seen.append(Seen(method, target, body))
            step = self._script.pop(0)
            if not isinstance(step, Answer | HangUp | Silence):
                step = step(self.seen[-1])
            if isinstance(step, HangUp):
                break
            if isinstance(step, Answer):
                writer.write(_encode(step))
        writer.close()


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""


def _encode(answer: Answer) -> bytes:
    is_raw = isinstance(answer.body, bytes)
    body = answer.body if is_raw else json.dumps(answer.body).encode()
    headers = {"content-length": str(len(body)), **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
