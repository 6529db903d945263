"""The CORRUPT alarm: chains that contradict each other, which no crash can explain.

A member that raises it takes no further part and keeps what it has.
"""

from __future__ import annotations

import msgspec
import pytest

from consensus.messages import Append, Heartbeat, PreVoteRequest, VoteReply, VoteRequest
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import (
    append_of,
    log_of_terms,
    member_id,
    sealer_of,
    transaction,
)
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US
from tests.consensus.raft_network import Network


def forked(terms: tuple[int, ...], *, term: int) -> Append:
    """An append whose last block has the index and term of an honest one, but not its content."""
    honest = append_of(terms, len(terms) - 1, term=term)
    parent = Network(3, logs={"a": terms[:-1]})["a"].log.last_tip
    sealer = sealer_of("b", 3, seed="a fork")
    block = sealer.seal(parent, term=terms[-1], transactions=[transaction(9)], wall_us=0)
    return msgspec.structs.replace(honest, blocks=(block.encode(),))


def network_with(terms: list[int], *, commit: int) -> Network:
    """Three members, of which `a` has that log, committed so far."""
    return Network(3, logs={"a": terms}, states={"a": HardState(terms[-1], None, commit)})


@pytest.mark.parametrize(
    ("commit", "message", "text"),
    [
        pytest.param(
            2,
            append_of([1, 3], 1, term=3),
            "the leader's block 2 differs from the committed one",
            id="a block would replace a committed one",
        ),
        pytest.param(
            2,
            append_of([1, 3, 3], 2, term=3),
            "the leader's block 2 differs from the committed one",
            id="a block follows another than the committed one",
        ),
        pytest.param(
            0,
            forked((1, 2), term=3),
            "two blocks with index 2 and the same term",
            id="a block has the index and term of another",
        ),
        pytest.param(
            0,
            msgspec.structs.replace(append_of([1, 2, 3], 2, term=3), previous_hash=bytes(32)),
            "two blocks with index 2 and the same term",
            id="a block follows another of the same index and term",
        ),
        pytest.param(
            0,
            Heartbeat(3, commit_index=3, round=1, fetch_through=0),
            "this member acknowledged blocks that it does not hold any more",
            id="a heartbeat names a commit that was acknowledged and is gone",
        ),
    ],
)
def test_contradictions_raise_the_alarm(
    commit: int, message: Append | Heartbeat, text: str
) -> None:
    """The text says which block; the chain stays as it is, and no answer is given."""
    network = network_with([1, 2], commit=commit)
    last = network["a"].log.last_tip
    network.step("a", "b", message)
    assert f"CORRUPT: {text}" == network["a"].alarm
    network.finish_saves()
    assert (last, []) == (network["a"].log.last_tip, network.sent("a"))
    assert (Role.FOLLOWER, None) == (network.role("a"), network["a"].leader)


def test_honest_blocks_before_the_contradiction_are_kept() -> None:
    """But the append that holds it is not acknowledged, not even in part."""
    network = network_with([1, 2], commit=0)
    honest = append_of([1, 2], 0, term=3)
    blocks = (honest.blocks[0], *forked((1, 2), term=3).blocks)
    network.step("a", "b", msgspec.structs.replace(honest, blocks=blocks))
    assert network["a"].alarm is not None
    network.finish_saves()
    assert (network.sent("a"), network["a"].log.last_index) == ([], 2)


def test_other_terms_are_no_contradiction() -> None:
    """A block of another term replaces one that is not committed, without an alarm."""
    network = network_with([1, 2], commit=1)
    network.step("a", "b", append_of([1, 3], 1, term=3))
    assert network["a"].alarm is None
    assert network["a"].log.last_tip.hash == log_of_terms(3, (1, 3))[2].hash


def test_forged_blocks_raise_no_alarm() -> None:
    """A contradiction must be signed by a member: anything else is refused and counted."""
    network = network_with([1, 2], commit=0)
    fork = forked((1, 2), term=3)
    header_bytes, _, body = msgspec.msgpack.decode(fork.blocks[0])
    raw = msgspec.msgpack.encode((header_bytes, bytes(64), body))
    network.step("a", "b", msgspec.structs.replace(fork, blocks=(raw,)))
    assert (None, 1) == (network["a"].alarm, network["a"].dropped["invalid block: signature"])


def test_alarmed_member_takes_no_part() -> None:
    """It neither votes nor campaigns nor answers, and is not woken for it; reads are lost."""
    network = network_with([1, 2], commit=2)
    network.step("a", "b", append_of([1, 3], 1, term=3))
    while network.finish_saves():
        pass
    term = network["a"].term
    network.step("a", "b", PreVoteRequest(9, last_index=9, last_term=9))
    network.step("a", "b", VoteRequest(9, last_index=9, last_term=9, transfer=False))
    network.step("a", "b", VoteReply(9, granted=True))
    network.step("a", "b", Heartbeat(9, commit_index=0, round=1, fetch_through=0))
    network.read("a", 1)
    for name in "bc":
        network.crash(name)
    network.run(10 * SECOND_US)
    assert (term, Role.FOLLOWER, []) == (network["a"].term, network.role("a"), network.sent("a"))
    assert {1: None} == network.hosts["a"].reads
    assert network["a"].wake_us() > network.now_us


def test_member_that_lost_its_disk_is_noticed() -> None:
    """It acknowledged blocks of this term; the leader's heartbeat names them as committed."""
    network = Network(3)
    network.elect("a")
    network.propose("a", transaction(1))
    network.settle()
    network.crash("c")
    network.hosts["c"].chain = type(network.hosts["c"].chain)(log_of_terms(3, ()), HardState())
    network.start("c")
    network.run(200 * MILLISECOND_US)
    assert network["c"].alarm is not None
    assert "acknowledged blocks that it does not hold any more" in network["c"].alarm
    network.propose("a", transaction(2))
    assert network.run(200 * MILLISECOND_US, lambda: network.commit_index == 3)


def test_others_go_on_without_the_alarmed_member() -> None:
    """A majority of sound members elects leaders and commits."""
    network = Network(3)
    network.elect("a")
    network["a"]._raise_alarm("for a test")
    assert network.run(3 * SECOND_US, lambda: network.leader in {"b", "c"})
    assert network.run(SECOND_US, lambda: network.commit_index == 2)
    assert network["a"].log.last_index == 1


def test_saves_under_way_end_after_the_alarm() -> None:
    """What was taken before is kept durably, and what it promised may still be said."""
    network = Network(3)
    network.step("a", "b", append_of([1], 0, term=1))
    network.step("a", "b", forked((1,), term=1))
    assert network["a"].alarm is not None
    network.finish_saves()
    assert network.hosts["a"].chain.last_index == 1
    assert member_id("a") == network["a"].member
