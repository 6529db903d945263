"""Mnesia as a peer: Erlang's own database, three nodes that keep a table in memory and on disk.

Its clients are processes of the first node, as its users' are: no HTTP, no other process. Measured
twice: with `sync_transaction` alone, which every node has carried out and none has fsynced; and
with `sync_log` on all three before a write counts. Runs Debian's Erlang with an `epmd` of its own
on a free port, without the schedulers' busy waiting, which on a small machine takes what the other
nodes need. Relies on `mnesia_node.erl` beside it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.bench.errors import BenchError
from cluster.bench.figures import Measure, Subject, Workload
from cluster.bench.stage import BATCH
from tools.bench.loads import Load, latencies, output_of, parse_answer, throughput, with_cpu
from tools.bench.peer import BATCH_CLIENTS, CONTENT, Effort, Peer, Reading, Step, Steps
from tools.bench.servers import HOST, Server, free_ports, memory_mib

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SYNC: Final = "Mnesia, sync_transaction"
DURABLE: Final = "Mnesia, sync_transaction and sync_log"
SOURCE: Final = Path(__file__).with_name("mnesia_node.erl")
NODES: Final = tuple(f"n{number}@{HOST}" for number in (1, 2, 3))
READS_NOTE: Final = "clients within the node, on a table in memory"
CLIENTS_NOTE: Final = "clients within the first node"
_VERSION: Final = (
    "application:load(mnesia), {ok, V} = application:get_key(mnesia, vsn), io:put_chars(V), halt()."
)


class Mnesia:
    """The steps on three running nodes."""

    def __init__(self, servers: list[Server], effort: Effort, *, kind: str) -> None:
        """Write in the way `kind` of mnesia_node.erl."""
        self._servers = servers
        self._effort = effort
        self._kind = kind

    def steps(self) -> Steps:
        """What can be measured, in a good order."""
        steps: dict[Workload, Step] = {
            Workload.SEQUENTIAL: self._sequential,
            Workload.SINGLE_64: self._single_64,
            Workload.SINGLE_256: self._single_256,
            Workload.BATCHED: self._batched,
            Workload.READ_64: functools.partial(self._read, "transaction"),
            Workload.LOCAL_READ_64: functools.partial(self._read, "dirty"),
        }
        if self._effort.records:
            steps = {Workload.MEMORY: self._memory, **steps}
        return steps

    async def _write(self, clients: int, batch: int = 1) -> Load:
        return await self._load(f"write {self._kind} {clients} {self._effort.seconds} {batch}")

    async def _load(self, command: str) -> Load:
        return parse_answer(await self._servers[0].ask(command))

    async def _sequential(self) -> list[Reading]:
        return latencies(await self._write(1), note=CLIENTS_NOTE)

    async def _single_64(self) -> list[Reading]:
        return await with_cpu(self._servers, self._write(64), note=CLIENTS_NOTE)

    async def _single_256(self) -> list[Reading]:
        return throughput(await self._write(256), note=CLIENTS_NOTE)

    async def _batched(self) -> list[Reading]:
        load = await self._write(BATCH_CLIENTS, BATCH)
        return throughput(load, batch=BATCH, note="1,000 writes, the table locked at once")

    async def _read(self, kind: str) -> list[Reading]:
        load = await self._load(f"read {kind} 64 {self._effort.seconds}")
        return [Reading(Measure.PER_S, load.per_s, READS_NOTE)]

    async def _memory(self) -> list[Reading]:
        await self._servers[0].ask(f"fill {self._effort.records} {BATCH}")
        note = f"after {self._effort.records:,} transactions, all of them in memory"
        return [Reading(Measure.MIB, memory_mib(self._servers[0]), note)]


@contextlib.asynccontextmanager
async def running(folder: Path, effort: Effort, *, kind: str) -> AsyncIterator[Steps]:
    """Three fresh nodes, and what can be measured on them."""
    (port,) = free_ports(1)
    environment = {
        "ERL_EPMD_PORT": str(port),
        "ERL_EPMD_ADDRESS": HOST,
        "HOME": str(folder),
        "BENCH_CONTENT": CONTENT,
    }
    await output_of("erlc", "-o", str(folder), str(SOURCE))
    cookie = secrets.token_hex(16)
    servers: list[Server] = []
    async with contextlib.AsyncExitStack() as stack:
        epmd = await Server.start("epmd", [_path("epmd")], folder=folder, environment=environment)
        stack.push_async_callback(epmd.kill)
        for name in NODES:
            server = await _start_node(name, folder, cookie, environment)
            stack.push_async_callback(server.kill)
            servers.append(server)
        for server in servers:
            await server.ask("ping")
        answer = await servers[0].ask(f"make {' '.join(NODES)}")
        if answer != "made":
            raise BenchError(f"mnesia: {answer}")
        yield Mnesia(servers, effort, kind=kind).steps()


async def _start_node(name: str, folder: Path, cookie: str, environment: dict[str, str]) -> Server:
    data = folder / name
    data.mkdir()
    return await Server.start(
        name,
        [
            *(_path("erl"), "-noshell", "-name", name, "-setcookie", cookie),
            *("-start_epmd", "false", "-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
            *("+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"),
            # With its default of 1,000 it is always busy dumping its log, and says so.
            *("-mnesia", "dir", f'"{data}"', "-mnesia", "dump_log_write_threshold", "50000"),
            *("-pa", str(folder), "-s", "mnesia_node", "main"),
        ],
        folder=folder,
        environment=environment,
        is_spoken_to=True,
        cwd=folder,
    )


def _path(program: str) -> str:
    return os.fspath(shutil.which(program) or program)


def is_installed() -> bool:
    """Whether Erlang is there with Mnesia."""
    return bool(shutil.which("erl") and shutil.which("erlc") and find_version())


@functools.cache
def find_version() -> str | None:
    """What the installed Mnesia says; None where there is none."""
    command = [_path("erl"), "-noinput", "-boot", "start_clean", "-eval", _VERSION]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.stdout if re.fullmatch(r"[\d.]+", ended.stdout) else None


def _subject(name: str, acknowledgement: str, *, is_durable: bool) -> Subject:
    return Subject(
        name=name,
        version=find_version() or "unknown",
        acknowledgement=acknowledgement,
        is_durable=is_durable,
    )


_INSTALL: Final = "install Debian's packages erlang-base and erlang-mnesia"

PEERS: Final = (
    Peer(
        name=SYNC,
        install=_INSTALL,
        is_installed=is_installed,
        subject=lambda: _subject(
            SYNC, "in the memory of all three nodes, no fsync", is_durable=False
        ),
        running=functools.partial(running, kind="sync"),
    ),
    Peer(
        name=DURABLE,
        install=_INSTALL,
        is_installed=is_installed,
        subject=lambda: _subject(
            DURABLE, "on the disks of all three nodes, fsynced", is_durable=True
        ),
        running=functools.partial(running, kind="durable"),
    ),
)
