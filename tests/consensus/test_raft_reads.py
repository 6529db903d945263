"""Linearizable reads by ReadIndex (dissertation §6.4), from any member.

A confirmed read index is never below a block that was committed before the read was asked:
`Network` checks that of every read of every test.
"""

from __future__ import annotations

import pytest

from consensus.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    ReadReply,
    ReadRequest,
    VoteReply,
)
from consensus.ready import Role
from tests.consensus.raft_chains import transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US
from tests.consensus.raft_network import Network


def led_network(size: int = 3) -> Network:
    """A cluster in which `a` leads term 1 and has committed in it."""
    network = Network(size)
    network.elect("a")
    network.run(10 * MILLISECOND_US)
    return network


def test_read_at_the_leader_takes_one_round() -> None:
    """Asked, it sends a round of heartbeats at once; a majority's echo confirms it."""
    network = led_network()
    network.read("a", 1)
    assert [Heartbeat(1, commit_index=1, round=2, fetch_through=0)] == network.sent(
        "a", "b", Heartbeat
    )
    network.deliver("a", "b")
    assert network.hosts["a"].reads == {}
    network.deliver("b", "a")
    assert {1: 1} == network.hosts["a"].reads


def test_read_needs_a_majority() -> None:
    """Of five, the leader and one follower are not enough."""
    network = led_network(5)
    network.read("a", 1)
    network.deliver("a")
    network.deliver("b", "a")
    network.deliver("b", "a")
    assert network.hosts["a"].reads == {}
    network.deliver("c", "a")
    assert {1: 1} == network.hosts["a"].reads


def test_late_echo_of_an_earlier_round_takes_nothing_back() -> None:
    """A follower's echoes may overtake one another; the latest round counts."""
    network = led_network(5)
    network.read("a", 1)
    network.step("a", "b", HeartbeatReply(1, round=2, last_index=1, saved_index=1))
    network.step("a", "b", HeartbeatReply(1, round=1, last_index=1, saved_index=1))
    assert network.hosts["a"].reads == {}
    network.step("a", "c", HeartbeatReply(1, round=2, last_index=1, saved_index=1))
    assert {1: 1} == network.hosts["a"].reads


def test_echo_of_an_earlier_round_confirms_nothing() -> None:
    """A follower that answered before the read was asked may follow another leader by now."""
    network = led_network()
    network.now_us += network.config.heartbeat_us
    network.tick("a")
    network.deliver("a", "b")
    network.read("a", 1)
    network.deliver("b", "a")
    assert network.hosts["a"].reads == {}
    network.step("a", "b", HeartbeatReply(1, round=1, last_index=1, saved_index=1))
    assert network.hosts["a"].reads == {}


def test_echo_of_a_round_that_was_not_sent_confirms_nothing() -> None:
    """A round that a follower makes up does not count for rounds to come."""
    network = led_network()
    network.step("a", "b", HeartbeatReply(1, round=99, last_index=1, saved_index=1))
    network.read("a", 1)
    assert network.hosts["a"].reads == {}


def test_later_heartbeat_confirms_as_well() -> None:
    """When the round's own heartbeats are lost, those of the next interval confirm the read."""
    network = led_network()
    network.read("a", 1)
    network.drop("a")
    assert network.run(2 * network.config.heartbeat_us, lambda: network.hosts["a"].reads == {1: 1})


def test_no_read_before_a_commit_in_the_own_term() -> None:
    """A new leader does not know yet what its predecessors committed.

    "If the leader has not yet marked an entry from its current term committed, it waits until it
    has done so" (§6.4).
    """
    network = Network(3)
    network.stand("a")
    network.step("a", "b", VoteReply(1, granted=True))
    network.read("a", 1)
    network.deliver("a", kind=Heartbeat)
    network.finish_saves()
    network.deliver(kind=HeartbeatReply)
    assert network.hosts["a"].reads == {}
    network.settle()
    assert {1: 1} == network.hosts["a"].reads


