"""The simulated PostgreSQL: it answers as the real one does, and breaks as it is told.

Relies on the shipped `CheckpointStore`, which runs on it unchanged.
"""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
from psycopg.errors import LockNotAvailable

from cluster.simulation.course import Course, waiting
from cluster.simulation.database import SimulatedDatabase
from cluster.simulation.database_client import (
    LOCK_TIMEOUT_US,
    ORPHAN_US,
    CheckpointBoundary,
    DatabaseWire,
    SimulatedConnection,
)
from cluster.simulation.events import EventQueue
from cluster.simulation.record import Trace
from storage.checkpoint import CheckpointMovedError, CheckpointStore, Progress
from storage.checkpoint_schema import CheckpointError
from storage.errors import StorageError
from tests.postgres_fixture import Chain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from psycopg import AsyncConnection

    from consensus.block import Block

OTHER_CLUSTER = b"\x07" * 32


class Stage:
    """A simulated server, and scripts that play on it in virtual time."""

    def __init__(self, chain: Chain) -> None:
        """One server without tables."""
        self.queue = EventQueue()
        self.database = SimulatedDatabase()
        self.wire = DatabaseWire(
            database=self.database,
            queue=self.queue,
            trace=Trace(columns=None),
            random=Random(3),
        )
        self.last: SimulatedConnection | None = None
        self._cluster_id = chain.cluster_id

    async def connect(self) -> CheckpointStore:
        """Connect; a crash resets the connection, as the server sees it."""
        self.last = connection = await self.wire.connect("node1", self._crash)
        return CheckpointStore(cast("AsyncConnection[Any]", connection), self._cluster_id)

    def _crash(self) -> None:
        assert self.last is not None
        self.last.break_off()

    def play(self, *scripts: Coroutine[Any, Any, Any], seconds: float = 60.0) -> list[Any]:
        """Play scripts side by side; what each came to, or how it failed, in their order."""
        ends: dict[int, Any] = {}
        courses = [
            Course(_until_end(script, number, ends), queue=self.queue, when_awake=_now)
            for number, script in enumerate(scripts)
        ]
        until_us = self.queue.now_us + int(seconds * 1_000_000)
        self.queue.run_until(until_us, stop=lambda: len(ends) == len(scripts))
        for course in courses:
            course.drop()
        return [ends[number] for number in sorted(ends)]

    async def pass_time(self, duration_us: int) -> None:
        """Do nothing for so long."""
        await waiting(lambda resume: self.queue.after(duration_us, partial(resume, None)))

    @property
    def index(self) -> int | None:
        """Where the cursor is."""
        return self.database.cursor.index if self.database.cursor else None


def _now(action: Callable[[], None]) -> None:
    action()


async def _until_end(script: Coroutine[Any, Any, Any], number: int, ends: dict[int, Any]) -> None:
    try:
        ends[number] = await script
    except (psycopg.Error, StorageError) as error:
        ends[number] = type(error)
    await waiting(lambda _resume: None)


async def ready(stage: Stage, blocks: Sequence[Block] = ()) -> CheckpointStore:
    """A store that has the lock, its tables, and these blocks."""
    store = await stage.connect()
    assert await store.try_lock()
    await store.ensure_schema()
    if blocks:
        await store.append(blocks)
    return store


async def outcome(work: Awaitable[Any]) -> Any:
    """What it came to, or the kind of its error."""
    try:
        return await work
    except CheckpointError as error:
        return type(error)


async def whole_story(connect: Callable[[], Awaitable[CheckpointStore]], chain: Chain) -> list[Any]:
    """Everything that a checkpointer asks a database for, rightly and wrongly; its answers."""
    blocks, rival = chain.blocks, Chain(seed=9)
    rival.grow(blocks=3)
    first, second = await connect(), await connect()
    async with first, second:
        story = [await first.progress(), await first.try_lock(), await second.try_lock()]
        await first.ensure_schema()
        story += [await second.progress(), await outcome(first.append(blocks[:2]))]
        await first.ensure_schema()
        story += [await second.progress(), await outcome(second.append(blocks[1:2]))]
        story += [await outcome(first.append(rival.blocks[2:3])), await first.progress()]
        story += [await outcome(first.append(blocks[3:4])), await first.progress()]
        story += [await outcome(first.append(blocks[2:])), await second.progress()]
        await second.unlock()
        story += [await second.try_lock(), await first.try_lock()]
        await first.unlock()
        story += [await second.try_lock()]
        await first.unlock()
        story += [await second.try_lock()]
        second.cluster_id = OTHER_CLUSTER
        story += [await outcome(second.progress())]
    return story


@pytest.mark.postgres
def test_it_answers_as_the_real_one(database: str, chain: Chain) -> None:
    """One story, told to both: the same answers and the same errors."""
    chain.grow(blocks=5)
    stage = Stage(chain)

    async def connect() -> CheckpointStore:
        return await CheckpointStore.connect(database, cluster_id=chain.cluster_id)

    real = asyncio.run(whole_story(connect, chain))
    [simulated] = stage.play(whole_story(stage.connect, chain))
    assert real == simulated
    assert Progress(5, chain.blocks[-1].hash) in real


