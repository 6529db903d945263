"""What a node answers: receipts, refusals, statuses, and the errors of its Python interface.

Relies on nothing but the storage layer's `Place`; the HTTP face, the client and the command line
translate these types and add none of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique
from typing import TYPE_CHECKING

import msgspec

from storage.recent import Place

if TYPE_CHECKING:
    from consensus.membership import Member


@unique
class Wait(StrEnum):
    """How long a submit waits: until the transaction is committed, or only until it is queued."""

    COMMITTED = "committed"
    ACCEPTED = "accepted"


@unique
class RefusalReason(StrEnum):
    """Why a transaction has no receipt."""

    CONFLICT = "conflict"
    """The id is in the chain with other content. Final."""
    QUEUE_FULL = "queue-full"
    """The leader's queue, or what this member may hold, is full: not taken. Retry later."""
    UNKNOWN = "unknown"
    """No answer within the time allowed: it may be recorded. Retry with the same id."""
    UNAVAILABLE = "unavailable"
    """This node cannot answer: its chain is damaged."""


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Proof of commit: where a transaction stands in the chain.

    A msgspec struct, since one is made for each transaction: a quarter of a dataclass's time.
    """

    id: bytes
    index: int
    position: int
    block_hash: bytes
    timestamp_us: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """A transaction that is queued and was not waited for."""

    id: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A transaction without a receipt, and why. `retry_after_s` is set where waiting helps."""

    id: bytes
    reason: RefusalReason
    detail: str
    retry_after_s: int | None = None


Outcome = Receipt | Accepted | Refusal


@unique
class TransactionState(StrEnum):
    """What this node knows of an id. `UNKNOWN` is no promise that it will never commit."""

    COMMITTED = "committed"
    PENDING = "pending"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ReceiptStatus:
    """The answer to a receipt look-up; `receipt` is set exactly when committed."""

    state: TransactionState
    receipt: Receipt | None = None


class HistoryRow(msgspec.Struct, frozen=True):
    """One committed transaction of a user: its canonical bytes, its place and its block's time."""

    place: Place
    transaction: bytes
    timestamp_us: int


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A member as this node sees it; `match_index` is known to the leader only.

    `role` is `leader`, `follower`, or `learner` for one that does not vote.
    """

    member: Member
    role: str
    match_index: int | None


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster as this node sees it. `leader` is a member's name, or None."""

    cluster_id: bytes
    incarnation: bytes
    """The last block that gave up a lost quorum, by its hash; the cluster id where there is none.

    Nodes of different incarnations never talk.
    """
    name: str
    node: str
    role: str
    leader: str | None
    term: int
    last_index: int
    commit_index: int
    applied_index: int
    catching_up_to: int | None
    """How far others have committed, where this node fetches what it lacks."""
    members: tuple[MemberStatus, ...]
    alarms: tuple[str, ...]


class LedgerError(Exception):
    """Base of the errors of a node's Python interface."""


class NoLeaderError(LedgerError):
    """No leader confirmed within the time allowed: a read cannot be linearizable now."""


class UnknownChangeError(LedgerError):
    """A change of the membership whose fate is not known, or that another leader undid."""


class LostChainError(LedgerError):
    """The chain of a node that has run before is gone, and with it what it promised to others."""


class RefusedError(LedgerError):
    """A transaction has no receipt; `refusal` says why and whether to retry with the same id."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.reason}: {refusal.detail}")
        self.refusal = refusal


class NodeFailedError(LedgerError):
    """The node has stopped itself: a failed disk or a broken invariant."""
