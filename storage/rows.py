"""What blocks and hard state are as rows of the chain's sub-databases, and how they are verified.

All numbers are big-endian, so that keys sort as numbers:

    meta     "cluster" -> 32 bytes; "hard-state" -> SHA-256 of what follows || msgpack HardState;
             "changes" -> SHA-256 of what follows || u64 index of each block of kind membership;
             "restored" -> nothing, where the chain was put together from elsewhere and no node
             has taken it up
    headers  u64 index -> msgpack [header bytes, signature, SHA-256(header bytes || signature)]
    bodies   u64 index -> the body's bytes
    terms    u64 term -> u64 index of the first block of that term
    history  u8 level || u64 position -> hash of a complete inner node (`storage.history`)

LMDB has no checksums, and a signature is covered by no hash of the chain, so header and signature
have a digest of their own. Relies on `consensus.block`.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Final

import msgspec

from consensus.block import Header, InvalidBlockError, block_from_parts, check_content
from consensus.merkle import CompactRange, leaf_hash
from consensus.ready import HardState
from storage.contract import StoredHeader
from storage.environment import Layout
from storage.errors import DamagedBlockError
from storage.history import completed_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block, Tip
    from storage.environment import Databases, Transaction

LAYOUT: Final = Layout("chain", 1, ("headers", "bodies", "terms", "history"))
CLUSTER_KEY: Final = b"cluster"
HARD_STATE_KEY: Final = b"hard-state"
CHANGES_KEY: Final = b"changes"
RESTORED_KEY: Final = b"restored"
NUMBER: Final = Struct(">Q")
NODE: Final = Struct(">BQ")

_DIGEST_BYTES: Final = 32
# What a record adds to header and signature: four prefixes and the digest.
_RECORD_OVERHEAD_BYTES: Final = 7 + _DIGEST_BYTES


class _HeaderRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The value stored for a header."""

    header_bytes: bytes
    signature: bytes
    digest: bytes


_ENCODER: Final = msgspec.msgpack.Encoder()
_RECORD_DECODER: Final = msgspec.msgpack.Decoder(_HeaderRecord)
_HEADER_DECODER: Final = msgspec.msgpack.Decoder(Header)
_HARD_STATE_DECODER: Final = msgspec.msgpack.Decoder(HardState)


@dataclass(frozen=True, slots=True)
class StoredParts:
    """A block as it was read, not verified yet."""

    index: int
    record: bytes
    body: bytes

    @property
    def size_bytes(self) -> int:
        """As `Block.size_bytes`."""
        return len(self.record) - _RECORD_OVERHEAD_BYTES + len(self.body)

    def verified(self) -> Block:
        """Decode and check all of it; raises DamagedBlockError."""
        stored = verified_header(self.index, self.record)
        try:
            block = block_from_parts(stored.header_bytes, stored.signature, self.body)
            check_content(block)
        except InvalidBlockError as error:
            raise DamagedBlockError(self.index, str(error)) from error
        return block


def header_record(block: Block) -> bytes:
    """Return the value stored for a block's header."""
    digest = sha256(block.header_bytes + block.signature).digest()
    return _ENCODER.encode(_HeaderRecord(block.header_bytes, block.signature, digest))


def append_block(txn: Transaction, databases: Databases, parent: Tip | None, block: Block) -> None:
    """Put one block after `parent`; keys ascend, which LMDB's append mode asserts."""
    key = NUMBER.pack(block.index)
    is_appended = txn.put(key, header_record(block), append=True, db=databases["headers"])
    assert is_appended, "no header is stored beyond the tip"
    is_appended = txn.put(key, block.body, append=True, db=databases["bodies"])
    assert is_appended, "no body is stored beyond the tip"
    if parent is None or block.term > parent.term:
        txn.put(NUMBER.pack(block.term), key, append=True, db=databases["terms"])
    history = CompactRange.EMPTY if parent is None else parent.history
    for node in completed_by(history, leaf_hash(block.hash)):
        txn.put(NODE.pack(node.level, node.position), node.hash, db=databases["history"])


def cut_blocks(txn: Transaction, databases: Databases, *, keep: int, last_index: int) -> None:
    """Delete the blocks above `keep`, from the end, with all that stands on them."""
    for index in range(last_index, keep, -1):
        key = NUMBER.pack(index)
        txn.delete(key, db=databases["headers"])
        txn.delete(key, db=databases["bodies"])
    with txn.cursor(databases["terms"]) as cursor:
        while cursor.last() and number(cursor.value()) > keep:
            cursor.delete()
    level = 1
    while last_index + 1 >> level:
        # Complete nodes of this level, before and after.
        for position in range(last_index + 1 >> level, keep + 1 >> level, -1):
            txn.delete(NODE.pack(level, position - 1), db=databases["history"])
        level += 1


def verified_header(index: int, raw: bytes) -> StoredHeader:
    """Decode a header's record and compare it with its digest and with the key it stands under."""
    try:
        record = _RECORD_DECODER.decode(raw)
        digest = sha256(record.header_bytes + record.signature).digest()
        if digest != record.digest:
            raise DamagedBlockError(index, "its header has another digest")
        header = _HEADER_DECODER.decode(record.header_bytes)
    except msgspec.MsgspecError as error:
        raise DamagedBlockError(index, f"its header cannot be decoded: {error}") from error
    if header.index != index:
        raise DamagedBlockError(index, f"the header of block {header.index} is stored there")
    block_hash = sha256(record.header_bytes).digest()
    return StoredHeader(header, record.header_bytes, block_hash, record.signature)


def number(raw: bytes) -> int:
    """Decode a key or a value that is a number."""
    return int.from_bytes(raw, "big")


def encode_hard_state(hard_state: HardState) -> bytes:
    """Return the value stored for a hard state."""
    value = _ENCODER.encode(hard_state)
    return sha256(value).digest() + value


def decode_hard_state(raw: bytes) -> HardState | None:
    """Return the hard state a value holds, or None where it is not what was stored."""
    digest, value = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    return _HARD_STATE_DECODER.decode(value) if sha256(value).digest() == digest else None


def encode_changes(indexes: Sequence[int]) -> bytes:
    """Return the value stored for the blocks that change the membership."""
    value = b"".join(NUMBER.pack(index) for index in indexes)
    return sha256(value).digest() + value


def decode_changes(raw: bytes) -> list[int] | None:
    """Return the indexes a value holds, or None where it is not what was stored."""
    digest, value = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if sha256(value).digest() != digest:
        return None
    return [index for (index,) in NUMBER.iter_unpack(value)]
