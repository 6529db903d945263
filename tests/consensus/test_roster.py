"""The memberships of one chain: which is in force where, who may seal, and whose key is spent.

"A server always uses the latest configuration in its log, regardless of whether the entry is
committed" (Ongaro's dissertation, §4.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from consensus.block import InvalidBlockError, Rule, encode_transaction, tip_after
from consensus.changes import (
    Change,
    ChangeError,
    ChangeKind,
    ChangeRefusal,
    Membership,
    change_transaction,
)
from consensus.membership import Member
from consensus.roster import Roster
from tests.consensus.raft_chains import (
    genesis_of_size,
    member_id,
    member_of,
    sealer_of,
    transaction,
)

if TYPE_CHECKING:
    from consensus.block import Block

ADD, PROMOTE, REMOVE = ChangeKind.ADD, ChangeKind.PROMOTE, ChangeKind.REMOVE


class Chain:
    """A chain of three members that grows block by block, and the roster of it."""

    def __init__(self) -> None:
        self.blocks: list[Block] = [genesis_of_size(3)]
        self.tip = tip_after(None, self.blocks[0])
        self.roster = Roster(self.blocks[0])

    def seal(self, *transactions: bytes, sealer: str = "a") -> Block:
        """The next block, which is not in the roster yet."""
        term = self.tip.term + 1
        sealing = sealer_of(sealer, 3, seed=f"{sealer} {term}")
        return sealing.seal(self.tip, term=term, transactions=transactions, wall_us=0)

    def changing(self, kind: ChangeKind, name: str, *, sealer: str = "a") -> Block:
        """The next block, with that change of the latest membership."""
        change = Change(kind, member_of(name))
        raw = change_transaction(change, self.roster.latest, change_id=bytes(16))
        return self.seal(raw, sealer=sealer)

    def take(self, block: Block) -> Block:
        """The block stands in the chain, and in the roster where it is lawful."""
        self.roster.verify(block)
        self.roster.append(block)
        self.tip = tip_after(self.tip, block)
        self.blocks.append(block)
        return block

    def change(self, kind: ChangeKind, name: str) -> Block:
        """The chain grows by that change."""
        return self.take(self.changing(kind, name))


def ids(names: str) -> frozenset[bytes]:
    """The ids of these members."""
    return frozenset(map(member_id, names))


def long_chain() -> Chain:
    """Block 1 is ordinary; 2 adds `d`, 4 promotes it, 5 removes `a`; 3 and 6 are ordinary."""
    chain = Chain()
    chain.take(chain.seal())
    chain.change(ADD, "d")
    chain.take(chain.seal(transaction(1)))
    chain.change(PROMOTE, "d")
    chain.change(REMOVE, "a")
    chain.take(chain.seal(sealer="b"))
    return chain


def refusal_of(roster: Roster, block: Block) -> Rule | None:
    """The rule that a block breaks where it would stand."""
    try:
        roster.verify(block)
    except InvalidBlockError as error:
        return error.rule
    return None


def test_genesis_is_the_first_membership() -> None:
    """Its members vote, and its hash is the incarnation."""
    roster = Chain().roster
    assert Membership(tuple(map(member_of, "abc"))) == roster.latest
    assert (0, [], genesis_of_size(3).hash) == (
        roster.latest_index,
        roster.change_indexes,
        roster.incarnation,
    )


def test_membership_is_in_force_from_its_block_on() -> None:
    """At the block before, the one before it is (§4.1)."""
    roster = long_chain().roster
    voters = [roster.at(index).voters for index in range(7)]
    assert [ids("abc")] * 4 + [ids("abcd"), ids("bcd"), ids("bcd")] == voters
    learners = [roster.at(index).learners for index in range(7)]
    assert [ids("")] * 2 + [ids("d")] * 2 + [ids("")] * 3 == learners
    assert (5, [2, 4, 5], roster.at(6)) == (
        roster.latest_index,
        roster.change_indexes,
        roster.latest,
    )


def test_append_says_whether_it_was_a_change() -> None:
    """An ordinary block leaves the roster as it is."""
    chain = Chain()
    before = chain.roster.latest
    assert not chain.roster.append(chain.seal(transaction(1)))
    assert before is chain.roster.latest
    assert chain.roster.append(chain.changing(ADD, "d"))


def test_roster_is_read_from_the_blocks_that_hold_changes() -> None:
    """A start reads only them, and has the same memberships."""
    chain = long_chain()
    changes = [chain.blocks[index] for index in chain.roster.change_indexes]
    again = Roster(chain.blocks[0], changes)
    assert [chain.roster.at(index) for index in range(7)] == [again.at(i) for i in range(7)]
    assert chain.roster.change_indexes == again.change_indexes


def test_saved_changes_are_checked_again() -> None:
    """A chain on disk in which a change is missing is refused."""
    chain = long_chain()
    with pytest.raises(InvalidBlockError) as refusal:
        Roster(chain.blocks[0], [chain.blocks[4]])
    assert Rule.MEMBERSHIP is refusal.value.rule


@pytest.mark.parametrize(
    ("index", "left"), [(1, []), (2, []), (3, [2]), (4, [2]), (5, [2, 4]), (6, [2, 4, 5])]
)
def test_truncation_goes_back(index: int, left: list[int]) -> None:
    """To the membership before the first change that is gone (§4.1)."""
    chain = long_chain()
    expected = [chain.roster.at(i) for i in range(index)]
    chain.roster.truncate_from(index)
    assert left == chain.roster.change_indexes
    assert expected == [chain.roster.at(i) for i in range(index)]
    assert expected[-1] is chain.roster.latest


def test_electors_are_the_members_by_the_last_two_memberships() -> None:
    """A leader that removes itself seals until that is committed (§4.2.2), and not for ever.

    A learner may have to lead, too.
    """
    chain = long_chain()
    electors = [chain.roster.electors(index) for index in range(1, 8)]
    assert [ids("abc")] * 2 + [ids("abcd")] * 5 == electors
    chain.change(REMOVE, "b")
    assert ids("bcd") == chain.roster.electors(8)


def test_former_members() -> None:
    """Who was one before that block and is none at it, and what removed it."""
    chain = long_chain()
    chain.take(chain.changing(REMOVE, "d", sealer="b"))
    gone_a = {member_id("a"): (member_of("a"), 5)}
    gone_d = {member_id("d"): (member_of("d"), 7)}
    former = [chain.roster.former(index) for index in range(4, 8)]
    assert [{}, gone_a, gone_a, gone_a | gone_d] == former


def test_key_of_a_former_member_is_refused() -> None:
    """Whoever comes back with it has forgotten its votes, whatever its name is by now."""
    chain = long_chain()
    returned = msgspec.structs.replace(member_of("a"), name="z")
    change = Change(ADD, returned)
    with pytest.raises(ChangeError) as refusal:
        chain.roster.plan(change)
    assert ChangeRefusal.FORMER_MEMBER is refusal.value.reason
    raw = change_transaction(change, chain.roster.latest, change_id=bytes(16))
    assert Rule.MEMBERSHIP is refusal_of(chain.roster, chain.seal(raw))


def test_name_of_a_former_member_may_return() -> None:
    """With a new key: a machine that lost its disk keeps its name and its addresses."""
    chain = long_chain()
    old = member_of("a")
    change = Change(ADD, Member(old.name, member_id("e"), old.peer, old.http))
    chain.roster.plan(change)
    raw = change_transaction(change, chain.roster.latest, change_id=bytes(16))
    assert refusal_of(chain.roster, chain.seal(raw)) is None


def test_what_makes_no_sense_is_not_planned() -> None:
    """The latest membership decides."""
    chain = long_chain()
    with pytest.raises(ChangeError) as refusal:
        chain.roster.plan(Change(PROMOTE, member_of("d")))
    assert ChangeRefusal.INVALID is refusal.value.reason


def test_block_is_judged_where_it_stands() -> None:
    """A change that takes another one's place follows from what is before it, not from that."""
    chain = long_chain()
    other = Chain()
    other.take(chain.blocks[1])
    second = other.changing(ADD, "e")
    assert refusal_of(chain.roster, second) is None
    returning = other.changing(ADD, "d")
    assert refusal_of(chain.roster, returning) is None
    other.take(second)
    assert Rule.MEMBERSHIP is refusal_of(chain.roster, other.changing(PROMOTE, "e"))