def test_new_leader_answers_with_what_its_predecessor_committed() -> None:
    """The commit that only the old leader knew of is in the read index."""
    network = led_network()
    network.propose("a", transaction(1))
    network.deliver("a")
    network.finish_saves()
    network.deliver(kind=AppendReply)
    assert (2, 1, 1) == tuple(network[name].log.commit_index for name in "abc")
    network.crash("a")
    network.bag.clear()
    network.stand("b")
    network.read("b", 1)
    network["c"]._patience.heard_us = -SECOND_US
    assert network.hosts["b"].reads == {1: None}
    network.deliver("b", "c")
    network.finish_save("c")
    network.deliver("c", "b")
    assert network.role("b") is Role.LEADER
    network.read("b", 2)
    network.settle()
    assert network.hosts["b"].reads[2] == 3


def test_reads_that_wait_share_a_round() -> None:
    """While one round is under way the others gather, and are confirmed by the next."""
    network = led_network()
    for token in range(1, 11):
        network.read("a", token)
    assert len(network.sent("a", "b", Heartbeat)) == 1
    network.settle()
    assert dict.fromkeys(range(1, 11), 1) == network.hosts["a"].reads
    rounds = [
        line for line in network.trace if "a → b  Heartbeat term=1 commit_index=1 round=" in line
    ]
    assert len([line for line in rounds if line.startswith(f"{network.now_us / 1000:9.3f}")]) == 2


def test_read_index_is_that_of_the_round_s_beginning() -> None:
    """A block committed while the round runs may be left out, one committed before may not."""
    network = led_network()
    network.read("a", 1)
    network.propose("a", transaction(1))
    network.settle()
    network.read("a", 2)
    network.settle()
    assert {1: 1, 2: 2} == network.hosts["a"].reads


def test_read_from_a_follower() -> None:
    """The follower asks the leader, and hands out what it answers."""
    network = led_network()
    network.propose("a", transaction(1))
    network.settle()
    network.read("b", 1)
    (request,) = network.sent("b", "a", ReadRequest)
    network.settle()
    assert {1: 2} == network.hosts["b"].reads
    assert any(f"ReadReply term=1 token={request.token} read_index=2" in t for t in network.trace)  # type: ignore[union-attr]  # by its kind


def test_read_without_a_leader_is_lost_at_once() -> None:
    """There is nobody to ask."""
    network = Network(3)
    network.read("a", 1)
    assert {1: None} == network.hosts["a"].reads


def test_lost_request_is_answered_with_the_next() -> None:
    """A read index for a later read holds for the earlier ones; it is given once to each."""
    network = led_network()
    network.read("b", 1)
    network.drop("b", "a", ReadRequest)
    network.run(SECOND_US)
    assert network.hosts["b"].reads == {}
    network.read("b", 2)
    network.settle()
    assert {1: 1, 2: 1} == network.hosts["b"].reads


def test_reply_for_an_earlier_read_leaves_later_ones_open() -> None:
    """What was confirmed before a read was asked says nothing about it."""
    network = led_network()
    network.read("b", 1)
    network.deliver("b", "a")
    network.deliver("a", "c", Heartbeat)
    network.deliver("c", "a")
    (late,) = [e for e in network.bag if isinstance(e.message, ReadReply)]
    network.propose("a", transaction(1))
    network.deliver("a", "c")
    network.finish_saves()
    network.deliver("c", "a")
    assert network.commit_index == 2
    network.read("b", 2)
    network.deliver_one(late, keep=True)
    assert {1: 1} == network.hosts["b"].reads
    network.deliver_one(late)
    network.settle()
    assert {1: 1, 2: 2} == network.hosts["b"].reads


