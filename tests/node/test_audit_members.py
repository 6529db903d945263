"""The audit follows the members: lawful changes are listed, and whatever is forged is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from consensus.block import check_transaction
from consensus.changes import ChangeKind
from consensus.ready import HardState
from node.api.answers import block_detail
from node.api.shapes import BlockDetail
from node.audit import ChainAuditor, Finding, MemberChange, audit_store, check_told_block
from storage.memory import MemoryChain
from tests.storage.society import Society

if TYPE_CHECKING:
    from consensus.block import Block


class ForgetfulChain(MemoryChain):
    """A chain whose list of changes may be another than its blocks tell."""

    stored: list[int] | None = None

    def change_indexes(self) -> list[int]:
        """Return the list, or what is planted."""
        return super().change_indexes() if self.stored is None else self.stored


@pytest.fixture
def society() -> Society:
    """Three members, to whom a fourth was added, then promoted; and the first was removed."""
    society = Society(3)
    society.record()
    society.change(ChangeKind.ADD, 4)
    society.record()
    society.change(ChangeKind.PROMOTE, 4)
    society.change(ChangeKind.REMOVE, 1)
    society.record(by=4, term=2)
    return society


def chain_of(society: Society) -> ForgetfulChain:
    """The society's blocks, saved and committed."""
    chain = ForgetfulChain(society.genesis)
    state = HardState(society.tip.term, None, society.tip.index)
    chain.save(hard_state=state, truncate_from=None, blocks=society.blocks[1:])
    return chain


def finding(society: Society) -> Finding | None:
    """What an audit finds."""
    return [*audit_store(chain_of(society))][-1].finding


def test_lawful_changes_are_listed(society: Society) -> None:
    """Each with its block, its time, and who is a member from there on."""
    steps = list(audit_store(chain_of(society)))
    assert [None] * 7 == [step.finding for step in steps]
    made = [step.change for step in steps if step.change is not None]
    times = [society.blocks[index].timestamp_us for index in (2, 4, 5)]
    assert made == [
        MemberChange(2, ChangeKind.ADD, "n4", ("n1", "n2", "n3", "n4 (learner)"), times[0]),
        MemberChange(4, ChangeKind.PROMOTE, "n4", ("n1", "n2", "n3", "n4"), times[1]),
        MemberChange(5, ChangeKind.REMOVE, "n1", ("n2", "n3", "n4"), times[2]),
    ]


def test_a_removed_leader_seals_until_the_next_change_and_no_longer(society: Society) -> None:
    """It leads until its removal is committed; a further change waits for that."""
    assert finding(society) is None
    society.change(ChangeKind.ADD, 5, by=4, term=2)
    society.record(by=1, term=3)
    found = finding(society)
    assert found is not None
    assert (8, "sealer") == (found.index, found.what.split(":")[0])


def test_a_stranger_seals_nothing_before_it_is_a_member() -> None:
    """From then on it may, though it only learns: it may have to lead for a moment."""
    society = Society(3)
    society.change(ChangeKind.ADD, 4)
    society.record(by=4)
    assert finding(society) is None
    society.record(by=5)
    found = finding(society)
    assert found is not None
    assert (3, "sealer") == (found.index, found.what.split(":")[0])


def payload_of(society: Society, kind: ChangeKind, number: int) -> Any:
    """The payload of a change that makes sense, to be spoilt."""
    raw = society.change_bytes(kind, number)
    return msgspec.msgpack.decode(check_transaction(raw).payload)


def plant_listed(society: Society) -> Block:
    """Another member is listed than the change says."""
    payload = payload_of(society, ChangeKind.ADD, 5)
    payload["members"] = payload["members"][1:]
    return society.seal([society.forged_bytes(payload)], by=4, term=2)


def plant_voter(society: Society) -> Block:
    """A new member votes at once."""
    payload = payload_of(society, ChangeKind.ADD, 5)
    payload["members"][-1]["role"] = "voter"
    return society.seal([society.forged_bytes(payload)], by=4, term=2)


def plant_former(society: Society) -> Block:
    """A key comes back that was removed."""
    return society.seal([society.change_bytes(ChangeKind.ADD, 1)], by=4, term=2)


def plant_recovery(society: Society) -> Block:
    """A member gives up the others in the name of another one."""
    return society.seal([society.change_bytes(ChangeKind.RECOVER, 2)], by=4, term=2)


def plant_nonsense(society: Society) -> Block:
    """The payload is no change at all."""
    return society.seal([society.forged_bytes({"change": "add"})], by=4, term=2)


@pytest.mark.parametrize(
    "plant", [plant_listed, plant_voter, plant_former, plant_recovery, plant_nonsense]
)
def test_a_forged_change_is_found(society: Society, plant: Any) -> None:
    """Though a member has sealed and signed it."""
    plant(society)
    found = finding(society)
    assert found is not None
    assert (7, "membership") == (found.index, found.what.split(":")[0])


@pytest.mark.parametrize("position", [0, 1])
def test_a_change_among_other_transactions_is_found(society: Society, position: int) -> None:
    """It would change nothing, and must not look as if it did."""
    other = society.forged_bytes(1, user_id="alice")
    raws = [other, society.change_bytes(ChangeKind.ADD, 5)]
    society.seal(raws if position else raws[::-1], by=4, term=2)
    expected = "membership: a change stands in a block of its own"
    assert Finding(7, expected) == finding(society)


def test_a_change_for_somebody_else_than_the_cluster_is_found(society: Society) -> None:
    """Alone in its block, but a user's."""
    society.seal([society.forged_bytes({}, user_id="alice")], by=4, term=2)
    found = finding(society)
    assert found is not None
    assert found.what == "membership: a change stands in a block of its own"


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([2, 5], Finding(4, "membership: the store's list of changes lacks this block")),
        ([], Finding(2, "membership: the store's list of changes lacks this block")),
        (
            [2, 3, 4, 5],
            Finding(3, "membership: the store lists this block as a change, and it is none"),
        ),
    ],
)
def test_a_false_list_of_changes_is_found(
    society: Society, stored: list[int], expected: Finding
) -> None:
    """A node reads its members by that list alone."""
    chain = chain_of(society)
    chain.stored = stored
    assert expected == [*audit_store(chain)][-1].finding


def test_a_member_that_goes_on_alone_holds_and_is_listed(society: Society) -> None:
    """The break is lawful, and told."""
    society.change(ChangeKind.RECOVER, 4, by=4, term=3)
    society.record(by=4, term=4)
    steps = list(audit_store(chain_of(society)))
    assert steps[-1].finding is None
    change = steps[7].change
    assert change is not None
    assert (ChangeKind.RECOVER, "n4", ("n4",)) == (change.kind, change.member, change.members)


def test_those_who_were_given_up_seal_nothing_any_more(society: Society) -> None:
    """Not even the next block: nobody waits for them as for a leader that removes itself."""
    society.change(ChangeKind.RECOVER, 4, by=4, term=3)
    society.record(by=2, term=4)
    found = finding(society)
    assert found is not None
    assert (8, "sealer") == (found.index, found.what.split(":")[0])


def test_the_members_are_followed_over_http(society: Society) -> None:
    """What a node tells in JSON is audited in the same way."""
    auditor = ChainAuditor()
    for block in society.blocks:
        raw = msgspec.json.encode(block_detail(block))
        assert check_told_block(auditor, msgspec.json.decode(raw, type=BlockDetail)) is None
    assert [2, 4, 5] == [change.index for change in auditor.changes]
