"""The checkpointer against a real PostgreSQL that is killed, away, shared, or not what it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import psycopg
import pytest

from cluster.postgres import EmbeddedPostgres
from node import checkpointer as module
from node.checkpointer import (
    ALARM_RETRY_S,
    GATHER_S,
    LAST_RETRY_S,
    RATE_S,
    STAND_BY_S,
    Checkpointer,
)
from node.status import checkpoint_metrics
from storage.checkpoint import CheckpointStore
from storage.checkpoint_compare import Comparison, compare
from tests.postgres_fixture import Chain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from consensus.block import Block

pytestmark = pytest.mark.postgres


class Pace:
    """Stands in for sleeping: notes how long, and lets everything else go on at once."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.on_sleep: Callable[[], None] = lambda: None

    async def sleep(self, seconds: float) -> None:
        """Take no time."""
        self.slept.append(seconds)
        self.on_sleep()
        await asyncio.sleep(0)


def make_checkpointer(dsn: str, chain: Chain, pace: Pace | None = None) -> Checkpointer:
    """Make a checkpointer that never really sleeps."""
    pace = pace or Pace()
    return Checkpointer(dsn, chain, cluster_id=chain.cluster_id, random=Random(1), sleep=pace.sleep)


@asynccontextmanager
async def running(*checkpointers: Checkpointer) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run checkpointers, and cancel those that still run in the end."""
    tasks: list[asyncio.Task[None]] = [asyncio.create_task(each.run()) for each in checkpointers]
    try:
        yield tasks
    finally:
        for task in tasks:
            await cancel(task)


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is gone."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - counters tell no event
            await asyncio.sleep(0)


async def compared(dsn: str, chain: Chain) -> Comparison:
    """Compare the whole database with the chain."""
    async with await CheckpointStore.connect(dsn, cluster_id=chain.cluster_id) as store:
        return await compare(store, chain, through=chain.commit_index)


def all_of(chain: Chain) -> Comparison:
    """What `compared` returns where PostgreSQL equals the chain."""
    transactions = sum(len(block.transactions) for block in chain.blocks)
    last = chain.commit_index
    return Comparison(last, last, last + 1, transactions, None)


@pytest.mark.asyncio
async def test_it_follows_the_chain_from_genesis_on(database: str, chain: Chain) -> None:
    """What is there is copied, and then whatever is committed, into tables it makes itself."""
    chain.grow(blocks=5)
    checkpointer = make_checkpointer(database, chain)
    async with running(checkpointer):
        await until(lambda: checkpointer.lag == 0)
        await chain.commit(blocks=3)
        assert 3 == checkpointer.lag
        await until(lambda: checkpointer.lag == 0)
    assert all_of(chain) == await compared(database, chain)
    assert (8, 25) == (checkpointer.checkpointed_index, checkpointer.rows)
    assert (None, None) == (checkpointer.last_error, checkpointer.alarm)


@pytest.mark.asyncio
async def test_large_arrears_are_copied_in_bounded_transactions(
    database: str, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After hours without PostgreSQL no SQL transaction is larger than a batch."""
    monkeypatch.setattr(module, "BATCH_ROWS", 100)
    chain.grow(blocks=10, transactions=40)
    chain.grow(blocks=1, transactions=150)
    chain.grow(blocks=1, transactions=40)
    checkpointer = make_checkpointer(database, chain)
    async with running(checkpointer):
        await until(lambda: checkpointer.lag == 0)
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT sum(transaction_count) FROM bitnexus.blocks GROUP BY xmin::text ORDER BY 1"
        ).fetchall()
    # Genesis is in the first batch; a block larger than a batch makes one of its own.
    assert [40, 80, 80, 80, 80, 81, 150] == [row[0] for row in rows]


@pytest.mark.asyncio
async def test_blocks_gather_while_it_pauses(database: str, chain: Chain) -> None:
    """Each SQL transaction costs an fsync: after one that caught up it pauses."""
    pace = Pace()
    checkpointer = make_checkpointer(database, chain, pace)
    async with running(checkpointer):
        await until(lambda: checkpointer.lag == 0)
        await chain.commit(blocks=1)
        await until(lambda: checkpointer.lag == 0 and not checkpointer.is_writer)
    assert [GATHER_S, GATHER_S] == pace.slept


