"""Transactions, headers and blocks: the bytes that are hashed, and the rules they must obey.

Canonical msgpack, made once and by one function each: arrays for records, the shortest form of
every number and length, 64-bit floats, and map keys in ascending order of their UTF-8 bytes (which
is the order of their Unicode code points). A transaction's bytes are made by the node that accepts
it and are never made again. Relies on `consensus.merkle`, msgspec, and PyNaCl for Ed25519.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from consensus.merkle import CompactRange, leaf_hash, transactions_root
from consensus.payload import (
    DECODE_ERRORS,
    ENCODER,
    MAX_PAYLOAD_DEPTH,
    InvalidTransactionError,
    check_payload,
    encode_payload,
    text_fault,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from random import Random

    from nacl.signing import SigningKey

__all__ = [
    "FORMAT_VERSION",
    "HASH_BYTES",
    "MAX_BLOCK_BYTES",
    "MAX_BLOCK_TRANSACTIONS",
    "MAX_KIND_BYTES",
    "MAX_PAYLOAD_DEPTH",
    "MAX_TIMESTAMP_US",
    "MAX_TRANSACTION_BYTES",
    "MAX_USER_ID_BYTES",
    "RESERVED_KINDS",
    "SIGNATURE_BYTES",
    "TRANSACTION_ID_BYTES",
    "ZERO_HASH",
    "Block",
    "Header",
    "InvalidBlockError",
    "InvalidTransactionError",
    "Rule",
    "Sealer",
    "Tip",
    "Transaction",
    "assemble_block",
    "block_from_parts",
    "check_content",
    "check_transaction",
    "decode_block",
    "decode_transaction",
    "encode_transaction",
    "tip_after",
    "transaction_id",
    "verify_block",
]

FORMAT_VERSION = 1
HASH_BYTES = 32
ZERO_HASH = bytes(HASH_BYTES)
SIGNATURE_BYTES = 64
TRANSACTION_ID_BYTES = 16

MAX_TRANSACTION_BYTES = 64 * 1024
MAX_BLOCK_TRANSACTIONS = 2_000
MAX_BLOCK_BYTES = 1 << 20
"""The most bytes of a block's body: its transactions with their length prefixes."""
MAX_USER_ID_BYTES = 256
MAX_KIND_BYTES = 64
MAX_TIMESTAMP_US = 253_402_300_799_999_999
"""The last microsecond of the year 9999, where RFC 3339 ends."""

RESERVED_KINDS = frozenset({"genesis", "membership"})
"""Kinds that only the cluster itself records; the API refuses them."""

# A frame adds a header of at most 225 bytes, a signature and a few length prefixes to the body.
_MAX_ENCODED_BYTES = MAX_BLOCK_BYTES + 512


@unique
class Rule(StrEnum):
    """The rules a block can break."""

    ENCODING = "encoding"
    VERSION = "version"
    CLUSTER = "cluster"
    INDEX = "index"
    PREVIOUS_HASH = "previous_hash"
    TERM = "term"
    TIMESTAMP = "timestamp"
    COUNT = "count"
    TRANSACTIONS_ROOT = "transactions_root"
    HISTORY_ROOT = "history_root"
    SEALER = "sealer"
    SIGNATURE = "signature"
    SIZE = "size"
    MEMBERSHIP = "membership"


