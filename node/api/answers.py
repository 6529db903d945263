"""Makes the JSON shapes out of what the node gives: hex, UUID text and RFC 3339 times.

Relies on `shapes`, and on msgspec to read canonical msgpack. Hashes and times repeat within an
answer, since a block has one of each for all its transactions, so their text is remembered.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import UNSET

from consensus.block import Header, decode_transaction
from node.api import shapes
from node.outcomes import MemberStatus
from node.uuid7 import uuid_text

if TYPE_CHECKING:
    from consensus.block import Block
    from consensus.membership import Member
    from node.administration import MadeChange
    from node.outcomes import (
        CheckpointStatus,
        ClusterStatus,
        HistoryRow,
        Receipt,
        ReceiptStatus,
    )

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PAYLOAD_DECODER: Final = msgspec.msgpack.Decoder(Any)


@lru_cache(maxsize=1024)
def time_text(timestamp_us: int) -> str:
    """Return microseconds since 1970 as RFC 3339, always with six digits of fraction."""
    moment = _EPOCH + timedelta(microseconds=timestamp_us)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


@lru_cache(maxsize=1024)
def hash_text(raw: bytes) -> str:
    """Return a hash in hex."""
    return raw.hex()


def receipt_answer(receipt: Receipt) -> shapes.Receipt:
    """Return a receipt as it is sent."""
    return shapes.Receipt(
        id=uuid_text(receipt.id),
        index=receipt.index,
        position=receipt.position,
        block_hash=hash_text(receipt.block_hash),
        timestamp=time_text(receipt.timestamp_us),
    )


def lookup_answer(status: ReceiptStatus) -> shapes.ReceiptLookup:
    """Return what is known of an id as it is sent."""
    receipt = UNSET if status.receipt is None else receipt_answer(status.receipt)
    return shapes.ReceiptLookup(status=_state_text(status), receipt=receipt)


def history_item(row: HistoryRow) -> shapes.HistoryItem:
    """Return a committed transaction of a user as it is sent."""
    transaction = decode_transaction(row.transaction)
    return shapes.HistoryItem(
        id=uuid_text(transaction.id),
        user_id=transaction.user_id,
        kind=transaction.kind,
        payload=_PAYLOAD_DECODER.decode(transaction.payload),
        index=row.place.index,
        position=row.place.position,
        timestamp=time_text(row.timestamp_us),
    )


def block_summary(block: Block) -> shapes.BlockSummary:
    """Return a block without its transactions as it is sent."""
    return shapes.BlockSummary(**_header_members(block))


def block_detail(block: Block) -> shapes.BlockDetail:
    """Return a block with its transactions as it is sent."""
    transactions = [_recorded(raw) for raw in block.transactions]
    return shapes.BlockDetail(**_header_members(block), transactions=transactions)


def cluster_answer(status: ClusterStatus) -> shapes.Cluster:
    """Return the cluster as it is sent."""
    return shapes.Cluster(
        cluster_id=status.cluster_id.hex(),
        incarnation=status.incarnation.hex(),
        name=status.name,
        node=status.node,
        role=status.role,
        leader=status.leader,
        term=status.term,
        last_index=status.last_index,
        commit_index=status.commit_index,
        applied_index=status.applied_index,
        catching_up_to=status.catching_up_to,
        members=[_member(member) for member in status.members],
        alarms=list(status.alarms),
        checkpoint=_checkpoint(status.checkpoint),
    )


def _checkpoint(status: CheckpointStatus | None) -> shapes.Checkpoint | None:
    if status is None:
        return None
    return shapes.Checkpoint(
        index=status.index,
        lag_blocks=status.lag_blocks,
        rows_per_second=status.rows_per_second,
        last_error=status.last_error,
    )


def members_answer(status: ClusterStatus) -> shapes.MemberList:
    """Return the members alone as they are sent."""
    members = [_member(member) for member in status.members]
    return shapes.MemberList(node=status.node, leader=status.leader, members=members)


def change_answer(made: MadeChange, status: ClusterStatus) -> shapes.MembersChanged:
    """Return a change that is committed as it is sent.

    The members are those that the change made, whatever was changed since; who leads, and how far
    each has come, is as of now.
    """
    known = {seen.member.public_key: seen.match_index for seen in status.members}
    members = [
        _member(
            MemberStatus(member, _role(member, made, status.leader), known.get(member.public_key))
        )
        for member in made.membership.members
    ]
    return shapes.MembersChanged(
        index=made.index, block_hash=made.block_hash.hex(), members=members
    )


def _role(member: Member, made: MadeChange, leader: str | None) -> str:
    if member.public_key in made.membership.learners:
        return "learner"
    return "leader" if member.name == leader else "follower"


def _state_text(status: ReceiptStatus) -> Literal["committed", "pending", "unknown"]:
    assert (status.receipt is not None) == (status.state == "committed")
    return status.state.value


def _recorded(raw: bytes) -> shapes.RecordedTransaction:
    transaction = decode_transaction(raw)
    return shapes.RecordedTransaction(
        id=uuid_text(transaction.id),
        user_id=transaction.user_id,
        kind=transaction.kind,
        payload=_PAYLOAD_DECODER.decode(transaction.payload),
    )


def _header_members(block: Block) -> dict[str, Any]:
    """Return every field of the header by its own name, and what stands beside the header."""
    members: dict[str, Any] = {}
    for name in Header.__struct_fields__:
        value = getattr(block.header, name)
        members[name] = hash_text(value) if isinstance(value, bytes) else value
    return {
        **members,
        "timestamp": time_text(block.timestamp_us),
        "hash": hash_text(block.hash),
        "signature": block.signature.hex(),
        "size_bytes": block.size_bytes,
    }


def _member(status: MemberStatus) -> shapes.MemberState:
    return shapes.MemberState(
        name=status.member.name,
        public_key=status.member.public_key.hex(),
        role=status.role,
        peer=status.member.peer,
        http=status.member.http,
        match_index=UNSET if status.match_index is None else status.match_index,
    )
