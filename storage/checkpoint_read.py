"""The chain read back from PostgreSQL alone: every block, as the bytes it was made of.

The tables hold each field of a header, its signature, and the canonical bytes of each transaction:
all that a block is. The columns that only SQL readers use (user, kind, payload) are not looked at.
Nothing read here is trusted: a block is put together as one from a stranger, and the caller
verifies it. Relies on `storage.checkpoint`.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from consensus.block import ZERO_HASH, Header, InvalidBlockError, block_from_parts
from storage.checkpoint import CheckpointStore
from storage.checkpoint_rows import BLOCK_COLUMNS
from storage.checkpoint_schema import CheckpointError, CheckpointSchemaError, installed_version

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from psycopg import AsyncConnection

    from consensus.block import Block

_FETCHED_ROWS: Final = 500
"""At most 500 times 64 KiB in memory."""
_BLOCKS: Final = f"""
    SELECT {", ".join(BLOCK_COLUMNS)} FROM bitnexus.blocks WHERE index <= %s ORDER BY index
"""  # noqa: S608 - our own names of columns
_TRANSACTIONS: Final = """
    SELECT block_index, raw FROM bitnexus.transactions
    WHERE block_index <= %s ORDER BY block_index, position
"""


class StoredBlockError(CheckpointError):
    """What the database holds at `index` is no block."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"block {index}: {what}")
        self.index = index
        self.what = what


async def open_checkpoints(dsn: str) -> CheckpointStore:
    """Connect to a database of checkpoints, whatever cluster they are of.

    Raises:
        CheckpointSchemaError: it holds none.
        psycopg.Error: as the database does.
    """
    store = await CheckpointStore.connect(dsn, cluster_id=ZERO_HASH)
    try:
        return CheckpointStore(store.connection, await _stored_cluster(store))
    except BaseException:
        await store.close()
        raise


async def stored_blocks(store: CheckpointStore, *, through: int) -> AsyncGenerator[Block]:
    """Yield blocks 0 to `through` as they are stored, in one snapshot.

    Raises:
        StoredBlockError: one is missing or makes no block, or has another hash than is stored.
        psycopg.Error: as the database does.
    """
    connection = store.connection
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        async with aclosing(_rows_by_block(connection, through)) as rows:
            following = 0
            async for row, transactions in rows:
                if row[0] != following:
                    what = "is missing" if row[0] > following else "is planted"
                    raise StoredBlockError(min(row[0], following), what)
                yield _block_of(row, transactions)
                following += 1
        if following <= through:
            raise StoredBlockError(following, "is missing")


async def _stored_cluster(store: CheckpointStore) -> bytes:
    if await installed_version(store.connection) is not None:
        cursor = await store.connection.execute("SELECT cluster_id FROM bitnexus.checkpoint")
        row = await cursor.fetchone()
        if row is not None:
            return bytes(row[0])
    raise CheckpointSchemaError("the database holds no checkpoints")


async def _rows_by_block(
    connection: AsyncConnection, through: int
) -> AsyncGenerator[tuple[tuple[Any, ...], list[bytes]]]:
    """Yield each block's row with the bytes of its transactions, a bounded number in memory."""
    async with (
        connection.cursor("restored_blocks", binary=True) as blocks,
        connection.cursor("restored_transactions", binary=True) as transactions,
    ):
        blocks.itersize = transactions.itersize = _FETCHED_ROWS
        await blocks.execute(_BLOCKS, (through,))
        await transactions.execute(_TRANSACTIONS, (through,))
        following = await _next_of(transactions)
        async for row in blocks:
            if following is not None and following[0] < row[0]:
                raise StoredBlockError(following[0], "has transactions and no row of its own")
            found: list[bytes] = []
            while following is not None and following[0] == row[0]:
                found.append(following[1])
                following = await _next_of(transactions)
            yield row, found


async def _next_of(rows: AsyncIterator[tuple[Any, ...]]) -> tuple[Any, ...] | None:
    return await anext(rows, None)


def _block_of(row: tuple[Any, ...], transactions: list[bytes]) -> Block:
    """Put a block together; raises StoredBlockError where its row makes none."""
    values = dict(zip(BLOCK_COLUMNS, row, strict=True))
    stored_hash, signature = values.pop("hash"), values.pop("signature")
    values["nonce"] = int(values["nonce"])  # a numeric, for 64 bits without a sign
    try:
        block = block_from_parts(
            msgspec.msgpack.encode(Header(**values)),
            signature,
            msgspec.msgpack.encode(transactions),
        )
    except (InvalidBlockError, OverflowError) as error:
        raise StoredBlockError(row[0], str(error)) from error
    if block.hash != stored_hash:
        what = f"hash: the row has {stored_hash.hex()}, its header makes {block.hash.hex()}"
        raise StoredBlockError(row[0], what)
    return block
