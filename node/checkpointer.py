"""Follows a node's committed blocks into PostgreSQL, however often the database goes away.

Every node of a cluster may run one against the same database. Whoever has committed blocks that
are not there yet takes the writers' lock, copies them, and gives the lock back once there is
nothing left: a member that is cut off from the others has nothing new to copy, so it cannot keep
the rest from doing so. Nothing here is on the commit path: it reads committed blocks and waits for
more. Relies on `storage.checkpoint`; the node lends it its blocks as a `CheckpointSource`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, NoReturn, Protocol

import psycopg
import structlog

from storage.checkpoint import (
    BlockReader,
    CheckpointMismatchError,
    CheckpointMovedError,
    CheckpointStore,
)
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from consensus.block import Block
    from storage.checkpoint import Progress

BATCH_BYTES = 16 << 20
BATCH_ROWS = 50_000
"""One SQL transaction copies no more than either, but always a whole block.

Half a second of work: with a quarter of it, a fifth of the time went into waiting between them.
"""
GATHER_S = 0.1
"""How long blocks may gather for the next SQL transaction, each of which costs an fsync."""
STAND_BY_S = 1.0
"""How often to look whether the node that has the lock is still copying."""
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0
"""The longest wait before the next try to reach a database that is away."""
ALARM_RETRY_S = 30.0
"""How often to look whether somebody has repaired what the alarm tells of."""
RATE_S = 10.0
"""The rate of rows is a mean over so long."""


class Log(Protocol):
    """Where the checkpointer tells of what changed: an event by its name, with its fields."""

    def info(self, event: str, **fields: object) -> object:
        """All is well again."""
        ...

    def warning(self, event: str, **fields: object) -> object:
        """It will pass by itself."""
        ...

    def error(self, event: str, **fields: object) -> object:
        """A person is needed."""
        ...


class Connect(Protocol):
    """How a database is reached: `CheckpointStore.connect`, or what stands in for it."""

    def __call__(self, dsn: str, /, *, cluster_id: bytes) -> Awaitable[CheckpointStore]:
        """Connect; raises psycopg.Error."""
        ...


_LOG: Log = structlog.get_logger("checkpointer")


class CheckpointSource(BlockReader, Protocol):
    """The committed blocks of a node."""

    @property
    def commit_index(self) -> int:
        """The index of the last committed block."""
        ...

    async def wait_committed(self, beyond: int) -> int:
        """Wait until a block with an index above `beyond` is committed; return the commit index."""
        ...


class Checkpointer:
    """Copies the blocks of `source` to the database `dsn` while `run` runs.

    `sleep` and `random` set the pace of its retries, and `connect` and `log` are its way out, so
    that it runs in a test or a simulation as in a node. What it has done and what keeps it from
    doing more stands in the attributes.
    """

    def __init__(
        self,
        dsn: str,
        source: CheckpointSource,
        *,
        cluster_id: bytes,
        random: Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        connect: Connect = CheckpointStore.connect,
        log: Log = _LOG,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.checkpointed_index = -1
        """The last block known to be in the database, whoever copied it; -1 for none."""
        self.rows = 0
        """How many transactions this checkpointer has copied."""
        self.is_writer = False
        """Whether it holds the lock and is copying."""
        self.errors = 0
        """How often something went wrong."""
        self.last_error: str | None = None
        """What went wrong last, until something goes well again."""
        self.alarm: str | None = None
        """What needs a person: the database is not what it should be, and is left as it is."""
        self._dsn = dsn
        self._source = source
        self._cluster_id = cluster_id
        self._random = random
        self._sleep = sleep
        self._connect = connect
        self._log = log
        self._now = now
        self._copied: deque[tuple[float, int]] = deque()
        self._failures = 0

    @property
    def lag(self) -> int:
        """How many committed blocks are not known to be in the database."""
        return max(0, self._source.commit_index - self.checkpointed_index)

    @property
    def rows_per_second(self) -> int:
        """How many transactions it copies a second, as a mean over the last RATE_S."""
        self._forget_copied()
        return round(sum(rows for _, rows in self._copied) / RATE_S)

    async def run(self) -> NoReturn:
        """Copy until cancelled. A database that is away is waited for; nothing is raised."""
        while True:
            try:
                store = await self._connect(self._dsn, cluster_id=self._cluster_id)
                async with store:
                    await self._follow(store)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                await self._wait_for_database(error)
            except (StorageError, psycopg.Error) as error:
                await self._wait_for_repair(error)

    async def _follow(self, store: CheckpointStore) -> NoReturn:
        """Copy over one connection until it breaks."""
        progress = await self._look(store)
        await self._check_hash(progress)
        while True:
            if self.lag == 0:
                self._note_success()
                await self._source.wait_committed(self.checkpointed_index)
                await self._look(store)
            elif await store.try_lock():
                await self._copy_all(store)
                await store.unlock()
            else:
                await self._sleep(STAND_BY_S)
                await self._look(store)

    async def _copy_all(self, store: CheckpointStore) -> None:
        """Copy until nothing is left, or another writer turns up. We hold the lock."""
        self.is_writer = True
        try:
            await store.ensure_schema()
            await self._look(store)
            while self.lag > 0:
                commit_index = self._source.commit_index
                first = self.checkpointed_index + 1
                batch = _first_rows(await self._source.committed_blocks(first, BATCH_BYTES))
                await store.append(batch)
                self._note_copied(batch)
                if self.checkpointed_index >= commit_index:
                    await self._sleep(GATHER_S)
        except CheckpointMovedError:
            await self._look(store)
        finally:
            self.is_writer = False

    async def _look(self, store: CheckpointStore) -> Progress | None:
        """Read how far the database is."""
        progress = await store.progress()
        self.checkpointed_index = -1 if progress is None else progress.index
        return progress

    async def _check_hash(self, progress: Progress | None) -> None:
        """Raise CheckpointMismatchError where the last block copied is not one of our chain.

        A node that has yet to commit that block cannot tell; each append checks again anyway.
        """
        if progress is None or progress.index > self._source.commit_index:
            return
        blocks = await self._source.committed_blocks(progress.index, 1)
        if blocks[0].hash != progress.hash:
            detail = f"its hash is {progress.hash.hex()}, not {blocks[0].hash.hex()}"
            raise CheckpointMismatchError(progress.index, detail)

    def _note_copied(self, blocks: Sequence[Block]) -> None:
        """Count what has just become durable."""
        self.checkpointed_index = blocks[-1].index
        rows = sum(len(block.transactions) for block in blocks)
        self.rows += rows
        self._copied.append((self._now(), rows))
        self._forget_copied()
        self._note_success()

    def _forget_copied(self) -> None:
        """Keep of what was copied no more than the rate is a mean of."""
        oldest = self._now() - RATE_S
        while self._copied and self._copied[0][0] < oldest:
            self._copied.popleft()

    def _note_success(self) -> None:
        """Forget the errors before."""
        if self.last_error is not None:
            self._log.info("checkpoints_resumed", index=self.checkpointed_index)
        self.last_error = self.alarm = None
        self._failures = 0

    def _note_error(self, text: str) -> None:
        """Remember what went wrong."""
        self.errors += 1
        self.last_error = text

    async def _wait_for_database(self, error: psycopg.Error) -> None:
        """Wait before the next try: longer each time, and never in step with other nodes."""
        if self.last_error is None:
            self._log.warning("postgres_unavailable", error=_one_line(error))
        self._note_error(_one_line(error))
        longest_s = min(FIRST_RETRY_S * 2**self._failures, LAST_RETRY_S)
        self._failures += longest_s < LAST_RETRY_S
        await self._sleep(longest_s * self._random.uniform(0.5, 1.0))

    async def _wait_for_repair(self, error: Exception) -> None:
        """Raise the alarm, once, and look again after a while."""
        text = _one_line(error)
        if self.alarm != text:
            self._log.error("checkpoint_alarm", error=text)
        self._note_error(text)
        self.alarm = text
        await self._sleep(ALARM_RETRY_S)


def _first_rows(blocks: Sequence[Block]) -> Sequence[Block]:
    """Return as many of the blocks as one SQL transaction may copy: at least one."""
    rows = 0
    for count, block in enumerate(blocks):
        rows += len(block.transactions)
        if count > 0 and rows > BATCH_ROWS:
            return blocks[:count]
    return blocks


def _one_line(error: Exception) -> str:
    """Return an error's first line; psycopg's have several."""
    return str(error).partition("\n")[0] or type(error).__name__