class InvalidBlockError(ValueError):
    """A block that breaks `rule`; `detail` says how."""

    def __init__(self, rule: Rule, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


_TransactionId = Annotated[
    bytes, msgspec.Meta(min_length=TRANSACTION_ID_BYTES, max_length=TRANSACTION_ID_BYTES)
]
_Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
_Unsigned = Annotated[int, msgspec.Meta(ge=0)]


class Transaction(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One record of one user. `payload` is the canonical msgpack of the payload, not decoded."""

    id: _TransactionId
    user_id: str
    kind: str
    payload: msgspec.Raw


class Header(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a block's hash covers. `timestamp_us` counts microseconds since 1970 in UTC."""

    version: _Unsigned
    cluster_id: _Hash
    index: _Unsigned
    term: _Unsigned
    previous_hash: _Hash
    transactions_root: _Hash
    transaction_count: _Unsigned
    history_root: _Hash
    timestamp_us: _Unsigned
    sealer: _Hash
    nonce: _Unsigned


@dataclass(frozen=True, slots=True)
class Block:
    """A sealed list of transactions.

    Made only by `block_from_parts` and `assemble_block`, so what is decoded and what is encoded
    agree. Two blocks are equal when their bytes are.
    """

    header: Header
    header_bytes: bytes
    hash: bytes
    signature: bytes
    body: bytes
    transactions: tuple[bytes, ...]

    @property
    def index(self) -> int:
        """The block's place in the chain."""
        return self.header.index

    @property
    def term(self) -> int:
        """The term of the leader that sealed it."""
        return self.header.term

    @property
    def previous_hash(self) -> bytes:
        """The hash of the block before it."""
        return self.header.previous_hash

    @property
    def timestamp_us(self) -> int:
        """When it was sealed, by the leader's clock, in microseconds since 1970 in UTC."""
        return self.header.timestamp_us

    @property
    def size_bytes(self) -> int:
        """The bytes of header, signature and body."""
        return len(self.header_bytes) + len(self.signature) + len(self.body)

    def encode(self) -> bytes:
        """Return the bytes that travel: msgpack `[header_bytes, signature, body]`."""
        return ENCODER.encode((self.header_bytes, self.signature, self.body))


@dataclass(frozen=True, slots=True)
class Tip:
    """What the next block is checked against. `history` covers blocks 0 to `index`."""

    index: int
    term: int
    hash: bytes
    timestamp_us: int
    history: CompactRange

    def __post_init__(self) -> None:
        """Assert that the history ends at the tip."""
        assert self.history.size == self.index + 1


# Built once: a decoder compiles its type when it is made.
_TRANSACTION_DECODER = msgspec.msgpack.Decoder(Transaction)
_HEADER_DECODER = msgspec.msgpack.Decoder(Header)
_BODY_DECODER = msgspec.msgpack.Decoder(tuple[bytes, ...])
_FRAME_DECODER = msgspec.msgpack.Decoder(tuple[bytes, _Signature, bytes])


def encode_transaction(*, transaction_id: bytes, user_id: str, kind: str, payload: object) -> bytes:
    """Return the canonical bytes of a transaction: msgpack `[id, user_id, kind, payload]`.

    A payload is made of dict with str keys, list, str, int, float, bool and None, and is recorded
    exactly as it was given or not at all: a tuple, which would be read back as a list, is refused.
    Raises InvalidTransactionError naming the field. Reserved kinds are not refused here.
    """
    if type(transaction_id) is not bytes or len(transaction_id) != TRANSACTION_ID_BYTES:
        raise InvalidTransactionError("id", f"must be {TRANSACTION_ID_BYTES} bytes")
    _check_text("user_id", user_id, MAX_USER_ID_BYTES)
    _check_text("kind", kind, MAX_KIND_BYTES)
    raw_payload = msgspec.Raw(encode_payload(payload))
    raw = ENCODER.encode(Transaction(transaction_id, user_id, kind, raw_payload))
    if len(raw) > MAX_TRANSACTION_BYTES:
        detail = f"makes a transaction of {len(raw)} bytes; at most {MAX_TRANSACTION_BYTES}"
        raise InvalidTransactionError("payload", detail)
    return raw


def decode_transaction(raw: bytes) -> Transaction:
    """Decode the structure of a transaction and leave its payload alone.

    Raises InvalidTransactionError. For bytes that nobody has checked, use `check_transaction`.
    """
    try:
        return _TRANSACTION_DECODER.decode(raw)
    except DECODE_ERRORS as error:
        raise InvalidTransactionError(_field_of(error), str(error)) from None


def check_transaction(raw: bytes) -> Transaction:
    """Check bytes from elsewhere against every rule of `encode_transaction`, and decode them.

    The bytes must be the canonical ones: encoded anew they must be the same. That refuses what the
    decoder forgives, such as duplicate keys, unsorted keys, long forms and 32-bit floats. Raises
    InvalidTransactionError.
    """
    if len(raw) > MAX_TRANSACTION_BYTES:
        detail = f"has {len(raw)} bytes; at most {MAX_TRANSACTION_BYTES}"
        raise InvalidTransactionError("transaction", detail)
    transaction = decode_transaction(raw)
    _check_text("user_id", transaction.user_id, MAX_USER_ID_BYTES)
    _check_text("kind", transaction.kind, MAX_KIND_BYTES)
    check_payload(bytes(transaction.payload))
    if ENCODER.encode(transaction) != raw:
        raise InvalidTransactionError("transaction", "is not in its canonical encoding")
    return transaction


def transaction_id(raw: bytes) -> bytes:
    """Return the id of canonical transaction bytes, which hold it at a fixed offset."""
    return raw[3:19]


def decode_block(raw: bytes) -> Block:
    """Decode the bytes of `Block.encode`; raises InvalidBlockError with rule ENCODING or SIZE."""
    if len(raw) > _MAX_ENCODED_BYTES:
        raise InvalidBlockError(Rule.SIZE, f"{len(raw)} bytes; at most {_MAX_ENCODED_BYTES}")
    try:
        header_bytes, signature, body = _FRAME_DECODER.decode(raw)
    except DECODE_ERRORS as error:
        raise InvalidBlockError(Rule.ENCODING, str(error)) from None
    block = block_from_parts(header_bytes, signature, body)
    if block.encode() != raw:
        raise InvalidBlockError(Rule.ENCODING, "the frame is not in its canonical encoding")
    return block


def block_from_parts(header_bytes: bytes, signature: bytes, body: bytes) -> Block:
    """Decode the three parts of a block as they travel and are stored.

    Header and body must be in their canonical encoding, so that equal blocks are equal bytes on
    every member. Whether header and body belong together is for `check_content` to say. Raises
    InvalidBlockError with rule ENCODING or SIZE.
    """
    if len(body) > MAX_BLOCK_BYTES:
        raise InvalidBlockError(
            Rule.SIZE, f"a body of {len(body)} bytes; at most {MAX_BLOCK_BYTES}"
        )
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidBlockError(Rule.ENCODING, f"a signature of {len(signature)} bytes")
    try:
        header = _HEADER_DECODER.decode(header_bytes)
        transactions = _BODY_DECODER.decode(body)
    except DECODE_ERRORS as error:
        raise InvalidBlockError(Rule.ENCODING, str(error)) from None
    if len(transactions) > MAX_BLOCK_TRANSACTIONS:
        detail = f"{len(transactions)} transactions; at most {MAX_BLOCK_TRANSACTIONS}"
        raise InvalidBlockError(Rule.SIZE, detail)
    if ENCODER.encode(header) != header_bytes:
        raise InvalidBlockError(Rule.ENCODING, "the header is not in its canonical encoding")
    if ENCODER.encode(transactions) != body:
        raise InvalidBlockError(Rule.ENCODING, "the body is not in its canonical encoding")
    digest = sha256(header_bytes).digest()
    return Block(header, header_bytes, digest, signature, body, transactions)


def assemble_block(header: Header, signature: bytes, transactions: Sequence[bytes]) -> Block:
    """Make a block of this node's own from its header, which must already describe its content."""
    body = ENCODER.encode(transactions)
    assert len(transactions) <= MAX_BLOCK_TRANSACTIONS
    assert len(body) <= MAX_BLOCK_BYTES
    header_bytes = ENCODER.encode(header)
    digest = sha256(header_bytes).digest()
    return Block(header, header_bytes, digest, signature, body, tuple(transactions))


def tip_after(parent: Tip | None, block: Block) -> Tip:
    """Return the tip of the chain once `block` follows `parent`; None stands before genesis."""
    history = CompactRange.EMPTY if parent is None else parent.history
    assert history.size == block.index
    return Tip(
        index=block.index,
        term=block.term,
        hash=block.hash,
        timestamp_us=block.timestamp_us,
        history=history.append(leaf_hash(block.hash)),
    )


class Sealer:
    """Makes blocks in the name of one member, with its signing key."""

    def __init__(self, signing_key: SigningKey, cluster_id: bytes, random: Random) -> None:
        self.public_key = bytes(signing_key.verify_key)
        self._signing_key = signing_key
        self._cluster_id = cluster_id
        self._random = random

    def seal(self, parent: Tip, *, term: int, transactions: Sequence[bytes], wall_us: int) -> Block:
        """Make the block that follows `parent`; `wall_us` is the clock's microseconds since 1970.

        The transactions must be in their canonical bytes and within a block's limits, or an
        assertion fails. The timestamp never falls below the parent's, whatever the clock does.
        """
        assert term >= parent.term
        header = Header(
            version=FORMAT_VERSION,
            cluster_id=self._cluster_id,
            index=parent.index + 1,
            term=term,
            previous_hash=parent.hash,
            transactions_root=transactions_root(transactions),
            transaction_count=len(transactions),
            history_root=parent.history.root(),
            timestamp_us=max(wall_us, parent.timestamp_us),
            sealer=self.public_key,
            # Fresh for each seal, so that no two seals ever share a hash.
            nonce=self._random.getrandbits(64),
        )
        block_hash = sha256(ENCODER.encode(header)).digest()
        signature = self._signing_key.sign(block_hash).signature
        return assemble_block(header, signature, transactions)


def verify_block(
    parent: Tip, block: Block, *, cluster_id: bytes, sealers: Collection[bytes]
) -> Tip:
    """Check every rule a follower checks before it saves `block` after `parent`.

    `sealers` holds the public keys of the members that may have sealed it. The cheap rules come
    first and the signature last. Returns the new tip; raises InvalidBlockError with the first
    rule that is broken. Transactions are not decoded: they were when a member accepted them.
    """
    _check_place(parent, block, cluster_id)
    if block.header.sealer not in sealers:
        raise InvalidBlockError(Rule.SEALER, f"{block.header.sealer.hex()} is not a member")
    if block.header.history_root != parent.history.root():
        raise InvalidBlockError(Rule.HISTORY_ROOT, "not the root over the blocks before it")
    check_content(block)
    try:
        VerifyKey(block.header.sealer).verify(block.hash, block.signature)
    except BadSignatureError:
        detail = f"not made by {block.header.sealer.hex()} over this block"
        raise InvalidBlockError(Rule.SIGNATURE, detail) from None
    return tip_after(parent, block)


def check_content(block: Block) -> None:
    """Check that body and header belong together; raises InvalidBlockError.

    The rules are COUNT and TRANSACTIONS_ROOT.
    """
    if block.header.transaction_count != len(block.transactions):
        detail = f"{len(block.transactions)}, not {block.header.transaction_count}"
        raise InvalidBlockError(Rule.COUNT, detail)
    if block.header.transactions_root != transactions_root(block.transactions):
        raise InvalidBlockError(Rule.TRANSACTIONS_ROOT, "not the root over the transactions")


def _check_place(parent: Tip, block: Block, cluster_id: bytes) -> None:
    """Check the rules that tie a header to its cluster and to its parent."""
    header = block.header
    if header.version != FORMAT_VERSION:
        raise InvalidBlockError(Rule.VERSION, f"{header.version}, not {FORMAT_VERSION}")
    if header.cluster_id != cluster_id:
        raise InvalidBlockError(Rule.CLUSTER, f"{header.cluster_id.hex()}, not {cluster_id.hex()}")
    if header.index != parent.index + 1:
        raise InvalidBlockError(Rule.INDEX, f"{header.index} after {parent.index}")
    if header.previous_hash != parent.hash:
        detail = f"{header.previous_hash.hex()}, not {parent.hash.hex()}"
        raise InvalidBlockError(Rule.PREVIOUS_HASH, detail)
    if header.term < parent.term:
        raise InvalidBlockError(Rule.TERM, f"{header.term} after {parent.term}")
    if not parent.timestamp_us <= header.timestamp_us <= MAX_TIMESTAMP_US:
        detail = f"{header.timestamp_us} after {parent.timestamp_us}"
        raise InvalidBlockError(Rule.TIMESTAMP, detail)


def _check_text(field: str, text: str, max_bytes: int) -> None:
    """Check a user id or a kind: not empty, UTF-8, without NUL, at most `max_bytes`."""
    if not isinstance(text, str):
        raise InvalidTransactionError(field, f"must be text, not {type(text).__name__}")
    if not text:
        raise InvalidTransactionError(field, "must not be empty")
    fault = text_fault(text)
    if fault is not None:
        raise InvalidTransactionError(field, fault)
    # No character has more than four bytes, so short text needs no counting.
    if 4 * len(text) > max_bytes and len(text.encode()) > max_bytes:
        raise InvalidTransactionError(field, f"has more than {max_bytes} bytes")


def _field_of(error: Exception) -> str:
    """Name the field of a transaction that msgspec could not decode."""
    if isinstance(error, RecursionError):
        return "payload"
    for position, field in enumerate(Transaction.__struct_fields__):
        if f"$[{position}]" in str(error):
            return field
    return "transaction"