def test_what_is_stored_is_what_was_sent(chain: Chain) -> None:
    """Each block and each transaction has its row, with the bytes of the chain."""
    chain.grow(blocks=2)
    stage = Stage(chain)
    stage.play(ready(stage, chain.blocks))
    assert [0, 1, 2] == list(stage.database.blocks)
    assert [b.hash for b in chain.blocks] == [row["hash"] for row in stage.database.blocks.values()]
    assert [
        ((block.index, position), raw)
        for block in chain.blocks
        for position, raw in enumerate(block.transactions)
    ] == [(place, row["raw"]) for place, row in stage.database.transactions.items()]


@pytest.mark.parametrize(
    ("boundary", "index"),
    [
        (CheckpointBoundary.OPEN, -1),
        (CheckpointBoundary.BEFORE_COMMIT, -1),
        (CheckpointBoundary.UNDERWAY, 1),
        (CheckpointBoundary.UNTOLD, 1),
    ],
)
def test_a_crash_leaves_all_or_nothing(
    chain: Chain, boundary: CheckpointBoundary, index: int
) -> None:
    """What had left is committed, what had not is undone, and the lock is free in the end."""
    chain.grow(blocks=1)
    stage = Stage(chain)
    [store] = stage.play(ready(stage))
    stage.wire.crash_at = boundary
    assert [psycopg.OperationalError] == stage.play(store.append(chain.blocks))
    stage.queue.run_until(stage.queue.now_us + ORPHAN_US)
    assert index == stage.index
    assert index + 1 == len(stage.database.blocks)
    assert stage.database.lock_holder is None
    assert [] == stage.database.sessions


@pytest.mark.parametrize(("is_carried_out", "index"), [(True, 1), (False, -1)])
def test_a_commit_may_go_unanswered(chain: Chain, is_carried_out: bool, index: int) -> None:
    """The client hears that the connection is gone, and nothing of the commit."""
    chain.grow(blocks=1)
    stage = Stage(chain)
    [store] = stage.play(ready(stage))
    stage.wire.loses_commit = is_carried_out
    assert [psycopg.OperationalError] == stage.play(store.append(chain.blocks))
    stage.queue.run_until(stage.queue.now_us + ORPHAN_US)
    assert index == stage.index


def test_the_lock_of_a_client_that_is_gone_is_held_until_the_server_knows(chain: Chain) -> None:
    """Nobody else gets it before, however soon it asks."""
    stage = Stage(chain)
    stage.play(ready(stage))
    assert stage.last is not None
    stage.last.break_off()
    [second] = stage.play(stage.connect())
    assert [False] == stage.play(second.try_lock())
    stage.wire.heal()
    assert [True] == stage.play(second.try_lock())


def test_a_server_that_dies_forgets_what_was_open(chain: Chain) -> None:
    """Committed rows are there when it is back; transactions, sessions and locks are not."""
    chain.grow(blocks=3)
    stage = Stage(chain)

    async def die_in_the_middle(store: CheckpointStore) -> None:
        async with store.connection.transaction(), store.connection.cursor() as cursor:
            await store._move(cursor, chain.blocks[2:])
            stage.database.die()

    [store] = stage.play(ready(stage, chain.blocks[:2]))
    assert [psycopg.OperationalError] == stage.play(die_in_the_middle(store))
    assert [psycopg.OperationalError] == stage.play(stage.connect())
    stage.database.start()
    assert 1 == stage.index
    assert stage.database.lock_holder is None
    stage.play(ready(stage, chain.blocks[2:]))
    assert 3 == stage.index


@pytest.mark.parametrize(
    ("held_us", "is_undone", "expected"),
    [
        (LOCK_TIMEOUT_US // 2, False, CheckpointMovedError),
        (LOCK_TIMEOUT_US // 2, True, None),
        (LOCK_TIMEOUT_US * 2, False, LockNotAvailable),
    ],
)
def test_a_moved_cursor_is_locked_until_its_transaction_is_over(
    chain: Chain, held_us: int, is_undone: bool, expected: type[Exception] | None
) -> None:
    """A second writer waits, and finds the cursor moved or as it was; or it gives up in time."""
    chain.grow(blocks=1)
    stage = Stage(chain)

    async def move_slowly(store: CheckpointStore) -> None:
        async with store.connection.transaction(), store.connection.cursor() as cursor:
            await store._move(cursor, chain.blocks)
            await stage.pass_time(held_us)
            if is_undone:
                raise psycopg.DataError

    async def append_meanwhile(store: CheckpointStore) -> None:
        await stage.pass_time(LOCK_TIMEOUT_US // 4)
        await store.append(chain.blocks)

    [first, second] = stage.play(ready(stage), stage.connect())
    [_, found] = stage.play(move_slowly(first), append_meanwhile(second))
    assert expected == found


def test_a_frozen_server_answers_when_it_goes_on(chain: Chain) -> None:
    """What is asked meanwhile waits, and who connects gives up in time."""
    stage = Stage(chain)

    async def lock(store: CheckpointStore) -> int:
        assert await store.try_lock()
        return stage.queue.now_us

    [store] = stage.play(stage.connect())
    frozen_us = stage.wire.frozen_until_us = stage.queue.now_us + 8_000_000
    [refused, locked_us] = stage.play(stage.connect(), lock(store))
    assert psycopg.OperationalError is refused
    assert frozen_us <= locked_us < frozen_us + 100_000


def test_a_statement_nobody_taught_it_is_no_answer(chain: Chain) -> None:
    """Where the shipped SQL changes, the simulation says so instead of passing it by."""
    stage = Stage(chain)
    [store] = stage.play(stage.connect())
    with pytest.raises(AssertionError, match="does not know: SELECT 1"):
        stage.play(store.connection.execute("SELECT 1"))
