"""Measures what grows with a ledger: memory, catch-up, verification, the checkpoint to PostgreSQL.

Each on as many transactions as the plan says. Verification and checkpoint run the shipped code in
this process, on the chain of a node that was stopped, so that nothing else competes with them.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING, Final

from cluster.bench.errors import BenchError
from cluster.bench.figures import Measure, Workload
from cluster.bench.plan import LEDGER
from cluster.bench.processes import own_memory_mib
from cluster.bench.stage import options_for, running
from cluster.database import KeptDatabase
from cluster.postgres_programs import PostgresError
from cluster.process import Backoff
from node.audit import audit_store
from node.checkpointer import Checkpointer
from node.config import CHAIN_FOLDER
from node.status import AppliedBlocks
from storage.chain import ChainStore

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.bench.plan import Book, Plan
    from cluster.bench.stage import Stage

_POLL_S: Final = 0.02
_TIMEOUT_S: Final = 300.0
_BYTES_PER_MB: Final = 1_000_000


class WholeChain:
    """How far a node that was stopped had applied its chain: to its end."""

    def __init__(self, store: ChainStore) -> None:
        """Take a store to which nobody adds."""
        self.applied_index = store.last_index

    async def wait_applied(self, beyond: int) -> int:
        """Wait for more, in vain."""
        assert beyond >= self.applied_index, "what is there needs no waiting"
        await asyncio.Event().wait()
        return self.applied_index


async def measure_memory(stage: Stage, plan: Plan, book: Book) -> None:
    """A node's memory after so many transactions, on nodes that were just started."""
    for workload in book.wanted(plan, (Workload.MEMORY,)):
        await stage.fill(plan.transactions)
        await stage.rest()
        used = own_memory_mib(stage.processes(await stage.leader()))
        note = f"leader and its index process, RssAnon, after {plan.transactions:,} transactions"
        book.add(LEDGER, workload, {Measure.MIB: used}, note)


async def measure_catch_up(folder: Path, plan: Plan, book: Book) -> None:
    """A node that was stopped while it was empty comes back to a long chain."""
    for workload in book.wanted(plan, (Workload.CATCH_UP,)):
        async with running(options_for(folder, nodes=3)) as stage:
            leader = await stage.leader()
            away = next(name for name in stage.urls if name != leader)
            await stage.rest()
            await stage.cluster.stop_node(away)
            await stage.fill(plan.transactions)
            target = (await stage.metrics(leader))["commit_index"]
            started = time.perf_counter()
            await stage.cluster.start_node(away)
            await _until_applied(stage, away, target)
            elapsed_s = time.perf_counter() - started
        note = f"{plan.transactions:,} transactions, from the start of its process"
        book.add(LEDGER, workload, {Measure.PER_S: plan.transactions / elapsed_s}, note)


async def measure_archive(folder: Path, plan: Plan, book: Book) -> None:
    """Verify a node's chain, and copy it to PostgreSQL."""
    if not plan.wants(Workload.VERIFY, Workload.CHECKPOINT):
        return
    async with running(options_for(folder, nodes=1)) as stage:
        await stage.fill(plan.transactions)
        await stage.rest()
        (data_dir,) = stage.cluster.data_dirs.values()
    for workload in book.wanted(plan, (Workload.VERIFY,)):
        speeds = [
            {Measure.MB_PER_S: await asyncio.to_thread(_verify, data_dir)}
            for _ in range(plan.rounds)
        ]
        book.add_median(LEDGER, workload, speeds, "every rule of every block, read from disk")
    for workload in book.wanted(plan, (Workload.CHECKPOINT,)):
        try:
            rows_per_s = await _checkpoint(data_dir, folder / "postgres")
        except PostgresError as error:
            book.skip(workload.value, str(error))
        else:
            book.add(LEDGER, workload, {Measure.PER_S: rows_per_s}, "rows, one for a transaction")


async def _until_applied(stage: Stage, name: str, target: float) -> None:
    async with asyncio.timeout(_TIMEOUT_S):
        while await _applied(stage, name) < target:  # noqa: ASYNC110 - another process
            await asyncio.sleep(_POLL_S)


async def _applied(stage: Stage, name: str) -> float:
    try:
        return (await stage.metrics(name))["applied_index"]
    except (OSError, BenchError):  # it is still starting
        return -1


def _verify(data_dir: Path) -> float:
    """Megabytes of blocks a second."""
    with closing(ChainStore.open(data_dir / CHAIN_FOLDER, readonly=True)) as store:
        blocks = range(store.last_index + 1)
        size_bytes = sum(store.block(index).size_bytes for index in blocks)
        started = time.perf_counter()
        for step in audit_store(store):
            if step.finding is not None:
                raise BenchError(f"the chain does not hold: {step.finding}")
        elapsed_s = time.perf_counter() - started
    return size_bytes / _BYTES_PER_MB / elapsed_s


async def _checkpoint(data_dir: Path, postgres_dir: Path) -> float:
    """Rows a second, from the first connection to the last row."""
    database = KeptDatabase(
        postgres_dir, restart=False, backoff=Backoff(), report=lambda _line: None
    )
    dsn = await database.start()
    try:
        with closing(ChainStore.open(data_dir / CHAIN_FOLDER, readonly=True)) as store:
            whole = WholeChain(store)
            copier = Checkpointer(
                dsn, AppliedBlocks(whole, store), cluster_id=store.cluster_id, random=Random(1)
            )
            started = time.perf_counter()
            task = asyncio.create_task(copier.run())
            async with asyncio.timeout(_TIMEOUT_S):
                while copier.checkpointed_index < whole.applied_index:  # noqa: ASYNC110 - a number
                    await asyncio.sleep(_POLL_S)
            elapsed_s = time.perf_counter() - started
            task.cancel()
            await asyncio.wait([task])
            return copier.rows / elapsed_s
    finally:
        await database.stop()
