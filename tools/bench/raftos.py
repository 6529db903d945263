"""raftos 0.2.6 as a peer: Raft in Python over UDP, as published in 2017.

It runs on today's Python by the patches of the tests' known-bad control, whose adapter is started
from the checkout as three processes; they leave its protocol as it is. It writes without fsync,
forgets votes and can lose what it acknowledged (ARCHITECTURE.md, "The known-bad control"). Only
one write after another is measured, and failover on fresh nodes each time: with several writes
under way it loses some, and a cluster whose leader died with one under way never commits again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import itertools
import json
import sys
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from cluster.bench.errors import BenchError
from cluster.bench.figures import Measure, Subject, Workload
from cluster.bench.stage import transaction
from tools.bench.loads import latencies, summary
from tools.bench.peer import ROOT, Effort, Peer, Reading, Step, Steps
from tools.bench.servers import HOST, Server, free_ports, memory_mib, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NAME: Final = "raftos"
ADAPTER: Final = ROOT / "tests" / "control" / "raftos_adapter.py"
NODES: Final = 3
RETRY_S: Final = 0.02
DEADLINE_S: Final = 15.0


class Nodes:
    """Three nodes that write one transaction after another."""

    def __init__(self) -> None:
        self.servers: dict[str, Server] = {}
        self._names = itertools.count(1)

    async def start(self, folder: Path) -> None:
        """Start all three, each with a log of its own."""
        addresses = [f"{HOST}:{port}" for port in free_ports(NODES)]
        for number, address in enumerate(addresses, 1):
            data = folder / f"node{number}"
            data.mkdir()
            command = [sys.executable, "-m", "tests.control.raftos_adapter", address]
            self.servers[address] = await Server.start(
                f"node{number}",
                [*command, "--cluster", *addresses, "--log-path", str(data)],
                folder=folder,
                is_spoken_to=True,
            )

    async def end(self) -> None:
        """Kill what runs."""
        for server in self.servers.values():
            await server.kill()

    async def agreed_leader(self) -> str:
        """The leader by the word of all three."""
        agreed: set[object] = set()

        async def all_agree() -> bool:
            answers = [await self._ask(server, do="leader") for server in self.servers.values()]
            agreed.clear()
            agreed.update(answer["leader"] for answer in answers)
            return len(agreed) == 1 and agreed <= self.servers.keys()

        await wait_until(all_agree, self.servers.values(), what="all three nodes follow one leader")
        return str(agreed.pop())

    async def write(self, address: str) -> bool:
        """Write a transaction through a node; False where that one does not lead."""
        name = f"t{next(self._names)}"
        answer = await self._ask(
            self.servers[address], do="update", name=name, values=transaction()
        )
        return "updated" in answer

    async def kill(self, address: str) -> None:
        """Kill a node for good."""
        await self.servers.pop(address).kill()

    async def _ask(self, server: Server, **command: object) -> dict[str, Any]:
        try:
            answer = await asyncio.wait_for(server.ask(json.dumps(command)), DEADLINE_S)
        except TimeoutError:
            raise BenchError(
                f"raftos: no answer to {command['do']!r} in {DEADLINE_S:g} s"
            ) from None
        found: dict[str, Any] = json.loads(answer)
        return found


@contextlib.asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Nodes]:
    """Three fresh nodes, started and about to elect."""
    nodes = Nodes()
    try:
        await nodes.start(folder)
        yield nodes
    finally:
        await nodes.end()


async def sequential(nodes: Nodes, effort: Effort) -> list[Reading]:
    """One write after another through the leader."""
    leader = await nodes.agreed_leader()
    loop = asyncio.get_running_loop()
    started = loop.time()
    times_ms = []
    while (begun := loop.time()) < started + effort.seconds:
        if not await nodes.write(leader):
            raise BenchError("raftos: the leader was deposed in the middle of a run")
        times_ms.append(1_000 * (loop.time() - begun))
    return latencies(summary(times_ms, loop.time() - started))


async def memory(nodes: Nodes) -> list[Reading]:
    """Of a node as it is: filling it with so many transactions would take hours."""
    server = next(iter(nodes.servers.values()))
    return [Reading(Measure.MIB, memory_mib(server), "empty")]


async def failover(folder: Path, effort: Effort) -> list[Reading]:
    """`kill -9` of the leader until a survivor acknowledges a write; on fresh nodes each time."""
    times_ms = []
    for number in range(effort.failovers):
        place = folder / f"failover{number}"
        place.mkdir()
        async with started(place) as nodes:
            leader = await nodes.agreed_leader()
            with contextlib.suppress(BenchError):  # counted by its absence
                times_ms.append(await _fail_over(nodes, leader))
    lost = effort.failovers - len(times_ms)
    if not times_ms:
        raise BenchError(f"raftos: none of {lost} clusters took a write after its leader's death")
    note = "heartbeat 150 ms instead of its 300, nothing written before"
    if lost:
        note += f"; {lost} of {effort.failovers} clusters never took a write again"
    return [
        Reading(Measure.P50_MS, median(times_ms), note),
        Reading(Measure.WORST_MS, max(times_ms), note),
    ]


async def _fail_over(nodes: Nodes, leader: str) -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()
    await nodes.kill(leader)
    while loop.time() < started + DEADLINE_S:
        for address in nodes.servers:
            if await nodes.write(address):
                return 1_000 * (loop.time() - started)
        await asyncio.sleep(RETRY_S)
    raise BenchError(f"raftos: no survivor took a write within {DEADLINE_S:g} s")


@contextlib.asynccontextmanager
async def running(folder: Path, effort: Effort) -> AsyncIterator[Steps]:
    """Three fresh nodes, and what can be measured on them."""
    async with started(folder) as nodes:
        await nodes.agreed_leader()
        steps: dict[Workload, Step] = {
            Workload.SEQUENTIAL: functools.partial(sequential, nodes, effort),
        }
        if effort.records:
            steps = {Workload.MEMORY: functools.partial(memory, nodes), **steps}
        if effort.failovers:
            steps[Workload.FAILOVER] = functools.partial(failover, folder, effort)
        yield steps


def is_installed() -> bool:
    """Whether this interpreter has the library, and this is a checkout with the adapter."""
    libraries = ("raftos", "msgpack")
    return ADAPTER.exists() and all(importlib.util.find_spec(name) for name in libraries)


def _subject() -> Subject:
    return Subject(
        name=NAME,
        version="0.2.6, patched to run",
        acknowledgement="in the page cache of a majority of three nodes, no fsync, and may be lost",
        is_durable=False,
    )


PEERS: Final = (
    Peer(
        name=NAME,
        install="in a checkout, `./tools/dev test` installs it from requirements-control.lock",
        is_installed=is_installed,
        subject=_subject,
        running=running,
    ),
)