def test_ordinary_blocks_are_not_judged() -> None:
    """They change nothing."""
    assert refusal_of(Chain().roster, Chain().seal(transaction(1))) is None


def test_change_stands_alone_in_its_block() -> None:
    """Elsewhere it would look like one to readers, and have no force; words about one are free."""
    chain = Chain()
    change = chain.changing(ADD, "d").transactions[0]
    others = [
        encode_transaction(transaction_id=bytes(16), user_id=user, kind=kind, payload="membership")
        for user, kind in (("cluster", "note"), ("membership", "note"), ("ada", "membership"))
    ]
    assert refusal_of(chain.roster, chain.seal(*others[:2], b"\xaamembership")) is None
    for hidden in ((change, transaction(1)), (change, change), others):
        assert Rule.MEMBERSHIP is refusal_of(chain.roster, chain.seal(*hidden))


def test_survivor_seals_its_recovery_itself() -> None:
    """Nobody makes another one the only member."""
    chain = long_chain()
    recovery = Change(ChangeKind.RECOVER, member_of("c"))
    raw = change_transaction(recovery, chain.roster.latest, change_id=bytes(16))
    assert Rule.MEMBERSHIP is refusal_of(chain.roster, chain.seal(raw, sealer="b"))
    assert refusal_of(chain.roster, chain.seal(raw, sealer="c")) is None


def test_recovery_begins_another_incarnation() -> None:
    """Its hash names it until the next one, or until it is truncated; other changes keep it."""
    chain = long_chain()
    recovery = Change(ChangeKind.RECOVER, member_of("c"))
    raw = change_transaction(recovery, chain.roster.latest, change_id=bytes(16))
    block = chain.take(chain.seal(raw, sealer="c"))
    assert ids("c") == chain.roster.latest.keys
    assert block.hash == chain.roster.incarnation
    assert {block.hash, chain.blocks[0].hash} == chain.roster.incarnations
    assert ids("c") == chain.roster.electors(block.index + 1), "those given up are not asked"
    chain.take(chain.changing(ADD, "e", sealer="c"))
    assert block.hash == chain.roster.incarnation
    lost = chain.roster.former(chain.tip.index)
    assert {member_id("a"): 5, member_id("b"): 7, member_id("d"): 7} == {
        key: index for key, (_, index) in lost.items()
    }
    chain.roster.truncate_from(block.index)
    assert genesis_of_size(3).hash == chain.roster.incarnation
