"""Changes of the membership: what each does, which are refused, and their one spelling in a block.

"A lawful change" is one that follows from the membership before it, and whose transaction has
exactly the bytes that `change_transaction` makes. What is forged, or made by hand, is refused with
rule MEMBERSHIP and never ends in another error.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.block import (
    Block,
    InvalidBlockError,
    Rule,
    encode_transaction,
    tip_after,
    transaction_id,
)
from consensus.changes import (
    MEMBERSHIP_KIND,
    Change,
    ChangeError,
    ChangeKind,
    ChangeRefusal,
    Membership,
    change_transaction,
    check_change,
    holds_change,
    recorded_change,
)
from consensus.membership import CLUSTER_USER_ID, MAX_MEMBERS, Member
from tests.consensus.raft_chains import (
    NAMES,
    genesis_of_size,
    member_id,
    member_of,
    sealer_of,
    transaction,
)

if TYPE_CHECKING:
    from collections.abc import Callable

VECTOR = json.loads(
    (Path(__file__).parent.parent / "vectors" / "membership.json").read_text(encoding="utf-8")
)
CHANGE_ID = bytes(range(16))
BEFORE = Membership(tuple(map(member_of, "abcd")), frozenset([member_id("d")]))
MOVED = msgspec.structs.replace(member_of("b"), peer="elsewhere:1", http="elsewhere:2")

LAWFUL = {
    "add": (Change(ChangeKind.ADD, member_of("e")), "abcde", "de"),
    "promote": (Change(ChangeKind.PROMOTE, member_of("d")), "abcd", ""),
    "remove a voter": (Change(ChangeKind.REMOVE, member_of("a")), "bcd", "d"),
    "remove a learner": (Change(ChangeKind.REMOVE, member_of("d")), "abc", ""),
    "move": (Change(ChangeKind.MOVE, MOVED), "abcd", "d"),
    "recover": (Change(ChangeKind.RECOVER, member_of("c")), "c", ""),
    "recover with a learner": (Change(ChangeKind.RECOVER, member_of("d")), "d", ""),
}


def different(name: str, /, **fields: Any) -> Member:
    """The member of that name, but for these fields."""
    return msgspec.structs.replace(member_of(name), **fields)


UNLAWFUL = {
    "add a name that is there": (
        Change(ChangeKind.ADD, different("e", name="a")),
        ChangeRefusal.INVALID,
    ),
    "add a key that is there": (
        Change(ChangeKind.ADD, different("e", public_key=member_id("a"))),
        ChangeRefusal.INVALID,
    ),
    "add an address that is there": (
        Change(ChangeKind.ADD, different("e", peer=member_of("a").peer)),
        ChangeRefusal.INVALID,
    ),
    "add no name": (Change(ChangeKind.ADD, different("e", name="")), ChangeRefusal.INVALID),
    "add no address": (Change(ChangeKind.ADD, different("e", http="e")), ChangeRefusal.INVALID),
    "add a key that is none": (
        Change(ChangeKind.ADD, different("e", public_key=b"\xff" * 32)),
        ChangeRefusal.INVALID,
    ),
    "promote a stranger": (
        Change(ChangeKind.PROMOTE, member_of("e")),
        ChangeRefusal.UNKNOWN_MEMBER,
    ),
    "promote a voter": (Change(ChangeKind.PROMOTE, member_of("a")), ChangeRefusal.INVALID),
    "promote and move": (
        Change(ChangeKind.PROMOTE, different("d", peer="elsewhere:1")),
        ChangeRefusal.UNKNOWN_MEMBER,
    ),
    "remove a stranger": (
        Change(ChangeKind.REMOVE, member_of("e")),
        ChangeRefusal.UNKNOWN_MEMBER,
    ),
    "remove another of that name": (
        Change(ChangeKind.REMOVE, different("a", public_key=member_id("e"))),
        ChangeRefusal.UNKNOWN_MEMBER,
    ),
    "move a stranger": (Change(ChangeKind.MOVE, member_of("e")), ChangeRefusal.UNKNOWN_MEMBER),
    "move nowhere": (Change(ChangeKind.MOVE, member_of("a")), ChangeRefusal.INVALID),
    "move to another key": (
        Change(ChangeKind.MOVE, different("a", public_key=member_id("e"), peer="elsewhere:1")),
        ChangeRefusal.INVALID,
    ),
    "move to an address that is taken": (
        Change(ChangeKind.MOVE, different("a", peer=member_of("b").peer)),
        ChangeRefusal.INVALID,
    ),
    "move to no address": (
        Change(ChangeKind.MOVE, different("a", peer="nowhere")),
        ChangeRefusal.INVALID,
    ),
    "recover with a stranger": (
        Change(ChangeKind.RECOVER, member_of("e")),
        ChangeRefusal.UNKNOWN_MEMBER,
    ),
}


def block_with(*transactions: bytes) -> Block:
    """Block 1 with these transactions."""
    tip = tip_after(None, genesis_of_size(4))
    return sealer_of("a", 4, seed="").seal(tip, term=1, transactions=transactions, wall_us=0)


def block_of(payload: object) -> Block:
    """Block 1 with one transaction of kind `membership`."""
    return block_with(
        encode_transaction(
            transaction_id=CHANGE_ID,
            user_id=CLUSTER_USER_ID,
            kind=MEMBERSHIP_KIND,
            payload=payload,
        )
    )


def refused_rule(block: Block, before: Membership = BEFORE) -> Rule | None:
    """The rule that a block with a change breaks, if it breaks one."""
    try:
        check_change(block, recorded_change(block), before)
    except InvalidBlockError as error:
        return error.rule
    return None


def document_of(change: Change) -> dict[str, Any]:
    """The payload of a lawful change, to be spoiled."""
    raw = change_transaction(change, BEFORE, change_id=CHANGE_ID)
    payload: dict[str, Any] = msgspec.msgpack.decode(raw)[3]
    return payload


# What a change does


def test_all_members_of_a_genesis_vote() -> None:
    """A genesis knows no learners."""
    membership = Membership(tuple(map(member_of, "abc")))
    assert {member_id(name) for name in "abc"} == membership.keys
    assert membership.keys == membership.voters


@pytest.mark.parametrize("case", LAWFUL)
def test_lawful_change(case: str) -> None:
    """It makes these members, in the order of their names, and these of them learners."""
    change, members, learners = LAWFUL[case]
    after = BEFORE.after(change)
    assert list(members) == [member.name for member in after.members]
    assert {member_id(name) for name in learners} == after.learners
    assert {member_id(name) for name in set(members) - set(learners)} == after.voters


@pytest.mark.parametrize("case", UNLAWFUL)
def test_unlawful_change(case: str) -> None:
    """It is refused with its reason, and so is the transaction that would record it."""
    change, reason = UNLAWFUL[case]
    with pytest.raises(ChangeError) as refusal:
        change_transaction(change, BEFORE, change_id=CHANGE_ID)
    assert reason is refusal.value.reason
    assert str(refusal.value) == refusal.value.detail


def test_last_voter_is_not_removed() -> None:
    """A cluster of learners could decide nothing ever again."""
    with pytest.raises(ChangeError) as refusal:
        replace(BEFORE, members=BEFORE.members[2:]).after(Change(ChangeKind.REMOVE, member_of("c")))
    assert ChangeRefusal.NO_QUORUM is refusal.value.reason


def test_members_are_limited() -> None:
    """No more members are added than a genesis may have."""
    full = Membership(tuple(map(member_of, NAMES)))
    assert MAX_MEMBERS == len(full.members)
    added = Member("j", BEFORE.members[0].public_key, "other:1", "other:2")
    with pytest.raises(ChangeError) as refusal:
        full.after(Change(ChangeKind.ADD, added))
    assert ChangeRefusal.INVALID is refusal.value.reason


def test_move_keeps_the_role() -> None:
    """A learner that moves learns on."""
    moved = different("d", http="elsewhere:1")
    after = BEFORE.after(Change(ChangeKind.MOVE, moved))
    assert (moved, BEFORE.learners) == (after.named("d"), after.learners)


def test_members_are_found_by_name() -> None:
    """Or not: an operator hears of a misspelt name."""
    assert member_of("b") == BEFORE.named("b")
    with pytest.raises(ChangeError) as refusal:
        BEFORE.named("e")
    assert ChangeRefusal.UNKNOWN_MEMBER is refusal.value.reason


# What a block says


@pytest.mark.parametrize("case", LAWFUL)
def test_change_is_read_back(case: str) -> None:
    """A block says what was changed and who is a member after it, and passes its own check."""
    change, _, _ = LAWFUL[case]
    block = block_with(change_transaction(change, BEFORE, change_id=CHANGE_ID))
    recorded = recorded_change(block)
    assert holds_change(block)
    assert (change, BEFORE.after(change)) == (recorded.change, recorded.membership)
    assert refused_rule(block) is None


@pytest.mark.parametrize("case", LAWFUL)
def test_change_follows_from_one_membership(case: str) -> None:
    """After another membership the same block is a forgery: it would change more than it says."""
    change, _, _ = LAWFUL[case]
    block = block_with(change_transaction(change, BEFORE, change_id=CHANGE_ID))
    others = tuple(m for m in BEFORE.members if m.name != "c" or m == change.member)
    other = Membership((*others, member_of("h")), BEFORE.learners)
    expected = None if change.kind is ChangeKind.RECOVER else Rule.MEMBERSHIP
    assert expected is refused_rule(block, other)


def test_blocks_without_a_change() -> None:
    """Genesis, empty blocks, other transactions, and a change that is not alone in its block."""
    change, _, _ = LAWFUL["add"]
    raw = change_transaction(change, BEFORE, change_id=CHANGE_ID)
    assert not holds_change(genesis_of_size(4))
    assert not holds_change(block_with())
    assert not holds_change(block_with(transaction(1)))
    assert not holds_change(block_with(raw, transaction(1)))
    assert holds_change(block_with(raw))


SPOILED: dict[str, Callable[[dict[str, Any]], object]] = {
    "another kind of change": lambda p: p | {"change": "demote"},
    "no change": lambda p: {key: p[key] for key in ("member", "members")},
    "something more": lambda p: p | {"more": 1},
    "not a document": lambda p: [p],
    "a number for a name": lambda p: p | {"member": p["member"] | {"name": 5}},
    "another subject": lambda p: p | {"member": p["members"][0]},
    "a role that is none": lambda p: p | {"members": [p["members"][0] | {"role": "king"}]},
    "a role that is none for the subject": lambda p: p | {"member": p["member"] | {"role": "king"}},
    "the other role for the subject": lambda p: p | {"member": p["member"] | {"role": "voter"}},
    "a key in capitals": lambda p: _with_key(p, p["member"]["public_key"].upper()),
    "a key with blanks": lambda p: _with_key(p, p["member"]["public_key"] + " "),
    "a short key": lambda p: _with_key(p, "ab"),
    "a key that is none": lambda p: _with_key(p, "zz" * 32),
    "a key off the curve": lambda p: _with_key(p, "ff" * 32),
    "members in another order": lambda p: p | {"members": p["members"][::-1]},
    "a member left out": lambda p: p | {"members": p["members"][1:]},
    "a member twice": lambda p: p | {"members": [*p["members"], p["members"][0]]},
    "a member smuggled in": lambda p: p | {"members": [*p["members"], p["member"] | {"name": "z"}]},
    "a learner made a voter on the way": lambda p: (
        p | {"members": [member | {"role": "voter"} for member in p["members"]]}
    ),
    "no members": lambda p: p | {"members": []},
}


def _with_key(payload: dict[str, Any], key: str) -> dict[str, Any]:
    changed = payload["member"] | {"public_key": key}
    members = [changed if m == payload["member"] else m for m in payload["members"]]
    return payload | {"member": changed, "members": members}


@pytest.mark.parametrize("case", SPOILED)
def test_forged_change(case: str) -> None:
    """What `change_transaction` would not make of that change is refused with rule MEMBERSHIP."""
    change, _, _ = LAWFUL["add"]
    assert refused_rule(block_of(document_of(change))) is None
    assert Rule.MEMBERSHIP is refused_rule(block_of(SPOILED[case](document_of(change))))


def test_other_spelling_of_the_transaction() -> None:
    """A transaction that is not canonical itself is no change either."""
    change, _, _ = LAWFUL["add"]
    raw = change_transaction(change, BEFORE, change_id=CHANGE_ID)
    assert Rule.MEMBERSHIP is refused_rule(block_with(raw + b"\x00"))
    assert Rule.MEMBERSHIP is refused_rule(block_with(raw[:-1]))


HEAD = change_transaction(LAWFUL["add"][0], BEFORE, change_id=CHANGE_ID)[: 19 + 8 + 11]
"""All before the payload: id, user and kind."""

TEXT = st.sampled_from(
    ["a", "d", "e", "voter", "learner", "add", "remove", "host:1", ""]
) | st.text(st.characters(exclude_characters="\0", codec="utf-8"))
DOCUMENT = st.fixed_dictionaries(
    {
        "name": TEXT,
        "public_key": st.sampled_from([member_id(name).hex() for name in "ade"]) | TEXT,
        "peer": TEXT,
        "http": TEXT,
        "role": TEXT,
    }
)
PAYLOAD = st.fixed_dictionaries(
    {
        "change": st.sampled_from([kind.value for kind in ChangeKind]) | TEXT,
        "member": DOCUMENT,
        "members": st.lists(DOCUMENT, max_size=3),
    }
)


@given(tail=st.binary(max_size=300))
def test_any_bytes_are_refused(tail: bytes) -> None:
    """Whatever follows the mark of a change, nothing but rule MEMBERSHIP comes of it."""
    block = block_with(HEAD + tail)
    assert holds_change(block)
    assert Rule.MEMBERSHIP is refused_rule(block)


@given(payload=PAYLOAD)
def test_any_document_is_refused(payload: object) -> None:
    """A document of the right shape with any words in it is not a lawful change either."""
    block = block_of(payload)
    assert holds_change(block)
    assert Rule.MEMBERSHIP is refused_rule(block)


# Golden vector


def test_golden_vector() -> None:
    """The bytes of a change never change within a format version."""
    members = [
        Member(m["name"], bytes.fromhex(m["public_key"]), m["peer"], m["http"])
        for m in (*VECTOR["before"], VECTOR["added"])
    ]
    before = Membership(tuple(members[:-1]))
    raw = change_transaction(
        Change(ChangeKind.ADD, members[-1]), before, change_id=bytes.fromhex(VECTOR["id"])
    )
    assert VECTOR["bytes"] == raw.hex()
    assert bytes.fromhex(VECTOR["id"]) == transaction_id(raw)