@pytest.mark.asyncio
async def test_the_rate_is_a_mean_over_the_last_seconds(database: str, chain: Chain) -> None:
    """It falls back to nothing when nothing is copied any more."""
    now_s = 100.0
    chain.grow(blocks=5, transactions=30)
    checkpointer = Checkpointer(
        database, chain, cluster_id=chain.cluster_id, random=Random(1), now=lambda: now_s
    )
    assert 0 == checkpointer.rows_per_second
    async with running(checkpointer):
        await until(lambda: checkpointer.lag == 0)
    assert 151 == checkpointer.rows
    assert 15 == checkpointer.rows_per_second
    now_s += RATE_S
    assert 15 == checkpointer.rows_per_second
    now_s += 0.1
    assert 0 == checkpointer.rows_per_second


@pytest.mark.asyncio
async def test_metrics_tell_how_the_copy_is(database: str, chain: Chain) -> None:
    """How far it is, how much and how fast, and that something is wrong; little without a DSN."""
    chain.grow(blocks=4)
    checkpointer = make_checkpointer(database, chain)
    async with running(checkpointer):
        await until(lambda: checkpointer.lag == 0)
    await chain.commit(blocks=2)
    repair = Repair()
    lost = Checkpointer(
        database, Chain("other"), cluster_id=bytes(32), random=Random(1), sleep=repair.sleep
    )
    async with running(lost):
        await until(lambda: lost.alarm is not None)
    copied = {"checkpointed_index": 4, "checkpoint_lag_blocks": 2, "checkpoint_rows_total": 13}
    well = {"checkpoint_errors_total": 0, "checkpoint_failing": 0}
    rate = {"checkpoint_rows_per_second": 1}
    assert copied | well | rate == checkpoint_metrics(checkpointer)
    numbers = checkpoint_metrics(lost)
    assert (1, 1) == (numbers["checkpoint_errors_total"], numbers["checkpoint_failing"])
    assert {"checkpointed_index": -1} == checkpoint_metrics(None)


def has_copied(checkpointer: Checkpointer, rows: int) -> bool:
    """Say whether it has copied more than that."""
    return checkpointer.rows > rows


def children_of(pid: int) -> list[int]:
    """List a process's children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in children.split()]


async def kill_server(server: EmbeddedPostgres) -> None:
    """End every process of a server by SIGKILL, as a power cut of the machine would."""
    pid = server.pid
    assert pid is not None
    for each in (pid, *children_of(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    assert -signal.SIGKILL == await server.wait()


@pytest.mark.asyncio
async def test_each_row_is_there_once_however_often_postgres_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle of copying, restart, go on: every row once, none missing."""
    monkeypatch.setattr(module, "BATCH_ROWS", 1_000)
    server = EmbeddedPostgres(tmp_path / "postgres", stop_timeout_s=0)
    chain = Chain()
    pace = Pace()
    dsn = await server.start()
    checkpointer = make_checkpointer(dsn, chain, pace)
    try:
        async with running(checkpointer):
            for copied_rows in (0, 6_000, 12_000):
                await chain.commit(blocks=30, transactions=300)
                await until(partial(has_copied, checkpointer, copied_rows))
                assert checkpointer.lag > 0, "killed too late to prove anything"
                await kill_server(server)
                await until(lambda: checkpointer.last_error is not None)
                assert dsn == await server.start()
            await until(lambda: checkpointer.lag == 0)
        assert all_of(chain) == await compared(dsn, chain)
    finally:
        await server.stop()
    assert checkpointer.last_error is None
    assert LAST_RETRY_S >= max(pace.slept)


