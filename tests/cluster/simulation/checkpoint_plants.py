"""Mistakes in the checkpointer: what is copied twice, too early, in halves, or not at all.

As `core_plants.py` beside it; relies on the insides of `node.checkpointer`, of the source it
copies from and of `storage.checkpoint`.
"""

from __future__ import annotations

from typing import Any

from storage import checkpoint


def moves_cursor_apart(_right: Any) -> Any:
    """The cursor moves in a transaction of its own, after that of the rows."""

    async def append(self: Any, blocks: Any) -> None:
        async with self.connection.transaction(), self.connection.cursor() as cursor:
            await checkpoint._copy_blocks(cursor, blocks)
            await checkpoint._copy_transactions(cursor, blocks)
        async with self.connection.cursor() as cursor:
            await self._move(cursor, blocks)

    return append


def appends_without_transaction(_right: Any) -> Any:
    """Each statement is a transaction of its own."""

    async def append(self: Any, blocks: Any) -> None:
        async with self.connection.cursor() as cursor:
            await self._move(cursor, blocks)
            await checkpoint._copy_blocks(cursor, blocks)
            await checkpoint._copy_transactions(cursor, blocks)

    return append


def copies_no_transactions(_right: Any) -> Any:
    """The blocks are copied, and what is in them is not."""

    async def copy(_cursor: Any, _blocks: Any) -> None:
        """Forgets."""

    return copy


def moves_from_anywhere(_right: Any) -> Any:
    """The cursor moves from wherever it stands ..."""

    async def move(self: Any, cursor: Any, blocks: Any) -> None:
        await cursor.execute("SELECT cluster_id, index, hash FROM bitnexus.checkpoint")
        cluster_id, index, block_hash = await cursor.fetchone()
        values = (blocks[-1].index, blocks[-1].hash, cluster_id, index, block_hash)
        await cursor.execute(checkpoint._MOVE, values)

    return move


def moves_to_old_hash(_right: Any) -> Any:
    """The cursor takes the last index, and the hash from before."""

    async def move(self: Any, cursor: Any, blocks: Any) -> None:
        first, last = blocks[0], blocks[-1]
        stands = (self.cluster_id, first.index - 1, first.previous_hash)
        await cursor.execute(checkpoint._MOVE, (last.index, first.previous_hash, *stands))

    return move


def trusts_old_progress(right: Any) -> Any:
    """... and how far the database is, is read once and remembered."""

    async def look(self: Any, store: Any) -> Any:
        return await right(self, store) if self.checkpointed_index < 0 else None

    return look


def copies_what_is_saved(_right: Any) -> Any:
    """Blocks are copied when they are on this disk, committed or not."""
    return property(lambda self: self._chain.last_index)


async def takes_any_lock(_self: Any) -> bool:
    """The lock is taken by whoever asks for it."""
    return True


async def keeps_lock(_self: Any) -> None:
    """The lock is not given back."""


def skips_a_block(right: Any) -> Any:
    """Of the blocks that are read the first is left out, and the cursor follows."""

    def first_rows(blocks: Any) -> Any:
        return right(blocks)[1:] or blocks

    return first_rows


def alarms_at_once(_right: Any) -> Any:
    """A database that is away is reported as damaged."""

    async def wait(self: Any, error: Any) -> None:
        await self._wait_for_repair(error)

    return wait


def mixes_columns(right: Any) -> Any:
    """Two hashes of a block change places."""

    def row(block: Any) -> Any:
        values = list(right(block))
        values[4], values[5] = values[5], values[4]
        return tuple(values)

    return row


def gives_up_for_a_minute(_right: Any) -> Any:
    """After an error the database is left alone for a minute."""

    async def wait(self: Any, _error: Any) -> None:
        await self._sleep(60.0)

    return wait
