"""Every JSON shape of the HTTP face, one frozen struct each: what is sent, read and documented.

The server encodes them, the client decodes them, and OpenAPI is made from them. Hashes, keys and
signatures are lower-case hex, ids are UUID text, times are RFC 3339 in UTC with microseconds.
Relies on msgspec, and on the core's limits for what the documents promise.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from consensus.block import MAX_KIND_BYTES, MAX_USER_ID_BYTES
from consensus.changes import ChangeRefusal
from consensus.membership import MAX_ADDRESS_BYTES

MAX_TIMEOUT_MS: Final = 60_000
"""The longest a call may ask a node to wait."""

_HASH = Meta(pattern="^[0-9a-f]{64}$", description="32 bytes in hex")
_TIME = Meta(
    description="RFC 3339, in UTC, with microseconds", extra_json_schema={"format": "date-time"}
)
_ID = Meta(description="The transaction's id", extra_json_schema={"format": "uuid"})
_INDEX = Meta(ge=0, description="A block's place in the chain; genesis is 0")
_POSITION = Meta(ge=0, description="The place within the block, from 0")

Hash = Annotated[str, _HASH]
Time = Annotated[str, _TIME]
TransactionId = Annotated[str, _ID]
Index = Annotated[int, _INDEX]
Position = Annotated[int, _POSITION]
UserId = Annotated[
    str, Meta(min_length=1, description=f"Whose it is: 1 to {MAX_USER_ID_BYTES} bytes of UTF-8")
]
Kind = Annotated[
    str, Meta(min_length=1, description=f"What it is: 1 to {MAX_KIND_BYTES} bytes of UTF-8")
]
Payload = Annotated[
    Any,
    Meta(
        description="Any JSON value, nested at most 32 deep: integers of 64 bits, finite numbers,"
        " text without NUL, no key twice"
    ),
]


MemberName = Annotated[str, Meta(pattern="^[a-z0-9-]{1,63}$", description="The member's name")]
Address = Annotated[
    str, Meta(max_length=MAX_ADDRESS_BYTES, description="host:port; an IPv6 host in brackets")
]
ChangeReason = Annotated[
    str, Meta(description=f"Why a change is not made: {', '.join(ChangeRefusal)}")
]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the shapes. A reader ignores members it does not know."""


