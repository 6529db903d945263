"""Compare what PostgreSQL holds with the chain, row by row, and name the first difference.

Both sides are read as one ordered stream of rows and walked in step, as `comm` does with sorted
files, so that memory stays bounded however long the chain is, or however much was planted. The
columns of a transaction are derived anew from the chain's bytes. Everything is read in one
snapshot: a checkpointer may go on copying meanwhile. Relies on `storage.checkpoint`.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec

from consensus.block import decode_transaction
from storage.checkpoint_rows import BLOCK_COLUMNS, TRANSACTION_COLUMNS, block_row, payload_json
from storage.checkpoint_schema import CheckpointSchemaError, installed_version

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping

    from psycopg import AsyncConnection

    from consensus.block import Block
    from storage.checkpoint import BlockReader, CheckpointStore, Progress

_READ_BYTES = 4 << 20
_FETCHED_ROWS = 500
"""At most 500 times 64 KiB in memory."""

_COMPARED_COLUMNS = (*BLOCK_COLUMNS, "sealed_at")
_BLOCKS = f"""
    SELECT {", ".join(BLOCK_COLUMNS)},
        sealed_at = (timestamp '1970-01-01' + timestamp_us * interval '1 microsecond')
            AT TIME ZONE 'UTC'
    FROM bitnexus.blocks
    WHERE index <= %(last)s OR index > %(progress)s ORDER BY index
"""  # noqa: S608 - our own names of columns
"""What the tables derive by themselves is true where it is right: how, an owner may change."""
_TRANSACTIONS = """
    SELECT id, block_index, position, user_id, kind, payload::text, raw FROM bitnexus.transactions
    WHERE block_index <= %(last)s OR block_index > %(progress)s ORDER BY block_index, position
"""

_PAYLOAD_DECODER = msgspec.msgpack.Decoder()
_JSON_ENCODER = msgspec.json.Encoder(order="sorted")
_MAX_INTEGER_DIGITS = 20
"""Of -2^63 with its sign and of 2^64 - 1."""


@unique
class DifferenceKind(StrEnum):
    """What is wrong with a row."""

    MISSING = "missing"
    EXTRA = "extra"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first row that is not as the chain has it.

    `position` is None for a block's own row and for the progress; `column` is set where the row
    is CHANGED.
    """

    kind: DifferenceKind
    index: int
    position: int | None
    column: str | None = None

    def __str__(self) -> str:
        """Say it on one line."""
        row = f"block {self.index}"
        if self.position is not None:
            row += f", transaction {self.position}"
        return f"{row}: {self.kind}" + (f" in column {self.column}" if self.column else "")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found; `difference` is None where all is equal.

    Blocks 0 to `through` were compared: -1 for none, and less than was asked for where PostgreSQL
    lags behind, as `checkpointed_index` tells.
    """

    through: int
    checkpointed_index: int
    blocks: int
    transactions: int
    difference: Difference | None


class Place(NamedTuple):
    """Where a row stands in the one order of all rows: a block, then its transactions."""

    block_index: int
    is_transaction: bool
    position: int


class Row(NamedTuple):
    """A row of either table: its place, and its values in the order of the table's columns."""

    place: Place
    values: tuple[object, ...]