def test_reply_of_a_former_life_answers_nothing() -> None:
    """A follower that restarted and begins its tokens anew is not given yesterday's index."""
    network = led_network()
    network.read("b", 1)
    network.deliver("b", "a")
    network.deliver("a", "c", Heartbeat)
    network.deliver("c", "a")
    (late,) = [e for e in network.bag if isinstance(e.message, ReadReply)]
    network.bag.remove(late)
    network.crash("b")
    network.propose("a", transaction(1))
    network.settle()
    network.start("b")
    network.run(SECOND_US, lambda: network["b"].leader is not None)
    network.read("b", 1)
    network.bag.append(late)
    network.deliver_one(late)
    assert network.hosts["b"].reads == {}
    network.settle()
    assert {1: 2} == network.hosts["b"].reads


def test_deposed_leader_confirms_nothing() -> None:
    """Cut off, it hears no echo; its reads are lost when it steps down, while others commit."""
    network = led_network(5)
    network.cut = {(s, t) for s in "ab" for t in "cde"} | {(s, t) for s in "cde" for t in "ab"}
    network.read("a", 1)
    network.run(30 * MILLISECOND_US)
    network.elect("c", "cde")
    network.propose("c", transaction(1))
    network.settle("cde")
    assert (3, Role.LEADER) == (network.commit_index, network.role("a"))
    network.read("a", 2)
    network.read("b", 1)
    network.run(2 * SECOND_US)
    assert {1: None, 2: None} == network.hosts["a"].reads
    assert {1: None} == network.hosts["b"].reads


def test_reads_are_lost_with_the_leader() -> None:
    """A follower that gives its leader up, or follows another, says so of every read it asked."""
    network = led_network()
    network.read("b", 1)
    network.read("b", 2)
    network.crash("a")
    network.run(2 * SECOND_US, lambda: network.role("b") is not Role.FOLLOWER)
    assert {1: None, 2: None} == network.hosts["b"].reads
    network = led_network()
    network.read("b", 1)
    network.step("b", "c", Heartbeat(2, commit_index=0, round=1, fetch_through=0))
    assert {1: None} == network.hosts["b"].reads


def test_read_that_is_confirmed_is_not_lost() -> None:
    """A leader deposed between the echo and the hand-out still gives the index that was proved."""
    network = led_network()
    raft = network["a"]
    network.read("a", 1)
    network.deliver("a", "b")
    (reply,) = network.sent("b", "a", HeartbeatReply)
    raft.step(network["b"].member, reply)
    assert raft.leadership is not None
    raft.leadership.messages(network.now_us)
    network.step("a", "c", Heartbeat(2, commit_index=0, round=1, fetch_through=0))
    assert (Role.FOLLOWER, {1: 1}) == (network.role("a"), network.hosts["a"].reads)


def test_request_to_a_deposed_leader_is_not_answered() -> None:
    """The follower asks again, or learns that its read is lost."""
    network = led_network()
    network.read("b", 1)
    network["a"]._become_follower(1, leader=None)
    network.deliver("b", "a")
    assert network.sent("a", "b") == []


def test_tokens_rise() -> None:
    """A token that falls would be answered by a reply to a read before it."""
    network = led_network()
    network["b"].read(2)
    with pytest.raises(AssertionError, match="tokens rise"):
        network["b"].read(2)


def test_request_waits_for_the_term() -> None:
    """A follower that has not saved the leader's term asks once it has."""
    network = Network(3)
    network.step("b", "a", Heartbeat(1, commit_index=0, round=0, fetch_through=0))
    network.read("b", 1)
    assert network.sent("b") == []
    network.finish_save("b")
    assert len(network.sent("b", "a", ReadRequest)) == 1


def test_reads_go_on_under_load() -> None:
    """Reads from every member while blocks are sealed, none of which waits for a heartbeat."""
    network = led_network()
    for number in range(1, 40):
        network.propose("a", transaction(number))
        for name in "abc":
            network.read(name, number)
        network.run(3 * MILLISECOND_US)
    network.run(20 * MILLISECOND_US)
    for name in "abc":
        reads = network.hosts[name].reads
        assert list(range(1, 40)) == sorted(reads)
        assert None not in reads.values()
    assert network.sent("a", kind=Append) == []
