"""One raftos node whose datagrams and disk are in our hands; all the rest is raftos' own.

Its `Node`, `State`, roles, log, storage and `UDPProtocol` run as they are. What is replaced is the
datagram transport below the protocol, so that messages travel over whatever the test likes: the
simulator's network, or ZeroMQ. Relies on the adapter beside it for a raftos that runs at all.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Address = tuple[str, int]


class Wire:
    """The datagram transport that raftos sees."""

    def __init__(self, carry: Callable[[Address, bytes], None]) -> None:
        self._carry = carry
        self._closed = False

    def sendto(self, data: bytes, destination: Address) -> None:
        """Hand a datagram over; a closed wire carries nothing."""
        if not self._closed:
            self._carry(destination, data)

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closed

    def close(self) -> None:
        """Carry nothing more."""
        self._closed = True


class RaftosNode:
    """One process of raftos, from its start to its end, in the loop that runs now."""

    def __init__(
        self,
        raftos: Any,
        *,
        address: Address,
        others: tuple[Address, ...],
        folder: Path,
        carry: Callable[[Address, bytes], None],
    ) -> None:
        """Read what is on the disk; `carry` takes datagrams along, each with whom it is for.

        Raises ValueError where raftos cannot read its own log.
        """
        loop = asyncio.get_running_loop()
        raftos.config.log_path = str(folder)
        # raftos keeps who leads in the class: it expects one node in a process.
        own_state = type("State", (raftos.State,), {})
        with mock.patch.object(raftos.server, "State", own_state):
            self._node = raftos.server.Node(address=address, loop=loop)
        self._nodes = raftos.server.Node.nodes
        self._node.cluster = others  # it would keep a set, whose order changes with the process
        self._protocol = raftos.network.UDPProtocol(
            queue=self._node.requests, request_handler=self._node.request_handler, loop=loop
        )
        self._node.transport = Wire(carry)

    @property
    def state(self) -> Any:
        """Its `State`, with storage, log, state machine and the role of the moment."""
        return self._node.state

    def start(self) -> None:
        """What `Node.start` does, but for the socket."""
        self._protocol.connection_made(self._node.transport)
        self.state.start()

    def receive(self, source: Address, raw: bytes) -> None:
        """A datagram arrived; one for a process that is gone is lost."""
        if not self._node.transport.is_closing():
            self._protocol.datagram_received(raw, source)

    async def write(self, name: str, value: str) -> None:
        """Set a value, as `Replicated.set` does; returns when raftos says that it is committed."""
        await type(self.state).set_value(name, value)

    def stop(self) -> None:
        """End the process: its timers stop, nothing leaves and nothing arrives any more."""
        self._node.stop()
        self._nodes.remove(self._node)


@dataclass(slots=True)
class Disk:
    """A node's folder, of which a power cut leaves what the kernel had written back.

    raftos never calls fsync, so nothing else makes its files durable.
    """

    folder: Path
    _durable: dict[str, bytes] = field(default_factory=dict)

    def write_back(self) -> None:
        """The kernel writes every dirty page: what is in the files now is durable."""
        if self.folder.exists():
            self._durable = {file.name: file.read_bytes() for file in self.folder.iterdir()}

    def mend(self) -> None:
        """Nothing is ever wrong with it."""

    def cut_power(self) -> None:
        """What was written since the last write-back is gone."""
        for file in self.folder.iterdir():
            file.unlink()
        for name, content in self._durable.items():
            (self.folder / name).write_bytes(content)


def id_of(address: Address) -> str:
    """What raftos calls a node."""
    return f"{address[0]}:{address[1]}"
