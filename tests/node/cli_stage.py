"""Runs commands as a terminal would, against ledgers held in memory behind the real HTTP face.

Relies on typer's runner, and on a thread of its own for the servers.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from cluster.cli import app
from node.api.server import ApiServer
from node.client_port import ClientPort
from tests.node.port_stage import IDENTITY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.node.fake_ledger import FakeNode

DEADLINE_S = 20.0


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one line of JSON on stdout."""
        (document,) = self.documents
        return document

    @property
    def documents(self) -> list[Any]:
        """Every line on stdout as JSON."""
        return [json.loads(line) for line in self.stdout.removesuffix("\n").split("\n")]

    @property
    def error(self) -> str:
        """The one line of error."""
        (line,) = self.stderr.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    """Run `bitnexus` with these arguments in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


@contextmanager
def serving(*nodes: FakeNode, by_ports: bool = False) -> Iterator[list[str]]:
    """Serve each node on a free port of its own, HTTP or a client port; yields their URLs."""
    started = threading.Event()
    urls: list[str] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        servers: list[ApiServer | ClientPort] = [
            ClientPort(node, host="127.0.0.1", port=0, identity=IDENTITY)
            if by_ports
            else ApiServer(node, "127.0.0.1", 0)
            for node in nodes
        ]
        for server in servers:
            await server.start()
            urls.append(server.url)
        started.set()
        await stop.wait()
        for server in servers:
            await server.stop()

    def run_loop() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()

    thread = threading.Thread(target=run_loop)
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        yield urls
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
