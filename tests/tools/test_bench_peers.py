"""Each peer really starts and is really measured, for a second; what it is sent is what it takes.

PostgreSQL runs wherever the project is installed. The others take seconds that a build does not
have: `BITNEXUS_PEERS=1` runs those of them that are installed.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import signal
from typing import TYPE_CHECKING

import psycopg
import pytest

from cluster.bench.figures import Measure, Workload
from tools.bench import etcd, mnesia, postgres, pysyncobj, raftos
from tools.bench.__main__ import PEERS
from tools.bench.peer import CONTENT, Effort
from tools.bench.servers import HOST, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.peer import Peer

OTHERS = [peer for peer in PEERS if peer not in postgres.PEERS]
EFFORT = Effort(seconds=1, failovers=1, records=1_000)


async def measured(peer: Peer, folder: Path, *workloads: Workload) -> set[tuple[Workload, Measure]]:
    """What a fresh peer was measured by; each value is above nothing."""
    found = set()
    async with peer.running(folder, EFFORT) as steps:
        for workload in workloads:
            for reading in await steps[workload]():
                assert reading.value > 0
                found.add((workload, reading.measure))
    return found


@pytest.mark.postgres
@pytest.mark.asyncio
async def test_three_postgres_nodes_are_measured(tmp_path: Path) -> None:
    """A primary with two standbys: one insert after another, and the memory after batches."""
    one, three = postgres.PEERS
    assert one.is_installed()
    found = await measured(three, tmp_path, Workload.MEMORY, Workload.SEQUENTIAL)

    assert {
        (Workload.MEMORY, Measure.MIB),
        (Workload.SEQUENTIAL, Measure.P50_MS),
        (Workload.SEQUENTIAL, Measure.P99_MS),
    } == found


@pytest.mark.postgres
@pytest.mark.asyncio
async def test_postgres_waits_for_a_standby_and_keeps_whole_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An insert hangs while no standby lives, so that an acknowledgement is what is said of it."""
    databases: list[postgres.Database] = []
    start = postgres.Database.start

    async def remember(self: postgres.Database, standbys: int) -> None:
        databases.append(self)
        await start(self, standbys)

    monkeypatch.setattr(postgres.Database, "start", remember)
    async with postgres.PEERS[1].running(tmp_path, EFFORT):
        (database,) = databases
        dsn = database.primary.dsn
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await postgres._copy(connection)
            await connection.execute(postgres.INSERT.encode())
            rows = await connection.execute("SELECT DISTINCT user_id, kind, payload FROM ledger")
            assert 1 == len(await rows.fetchall())
            for standby in database.nodes[1:]:
                await standby.server.kill(signal.SIGQUIT)  # with its processes: they acknowledge
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                insert = asyncio.ensure_future(other.execute(postgres.INSERT.encode()))

                async def waits_for_a_standby() -> bool:
                    assert not insert.done()
                    rows = await connection.execute(
                        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
                        "WHERE wait_event = 'SyncRep'"
                    )
                    return await rows.fetchall() == [(True,)]

                what = "the insert waits for a standby"
                await wait_until(waits_for_a_standby, database.servers[:1], what=what)
                await insert


@pytest.mark.parametrize("peer", OTHERS, ids=lambda peer: peer.name)
@pytest.mark.asyncio
async def test_the_other_peers_are_measured(peer: Peer, tmp_path: Path) -> None:
    """One write after another, and the memory, of each that is installed."""
    if os.environ.get("BITNEXUS_PEERS") != "1":
        pytest.skip("takes seconds: BITNEXUS_PEERS=1 runs it")
    if not peer.is_installed():
        pytest.skip(f"{peer.name} is not installed: {peer.install}")
    found = await measured(peer, tmp_path, Workload.MEMORY, Workload.SEQUENTIAL)

    assert {
        (Workload.MEMORY, Measure.MIB),
        (Workload.SEQUENTIAL, Measure.P50_MS),
        (Workload.SEQUENTIAL, Measure.P99_MS),
    } == found
    assert peer.name == peer.subject().name


def test_who_does_not_fsync_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """PySyncObj, raftos and Mnesia's plain way; the others are durable."""
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0")
    monkeypatch.setattr(etcd, "find_version", lambda: "0")
    monkeypatch.setattr(mnesia, "find_version", lambda: "0")
    subjects = [peer.subject() for peer in PEERS]

    assert [peer.name for peer in PEERS] == [subject.name for subject in subjects]
    loose = [subject.name for subject in subjects if not subject.is_durable]
    assert [mnesia.SYNC, pysyncobj.SHIPPED, pysyncobj.QUICK, raftos.NAME] == loose
    for subject in subjects:
        assert subject.is_durable == ("no fsync" not in subject.acknowledgement)
        assert subject.is_durable == ("fsynced" in subject.acknowledgement)


@pytest.mark.asyncio
async def test_attempts_that_hang_do_not_keep_later_ones_waiting(tmp_path: Path) -> None:
    """A failover begins fifty attempts a second: a client with few connections would add to it."""
    attempts = 150
    arrived = asyncio.Barrier(attempts)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        await arrived.wait()  # nobody is answered before everybody has come
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0, backlog=attempts)
    members = etcd.Members(tmp_path, heartbeat_ms=None)
    url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    async with server, asyncio.timeout(20):
        answers = await asyncio.gather(*(members.call(url, "kv/put", {}) for _ in range(attempts)))
    await members.end()

    assert [{}] * attempts == answers


def test_etcd_is_sent_what_its_protocol_says() -> None:
    """A put by hand, from the field numbers of rpc.proto; lengths above 127 take two bytes."""
    assert b"\x0a\x01k\x12\x02vv" == etcd.put_request(b"k", b"vv")
    assert b"\x0a\x01k\x12\xac\x02" + 300 * b"v" == etcd.put_request(b"k", 300 * b"v")
    assert b"\x00\x00\x00\x00\x03abc" == etcd.frame(b"abc")


def test_etcd_is_sent_a_transaction_of_a_hundred_keys() -> None:
    """Each a request of its own: etcd refuses a key that comes twice."""
    put = etcd.put_request(b"key 7", b"v")
    wrapped = b"\x12" + bytes([2 + len(put)]) + b"\x12" + bytes([len(put)]) + put
    request = etcd.txn_request(b"v")

    assert 1 == request.count(wrapped)
    assert {1} == {request.count(etcd.put_request(b"key %d" % n, b"v")) for n in range(100)}
    assert CONTENT.encode() in etcd.txn_request(CONTENT.encode())
