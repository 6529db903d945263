"""A client port in front of a node held in memory, and raw clients that speak to it as they like.

Relies on `curve_client.py` for what raw clients send; sockets are real, on free ports.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from nacl.signing import SigningKey

from node.client_keys import parse_key
from node.client_port import ClientPort
from node.identity import Identity
from node.port_limits import PortLimits
from node.port_messages import decode_answers, encode_requests
from tests.node.curve_client import CurveClient, greeting
from tests.node.fake_ledger import FakeNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection
    from types import TracebackType

    from node.port_messages import Answer, LookUp, Submit

DEADLINE_S = 20.0
IDENTITY = Identity.of(SigningKey(b"i" * 32))


@dataclass
class PortStage:
    """A node, its port, and what went wrong in the loop."""

    node: FakeNode
    port: ClientPort
    identity: Identity = IDENTITY
    loop_errors: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def limits(**changed: Any) -> PortLimits:
        """The usual limits but some."""
        return PortLimits(**changed)

    @property
    def endpoint(self) -> str:
        """Where libzmq connects to."""
        return f"tcp://127.0.0.1:{self.port.port}"

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Give the loop turns until something is true."""
        async with asyncio.timeout(DEADLINE_S):
            while not is_true():  # noqa: ASYNC110 - what sockets do has no event of its own
                await asyncio.sleep(0)

    async def at_rest(self) -> None:
        """Wait until the port has nothing to do but wait, either."""
        port = self.port
        await self.until(lambda: not (port._is_turn_due or port._is_flush_due or port._awake))

    async def heard_frames(self, count: int) -> None:
        """Wait until the only client has sent so many frames."""
        await self.until(lambda: self._session().frames_taken >= count)

    async def pongs(self, count: int) -> None:
        """Wait until the only client has sent so many frames more."""
        await self.heard_frames(self._session().frames_taken + count)

    async def until_dropped(self, reason: str, count: int = 1) -> None:
        """Wait until connections were dropped for a reason."""
        await self.until(lambda: self.port.dropped[reason] >= count)

    def _session(self) -> Any:
        (connection,) = self.port._connections
        return connection._session


@asynccontextmanager
async def port_stage(
    *, client_keys: Collection[bytes] = (), limits: PortLimits | None = None
) -> AsyncIterator[PortStage]:
    """A fresh node behind its port; at the end nothing is left, and the loop saw no error."""
    node = FakeNode()
    port = ClientPort(
        node,
        host="127.0.0.1",
        port=0,
        identity=IDENTITY,
        client_keys=client_keys,
        limits=limits or PortLimits(stop_s=0.2),
    )
    stage = PortStage(node, port)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: stage.loop_errors.append(context))
    await port.start()
    try:
        yield stage
    finally:
        await port.stop()
        loop.set_exception_handler(None)
    assert [] == stage.loop_errors
    assert 0 == port.room.used_bytes
    assert {} == port._connections
    assert not port._by_source
    assert 0 == port.dropped["node_fault"]


class RawClient:
    """A TCP connection to the port whose every byte the test decides. `async with`."""

    def __init__(self, stage: PortStage, **faults: Any) -> None:
        self.stage = stage
        server_key = parse_key(stage.identity.curve_public_z85.decode())
        self.curve = CurveClient(server_key, **faults)
        self._buffer = b""

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.stage.port.port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.writer.transport.abort()

    def send(self, data: bytes) -> None:
        """Send bytes; the network takes its time."""
        self.writer.write(data)

    async def push(self, data: bytes) -> None:
        """Send bytes, and wait a little where the network takes no more."""
        self.send(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.01):
                await self.writer.drain()

    def read_nothing(self) -> None:
        """Leave what the node sends where it is."""
        self.reader._transport.pause_reading()  # type: ignore[attr-defined] # asyncio's own

    async def frame(self) -> bytes:
        """The next frame, whole, as it came."""
        async with asyncio.timeout(DEADLINE_S):
            head = await self.reader.readexactly(2)
            if head[0] & 2:
                head += await self.reader.readexactly(7)
                return head + await self.reader.readexactly(int.from_bytes(head[1:], "big"))
            return head + await self.reader.readexactly(head[1])

    async def greet(self) -> None:
        """The handshake as far as the INITIATE, which is not sent."""
        self.send(greeting())
        async with asyncio.timeout(DEADLINE_S):
            await self.reader.readexactly(64)
        self.send(self.curve.hello())
        self.curve.take_welcome(await self.frame())

    async def shake_hands(self) -> Self:
        """The whole handshake."""
        await self.greet()
        self.send(self.curve.initiate())
        self.curve.take_ready(await self.frame())
        return self

    def request(self, *requests: Submit | LookUp) -> None:
        """Send requests in one message."""
        self.send(self.curve.message(encode_requests(requests)))

    async def answers(self) -> tuple[Answer, ...]:
        """The next message of the node."""
        ((inner, content),) = self.curve.opened(await self.frame())
        assert 0 == inner
        return decode_answers(content)

    async def answers_to(self, count: int) -> dict[int, Answer]:
        """So many answers, by their numbers."""
        found: dict[int, Answer] = {}
        while len(found) < count:
            found |= {answer.number: answer for answer in await self.answers()}
        return found

    async def ended(self) -> bytes:
        """Wait until the node has hung up; what it said before that."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def is_served(self) -> bool:
        """Whether the connection is still answered."""
        self.send(self.curve.message(b"\x04PING\0\0?", inner=2))
        async with asyncio.timeout(DEADLINE_S):
            return self.curve.opened(await self.frame()) == [(2, b"\x04PONG?")]
