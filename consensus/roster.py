"""The memberships of one chain: who was a member from which block on.

"A server always uses the latest configuration in its log, regardless of whether the entry is
committed" (Ongaro's dissertation, §4.1), and goes back to the one before when that block is
truncated. So the roster grows and shrinks with the log. Relies on `consensus.changes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from consensus.block import InvalidBlockError, Rule
from consensus.changes import (
    ChangeError,
    ChangeKind,
    ChangeRefusal,
    Membership,
    check_change,
    hides_change,
    holds_change,
    recorded_change,
)
from consensus.membership import genesis_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from consensus.block import Block
    from consensus.changes import Change
    from consensus.membership import Member
    from consensus.messages import MemberId


@dataclass(frozen=True, slots=True)
class Entry:
    """A membership, the block that it begins with, and the incarnation of the cluster there."""

    index: int
    membership: Membership
    incarnation: bytes
    former: Mapping[MemberId, tuple[Member, int]]
    """Who was a member before, and the block that removed it."""


class Roster:
    """All memberships of the blocks of one log, in their order; never empty."""

    def __init__(self, genesis: Block, changes: Iterable[Block] = ()) -> None:
        """`changes` are the blocks that hold one, in order.

        Raises:
            InvalidBlockError: one of them breaks a rule.
        """
        first = Membership.of_genesis(genesis_of(genesis))
        self._entries = [Entry(0, first, genesis.hash, {})]
        for block in changes:
            self.verify(block)
            self.append(block)

    @property
    def latest(self) -> Membership:
        """The membership that is in force, committed or not."""
        return self._entries[-1].membership

    @property
    def latest_index(self) -> int:
        """The block that the latest membership began with; 0 for genesis."""
        return self._entries[-1].index

    @property
    def change_indexes(self) -> list[int]:
        """The blocks that hold changes, ascending."""
        return [entry.index for entry in self._entries[1:]]

    @property
    def incarnation(self) -> bytes:
        """The hash of the last block that gave up a lost quorum, else that of genesis.

        Members of different incarnations never talk: each may hold what the other has given up.
        """
        return self._entries[-1].incarnation

    @property
    def incarnations(self) -> frozenset[bytes]:
        """Every incarnation that the cluster has had in this log, its cluster id included."""
        return frozenset(entry.incarnation for entry in self._entries)

    def at(self, index: int) -> Membership:
        """The membership that was in force once the block at `index` was in the log."""
        return self._entries[self._position(index)].membership

    def electors(self, index: int) -> frozenset[MemberId]:
        """Who may lead, and so seal the block at `index`: the members by the last two memberships.

        A leader that removes itself leads until that is committed, and a removed member whose
        removal is not committed may still be elected (dissertation §4.2.2), as may a learner: see
        `Elector._may_campaign`. The membership before the last one is as far as that goes: a
        further change waits for the last one's commit.
        """
        position = self._position(index - 1)
        entry = self._entries[position]
        before = self._entries[max(0, position - 1)]
        if before.incarnation != entry.incarnation:
            return entry.membership.keys  # those that were given up are not asked any more
        return entry.membership.keys | before.membership.keys

    def former(self, through: int) -> Mapping[MemberId, tuple[Member, int]]:
        """Who was a member once and is none at block `through`, and the block that removed it."""
        return self._entries[self._position(through)].former

    def plan(self, change: Change) -> None:
        """Check that `change` may follow the latest membership.

        Raises:
            ChangeError: it makes no sense, or brings back a key that was removed.
        """
        self.latest.after(change)
        if change.kind is ChangeKind.ADD:
            _refuse_former(change.member, self._entries[-1])

    def verify(self, block: Block) -> None:
        """Check that the change which a block holds, if any, is lawful where the block stands.

        Looks only at what stands before the block's index, for it may take another one's place.

        Raises:
            InvalidBlockError: rule MEMBERSHIP is broken.
        """
        if not holds_change(block):
            if hides_change(block):
                raise InvalidBlockError(Rule.MEMBERSHIP, "a change stands in a block of its own")
            return
        recorded = recorded_change(block)
        change = recorded.change
        check_change(block, recorded, self.at(block.index - 1))
        if change.kind is ChangeKind.RECOVER and block.header.sealer != change.member.public_key:
            raise InvalidBlockError(Rule.MEMBERSHIP, "the member that goes on alone seals that")
        if change.kind is ChangeKind.ADD:
            try:
                _refuse_former(change.member, self._entries[self._position(block.index - 1)])
            except ChangeError as error:
                raise InvalidBlockError(Rule.MEMBERSHIP, error.detail) from None

    def append(self, block: Block) -> bool:
        """Takes a block that was sealed here or verified; whether it changed the membership."""
        if not holds_change(block):
            return False
        assert block.index > self.latest_index, "changes come in the order of their blocks"
        recorded = recorded_change(block)
        recovers = recorded.change.kind is ChangeKind.RECOVER
        incarnation = block.hash if recovers else self.incarnation
        gone = {
            member.public_key: (member, block.index)
            for member in self.latest.members
            if member.public_key not in recorded.membership.keys
        }
        former = {**self._entries[-1].former, **gone}
        self._entries.append(Entry(block.index, recorded.membership, incarnation, former))
        return True

    def truncate_from(self, index: int) -> None:
        """The blocks from `index` on are gone, and their changes with them."""
        assert index > 0, "genesis stays"
        del self._entries[self._position(index - 1) + 1 :]

    def _position(self, index: int) -> int:
        """The entry in force at `index`; changes are few, and the last is asked for most."""
        position = len(self._entries) - 1
        while self._entries[position].index > index:
            position -= 1
        return position


def _refuse_former(member: Member, entry: Entry) -> None:
    """A wiped disk has forgotten its votes: its key must never vote again."""
    if member.public_key in entry.former or member.public_key in entry.membership.keys:
        detail = f"the key of {member.name} has been a member's; a new node has a new key"
        raise ChangeError(ChangeRefusal.FORMER_MEMBER, detail)
