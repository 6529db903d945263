"""The promise, end to end: 20,000 transactions, a killed leader, a restart of all; nothing lost.

Real processes, real sockets, real LMDB, a real PostgreSQL. What was acknowledged is compared with
the three chains, the database and the histories, row by row.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from cluster.folder import Shape
from cluster.local import EMBEDDED, ClusterOptions, LocalCluster
from consensus.block import transaction_id
from node.cli_verify import verify_folder
from node.client import ConflictError, LedgerClient, NewTransaction, Receipt
from storage.chain import ChainStore
from storage.checkpoint import CheckpointStore
from tools.sample import transactions as sample_transactions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

COUNT = 20_000
SEED = 20_000
BATCH = 50
SENDERS = 9
RETRIED = 40
PATIENCE_S = 60.0


class Workload:
    """What was sent, and what was acknowledged; an event at the half."""

    def __init__(self) -> None:
        """Nothing is acknowledged yet."""
        self.sent = {
            str(one["id"]): NewTransaction(
                id=uuid.UUID(one["id"]),
                user_id=one["user_id"],
                kind=one["kind"],
                payload=one["payload"],
            )
            for one in sample_transactions(COUNT, SEED)
        }
        self.receipts: dict[str, Receipt] = {}
        self.half_way = asyncio.Event()
        self._batches = self._make_batches()

    def _make_batches(self) -> list[list[NewTransaction]]:
        every = list(self.sent.values())
        singles = [[one] for one in every[:500]]
        return singles + [every[n : n + BATCH] for n in range(500, len(every), BATCH)]

    async def send(self, urls: Sequence[str]) -> None:
        """One of several senders: takes batches until none is left, and prefers `urls[0]`."""
        async with LedgerClient(urls, timeout_s=PATIENCE_S) as ledger:
            while self._batches:
                batch = self._batches.pop()
                for receipt in await ledger.record_transactions(batch):
                    self.receipts[receipt.id] = receipt
                if len(self.receipts) >= COUNT // 2:
                    self.half_way.set()


async def same_height(cluster: LocalCluster) -> int:
    """Waits until all nodes have applied the same index, and says which."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            heights = set()
            for url in cluster.urls:
                async with LedgerClient([url]) as ledger:
                    view = await ledger.cluster()
                    heights |= {view.applied_index, view.last_index}
            if len(heights) == 1:
                return heights.pop()
            await asyncio.sleep(0.02)


async def wait_for_checkpoint(dsn: str, cluster_id: bytes, index: int) -> None:
    """Waits until PostgreSQL has everything through `index`."""
    async with asyncio.timeout(PATIENCE_S):
        async with await CheckpointStore.connect(dsn, cluster_id=cluster_id) as store:
            while True:
                progress = await store.progress()
                if progress is not None and progress.index >= index:
                    return
                await asyncio.sleep(0.02)


def check_chains(
    data_dirs: Mapping[str, Path], receipts: Mapping[str, Receipt], last: int
) -> bytes:
    """Byte-identical chains, in which every receipt is true and no id is twice; the cluster id."""
    encoded: dict[str, list[bytes]] = {}
    cluster_id = b""
    for name, data_dir in data_dirs.items():
        with closing(ChainStore.open(data_dir / "chain", readonly=True)) as chain:
            cluster_id = chain.cluster_id
            blocks = [chain.block(index) for index in range(last + 1)]
        places = {
            str(uuid.UUID(bytes=transaction_id(raw))): (block.index, position, block.hash.hex())
            for block in blocks[1:]
            for position, raw in enumerate(block.transactions)
        }
        assert sum(len(block.transactions) for block in blocks[1:]) == len(places)
        assert {
            one.id: (one.index, one.position, one.block_hash) for one in receipts.values()
        } == places
        encoded[name] = [block.encode() for block in blocks]
    first, *others = encoded.values()
    assert all(first == other for other in others)
    return cluster_id


async def check_histories(urls: Sequence[str], workload: Workload) -> None:
    """Each user's history, asked of one node after the other, is what was acknowledged."""
    expected: dict[str, list[tuple[int, int, str, Any]]] = defaultdict(list)
    for one in workload.receipts.values():
        sent = workload.sent[one.id]
        expected[sent.user_id].append((one.index, one.position, one.id, sent.payload))
    for number, (user_id, rows) in enumerate(expected.items()):
        async with LedgerClient([urls[number % len(urls)]]) as ledger:
            found = [
                (item.index, item.position, item.id, item.payload)
                async for item in ledger.transactions(user_id, order="asc", page_size=500)
            ]
        assert sorted(rows, key=lambda row: row[:2]) == found


async def check_retries(urls: Sequence[str], workload: Workload) -> None:
    """The same ids again, at every node: the first receipts; other content: a conflict."""
    some = list(workload.receipts.values())[:: COUNT // RETRIED]
    for url in urls:
        async with LedgerClient([url]) as ledger:
            again = await ledger.record_transactions([workload.sent[one.id] for one in some])
            assert some == again
            changed = workload.sent[some[0].id]
            with pytest.raises(ConflictError):
                await ledger.record_transaction(
                    user_id=changed.user_id,
                    kind=changed.kind,
                    payload={"changed": True},
                    transaction_id=uuid.UUID(some[0].id),
                )


@pytest.mark.cluster
@pytest.mark.postgres
@pytest.mark.asyncio
@pytest.mark.timeout(300)
async def test_nothing_acknowledged_is_lost_and_nothing_is_recorded_twice(tmp_path: Path) -> None:
    """Kill -9 of the leader in the middle, a restart of all at the end, then every comparison."""
    options = ClusterOptions(
        data_dir=tmp_path / "data", shape=Shape(nodes=3, http_port=0), postgres=EMBEDDED
    )
    workload = Workload()
    async with LocalCluster(options) as cluster:
        urls = list(cluster.urls)
        async with asyncio.TaskGroup() as senders:
            for number in range(SENDERS):
                start = number % len(urls)
                senders.create_task(workload.send(urls[start:] + urls[:start]))
            await workload.half_way.wait()
            leader = await cluster.leader()
            assert leader is not None
            await cluster.kill(leader)
        assert workload.sent.keys() == workload.receipts.keys()
        await check_retries(urls, workload)

        await cluster.restart_all()
        await check_retries(urls, workload)
        last = await same_height(cluster)
        cluster_id = check_chains(cluster.data_dirs, workload.receipts, last)
        await check_histories(urls, workload)

        assert cluster.postgres_dsn is not None
        await wait_for_checkpoint(cluster.postgres_dsn, cluster_id, last)
        for data_dir in cluster.data_dirs.values():
            verdicts = await asyncio.to_thread(
                verify_folder, data_dir, postgres_dsn=cluster.postgres_dsn
            )
            assert [None] * 3 == [verdict.finding for verdict in verdicts]
            assert {last} == {verdict.through for verdict in verdicts}
