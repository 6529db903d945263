"""One member goes on alone: how a cluster that lost its majority for good comes back, unsafely.

A block with the change RECOVER is appended to that member's chain, and from there on it is the only
member. It begins a new incarnation, with which the other members of the old one can never talk:
each may hold what the other has given up. What this chain holds becomes committed; what only the
others had recorded is lost. Nothing but a person can know that they are gone for good. Relies on
the chain store and on the core's changes; the caller holds the folder's lock and has audited it.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from consensus.block import TRANSACTION_ID_BYTES, Sealer
from consensus.changes import Change, ChangeKind, change_transaction
from consensus.ready import HardState
from consensus.roster import Roster

if TYPE_CHECKING:
    from consensus.block import Block
    from consensus.changes import Membership
    from consensus.membership import Member
    from node.identity import Identity
    from storage.contract import Chain

NANOS_PER_MICRO: Final = 1_000


class RecoveryRefusedError(Exception):
    """This member must not, or need not, go on alone; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What going on alone means for this chain, before it is done."""

    member: Member
    before: Membership
    last_index: int
    last_term: int
    """The term of the last block. Of several chains the one where it is highest has all that is
    committed, and among those the longest: as with votes."""
    last_hash: bytes
    last_timestamp_us: int
    commit_index: int
    """What is known here to be committed; the others may have known more."""
    new_term: int
    """The term that the block which begins the new incarnation is sealed in."""

    @property
    def given_up(self) -> tuple[Member, ...]:
        """The members that can never come back under their keys."""
        return tuple(member for member in self.before.members if member != self.member)


def plan_recovery(chain: Chain, identity: Identity, *, is_restored: bool = False) -> Recovery:
    """Say what `recover` would do; changes nothing.

    A restored chain is no memory of the member's own: it may lack what that member recorded, so
    even the only voter can go on by a new incarnation alone.

    Raises:
        RecoveryRefusedError: this node is no voter, or has its majority by itself.
        StorageError: the chain cannot be read.
    """
    roster = Roster(chain.block(0), map(chain.block, chain.change_indexes()))
    membership = roster.latest
    member = next((m for m in membership.members if m.public_key == identity.public_key), None)
    if member is None:
        raise RecoveryRefusedError("this node is not a member of the cluster, by its own chain")
    if member.public_key in membership.learners:
        raise RecoveryRefusedError(f"{member.name} is a learner: it may lack what was committed")
    if membership.voters == {member.public_key} and not is_restored:
        raise RecoveryRefusedError(f"{member.name} is the only voter already: start it")
    tip = chain.tip(chain.last_index)
    hard_state = chain.hard_state
    return Recovery(
        member=member,
        before=membership,
        last_index=tip.index,
        last_term=tip.term,
        last_hash=tip.hash,
        last_timestamp_us=tip.timestamp_us,
        commit_index=hard_state.commit_index,
        new_term=hard_state.term + 1,
    )


def recover(chain: Chain, identity: Identity, recovery: Recovery) -> Block:
    """Begin the new incarnation, durably in one save; returns the block that begins it.

    Raises:
        StorageError: it could not be saved.
    """
    assert chain.last_index == recovery.last_index, "the chain is the one that was planned for"
    raw = change_transaction(
        Change(ChangeKind.RECOVER, recovery.member),
        recovery.before,
        change_id=secrets.token_bytes(TRANSACTION_ID_BYTES),
    )
    sealer = Sealer(identity.signing_key, chain.cluster_id, secrets.SystemRandom())
    block = sealer.seal(
        chain.tip(recovery.last_index),
        term=recovery.new_term,
        transactions=[raw],
        wall_us=time.time_ns() // NANOS_PER_MICRO,
    )
    # Its own vote makes it the leader of that term, and it is a majority of itself: committed.
    hard_state = HardState(recovery.new_term, identity.public_key, block.index)
    chain.save(hard_state=hard_state, truncate_from=None, blocks=[block])
    return block
