"""Checkpoints in PostgreSQL: committed blocks, appended in order and exactly once.

One SQL transaction copies blocks and their transactions and moves the row that says how far: what
a crash leaves is all of it or nothing. The move is guarded by the index and the hash it starts
from, so that of two writers one loses, whatever happened to the lock that keeps them apart. A
database holds one cluster. A read model: it can always be rebuilt from the chain, and nothing here
ever overwrites a row. Relies on psycopg and on the tables of `storage.checkpoint_schema`; knows
nothing of nodes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, Self

from psycopg import AsyncConnection, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from consensus.block import ZERO_HASH
from storage.checkpoint_rows import (
    BLOCK_COLUMNS,
    BLOCK_TYPES,
    COPY_HEADER,
    COPY_TRAILER,
    TRANSACTION_COLUMNS,
    UnstorableBlockError,
    block_row,
    transaction_slices,
)
from storage.checkpoint_schema import (
    LOCK_KEY,
    CheckpointError,
    grant,
    installed_version,
    migrate,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from psycopg import AsyncCursor

    from consensus.block import Block

_CONNECTION_DEFAULTS = {
    "connect_timeout": "5",
    "application_name": "bitnexus-checkpoint",
    # A network that swallows everything must show as an error within a minute, not after hours.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""What a DSN may say otherwise."""
_SESSION = """
    SET tcp_keepalives_idle = 30;
    SET tcp_keepalives_interval = 10;
    SET tcp_keepalives_count = 3;
    SET lock_timeout = '10s';
"""
"""So that the server drops the lock of a node that vanished, and no writer waits for ever."""

_COPY_BLOCKS = f"COPY bitnexus.blocks ({', '.join(BLOCK_COLUMNS)}) FROM STDIN (FORMAT BINARY)"
_COPY_TRANSACTIONS = (
    f"COPY bitnexus.transactions ({', '.join(TRANSACTION_COLUMNS)}) FROM STDIN (FORMAT BINARY)"
)
_MOVE = """
    UPDATE bitnexus.checkpoint SET index = %s, hash = %s, updated_at = now()
    WHERE cluster_id = %s AND index = %s AND hash = %s
    RETURNING bitnexus.make_partitions(index)
"""
"""The rows that follow have a partition to go to, made in their own transaction."""


class CheckpointClusterError(CheckpointError):
    """The database holds the checkpoints of another cluster. Both ids are 32 bytes."""

    def __init__(self, *, found: bytes, expected: bytes) -> None:
        super().__init__(
            f"the database belongs to cluster {found.hex()[:16]}…, not to {expected.hex()[:16]}…"
        )
        self.found = found
        self.expected = expected


class CheckpointMismatchError(CheckpointError):
    """What the database holds at `index` is not the chain's block there; nothing was changed."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"PostgreSQL differs from the chain at block {index}: {what}")
        self.index = index
        self.what = what


class CheckpointMovedError(CheckpointError):
    """Another writer was first; nothing was changed. Read the progress anew and go on."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The last block that is copied."""

    index: int
    hash: bytes


class BlockReader(Protocol):
    """Where blocks come from: a node, or a chain on disk."""

    async def committed_blocks(self, first: int, max_bytes: int) -> Sequence[Block]:
        """Return committed blocks from index `first`: about `max_bytes`, but at least one.

        Raises LookupError where there is none.
        """
        ...


