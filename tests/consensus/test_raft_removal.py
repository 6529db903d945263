"""Members that leave: a leader that removes itself, and those who do not know that they are gone.

Sections are those of Ongaro's dissertation (2014): 4.2.2 on a leader that removes itself, 4.2.3 on
members that disturb.
"""

from __future__ import annotations

import pytest

from consensus.changes import ChangeError, ChangeKind, ChangeRefusal
from consensus.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    PreVoteRequest,
    ReadRequest,
    VoteRequest,
)
from consensus.ready import Role
from tests.consensus.raft_chains import name_of, transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US
from tests.consensus.raft_network import Network

ADD, REMOVE = ChangeKind.ADD, ChangeKind.REMOVE


def led_network(size: int = 3) -> Network:
    """A cluster in which `a` leads term 1 and has committed in it."""
    network = Network(size)
    network.elect("a")
    network.run(60 * MILLISECOND_US)
    return network


def cut_off(network: Network, name: str) -> None:
    """Cuts one member off from all others, both ways."""
    for other in network.hosts:
        network.cut |= {(name, other), (other, name)}


def voters(network: Network, name: str) -> str:
    """The names of the voters by the latest membership in one member's log."""
    return "".join(sorted(map(name_of, network[name].voters)))


# A leader that removes itself (§4.2.2)


def test_leader_that_removes_itself_does_not_count_itself() -> None:
    """It "does not include itself in majorities" (§4.2.2)."""
    network = led_network()
    network.change("a", REMOVE, "a")
    network.settle("ab")
    assert (Role.LEADER, 1) == (network.role("a"), network["a"].log.commit_index)
    network.settle("ac")
    assert network["a"].log.commit_index == 2


def test_leader_that_removes_itself_leads_until_that_is_committed() -> None:
    """It seals blocks that the others verify, though it is no member any more (§4.2.2)."""
    network = led_network(4)
    network.cut = {(other, "a") for other in "bcd"}
    network.change("a", REMOVE, "a")
    network.propose("a", transaction(1))
    network.settle()
    assert [(3, "bcd")] * 3 == [(network[n].log.last_index, voters(network, n)) for n in "bcd"]
    assert Role.LEADER is network.role("a")


def test_leader_that_removed_itself_hands_over() -> None:
    """It "steps down once C_new is committed" (§4.2.2), and nobody waits for a timeout."""
    network = led_network()
    network.change("a", REMOVE, "a")
    began_us = network.now_us
    assert network.run(SECOND_US, lambda: network.leader in {"b", "c"})
    assert network.now_us - began_us < 30 * MILLISECOND_US
    assert (Role.FOLLOWER, 2) == (network.role("a"), network["a"].removed_at)
    network.run(5 * SECOND_US)
    assert (2, 2) == (network["b"].term, network["c"].term)


def test_last_voter_does_not_remove_itself() -> None:
    """Not even where a learner would stay."""
    network = led_network(1)
    network.change("a", ADD, "b")
    network.settle()
    with pytest.raises(ChangeError) as refusal:
        network.change("a", REMOVE, "a")
    assert ChangeRefusal.NO_QUORUM is refusal.value.reason


def test_removed_member_is_elected_where_it_is_needed() -> None:
    """It "might still be needed until the C_new entry is committed" (§4.2.2).

    Of four, leader `a` tells only `b` that `b` is removed, and dies. Now `c` and `d` are two of
    the four that they know of, and `b` votes for neither, for its log is longer. So `b` has to
    stand: the votes of `c` and `d` are two of the three of its own latest membership.
    """
    network = led_network(4)
    network.change("a", REMOVE, "b")
    assert network.sent("a", "b", Append) == []
    last = network["a"].log.block(2)
    network.crash("a")
    network.bag.clear()
    previous = network["b"].log.last_tip
    append = Append(1, previous.index, previous.term, previous.hash, 1, (last.encode(),))
    network.step("b", "a", append)
    network.finish_saves("b")
    network.bag.clear()
    assert ["acd", "abcd", "abcd"] == [voters(network, name) for name in "bcd"]
    assert network.run(10 * SECOND_US, lambda: network["d"].log.commit_index >= 3)
    assert name_of(network.leaders[network["d"].log.term_at(3)]) == "b"
    assert network.run(SECOND_US, lambda: network.leader in {"c", "d"})
    assert (Role.FOLLOWER, 2) == (network.role("b"), network["b"].removed_at)


# Removed members (§4.2.3)


def network_without(name: str) -> Network:
    """A network whose member `name` was removed while it was cut off; now it is back."""
    network = led_network()
    cut_off(network, name)
    network.change("a", REMOVE, name)
    network.run(SECOND_US)
    network.cut.clear()
    return network


def test_removed_member_does_not_disturb() -> None:
    """It campaigns on, unheard: terms stay, and the leader leads (§4.2.3)."""
    network = network_without("c")
    network.run(10 * SECOND_US)
    assert (Role.LEADER, 1, 1) == (network.role("a"), network["a"].term, network["b"].term)
    assert (Role.PRE_CANDIDATE, None) == (network.role("c"), network["c"].removed_at)
    assert network["b"].dropped["stranger"] > 5


def test_removed_member_learns_of_it_by_fetching() -> None:
    """From then on it stays quiet, for it knows better than to campaign."""
    network = network_without("c")
    assert network.look_around("c")
    assert 2 == network["c"].removed_at
    network.run(SECOND_US)
    network.bag.clear()
    network.trace.clear()
    network.run(10 * SECOND_US)
    assert Role.FOLLOWER is network.role("c")
    assert not any("c →" in line for line in network.trace)


def test_removed_member_is_told_nothing_more() -> None:
    """It gets no heartbeats, its acknowledgements and reads count no more, even before commit."""
    network = led_network()
    network.propose("a", transaction(1))
    network.cut = {("a", "b")}
    network.settle()
    network.change("a", REMOVE, "c")
    network.bag.clear()
    network.step("a", "c", AppendReply(1, match_index=3))
    network.step("a", "c", ReadRequest(1, token=1))
    network.finish_saves()
    network.run(60 * MILLISECOND_US)
    assert 2 == network["a"].log.commit_index
    assert network.sent("a", "c") == []


def test_messages_of_strangers_are_dropped() -> None:
    """Of one that was never a member, whatever it says, and of a member that was removed."""
    network = led_network()
    network.change("a", REMOVE, "c")
    network.settle()
    for stranger in "cde":
        for message in (
            PreVoteRequest(9, last_index=9, last_term=9),
            VoteRequest(9, last_index=9, last_term=9, transfer=True),
            Heartbeat(9, commit_index=0, round=1, fetch_through=0),
        ):
            network.step("b", stranger, message)
    assert (9, 1) == (network["b"].dropped["stranger"], network["b"].term)
    assert network.hosts["b"].save is None


def test_own_messages_are_dropped() -> None:
    """A member does not listen to itself."""
    network = led_network()
    network.step("b", "b", Heartbeat(9, commit_index=0, round=1, fetch_through=0))
    assert (1, 1) == (network["b"].dropped["stranger"], network["b"].term)


def test_removed_member_is_heard_until_that_is_committed() -> None:
    """It may be the only one that can lead (§4.2.2)."""
    network = led_network()
    network.change("a", REMOVE, "c")
    network.deliver("a", "b")
    network.step("b", "c", HeartbeatReply(1, 0, last_index=1, saved_index=1))
    assert 0 == network["b"].dropped["stranger"]
