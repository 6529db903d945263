"""etcd as a peer: three members on the loopback address, one key for each transaction.

Spoken to by its JSON gateway, as this ledger is by its HTTP, and by gRPC, where h2load posts one
prepared request: `/etcdserverpb.KV/Put`, and `/Txn` with 100 puts. The protocol's few messages are
encoded by hand below. h2load does not see gRPC's own status, so the store's revision is compared
before and after. Relies on `etcd` and wrk; gRPC also on h2load (Debian's nghttp2-client).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import re
import shutil
import struct
import subprocess
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import httpx

from cluster.bench.errors import BenchError
from cluster.bench.failover import TUNED_ELECTION_MS, TUNED_HEARTBEAT_MS
from cluster.bench.figures import Measure, Subject, Workload
from tools.bench.loads import Load, h2load, latencies, throughput, with_cpu, wrk
from tools.bench.peer import (
    BATCH_CLIENTS,
    CONTENT,
    Effort,
    Peer,
    Reading,
    Step,
    Steps,
)
from tools.bench.servers import (
    HOST,
    Server,
    first_acknowledged,
    free_ports,
    memory_mib,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NAME: Final = "etcd"
TRANSACTION_PUTS: Final = 100
"""What etcd recommends for one transaction; it refuses more than 128 without being told."""
MEMBERS: Final = ("m1", "m2", "m3")
KEY_DIGITS: Final = 16
PUT_SCRIPT: Final = """
local next_key = tonumber(os.getenv("BENCH_FIRST_KEY"))
local value = os.getenv("BENCH_VALUE")
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function request()
  next_key = next_key + 1
  -- Digits are base64 as they stand: each number is another key of 12 bytes.
  return wrk.format(nil, nil, nil, string.format('{"key":"%016d","value":"%s"}', next_key, value))
end
"""
RANGE_SCRIPT: Final = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = os.getenv("BENCH_BODY")
"""
GRPC_NOTE: Final = "gRPC; always the same keys"
_VALUE: Final = base64.b64encode(CONTENT.encode()).decode()
_KEYS_OF_A_RUN: Final = 10**9
_LOADERS: Final = 8


class Members:
    """Three members, some of them perhaps dead."""

    def __init__(self, folder: Path, *, heartbeat_ms: int | None) -> None:
        """Keep the members' data in `folder`; without `heartbeat_ms`, with etcd's timeouts."""
        self._folder = folder
        self._heartbeat_ms = heartbeat_ms
        ports = free_ports(2 * len(MEMBERS))
        self.urls = dict(zip(MEMBERS, (f"http://{HOST}:{port}" for port in ports[:3]), strict=True))
        self._peers = dict(
            zip(MEMBERS, (f"http://{HOST}:{port}" for port in ports[3:]), strict=True)
        )
        self.servers: dict[str, Server] = {}
        # No limit of connections: attempts that hang must not keep later ones from being made.
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(timeout=30, limits=limits)

    async def start(self, name: str) -> None:
        """Start one member."""
        everybody = ",".join(f"{member}={url}" for member, url in self._peers.items())
        command = [
            *(str(shutil.which("etcd")), "--name", name, "--logger", "zap"),
            *("--data-dir", str(self._folder / name), "--log-level", "error"),
            *("--listen-client-urls", self.urls[name], "--advertise-client-urls", self.urls[name]),
            *("--listen-peer-urls", self._peers[name]),
            *("--initial-advertise-peer-urls", self._peers[name]),
            *("--initial-cluster", everybody, "--initial-cluster-token", self._folder.name),
        ]
        if self._heartbeat_ms is not None:
            command += ["--heartbeat-interval", str(self._heartbeat_ms)]
            # Drawn from this time to twice as long, as this ledger's is.
            command += ["--election-timeout", str(TUNED_ELECTION_MS[0])]
        self.servers[name] = await Server.start(name, command, folder=self._folder)

    async def leader(self) -> str | None:
        """Who leads, once all three members answer and agree."""
        statuses = await asyncio.gather(*(self._status(name) for name in MEMBERS))
        if None in statuses:
            return None
        ids = {
            status["header"]["member_id"]: name
            for name, status in zip(MEMBERS, statuses, strict=True)
            if status
        }
        leaders = {status.get("leader", "0") for status in statuses if status}
        return ids.get(leaders.pop()) if len(leaders) == 1 else None

    async def wait_for_leader(self) -> str:
        """The leader that all three agree on."""

        async def is_led() -> bool:
            return await self.leader() is not None

        await wait_until(is_led, self.servers.values(), what="all three members follow one leader")
        leader = await self.leader()
        if leader is None:
            raise BenchError("the leader was lost as soon as it was elected")
        return leader

    async def call(self, url: str, path: str, body: object) -> dict[str, Any]:
        """One call of the JSON gateway; raises httpx.HTTPError."""
        response = await self.client.post(f"{url}/v3/{path}", json=body)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    async def end(self) -> None:
        """Kill what runs."""
        await self.client.aclose()
        for server in self.servers.values():
            await server.kill()

    async def _status(self, name: str) -> dict[str, Any] | None:
        try:
            return await self.call(self.urls[name], "maintenance/status", {})
        except httpx.HTTPError:
            return None


