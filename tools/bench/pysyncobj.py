"""PySyncObj as a peer: Raft in Python, as a library; three processes, each with a journal.

It acknowledges without fsync: a leader counts itself and its followers once their journals are
written to a memory map, which nothing flushes before the process ends. Its clients are calls within
the leader's process, as its users' are. Measured as it is shipped, where it gathers calls for its
heartbeat, and with `appendEntriesUseBatch` off, which it recommends for quick single calls. Relies
on `pysyncobj` being importable by this interpreter, and on `pysyncobj_node` beside it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Final

from cluster.bench.errors import BenchError
from cluster.bench.failover import TUNED_ELECTION_MS, TUNED_HEARTBEAT_MS
from cluster.bench.figures import Measure, Subject, Workload
from cluster.bench.stage import BATCH
from tools.bench import pysyncobj_node
from tools.bench.loads import Load, latencies, parse_answer, throughput, with_cpu
from tools.bench.peer import (
    BATCH_CLIENTS,
    Effort,
    Peer,
    Reading,
    Step,
    Steps,
)
from tools.bench.servers import HOST, Server, free_ports, memory_mib, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

SHIPPED: Final = "PySyncObj, as shipped"
QUICK: Final = "PySyncObj, appendEntriesUseBatch off"
UNBATCHED: Final = ("--unbatched",)
TUNED: Final = (
    *(*UNBATCHED, "--tick-ms", "10", "--heartbeat-ms", str(TUNED_HEARTBEAT_MS)),
    *("--election-ms", *map(str, TUNED_ELECTION_MS)),
)
NODES: Final = 3
_CLIENTS_NOTE: Final = "clients within the leader"
_TUNED_NOTE: Final = (
    f"heartbeat {TUNED_HEARTBEAT_MS} ms, tick 10 ms, "
    f"election timeout {TUNED_ELECTION_MS[0]} to {TUNED_ELECTION_MS[1]} ms"
)


class Nodes:
    """Three nodes, some of them perhaps dead."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        """Keep the journals in `folder`; `options` are those of pysyncobj_node."""
        self._folder = folder
        self._options = options
        self._addresses = [f"{HOST}:{port}" for port in free_ports(NODES)]
        self.servers: dict[str, Server] = {}

    async def start_all(self) -> str:
        """Start all; the leader that they agree on."""
        for address in self._addresses:
            await self.start(address)
        return await self.wait_for_leader()

    async def start(self, address: str) -> None:
        """Start one node."""
        name = f"node{1 + self._addresses.index(address)}"
        others = [other for other in self._addresses if other != address]
        command = [sys.executable, "-m", pysyncobj_node.__name__, address, *others]
        self.servers[address] = await Server.start(
            name,
            [*command, "--journal", str(self._folder / f"{name}.journal"), *self._options],
            folder=self._folder,
            is_spoken_to=True,
        )

    async def wait_for_leader(self) -> str:
        """The leader that all agree on, once all are connected with each other."""

        async def is_led() -> bool:
            return await self._leader() is not None

        await wait_until(is_led, self.servers.values(), what="all three nodes follow one leader")
        leader = await self._leader()
        if leader is None:
            raise BenchError("the leader was lost as soon as it was elected")
        return leader

    async def end(self) -> None:
        """Kill what runs."""
        for server in self.servers.values():
            await server.kill()

    async def _leader(self) -> str | None:
        words = [(await server.ask("status")).split() for server in self.servers.values()]
        leaders = {leader for leader, _ in words}
        if len(leaders) > 1 or {connected for _, connected in words} != {str(NODES - 1)}:
            return None
        leader = leaders.pop()
        return leader if leader in self._addresses else None


class PySyncObj:
    """The steps on three running nodes."""

    def __init__(self, nodes: Nodes, folder: Path, effort: Effort, *, leader: str) -> None:
        self._nodes = nodes
        self._folder = folder
        self._effort = effort
        self._leader = nodes.servers[leader]

    def steps(self, *, is_shipped: bool) -> Steps:
        """What can be measured, in a good order; failovers of it as it is shipped alone."""
        steps: dict[Workload, Step] = {
            Workload.SEQUENTIAL: self._sequential,
            Workload.SINGLE_64: self._single_64,
            Workload.SINGLE_256: self._single_256,
            Workload.BATCHED: self._batched,
        }
        if self._effort.records:
            steps = {Workload.MEMORY: self._memory, **steps}
        if is_shipped and self._effort.failovers:
            steps[Workload.FAILOVER] = functools.partial(self._failover, ())
            steps[Workload.FAILOVER_TUNED] = functools.partial(
                self._failover, TUNED, note=_TUNED_NOTE
            )
        return steps

    async def _load(self, clients: int, batch: int = 1) -> Load:
        command = f"load {clients} {self._effort.seconds} {batch}"
        return parse_answer(await self._leader.ask(command))

    async def _sequential(self) -> list[Reading]:
        return latencies(await self._load(1), note=_CLIENTS_NOTE)

    async def _single_64(self) -> list[Reading]:
        return await with_cpu(
            list(self._nodes.servers.values()), self._load(64), note=_CLIENTS_NOTE
        )

    async def _single_256(self) -> list[Reading]:
        return throughput(await self._load(256), note=_CLIENTS_NOTE)

    async def _batched(self) -> list[Reading]:
        load = await self._load(BATCH_CLIENTS, BATCH)
        return throughput(load, batch=BATCH, note=f"calls of {BATCH:,}")

    async def _memory(self) -> list[Reading]:
        await self._leader.ask(f"fill {self._effort.records} {BATCH}")
        note = f"the leader, after {self._effort.records:,} transactions, all of them in memory"
        return [Reading(Measure.MIB, memory_mib(self._leader), note)]

    async def _failover(self, options: Sequence[str], note: str = "") -> list[Reading]:
        """`kill -9` of the leader until a survivor acknowledges a call; on fresh nodes."""
        await self._nodes.end()
        folder = self._folder / f"failover{len(options)}"
        folder.mkdir()
        nodes = Nodes(folder, options)
        times_ms = []
        try:
            leader = await nodes.start_all()
            for _ in range(self._effort.failovers):
                survivor = next(node for node in nodes.servers if node != leader)
                times_ms.append(await _fail_over(nodes.servers[leader], nodes.servers[survivor]))
                await nodes.start(leader)
                leader = await nodes.wait_for_leader()
        finally:
            await nodes.end()
        return [
            Reading(Measure.P50_MS, median(times_ms), note),
            Reading(Measure.WORST_MS, max(times_ms), note),
        ]


async def _fail_over(leader: Server, survivor: Server) -> float:
    """Milliseconds from the leader's death to a survivor's acknowledgement."""
    await _put(survivor)
    await leader.kill()
    return await _put(survivor)


async def _put(server: Server) -> float:
    started = time.perf_counter()
    answer = await server.ask("put")
    if answer != "acknowledged":
        raise BenchError(f"a write was {answer}")
    return 1_000 * (time.perf_counter() - started)


@contextlib.asynccontextmanager
async def running(folder: Path, effort: Effort, *, options: Sequence[str]) -> AsyncIterator[Steps]:
    """Three fresh nodes, and what can be measured on them."""
    nodes = Nodes(folder, options)
    try:
        leader = await nodes.start_all()
        yield PySyncObj(nodes, folder, effort, leader=leader).steps(is_shipped=not options)
    finally:
        await nodes.end()


def is_installed() -> bool:
    """Whether this interpreter has the library."""
    return importlib.util.find_spec("pysyncobj") is not None


def _subject(name: str) -> Subject:
    return Subject(
        name=name,
        version=importlib.metadata.version("pysyncobj"),
        acknowledgement="in the page cache of a majority of three nodes, no fsync",
        is_durable=False,
    )


_INSTALL: Final = "pip install pysyncobj==0.3.17"

PEERS: Final = tuple(
    Peer(
        name=name,
        install=_INSTALL,
        is_installed=is_installed,
        subject=functools.partial(_subject, name),
        running=functools.partial(running, options=options),
    )
    for name, options in ((SHIPPED, ()), (QUICK, UNBATCHED))
)