class NewTransaction(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transaction to record. Its id makes a retry safe; the node makes a UUIDv7 without one."""

    user_id: UserId
    kind: Kind
    payload: Payload
    id: UUID | UnsetType = UNSET


class NewBatch(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Transactions to record in one request, at most 10,000 or 8 MiB of them."""

    transactions: Annotated[list[NewTransaction], Meta(min_length=1, max_length=10_000)]


class Fault(Shape, frozen=True, kw_only=True):
    """One thing that is wrong: where, as `$.transactions[3].payload.memo`, and what."""

    path: str
    detail: str


class Problem(Shape, frozen=True, kw_only=True, omit_defaults=True):
    """Problem details (RFC 9457): why a request, or one transaction of it, was refused."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[Fault, ...] = ()
    reason: ChangeReason | None = None
    id: TransactionId | None = None
    retry_after_s: int | None = None


class Receipt(Shape, frozen=True, kw_only=True):
    """Proof of commit: where a transaction stands in the chain."""

    id: TransactionId
    index: Index
    position: Position
    block_hash: Hash
    timestamp: Time


class Pending(Shape, frozen=True, kw_only=True):
    """A transaction that was queued and not waited for."""

    id: TransactionId
    status: Literal["pending"] = "pending"


_OUTCOME = Meta(
    description="A receipt, a pending mark, or the problem of this transaction",
    extra_json_schema={
        "anyOf": [
            {"$ref": f"#/components/schemas/{name}"} for name in ("Receipt", "Pending", "Problem")
        ]
    },
)


class BatchAnswer(Shape, frozen=True, kw_only=True):
    """What became of each transaction of a batch, in the order sent."""

    # msgspec tells structs of a union apart by a tag, and these have none: see `read_outcome`.
    receipts: list[Annotated[Any, _OUTCOME]]


class BatchRefusal(Problem, frozen=True, kw_only=True, omit_defaults=True):
    """A problem that every transaction of a batch has, with the problem of each."""

    receipts: list[Problem] = []


class HistoryItem(Shape, frozen=True, kw_only=True):
    """One committed transaction of a user."""

    id: TransactionId
    user_id: UserId
    kind: Kind
    payload: Payload
    index: Index
    position: Position
    timestamp: Time


class HistoryPage(Shape, frozen=True, kw_only=True):
    """A page of a user's transactions. `next` is what `after` takes to read on, null at the end."""

    transactions: list[HistoryItem]
    next: str | None
    read_index: Index


class ReceiptLookup(Shape, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of an id; `receipt` is there exactly when it is committed."""

    status: Literal["committed", "pending", "unknown"]
    receipt: Receipt | UnsetType = UNSET


class RecordedTransaction(Shape, frozen=True, kw_only=True):
    """A transaction within its block."""

    id: TransactionId
    user_id: UserId
    kind: Kind
    payload: Payload


class BlockSummary(Shape, frozen=True, kw_only=True):
    """A block without its transactions: the header's fields by name, and what is beside it."""

    version: int
    cluster_id: Hash
    index: Index
    term: Annotated[int, Meta(ge=0)]
    previous_hash: Hash
    transactions_root: Hash
    transaction_count: Annotated[int, Meta(ge=0)]
    history_root: Hash
    timestamp_us: Annotated[int, Meta(ge=0)]
    timestamp: Time
    sealer: Hash
    nonce: Annotated[int, Meta(ge=0)]
    hash: Hash
    signature: Annotated[str, Meta(pattern="^[0-9a-f]{128}$", description="64 bytes in hex")]
    size_bytes: Annotated[int, Meta(ge=0)]


class BlockDetail(BlockSummary, frozen=True, kw_only=True):
    """A block with its transactions."""

    transactions: list[RecordedTransaction]


class BlockPage(Shape, frozen=True, kw_only=True):
    """Blocks in ascending order. `last_index` is the last that is committed on this node."""

    blocks: list[BlockSummary]
    last_index: Index


class MemberState(Shape, frozen=True, kw_only=True, omit_defaults=True):
    """A member as the node sees it; only the leader knows `match_index`."""

    name: str
    public_key: Hash
    role: Annotated[
        str, Meta(description="leader, follower, or learner for one that does not vote yet")
    ]
    peer: str
    http: str
    match_index: int | UnsetType = UNSET


class MemberList(Shape, frozen=True, kw_only=True):
    """The members as the node sees them, by name in ascending order."""

    node: str
    leader: str | None
    members: list[MemberState]


class NewMember(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A member to add: what `bitnexus node init` writes into `member.json`."""

    name: MemberName
    public_key: Hash
    peer: Address
    http: Address


class NewAddresses(
    Shape, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Where a member is from now on; what is left out stays, and one of them must be there."""

    peer: Address | UnsetType = UNSET
    http: Address | UnsetType = UNSET


class MembersChanged(Shape, frozen=True, kw_only=True):
    """A change of the members that is committed: the block that records it, and all members."""

    index: Index
    block_hash: Hash
    members: list[MemberState]


class Handover(Shape, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who is to lead: the voter `to`, or whoever is closest."""

    to: MemberName | UnsetType = UNSET


class NewLeader(Shape, frozen=True, kw_only=True):
    """Who leads after a transfer of leadership."""

    leader: str


class Checkpoint(Shape, frozen=True, kw_only=True):
    """How far PostgreSQL has come, as the node knows."""

    index: Annotated[int, Meta(ge=-1, description="The last block there; -1 for none")]
    lag_blocks: Annotated[int, Meta(ge=0, description="Blocks applied here and not known there")]
    rows_per_second: Annotated[
        int, Meta(ge=0, description="Transactions that this node copies; 0 where another does")
    ]
    last_error: Annotated[str, Meta(description="Until something goes well again")] | None


class Cluster(Shape, frozen=True, kw_only=True):
    """The cluster as the node sees it."""

    cluster_id: Hash
    incarnation: Hash
    name: str
    node: str
    role: str
    leader: str | None
    term: int
    last_index: Index
    commit_index: Index
    applied_index: Index
    catching_up_to: (
        Annotated[int, Meta(description="How far others have committed, while it fetches blocks")]
        | None
    ) = None
    members: list[MemberState]
    alarms: list[str]
    checkpoint: Checkpoint | None = None


def read_outcome(document: object) -> Receipt | Pending | Problem:
    """Return the shape of one entry of a batch's `receipts`; raises msgspec.ValidationError."""
    members = document if isinstance(document, dict) else {}
    if "block_hash" in members:
        return msgspec.convert(document, Receipt)
    if "type" in members:
        return msgspec.convert(document, Problem)
    return msgspec.convert(document, Pending)


class Health(Shape, frozen=True, kw_only=True):
    """Whether a node lives, or is ready to serve."""

    status: Literal["live", "ready"]