class Etcd:
    """The steps on one running cluster."""

    def __init__(self, members: Members, folder: Path, effort: Effort, *, leader: str) -> None:
        self._members = members
        self._folder = folder
        self._effort = effort
        self._leader = leader
        self._url = members.urls[leader]
        self._keys = count(1)
        self._runs = count(1)
        for name, script in (("put.lua", PUT_SCRIPT), ("range.lua", RANGE_SCRIPT)):
            (folder / name).write_text(script, encoding="utf-8")
        (folder / "put").write_bytes(frame(put_request(b"one key", CONTENT.encode())))
        (folder / "txn").write_bytes(frame(txn_request(CONTENT.encode())))

    def steps(self) -> Steps:
        """What can be measured, in a good order."""
        steps: dict[Workload, Step] = {
            Workload.SEQUENTIAL: self._sequential,
            Workload.SINGLE_64: self._single_64,
            Workload.SINGLE_256: self._single_256,
            Workload.READ_64: functools.partial(self._read, is_local=False),
            Workload.LOCAL_READ_64: functools.partial(self._read, is_local=True),
            Workload.PORT_SEQUENTIAL: self._grpc_sequential,
            Workload.PORT_64: functools.partial(self._grpc, 64),
            Workload.PORT_256: functools.partial(self._grpc, 256),
            Workload.BATCHED: self._batched,
        }
        if self._effort.records:
            steps = {Workload.MEMORY: self._memory, **steps}
        if self._effort.failovers:
            steps[Workload.FAILOVER] = functools.partial(failovers, self._members, self._effort)
            steps[Workload.FAILOVER_TUNED] = self._tuned
        return steps

    async def _put(self, clients: int) -> Load:
        return await wrk(
            f"{self._url}/v3/kv/put",
            self._folder / "put.lua",
            clients=clients,
            seconds=self._effort.seconds,
            environment={
                "BENCH_FIRST_KEY": str(_KEYS_OF_A_RUN * next(self._keys)),
                "BENCH_VALUE": _VALUE,
            },
        )

    async def _sequential(self) -> list[Reading]:
        return latencies(await self._put(1))

    async def _single_64(self) -> list[Reading]:
        return await with_cpu(list(self._members.servers.values()), self._put(64))

    async def _single_256(self) -> list[Reading]:
        return throughput(await self._put(256))

    async def _read(self, *, is_local: bool) -> list[Reading]:
        key = base64.b64encode(b"key to read").decode()
        await self._members.call(self._url, "kv/put", {"key": key, "value": _VALUE})
        load = await wrk(
            f"{self._url}/v3/kv/range",
            self._folder / "range.lua",
            clients=64,
            seconds=self._effort.seconds,
            environment={"BENCH_BODY": f'{{"key":"{key}","serializable":{str(is_local).lower()}}}'},
        )
        return throughput(load)

    async def _posted(self, method: str, name: str, clients: int) -> Load:
        if shutil.which("h2load") is None:
            raise BenchError("h2load is missing: install Debian's package nghttp2-client")
        before = await self._revision()
        load = await h2load(
            f"{self._url}/etcdserverpb.KV/{method}",
            self._folder / name,
            clients=clients,
            seconds=self._effort.seconds,
            log=self._folder / f"h2load{next(self._runs)}.tsv",
        )
        written = await self._revision() - before
        if written < load.count:
            raise BenchError(f"gRPC: {load.count} requests answered, {written} of them written")
        return load

    async def _revision(self) -> int:
        answer = await self._members.call(self._url, "kv/range", {"key": "AA=="})
        return int(answer["header"]["revision"])

    async def _grpc_sequential(self) -> list[Reading]:
        return latencies(await self._posted("Put", "put", 1), note=GRPC_NOTE)

    async def _grpc(self, clients: int) -> list[Reading]:
        return throughput(await self._posted("Put", "put", clients), note=GRPC_NOTE)

    async def _batched(self) -> list[Reading]:
        load = await self._posted("Txn", "txn", BATCH_CLIENTS)
        note = f"transactions of {TRANSACTION_PUTS} puts over {GRPC_NOTE}"
        return throughput(load, batch=TRANSACTION_PUTS, note=note)

    async def _memory(self) -> list[Reading]:
        """The leader's memory once it keeps so many keys."""
        numbers = iter(range(self._effort.records // TRANSACTION_PUTS))

        async def load() -> None:
            for number in numbers:
                first = number * TRANSACTION_PUTS
                puts = [
                    {"request_put": {"key": f"{key:0{KEY_DIGITS}d}", "value": _VALUE}}
                    for key in range(first, first + TRANSACTION_PUTS)
                ]
                await self._members.call(self._url, "kv/txn", {"success": puts})

        await asyncio.gather(*(load() for _ in range(_LOADERS)))
        note = f"the leader, after {self._effort.records:,} puts"
        return [Reading(Measure.MIB, memory_mib(self._members.servers[self._leader]), note)]

    async def _tuned(self) -> list[Reading]:
        """On a cluster of its own; the first one is only in the way by now."""
        await self._members.end()
        folder = self._folder / "tuned"
        folder.mkdir()
        async with started(folder, heartbeat_ms=TUNED_HEARTBEAT_MS) as (members, _):
            note = (
                f"heartbeat {TUNED_HEARTBEAT_MS} ms, "
                f"election timeout {TUNED_ELECTION_MS[0]} to {TUNED_ELECTION_MS[1]} ms"
            )
            readings = await failovers(members, self._effort)
            return [reading._replace(note=note) for reading in readings]


async def failovers(members: Members, effort: Effort) -> list[Reading]:
    """`kill -9` of the leader until a survivor acknowledges a put."""
    times_ms = []
    body = {"key": "AAAA", "value": _VALUE}
    for _ in range(effort.failovers):
        leader = await members.wait_for_leader()
        url = next(url for name, url in members.urls.items() if name != leader)

        async def attempt(url: str = url) -> bool:
            try:
                await members.call(url, "kv/put", body)
            except httpx.HTTPError:
                return False
            return True

        if not await attempt():
            raise BenchError("a follower does not take a put before the leader is killed")
        await members.servers[leader].kill()
        times_ms.append(await first_acknowledged(attempt))
        await members.start(leader)
    return [Reading(Measure.P50_MS, median(times_ms)), Reading(Measure.WORST_MS, max(times_ms))]


@contextlib.asynccontextmanager
async def started(folder: Path, *, heartbeat_ms: int | None) -> AsyncIterator[tuple[Members, str]]:
    """Three fresh members with a leader."""
    members = Members(folder, heartbeat_ms=heartbeat_ms)
    try:
        for name in MEMBERS:
            await members.start(name)
        yield members, await members.wait_for_leader()
    finally:
        await members.end()


@contextlib.asynccontextmanager
async def running(folder: Path, effort: Effort) -> AsyncIterator[Steps]:
    """A cluster with etcd's own timeouts, and what can be measured on it."""
    async with started(folder, heartbeat_ms=None) as (members, leader):
        yield Etcd(members, folder, effort, leader=leader).steps()


def put_request(key: bytes, value: bytes) -> bytes:
    """`etcdserverpb.PutRequest`: the key is field 1, the value field 2."""
    return _field(1, key) + _field(2, value)


def txn_request(value: bytes) -> bytes:
    """`etcdserverpb.TxnRequest` without conditions: field 2 repeats `RequestOp`, a put its 2."""
    puts = (put_request(b"key %d" % number, value) for number in range(TRANSACTION_PUTS))
    return b"".join(_field(2, _field(2, put)) for put in puts)


def frame(message: bytes) -> bytes:
    """A gRPC message as it is posted: not compressed, its length, itself."""
    return struct.pack(">BI", 0, len(message)) + message


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits to a byte, the eighth says that more follow
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def find_version() -> str:
    """What the installed program says."""
    command = [str(shutil.which("etcd")), "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"etcd Version: (\S+)", output)
    return found[1] if found else "unknown"


def subject() -> Subject:
    """What is measured."""
    return Subject(
        name=NAME,
        version=find_version(),
        acknowledgement="on the disks of a majority of three members, fsynced",
        is_durable=True,
    )


PEERS: Final = (
    Peer(
        name=NAME,
        install="install Debian's packages etcd-server, wrk and, for gRPC, nghttp2-client",
        is_installed=lambda: bool(shutil.which("etcd") and shutil.which("wrk")),
        subject=subject,
        running=running,
    ),
)
