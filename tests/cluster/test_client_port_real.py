"""Client ports of three real processes: pipelined submits survive `kill -9` of any node."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from cluster.folder import Shape
from cluster.local import ClusterOptions, LocalCluster
from consensus.block import transaction_id
from node.client import ConflictError, LedgerClient, NewTransaction
from storage.chain import ChainStore

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from consensus.block import Block
    from node.client import Receipt

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]

CALLERS = 64
RECORDED = 6_000
PATIENCE_S = 60.0


class Callers:
    """Many callers on few connections, each with one transaction under way, until told to stop."""

    def __init__(self) -> None:
        self.receipts: dict[str, Receipt] = {}
        self.sent: set[bytes] = set()
        self.is_over = False
        self.more = asyncio.Event()

    async def run(self, ledger: LedgerClient, number: int) -> None:
        """One caller."""
        while not self.is_over:
            wanted = uuid.uuid4()
            self.sent.add(wanted.bytes)
            receipt = await ledger.record_transaction(
                user_id=f"user{number}", kind="note", payload=number, transaction_id=wanted
            )
            assert str(wanted) == receipt.id
            self.receipts[receipt.id] = receipt
            self.more.set()

    async def until(self, count: int) -> None:
        """Wait until so many receipts are there."""
        while len(self.receipts) < count:
            self.more.clear()
            await self.more.wait()


def blocks_of(folder: Path, last: int) -> list[Block]:
    """A node's chain through the block `last`, or as far as the node had come."""
    with closing(ChainStore.open(folder, readonly=True)) as chain:
        return [chain.block(index) for index in range(min(last, chain.last_index) + 1)]


def check_chains(folders: Iterable[Path], callers: Callers) -> None:
    """One chain, in which every receipt is true, every transaction was sent, and no id is twice."""
    last = max(receipt.index for receipt in callers.receipts.values())
    chains = [blocks_of(folder / "chain", last) for folder in folders]
    longest = max(chains, key=len)
    assert last == longest[-1].index
    assert all(chain == longest[: len(chain)] for chain in chains)
    ids = [transaction_id(raw) for block in longest[1:] for raw in block.transactions]
    assert [] == [wanted for wanted, count in Counter(ids).items() if count > 1]
    assert callers.sent >= set(ids)
    for receipt in callers.receipts.values():
        block = longest[receipt.index]
        recorded = transaction_id(block.transactions[receipt.position])
        assert (receipt.id, receipt.block_hash) == (
            str(uuid.UUID(bytes=recorded)),
            block.hash.hex(),
        )


async def test_killed_nodes_lose_nothing_and_record_nothing_twice(tmp_path: Path) -> None:
    """The leader, then another: every receipt stands in every chain, each id once."""
    options = ClusterOptions(data_dir=tmp_path / "data", shape=Shape(http_port=0))
    async with asyncio.timeout(PATIENCE_S * 2), LocalCluster(options) as cluster:
        callers = Callers()
        urls = cluster.client_urls
        async with (
            LedgerClient(urls, timeout_s=PATIENCE_S) as one,
            LedgerClient([*urls[1:], urls[0]], timeout_s=PATIENCE_S) as other,
            asyncio.TaskGroup() as group,
        ):
            for number in range(CALLERS):
                group.create_task(callers.run(one if number % 2 else other, number))
            await callers.until(RECORDED // 3)
            leader = await cluster.leader()
            assert leader is not None
            await cluster.kill(leader)
            await callers.until(2 * RECORDED // 3)
            await cluster.wait_for_leader(timeout_s=PATIENCE_S)
            await cluster.kill(next(name for name in cluster.names if name != leader))
            await callers.until(RECORDED)
            callers.is_over = True
        await cluster.wait_for_leader(timeout_s=PATIENCE_S)
        async with LedgerClient(urls, timeout_s=PATIENCE_S) as ledger:
            for number, (text, receipt) in enumerate(callers.receipts.items()):
                if number % 100 == 0:
                    again = await ledger.receipt(uuid.UUID(text))
                    assert receipt == again.receipt
        folders = cluster.data_dirs
    check_chains(folders.values(), callers)


async def test_both_faces_of_a_cluster_know_the_same_ids(tmp_path: Path) -> None:
    """A retry over HTTP has the port's receipt, a conflict is one on both, a batch is shared."""
    options = ClusterOptions(data_dir=tmp_path / "data", shape=Shape(nodes=1, http_port=0))
    async with LocalCluster(options) as cluster:
        batch = [
            NewTransaction(id=uuid.uuid4(), user_id="alice", kind="note", payload={"n": n})
            for n in range(1_500)
        ]
        async with (
            LedgerClient(cluster.client_urls) as port,
            LedgerClient(cluster.urls) as http,
            LedgerClient([*cluster.client_urls, *cluster.urls]) as both,
        ):
            receipts = await port.record_transactions(batch)
            assert receipts == await http.record_transactions(batch)
            other = uuid.UUID(receipts[0].id)
            for ledger in (port, http, both):
                with pytest.raises(ConflictError):
                    await ledger.record_transaction(
                        user_id="bob", kind="note", payload=0, transaction_id=other
                    )
            assert (await port.receipt(other)).receipt == (await http.receipt(other)).receipt
            items = [item async for item in both.transactions("alice", page_size=1_000)]
    assert {receipt.id for receipt in receipts} == {item.id for item in items}
