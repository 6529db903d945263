"""Every node of a cluster of processes is restarted in turn, under load: clients notice nothing."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from cluster.folder import Shape
from cluster.local import ClusterOptions, LocalCluster
from cluster.process import ProcessState
from node.cli_errors import ExitCode
from node.cli_init import cluster_id
from node.cli_join import introduce
from node.client import LedgerClient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from node.client import Receipt

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio]

CLIENTS = 4
DEADLINE_S = 30.0
LONGEST_GAP_S = 5.0
"""Loose: a machine with other work must pass. What it was is printed."""


class Clients:
    """Record one transaction after the other until told to stop; any error ends the test."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.receipts: dict[str, Receipt] = {}
        self.sent: set[str] = set()
        self.is_over = False
        self.longest_gap_s = 0.0
        self._last_s = time.monotonic()
        self._urls = urls

    async def run(self, number: int) -> None:
        """One client; each prefers another node."""
        first = number % len(self._urls)
        async with LedgerClient([*self._urls[first:], *self._urls[:first]]) as ledger:
            while not self.is_over:
                wanted = uuid.uuid4()
                self.sent.add(str(wanted))
                receipt = await ledger.record_transaction(
                    user_id=f"user{number}", kind="note", payload=number, transaction_id=wanted
                )
                now_s = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now_s - self._last_s)
                self._last_s = now_s
                assert receipt.id == str(wanted)
                self.receipts[receipt.id] = receipt


async def caught_up(cluster: LocalCluster, name: str) -> None:
    """Wait until a node that was started knows its leader and has applied what is committed."""
    url = cluster.urls[cluster.names.index(name)]
    view = await cluster.wait_for_leader(timeout_s=DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S), LedgerClient([url]) as ledger:
        while True:
            own = await ledger.cluster()
            if own.leader is not None and own.term >= view.term:
                # A linearizable read waits until all that is committed now is applied there.
                await ledger.history_page("nobody", limit=1)
                return
            await asyncio.sleep(0.01)  # another process: there is no event to wait for


async def test_a_rolling_restart_is_not_noticed(tmp_path: Path) -> None:
    """No request fails, nothing is lost or recorded twice; then one chain is lost and refused."""
    reports: list[str] = []
    options = ClusterOptions(data_dir=tmp_path / "data", shape=Shape(nodes=3, http_port=0))
    cluster = LocalCluster(options, report=reports.append)
    async with cluster:
        clients = Clients(cluster.urls)
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(clients.run(number))
            # The leader first, so that the leadership moves at least once.
            leader = await cluster.leader()
            for name in sorted(cluster.names, key=lambda name: name != leader):
                await cluster.stop_node(name)
                await cluster.start_node(name)
                await caught_up(cluster, name)
            clients.is_over = True
        gap_ms = clients.longest_gap_s * 1_000
        sys.stdout.write(f"{len(clients.receipts)} recorded, longest gap {gap_ms:.0f} ms\n")
        assert clients.sent == clients.receipts.keys()
        assert [] == reports
        assert clients.longest_gap_s < LONGEST_GAP_S
        assert await recorded(cluster.urls[0]) == {
            one.id: (one.index, one.position) for one in clients.receipts.values()
        }
        introduction = await asyncio.to_thread(
            introduce, cluster.urls[1], cluster_id=cluster_id(cluster.folder.genesis), timeout_s=5
        )
        assert cluster.folder.genesis == introduction.genesis
        assert cluster.folder.genesis.members == introduction.invitation.members
        await _lose_a_chain(cluster, reports)


async def recorded(url: str) -> dict[str, tuple[int, int]]:
    """Every transaction of the chain, by its id; none is there twice."""
    found: dict[str, tuple[int, int]] = {}
    async with LedgerClient([url]) as ledger:
        await ledger.history_page("nobody", limit=1)
        for index in range(1, (await ledger.cluster()).applied_index + 1):
            for position, one in enumerate((await ledger.block(index)).transactions):
                assert one.id not in found
                found[one.id] = (index, position)
    return found


async def _lose_a_chain(cluster: LocalCluster, reports: list[str]) -> None:
    """A node whose chain is gone ends with a code of its own, and is left alone."""
    await cluster.stop_node("node2")
    folder = cluster.data_dirs["node2"]
    shutil.rmtree(folder / "chain")
    await cluster.start_node("node2")
    await cluster.node("node2").wait_dead()
    assert ProcessState.DEAD is cluster.node("node2").state
    assert ExitCode.LOST_CHAIN == cluster.node("node2").exit_code
    (report,) = reports
    assert "exit code 23: another start would end the same way" in report
    last = (folder / "log").read_text().splitlines()[-1]
    assert "it would have forgotten its votes" in last
    assert "`bitnexus member remove node2`" in last
    assert not (folder / "chain").exists()