class CheckpointStore:
    """One connection to a database of checkpoints of the cluster `cluster_id`.

    Every method raises psycopg.Error as the database does; OperationalError and InterfaceError
    mean that it is out of reach, and the connection of no further use.
    """

    def __init__(self, connection: AsyncConnection, cluster_id: bytes) -> None:
        """Use `connect`."""
        assert len(cluster_id) == len(ZERO_HASH)
        self.connection = connection
        self.cluster_id = cluster_id

    @classmethod
    async def connect(cls, dsn: str, *, cluster_id: bytes) -> Self:
        """Connect; needs no table to be there yet. Raises psycopg.Error."""
        return cls(await _connect(dsn), cluster_id)

    async def close(self) -> None:
        """Close the connection; the lock goes with it."""
        await self.connection.close()

    async def __aenter__(self) -> Self:
        """Nothing: it is connected already."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def try_lock(self) -> bool:
        """Take the writers' lock of this database without waiting; say whether it is ours."""
        cursor = await self.connection.execute("SELECT pg_try_advisory_lock(%s, %s)", LOCK_KEY)
        row = await cursor.fetchone()
        assert row is not None
        return bool(row[0])

    async def unlock(self) -> None:
        """Give the writers' lock back."""
        await self.connection.execute("SELECT pg_advisory_unlock(%s, %s)", LOCK_KEY)

    async def ensure_schema(self) -> None:
        """Make the tables where there are none, or bring them up to date; only with the lock held.

        Raises CheckpointSchemaError and CheckpointClusterError.
        """
        async with self.connection.transaction():
            await migrate(self.connection)
            await self.connection.execute(
                "INSERT INTO bitnexus.checkpoint (cluster_id, index, hash) VALUES (%s, -1, %s)"
                " ON CONFLICT DO NOTHING",
                (self.cluster_id, ZERO_HASH),
            )
            await self.progress()

    async def progress(self) -> Progress | None:
        """Return how far the chain is copied; None before genesis or where there are no tables.

        Raises CheckpointSchemaError and CheckpointClusterError.
        """
        if await installed_version(self.connection) is None:
            return None
        cursor = await self.connection.execute(
            "SELECT cluster_id, index, hash FROM bitnexus.checkpoint"
        )
        row = await cursor.fetchone()
        if row is None:
            return None
        cluster_id, index, block_hash = row
        if cluster_id != self.cluster_id:
            raise CheckpointClusterError(found=cluster_id, expected=self.cluster_id)
        return Progress(index, block_hash) if index >= 0 else None

    async def append(self, blocks: Sequence[Block]) -> None:
        """Copy blocks that follow the progress and each other, in one SQL transaction.

        When it returns they are durable; when it raises, nothing has changed, except that a
        connection lost during the commit leaves that open until the progress is read anew. Raises
        CheckpointMovedError where another writer was first, CheckpointMismatchError where the
        database holds other blocks than the chain, UnstorableBlockError.
        """
        assert blocks
        for parent, block in pairwise(blocks):
            assert block.index == parent.index + 1
            assert block.previous_hash == parent.hash
        try:
            async with self.connection.transaction(), self.connection.cursor() as cursor:
                await self._move(cursor, blocks)
                await _copy_blocks(cursor, blocks)
                await _copy_transactions(cursor, blocks)
        except errors.IntegrityError as error:
            raise CheckpointMismatchError(blocks[0].index, _one_line(error)) from error
        except (errors.DataError, OverflowError) as error:
            raise UnstorableBlockError(
                f"a block from {blocks[0].index} on: {_one_line(error)}"
            ) from error

    async def _move(self, cursor: AsyncCursor, blocks: Sequence[Block]) -> None:
        """Move the progress from before the first block to the last one, or raise.

        Comes first in the transaction: its row lock makes a second writer wait and then lose.
        """
        first, last = blocks[0], blocks[-1]
        values = (last.index, last.hash, self.cluster_id, first.index - 1, first.previous_hash)
        await cursor.execute(_MOVE, values)
        if cursor.rowcount == 1:
            return
        found = await self.progress()
        index = -1 if found is None else found.index
        if index != first.index - 1:
            raise CheckpointMovedError(f"the progress is {index}, not {first.index - 1}")
        found_hash = ZERO_HASH if found is None else found.hash
        detail = f"its hash is {found_hash.hex()}, not {first.previous_hash.hex()}"
        raise CheckpointMismatchError(index, detail)


async def prepare(dsn: str, *, role: str | None) -> None:
    """Make the tables, or bring them up to date, for a node that may not; let `role` copy to them.

    Raises CheckpointSchemaError, psycopg.Error.
    """
    async with await _connect(dsn) as connection, connection.transaction():
        await migrate(connection)
        if role is not None:
            await grant(connection, role)


async def _connect(dsn: str) -> AsyncConnection:
    """Open a connection that notices, and is noticed, when its other end is gone."""
    given = conninfo_to_dict(dsn)
    defaults = {name: to for name, to in _CONNECTION_DEFAULTS.items() if name not in given}
    conninfo = make_conninfo(dsn, client_encoding="UTF8", **defaults)
    connection = await AsyncConnection.connect(conninfo, autocommit=True)
    try:
        await connection.execute(_SESSION)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _copy_blocks(cursor: AsyncCursor, blocks: Sequence[Block]) -> None:
    """Copy the rows of the blocks themselves."""
    async with cursor.copy(_COPY_BLOCKS) as copy:
        copy.set_types(BLOCK_TYPES)
        for block in blocks:
            await copy.write_row(block_row(block))


async def _copy_transactions(cursor: AsyncCursor, blocks: Sequence[Block]) -> None:
    """Copy the rows of the blocks' transactions, packing some while the server stores others."""
    async with cursor.copy(_COPY_TRANSACTIONS) as copy:
        await copy.write(COPY_HEADER)
        for packed in transaction_slices(blocks):
            await copy.write(packed)
            await asyncio.sleep(0)  # the node's loop has other things to do
        await copy.write(COPY_TRAILER)


def _one_line(error: Exception) -> str:
    """Return an error's first line; the database adds further ones."""
    return str(error).partition("\n")[0]
