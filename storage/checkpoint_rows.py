"""The rows of a block, in the bytes of PostgreSQL's binary COPY.

Transactions are many, so their rows are packed here, at half the cost of the driver's own
row writer; they come in slices, because converting a whole block at once would hold up an event
loop. Pure: no connection, no clock. Relies on msgspec and on "Binary Format" of PostgreSQL's COPY.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from consensus.block import decode_transaction
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from consensus.block import Block, Header

BLOCK_COLUMNS = (
    "index",
    "version",
    "cluster_id",
    "term",
    "previous_hash",
    "transactions_root",
    "transaction_count",
    "history_root",
    "timestamp_us",
    "sealer",
    "nonce",
    "hash",
    "signature",
)
BLOCK_TYPES = (
    *("int8", "int4", "bytea", "int8", "bytea", "bytea", "int4"),
    *("bytea", "int8", "bytea", "numeric", "bytea", "bytea"),
)
TRANSACTION_COLUMNS = ("id", "block_index", "position", "user_id", "kind", "payload", "raw")

COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""The signature, no flags, no extension."""
COPY_TRAILER = b"\xff\xff"

_SLICE_ROWS = 256
_SLICE_BYTES = 128 * 1024
"""A slice ends with the row that reaches either: well below 1 ms of work."""

# The number of columns; id, block_index and position with their lengths; the length of user_id.
_ROW = struct.Struct(">hi16siqiii")
_LENGTH = struct.Struct(">i")
# The length of a jsonb value and the version that stands before its text.
_JSONB = struct.Struct(">ib")
_JSONB_VERSION = 1

_PAYLOAD_DECODER = msgspec.msgpack.Decoder()
_JSON_ENCODER = msgspec.json.Encoder(order="sorted")


class UnstorableBlockError(StorageError):
    """A block that the tables cannot hold, such as one with an index beyond 63 bits."""


def block_row(block: Block) -> tuple[int | bytes, ...]:
    """Return the values of a block's row, in the order of BLOCK_COLUMNS."""
    header: Header = block.header
    return (
        header.index,
        header.version,
        header.cluster_id,
        header.term,
        header.previous_hash,
        header.transactions_root,
        header.transaction_count,
        header.history_root,
        header.timestamp_us,
        header.sealer,
        header.nonce,
        block.hash,
        block.signature,
    )


def payload_json(payload: bytes | msgspec.Raw) -> bytes:
    """Convert a payload's canonical msgpack to JSON text in UTF-8, with sorted keys."""
    return _JSON_ENCODER.encode(_PAYLOAD_DECODER.decode(payload))


def transaction_slices(blocks: Sequence[Block]) -> Iterator[bytes]:
    """Yield the COPY rows of all transactions of `blocks`, a slice of bounded work at a time.

    A slice goes on over the end of a block: each costs the loop a turn, and blocks may be small.
    COPY_HEADER and COPY_TRAILER go around them. Raises UnstorableBlockError.
    """
    parts: list[bytes] = []
    rows = size_bytes = 0
    for block in blocks:
        for position, raw in enumerate(block.transactions):
            try:
                parts += _pack_row(block.index, position, raw)
            except (struct.error, ValueError) as error:
                raise UnstorableBlockError(f"block {block.index}: {error}") from error
            rows += 1
            size_bytes += len(raw)
            if rows == _SLICE_ROWS or size_bytes >= _SLICE_BYTES:
                yield b"".join(parts)
                parts.clear()
                rows = size_bytes = 0
    if parts:
        yield b"".join(parts)


def _pack_row(block_index: int, position: int, raw: bytes) -> tuple[bytes, ...]:
    """Pack the row of a transaction."""
    transaction = decode_transaction(raw)
    user_id = transaction.user_id.encode()
    kind = transaction.kind.encode()
    text = payload_json(transaction.payload)
    head = (len(TRANSACTION_COLUMNS), 16, transaction.id, 8, block_index, 4, position)
    return (
        _ROW.pack(*head, len(user_id)),
        user_id,
        _LENGTH.pack(len(kind)),
        kind,
        _JSONB.pack(len(text) + 1, _JSONB_VERSION),
        text,
        _LENGTH.pack(len(raw)),
        raw,
    )
