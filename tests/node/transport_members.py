"""Transports under test with all they told, a stranger's client, a bad network, and a resolver."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import zmq
from nacl.signing import SigningKey

from node.identity import Identity
from node.lane import Lane
from node.route import look_up
from node.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from consensus.messages import MemberId
    from node.route import LookUp

CLUSTER = bytes(range(32))
DEADLINE_S = 10.0
NOWHERE = "127.0.0.1:1"
"""An address where nobody listens: no port that the system gives out is 1."""

T = TypeVar("T")


async def soon(awaitable: Awaitable[T]) -> T:
    """Wait for an event; one that does not come is a failure."""
    return await asyncio.wait_for(awaitable, DEADLINE_S)


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until the condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await turn()


async def turn() -> None:
    """Let the loop go round once."""
    loop = asyncio.get_running_loop()
    gone_round = loop.create_future()
    loop.call_soon(gone_round.set_result, None)
    await gone_round


def open_descriptors() -> set[Path]:
    """Every file descriptor of this process."""
    return set(Path("/proc/self/fd").iterdir())


class Member:
    """A transport, and everything that it told."""

    def __init__(
        self,
        *,
        identity: Identity | None = None,
        cluster_id: bytes = CLUSTER,
        bind: str = "127.0.0.1:0",
        look_up: LookUp = look_up,
    ) -> None:
        self.identity = Identity.of(SigningKey.generate()) if identity is None else identity
        self.id = self.identity.public_key
        self.inbox: asyncio.Queue[tuple[MemberId, bytes]] = asyncio.Queue()
        self.ups: asyncio.Queue[MemberId] = asyncio.Queue()
        self.downs: asyncio.Queue[MemberId] = asyncio.Queue()
        self.failures: asyncio.Queue[BaseException] = asyncio.Queue()
        self.transport = Transport(
            identity=self.identity,
            cluster_id=cluster_id,
            bind=bind,
            on_message=self.on_message,
            on_disconnect=self.downs.put_nowait,
            on_failure=self.failures.put_nowait,
            on_connect=self.ups.put_nowait,
            look_up=look_up,
        )

    def on_message(self, member: MemberId, payload: bytes) -> None:
        """Keep a message."""
        self.inbox.put_nowait((member, payload))

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.transport.address

    def meet(self, *others: Member) -> None:
        """Make these its peers."""
        self.transport.set_peers({other.id: other.address for other in others})

    def nothing_failed(self) -> None:
        """Fail where the transport reported a fault that no test asked for."""
        if not self.failures.empty():
            raise self.failures.get_nowait()

    def send(self, other: Member, payload: bytes, lane: Lane = Lane.CONTROL) -> bool:
        """Send without waiting."""
        return self.transport.send(other.id, lane, payload)


class Members(AsyncExitStack):
    """Opens members, and closes them at the end of a test; nothing of theirs may have failed."""

    async def open(
        self,
        *,
        identity: Identity | None = None,
        cluster_id: bytes = CLUSTER,
        bind: str = "127.0.0.1:0",
        look_up: LookUp = look_up,
    ) -> Member:
        """Start a member that has no peers yet."""
        member = Member(identity=identity, cluster_id=cluster_id, bind=bind, look_up=look_up)
        await member.transport.start()
        self.callback(member.nothing_failed)
        self.push_async_callback(member.transport.close)
        return member

    async def pair(self) -> tuple[Member, Member]:
        """Start two members that are connected to each other."""
        first, second = await self.open(), await self.open()
        first.meet(second)
        second.meet(first)
        assert second.id == await soon(first.ups.get())
        assert first.id == await soon(second.ups.get())
        return first, second


class Names:
    """A resolver that knows what a test tells it, and hangs where the test wants it to."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, ...]] = {}
        self.asked: list[tuple[str, float]] = []
        """Names, and when they were asked for, in seconds."""
        self.threads: list[threading.Thread] = []
        self._held: dict[str, threading.Event] = {}

    def hold(self, *names: str) -> None:
        """Hang where one of these is asked for."""
        self._held.update((name, threading.Event()) for name in names)

    def release(self) -> None:
        """Let everything go that hangs."""
        held, self._held = self._held, {}
        for gate in held.values():
            gate.set()

    def times_asked(self, name: str) -> int:
        """How often somebody wanted to know a name."""
        return [asked for asked, _ in self.asked].count(name)

    def close(self) -> None:
        """Leave no thread behind."""
        self.release()
        for thread in self.threads:
            thread.join(DEADLINE_S)

    def __call__(self, host: str, _port: int) -> tuple[str, ...]:
        """Answer, in the thread that asks."""
        self.threads.append(threading.current_thread())
        self.asked.append((host, time.monotonic()))
        gate = self._held.get(host)
        if gate is not None and not gate.wait(DEADLINE_S):
            raise socket.gaierror(socket.EAI_AGAIN, "nobody let this look-up go")
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return self.answers[host]


class RawClient:
    """A socket of a stranger's own making, with the events of its connection."""

    def __init__(self, kind: int = zmq.PUSH) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.monitor = self.socket.get_monitor_socket()

    def use_curve(self, identity: Identity, server: Identity) -> None:
        """Speak CURVE: as `identity`, to `server`."""
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, identity.curve_public_z85)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, identity.curve_secret_z85)
        self.socket.setsockopt(zmq.CURVE_SERVERKEY, server.curve_public_z85)

    def connect(self, address: str) -> None:
        """Connect to "host:port"."""
        self.socket.connect(f"tcp://{address}")

    async def event(self, *wanted: zmq.Event) -> None:
        """Wait for one of these events."""
        await asyncio.to_thread(self._event, wanted)

    def _event(self, wanted: tuple[zmq.Event, ...]) -> None:
        while True:
            assert self.monitor.poll(int(DEADLINE_S * 1_000)), f"none of {wanted} came"
            frame, _address = self.monitor.recv_multipart()
            if zmq.Event(struct.unpack("=HI", frame)[0]) in wanted:
                return

    def close(self) -> None:
        """Close everything."""
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        self.context.term()


class Connection:
    """One connection through a `Relay`."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.carried_bytes = 0

    def cut(self) -> None:
        """Break it, as a router does that forgets it."""
        for writer in self._writers:
            writer.transport.abort()


class Relay:
    """A network between two members, whose connections can be cut or can all fall silent."""

    def __init__(self, target: str) -> None:
        self._host, self._port = target.split(":")
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.connections: list[Connection] = []
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._flowing.set()
        for connection in self.connections:
            connection.cut()
        await asyncio.gather(*self._pumps)

    def fall_silent(self) -> None:
        """Carry nothing more, and close nothing either."""
        self._flowing.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        connection = Connection(writer, far_writer)
        self.connections.append(connection)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._pumps.add(asyncio.create_task(self._pump(connection, source, sink)))

    async def _pump(
        self, connection: Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                await self._flowing.wait()
                connection.carried_bytes += len(data)
                sink.write(data)
                await sink.drain()
        connection.cut()


def somebody() -> bytes:
    """The id of a member that is nowhere."""
    return Identity.of(SigningKey.generate()).public_key


async def only_message_is_from(receiver: Member, sender: Member) -> None:
    """A legitimate message is the first that the receiver hears: nothing else got through."""
    assert sender.send(receiver, b"legitimate")
    assert (sender.id, b"legitimate") == await soon(receiver.inbox.get())
    assert receiver.inbox.empty()