async def compare(
    store: CheckpointStore,
    chain: BlockReader,
    *,
    through: int,
    on_block: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare the stored rows of blocks 0 to `through` with the chain, and look for rows beyond.

    Rows beyond the progress are EXTRA wherever they are. `on_block` hears the index of each block
    that is compared. Raises CheckpointSchemaError where there are no checkpoints, psycopg.Error,
    and what `chain` raises.
    """
    connection = store.connection
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        if await installed_version(connection) is None:
            raise CheckpointSchemaError("the database holds no checkpoints")
        progress = await store.progress()
        checkpointed = -1 if progress is None else progress.index
        last = min(through, checkpointed)
        bounds = {"last": last, "progress": checkpointed}
        walk = _Walk(progress, on_block)
        async with (
            aclosing(_stored_rows(connection, bounds)) as stored,
            aclosing(_chain_blocks(chain, last)) as blocks,
        ):
            difference = await walk.find_difference(stored, blocks)
    return Comparison(last, checkpointed, walk.blocks, walk.transactions, difference)


class _Walk:
    """Two streams of rows, walked in step."""

    def __init__(self, progress: Progress | None, on_block: Callable[[int], None] | None) -> None:
        self.blocks = 0
        self.transactions = 0
        self._progress = progress
        self._on_block = on_block
        self._next: Row | None = None

    async def find_difference(
        self, stored: AsyncIterator[Row], blocks: AsyncIterator[Block]
    ) -> Difference | None:
        """Return the first difference between the stored rows and the blocks of the chain."""
        self._next = await anext(stored, None)
        async for block in blocks:
            difference = await self._compare_block(stored, block)
            if difference is not None:
                return difference
            if self._on_block is not None:
                self._on_block(block.index)
        if self._next is not None:
            return _difference(DifferenceKind.EXTRA, self._next.place)
        return None

    async def _compare_block(self, stored: AsyncIterator[Row], block: Block) -> Difference | None:
        """Compare the rows of one block with what is stored there."""
        for expected in _rows_of(block):
            row = self._next
            if row is None or row.place > expected.place:
                return _difference(DifferenceKind.MISSING, expected.place)
            if row.place < expected.place:
                return _difference(DifferenceKind.EXTRA, row.place)
            column = _changed_column(expected, row)
            if column is not None:
                return _difference(DifferenceKind.CHANGED, expected.place, column)
            self._next = await anext(stored, None)
        self.blocks += 1
        self.transactions += len(block.transactions)
        progress = self._progress
        if progress is not None and block.index == progress.index and block.hash != progress.hash:
            return Difference(DifferenceKind.CHANGED, block.index, None, "checkpoint.hash")
        return None


async def _chain_blocks(chain: BlockReader, last: int) -> AsyncGenerator[Block]:
    """Yield the chain's blocks 0 to `last`."""
    following = 0
    while following <= last:
        blocks = await chain.committed_blocks(following, _READ_BYTES)
        assert blocks, "a reader returns at least one block"
        for block in blocks:
            assert block.index == following
            if block.index > last:
                return
            yield block
            following += 1


async def _stored_rows(
    connection: AsyncConnection, bounds: Mapping[str, int]
) -> AsyncGenerator[Row]:
    """Yield the rows of both tables in one order, reading a bounded number of them at a time."""
    async with (
        connection.cursor("compared_blocks", binary=True) as blocks,
        connection.cursor("compared_transactions", binary=True) as transactions,
    ):
        blocks.itersize = transactions.itersize = _FETCHED_ROWS
        await blocks.execute(_BLOCKS, bounds)
        await transactions.execute(_TRANSACTIONS, bounds)
        block = await anext(blocks, None)
        transaction = await anext(transactions, None)
        while block is not None or transaction is not None:
            if transaction is None or (block is not None and block[0] <= transaction[1]):
                assert block is not None
                yield Row(Place(block[0], is_transaction=False, position=0), block)
                block = await anext(blocks, None)
            else:
                place = Place(transaction[1], is_transaction=True, position=transaction[2])
                yield Row(place, transaction)
                transaction = await anext(transactions, None)


def _rows_of(block: Block) -> Iterator[Row]:
    """Yield the rows that a block of the chain must have."""
    yield Row(Place(block.index, is_transaction=False, position=0), (*block_row(block), True))
    for position, raw in enumerate(block.transactions):
        transaction = decode_transaction(raw)
        values = (
            UUID(bytes=transaction.id),
            block.index,
            position,
            transaction.user_id,
            transaction.kind,
            transaction.payload,
            raw,
        )
        yield Row(Place(block.index, is_transaction=True, position=position), values)


def _changed_column(expected: Row, stored: Row) -> str | None:
    """Name the first column whose value is not the expected one, if there is any."""
    columns = TRANSACTION_COLUMNS if expected.place.is_transaction else _COMPARED_COLUMNS
    for column, value, found in zip(columns, expected.values, stored.values, strict=True):
        if isinstance(value, msgspec.Raw):
            assert isinstance(found, str)
            is_same = _is_same_payload(value, found)
        else:
            is_same = value == found
        if not is_same:
            return column
    return None


def _is_same_payload(payload: msgspec.Raw, text: str) -> bool:
    """Say whether a payload's msgpack and the text of a jsonb value are the same value.

    Nearly always both come out as the same JSON. They do not where jsonb writes a float without
    its exponent, as it does 1e300; then the values are walked.
    """
    try:
        if payload_json(payload) == _JSON_ENCODER.encode(msgspec.json.decode(text)):
            return True
        found: object = json.loads(text, parse_int=_read_integer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False  # what a payload cannot hold: planted
    return _is_same(_PAYLOAD_DECODER.decode(payload), found)


def _read_integer(digits: str) -> int | float:
    """Read a number without a fraction; one that is no 64-bit integer can only be a float."""
    return int(digits) if len(digits) <= _MAX_INTEGER_DIGITS else float(digits)


def _is_same(expected: object, found: object) -> bool:
    """Compare two payloads; unlike `==` it keeps true and 1 apart, and 1 and 1.0."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or expected.keys() != found.keys():
            return False
        return all(_is_same(value, found[key]) for key, value in expected.items())
    if isinstance(expected, list):
        if not isinstance(found, list) or len(expected) != len(found):
            return False
        return all(map(_is_same, expected, found))
    if isinstance(expected, float):
        return type(found) in (int, float) and expected == found
    return type(expected) is type(found) and expected == found


def _difference(kind: DifferenceKind, place: Place, column: str | None = None) -> Difference:
    """Describe a difference at a row's place."""
    position = place.position if place.is_transaction else None
    return Difference(kind, place.block_index, position, column)