@pytest.mark.asyncio
async def test_each_row_is_there_once_however_often_it_is_cancelled(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that dies at any moment leaves whole SQL transactions, and the next run goes on."""
    monkeypatch.setattr(module, "BATCH_ROWS", 50)
    chain = Chain()
    chain.grow(blocks=400, transactions=10)
    random = Random(5)
    checkpointer = make_checkpointer(database, chain)
    for _ in range(40):
        async with running(checkpointer):
            for _ in range(random.randrange(250)):
                await asyncio.sleep(0)
    assert checkpointer.lag > 0, "it was done before it was cancelled often"
    async with running(checkpointer):
        await until(lambda: checkpointer.lag == 0)
    assert all_of(chain) == await compared(database, chain)


@pytest.mark.asyncio
async def test_of_several_nodes_one_writes_at_a_time(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three nodes point at one database: each row is copied by one of them, once."""
    monkeypatch.setattr(module, "BATCH_ROWS", 50)
    chain = Chain()
    pace = Pace()
    nodes = [make_checkpointer(database, chain, pace) for _ in range(3)]
    writers: list[int] = []
    pace.on_sleep = lambda: writers.append(sum(node.is_writer for node in nodes))
    async with running(*nodes):
        for _ in range(10):
            await chain.commit(blocks=10, transactions=10)
            await until(lambda: all(node.lag == 0 for node in nodes))
    assert {0, 1} >= set(writers)
    assert STAND_BY_S in pace.slept
    assert all_of(chain) == await compared(database, chain)
    assert all_of(chain).transactions == sum(node.rows for node in nodes)


class StuckChain(Chain):
    """A chain that is read no further than a gate allows."""

    def __init__(self, *, stuck_at: int) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self._stuck_at = stuck_at

    async def committed_blocks(self, first: int, max_bytes: int) -> list[Block]:
        """Never return from the read at the gate."""
        if first >= self._stuck_at:
            self.reached.set()
            await asyncio.Event().wait()
        return (await super().committed_blocks(first, max_bytes))[:1]


@pytest.mark.asyncio
async def test_a_stand_by_takes_over_from_a_writer_that_is_gone(
    database: str, chain: Chain
) -> None:
    """The lock ends with its holder's connection, and the next node goes on where it was."""
    stuck = StuckChain(stuck_at=3)
    stuck.grow(blocks=6)
    chain.grow(blocks=6)
    pace = Pace()
    first = make_checkpointer(database, stuck)
    second = make_checkpointer(database, chain, pace)
    async with running(first) as [task]:
        await stuck.reached.wait()
        async with running(second):
            await until(lambda: pace.slept.count(STAND_BY_S) > 2)
            assert (True, False) == (first.is_writer, second.is_writer)
            assert 2 == second.checkpointed_index
            await cancel(task)
            await until(lambda: second.lag == 0)
    assert not first.is_writer
    assert all_of(chain) == await compared(database, chain)


class OvertakenChain(Chain):
    """A chain that somebody without the lock copies while it is being read."""

    rival: CheckpointStore

    async def committed_blocks(self, first: int, max_bytes: int) -> list[Block]:
        """Return what is stored already when it is returned."""
        blocks = await super().committed_blocks(first, max_bytes)
        if first == 1:
            await self.rival.append(blocks)
        return blocks


@pytest.mark.asyncio
async def test_a_writer_that_is_overtaken_goes_on_from_there(database: str) -> None:
    """No alarm: whoever was first copied the same blocks."""
    chain, pace = OvertakenChain(), Pace()
    checkpointer = make_checkpointer(database, chain, pace)
    async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as rival:
        chain.rival = rival
        async with running(checkpointer):
            await until(lambda: checkpointer.lag == 0)
            await chain.commit(blocks=2)
            await until(lambda: checkpointer.lag == 0)
            await chain.commit(blocks=2)
            await until(lambda: checkpointer.lag == 0)
    assert all_of(chain) == await compared(database, chain)
    assert 1 + 6 == checkpointer.rows
    assert ALARM_RETRY_S not in pace.slept


@pytest.mark.asyncio
async def test_a_writer_with_nothing_left_gives_the_lock_back(database: str, chain: Chain) -> None:
    """A member that is cut off from the rest must not keep the rest from copying."""
    checkpointer = make_checkpointer(database, chain)
    async with running(checkpointer):
        await until(lambda: checkpointer.lag == 0 and not checkpointer.is_writer)
        async with await CheckpointStore.connect(database, cluster_id=chain.cluster_id) as store:
            async with asyncio.timeout(10):
                while not await store.try_lock():
                    pass


class Repair:
    """Stands in for sleeping, until the time comes to look whether an alarm was heeded."""

    def __init__(self) -> None:
        self.done = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Take no time, or wait for `done`."""
        if seconds == ALARM_RETRY_S:
            await self.done.wait()
        await asyncio.sleep(0)


@pytest.mark.asyncio
@pytest.mark.parametrize("more", [0, 2])
async def test_another_chain_in_the_database_raises_the_alarm(database: str, more: int) -> None:
    """It copies nothing, changes nothing, and goes on by itself once the database is repaired."""
    other, chain = Chain(seed=8), Chain(seed=9)
    other.grow(blocks=3)
    chain.grow(blocks=3 + more)
    before = make_checkpointer(database, other)
    async with running(before):
        await until(lambda: before.lag == 0)

    repair = Repair()
    checkpointer = Checkpointer(
        database, chain, cluster_id=chain.cluster_id, random=Random(1), sleep=repair.sleep
    )
    async with running(checkpointer):
        await until(lambda: checkpointer.alarm is not None)
        assert checkpointer.alarm is not None
        assert checkpointer.alarm.startswith("PostgreSQL differs from the chain at block 3: ")
        assert (0, False) == (checkpointer.rows, checkpointer.is_writer)
        assert all_of(other) == await compared(database, other)
        with psycopg.connect(database) as connection:
            connection.execute("DROP SCHEMA bitnexus CASCADE")
        repair.done.set()
        await until(lambda: checkpointer.lag == 0 and checkpointer.alarm is None)
    assert all_of(chain) == await compared(database, chain)


@pytest.mark.asyncio
async def test_a_mismatch_that_shows_later_raises_the_alarm(database: str) -> None:
    """A node that was behind when it looked finds out when it comes to copy."""
    other, chain = Chain(seed=8), Chain(seed=9)
    other.grow(blocks=3)
    chain.grow(blocks=1)
    before = make_checkpointer(database, other)
    async with running(before):
        await until(lambda: before.lag == 0)
    checkpointer = make_checkpointer(database, chain)
    async with running(checkpointer):
        await until(lambda: checkpointer.checkpointed_index == 3)
        await chain.commit(blocks=4)
        await until(lambda: checkpointer.alarm is not None)
    assert all_of(other) == await compared(database, other)


@pytest.mark.asyncio
async def test_another_cluster_in_the_database_raises_the_alarm(
    database: str, chain: Chain
) -> None:
    """One database holds one cluster."""
    first = make_checkpointer(database, chain)
    second = make_checkpointer(database, Chain("other"))
    async with running(first):
        await until(lambda: first.lag == 0)
    async with running(second):
        await until(lambda: second.alarm is not None)
    assert second.alarm is not None
    assert second.alarm.startswith("the database belongs to cluster ")
    assert all_of(chain) == await compared(database, chain)


@pytest.mark.asyncio
async def test_it_waits_for_a_database_that_is_away_and_comes_back(tmp_path: Path) -> None:
    """Down at the start, up, shut down and up again: it catches up each time by itself."""
    server = EmbeddedPostgres(tmp_path / "postgres", stop_timeout_s=10)
    dsn = await server.start()
    await server.stop()
    chain, pace = Chain(), Pace()
    chain.grow(blocks=3)
    checkpointer = make_checkpointer(dsn, chain, pace)
    try:
        async with running(checkpointer):
            await until(lambda: len(pace.slept) > 20)
            assert checkpointer.last_error is not None
            assert checkpointer.alarm is None
            # Longer each time, never in step, and bounded.
            assert 0.1 >= pace.slept[0]
            assert pace.slept[0] < pace.slept[3] < LAST_RETRY_S
            assert LAST_RETRY_S / 2 <= min(pace.slept[10:])
            assert LAST_RETRY_S >= max(pace.slept)
            assert len(set(pace.slept[10:])) > 5

            assert dsn == await server.start()
            await until(lambda: checkpointer.lag == 0)
            await server.stop()
            await chain.commit(blocks=2)
            await until(lambda: checkpointer.last_error is not None)
            await server.start()
            await until(lambda: checkpointer.lag == 0)
        assert all_of(chain) == await compared(dsn, chain)
    finally:
        await server.stop()


@pytest.mark.asyncio
async def test_what_the_database_refuses_raises_the_alarm(database: str, chain: Chain) -> None:
    """A role without the right to create anything is for a person to repair, not to retry."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN")
    checkpointer = make_checkpointer(f"{database} user=reader", chain)
    async with running(checkpointer):
        await until(lambda: checkpointer.alarm is not None)
    assert checkpointer.alarm is not None
    assert "permission denied" in checkpointer.alarm
