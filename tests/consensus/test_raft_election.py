"""Who may lead, and for how long: pre-vote, stickiness, check-quorum, lost connections, slow disks.

Sections are those of the dissertation (Ongaro 2014): 9.6 on pre-vote, 6.2 on a leader that lost its
quorum, 4.2.3 on members that disturb a leader.
"""

from __future__ import annotations

import pytest

from consensus.leadership import RaftConfig
from consensus.messages import (
    Heartbeat,
    HeartbeatReply,
    PreVoteReply,
    PreVoteRequest,
    VoteReply,
    VoteRequest,
)
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import member_id, transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US
from tests.consensus.raft_network import Network


def cut_off(network: Network, name: str) -> None:
    """Cuts one member off from all others, both ways."""
    for other in network.hosts:
        network.cut |= {(name, other), (other, name)}


def led_network(size: int = 3) -> Network:
    """A cluster in which `a` leads term 1 and its first block is committed everywhere."""
    network = Network(size)
    network.elect("a")
    network.run(network.config.heartbeat_us + 10 * MILLISECOND_US)
    return network


def lonely_pre_candidate(size: int, *, term: int = 0) -> Network:
    """A cluster in which only `a` runs, and asks for pre-votes."""
    network = Network(size, states={"a": HardState(term=term)})
    for name in set(network.hosts) - {"a"}:
        network.crash(name)
    assert network.run(SECOND_US, lambda: network.role("a") is Role.PRE_CANDIDATE)
    return network


# Pre-vote


def test_pre_vote_changes_nothing() -> None:
    """A member alone asks for ever and neither raises its term nor writes to its disk (§9.6)."""
    network = lonely_pre_candidate(3)
    assert [PreVoteRequest(1, last_index=0, last_term=0)] == network.sent("a", "b")
    network.run(60 * SECOND_US)
    assert (Role.PRE_CANDIDATE, 0) == (network.role("a"), network["a"].term)
    assert (None, None) == (network["a"].vote, network.hosts["a"].save)
    assert sum("a ✗ b  PreVoteRequest" in line for line in network.trace) > 60


def test_returning_member_does_not_disturb() -> None:
    """One that was cut off for a minute comes back to the same leader and term (§9.6)."""
    network = led_network()
    cut_off(network, "c")
    network.run(60 * SECOND_US)
    network.cut.clear()
    network.run(2 * SECOND_US)
    assert (Role.LEADER, 1) == (network.role("a"), network["a"].term)
    assert (Role.FOLLOWER, 1) == (network.role("c"), network["c"].term)
    assert network["c"].leader == member_id("a")


def test_pre_vote_needs_a_majority() -> None:
    """Three of five, each counted once; one's own is one of them (§9.6)."""
    network = lonely_pre_candidate(5)
    for _ in range(3):
        network.step("a", "b", PreVoteReply(1, granted=True))
    assert network.role("a") is Role.PRE_CANDIDATE
    network.step("a", "c", PreVoteReply(1, granted=True))
    assert (Role.CANDIDATE, 1) == (network.role("a"), network["a"].term)


def test_pre_votes_of_the_last_campaign_do_not_count() -> None:
    """Each campaign asks anew: who granted before may hear a leader by now."""
    network = lonely_pre_candidate(5)
    network.step("a", "b", PreVoteReply(1, granted=True))
    network.now_us = network["a"].wake_us()
    network.tick("a")
    network.step("a", "c", PreVoteReply(1, granted=True))
    assert network.role("a") is Role.PRE_CANDIDATE
    network.step("a", "b", PreVoteReply(1, granted=True))
    assert network.role("a") is Role.CANDIDATE


def test_refused_pre_vote_ends_the_campaign() -> None:
    """A majority against it lets the member rest as a follower of its own term."""
    network = lonely_pre_candidate(5)
    for _ in range(3):
        network.step("a", "b", PreVoteReply(0, granted=False))
    assert network.role("a") is Role.PRE_CANDIDATE
    network.step("a", "c", PreVoteReply(0, granted=False))
    network.step("a", "d", PreVoteReply(0, granted=False))
    assert (Role.FOLLOWER, 0) == (network.role("a"), network["a"].term)
    assert network["a"].wake_us() >= network.now_us + network.config.election_min_us


def test_pre_vote_for_another_term_does_not_count() -> None:
    """A grant is for the next term only; neither an older nor a later one helps, or raises it."""
    network = lonely_pre_candidate(3, term=4)
    for term in (4, 6):
        network.step("a", "b", PreVoteReply(term, granted=True))
        network.step("a", "c", PreVoteReply(term, granted=True))
    assert (Role.PRE_CANDIDATE, 4) == (network.role("a"), network["a"].term)


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
def test_late_pre_vote_is_not_heard(role: Role) -> None:
    """A pre-vote that arrives after the campaign is over starts nothing."""
    network = Network(3)
    if role is not Role.FOLLOWER:
        network.stand("a")
    if role is Role.LEADER:
        network.step("a", "b", VoteReply(1, granted=True))
    term = network["a"].term
    for name in "bc":
        network.step("a", name, PreVoteReply(term + 1, granted=True))
        network.step("a", name, PreVoteReply(term, granted=False))
    assert (role, term) == (network.role("a"), network["a"].term)


def test_late_vote_is_not_heard() -> None:
    """A vote for a candidacy that was given up makes no leader."""
    network = Network(3)
    network.stand("a")
    network.step("a", "c", Heartbeat(1, commit_index=0, round=1, fetch_through=0))
    network.step("a", "b", VoteReply(1, granted=True))
    assert (Role.FOLLOWER, 1) == (network.role("a"), network["a"].term)


# Stickiness


@pytest.mark.parametrize(
    "request_",
    [PreVoteRequest(2, last_index=9, last_term=1), VoteRequest(2, 9, 1, transfer=False)],
    ids=lambda request: type(request).__name__,
)
def test_members_stick_to_a_living_leader(request_: PreVoteRequest | VoteRequest) -> None:
    """Leader and follower alike, as long as the minimum election timeout lasts, and no longer.

    "If a server receives a RequestVote request within the minimum election timeout of hearing from
    a current leader, it does not update its term or grant its vote" (§4.2.3).
    """
    network = led_network()
    network.bag.clear()
    heard_us = {"a": network.now_us, "b": network["b"]._patience.heard_us}
    for progress in network["a"].leadership.followers.values():  # type: ignore[union-attr]  # it leads
        progress.last_heard_us = network.now_us
    for name, other in ("ab", "bc"):
        network.now_us = heard_us[name] + network.config.election_min_us - 1
        network.tick(name)
        network.bag.clear()
        network.step(name, other, request_)
        assert ([], 1) == (network.sent(name, other), network[name].term)
        assert network[name].dropped["sticky"] == 1
    for name, other in ("ab", "bc"):
        network.now_us = max(heard_us[name] + network.config.election_min_us, network.now_us)
        network.tick(name)
        network.bag.clear()
        network.step(name, other, request_)
        network.finish_saves()
        assert [r.granted for r in network.sent(name, other, VoteReply | PreVoteReply)] == [True]  # type: ignore[union-attr, arg-type]  # both have it


def test_member_without_a_leader_votes_at_once() -> None:
    """After a start nothing is known of a leader, so there is none to stick to."""
    network = Network(3)
    network.step("a", "b", PreVoteRequest(1, last_index=0, last_term=0))
    assert [PreVoteReply(1, granted=True)] == network.sent("a", "b")


def test_stuck_candidate_is_freed() -> None:
    """A member whose term is ahead of its leader's forces one election and then follows."""
    network = Network(3, states={"c": HardState(term=9)})
    network.elect("a", "ab")
    network.run(5 * SECOND_US)
    assert {10} == {network[name].term for name in "abc"}
    assert network.leader is not None
    assert {network[network.leader].member} == {network[name].leader for name in "abc"}


# Check-quorum


def test_leader_without_quorum_steps_down() -> None:
    """Not before the longest election timeout is over, and without a new term.

    "A leader in Raft steps down if an election timeout elapses without a successful round of
    heartbeats to a majority of its cluster" (§6.2).
    """
    network = led_network()
    heard_us = network.now_us
    network.propose("a", transaction(1))
    network.crash("b")
    network.crash("c")
    network.run(network.config.election_max_us - 60 * MILLISECOND_US)
    assert network.role("a") is Role.LEADER
    network.run(heard_us + network.config.election_max_us + 60 * MILLISECOND_US - network.now_us)
    assert network.role("a") is not Role.LEADER
    assert (1, None) == (network["a"].term, network["a"].leader)


@pytest.mark.parametrize("deaf", [True, False], ids=["hears nobody", "is heard by nobody"])
def test_leader_behind_a_one_way_link_is_replaced(*, deaf: bool) -> None:
    """A leader that only sends steps down by itself; one that only hears is voted out (§6.2)."""
    network = led_network(5)
    links = [("a", other) for other in "bcde"]
    network.cut = {(s, t) for t, s in links} if deaf else set(links)
    assert network.run(3 * SECOND_US, lambda: network.leader in {"b", "c", "d", "e"})
    assert network.role("a") is not Role.LEADER or not deaf
    network.cut.clear()
    assert network.run(SECOND_US, lambda: network["a"].leader not in {None, member_id("a")})
    network.run(2 * SECOND_US)
    assert len({network[name].term for name in "abcde"}) == 1


def test_leader_with_a_bare_majority_stays() -> None:
    """Two of five may be away for as long as they like (§6.2)."""
    network = led_network(5)
    network.crash("d")
    network.crash("e")
    network.run(20 * SECOND_US)
    assert (Role.LEADER, 1) == (network.role("a"), network["a"].term)
    network.propose("a", transaction(1))
    assert network.run(100 * MILLISECOND_US, lambda: network.commit_index == 2)


def test_minority_never_commits() -> None:
    """Two of five commit nothing; a third that comes back is enough."""
    network = led_network(5)
    for name in "cde":
        network.crash(name)
    network.propose("a", transaction(1))
    network.run(5 * SECOND_US)
    assert (1, None) == (network.commit_index, network.leader)
    network.start("c")
    assert network.run(2 * SECOND_US, lambda: network.commit_index > 1)


# Lost connections


def test_broken_connection_shortens_the_election() -> None:
    """When a leader dies and its peers notice, there is a new one well before a timeout."""
    network = led_network()
    network.crash("a")
    for name in "bc":
        network.unreachable(name, "a")
    assert network.run(network.config.election_min_us // 2, lambda: network.leader in {"b", "c"})


def test_broken_connection_ends_stickiness() -> None:
    """Whoever lost its leader grants the pre-vote of another that lost it too, at once."""
    network = led_network()
    network.unreachable("b", "a")
    network.step("b", "c", PreVoteRequest(2, last_index=1, last_term=1))
    assert [PreVoteReply(2, granted=True)] == network.sent("b", "c")


def test_broken_connection_does_not_depose_a_living_leader() -> None:
    """One follower's broken connection, again and again, changes neither leader nor term."""
    network = led_network()
    for _ in range(50):
        network.run(70 * MILLISECOND_US)
        network.unreachable("c", "a")
    assert (Role.LEADER, 1) == (network.role("a"), network["a"].term)
    assert network["a"].dropped["sticky"] + network["b"].dropped["sticky"] > 0


def test_broken_connection_to_another_changes_nothing() -> None:
    """Neither a follower's to a follower, nor the leader's to anyone."""
    network = led_network()
    before = {name: network[name].wake_us() for name in "ab"}
    network.unreachable("b", "c")
    network.unreachable("a", "b")
    network.unreachable("a", "a")
    assert before == {name: network[name].wake_us() for name in "ab"}
    assert network["b"]._leader_is_alive()


# Slow disks


def test_leader_with_a_stalled_disk_steps_down() -> None:
    """Once a save has taken the longest election timeout, and not before.

    Its followers would otherwise wait for a leader that cannot save its own blocks.
    """
    network = led_network()
    network.tick("a")
    network.propose("a", transaction(1))
    started_us = network.now_us
    network.hosts["a"].save_due_us = started_us + 10 * SECOND_US
    max_us = network.config.election_max_us
    network.run(max_us - 1)
    assert network.role("a") is Role.LEADER
    network.run(60 * MILLISECOND_US)
    assert network.role("a") is Role.FOLLOWER
    assert network.run(2 * SECOND_US, lambda: network.leader in {"b", "c"})
    assert network["b"].term == 2


def test_deposed_leader_with_a_stalled_disk_does_not_campaign() -> None:
    """Its term and vote are saved, so it could ask; but not even its own block can be saved."""
    network = led_network()
    network.tick("a")
    network.propose("a", transaction(1))
    network.hosts["a"].save_due_us = network.now_us + 20 * SECOND_US
    network.cut = {("b", "a"), ("c", "a"), ("a", "b"), ("a", "c")}
    network.trace.clear()
    network.run(10 * SECOND_US)
    assert not any("a ✗ b  PreVoteRequest" in line for line in network.trace)
    network.finish_save("a")
    network.run(SECOND_US)
    assert any("a ✗ b  PreVoteRequest" in line for line in network.trace)


def test_member_with_a_stalled_disk_does_not_campaign() -> None:
    """It could not save its own vote; once the disk answers it campaigns again."""
    network = lonely_pre_candidate(3)
    network.step("a", "b", PreVoteReply(1, granted=True))
    network.hosts["a"].save_due_us = network.now_us + 20 * SECOND_US
    network.run(network.config.election_max_us)
    asked = sum("PreVoteRequest" in line for line in network.trace)
    network.run(10 * SECOND_US)
    assert asked == sum("PreVoteRequest" in line for line in network.trace)
    network.finish_save("a")
    network.run(SECOND_US)
    assert asked < sum("PreVoteRequest" in line for line in network.trace)


# Shapes of clusters, and foreign messages


def test_single_member() -> None:
    """A cluster of one elects itself, commits and reads by itself, and again after a restart."""
    network = Network(1)
    assert network.run(SECOND_US, lambda: network.commit_index == 1)
    network.propose("a", transaction(1))
    network.read("a", 1)
    assert network.hosts["a"].reads == {1: 1}
    network.settle()
    assert network.hosts["a"].applied_index == 2
    network.run(20 * SECOND_US)
    assert (Role.LEADER, 1) == (network.role("a"), network["a"].term)
    network.crash("a")
    network.start("a", applied_index=1)
    assert network.run(SECOND_US, lambda: network.hosts["a"].applied_index == 3)
    assert network["a"].term == 2


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 9])
def test_cluster_of_any_size(size: int) -> None:
    """Elects a leader and commits its first block on every member within two seconds."""
    network = Network(size)
    assert network.run(
        2 * SECOND_US, lambda: all(h.applied_index >= 1 for h in network.hosts.values())
    )


@pytest.mark.parametrize("source", ["a", "d"], ids=["itself", "a stranger"])
def test_messages_of_no_other_member_are_dropped(source: str) -> None:
    """Neither one that is no voter, nor one that holds this member's own key."""
    network = led_network()
    network.bag.clear()
    for message in (
        VoteRequest(9, 9, 9, transfer=False),
        HeartbeatReply(1, 1, 1, 1),
        Heartbeat(9, 0, 1, fetch_through=0),
    ):
        network.step("a", source, message)
    assert (Role.LEADER, 1, []) == (network.role("a"), network["a"].term, network.bag)
    assert network["a"].dropped["stranger"] == 3


@pytest.mark.parametrize(
    "config",
    [
        {"heartbeat_us": 0},
        {"heartbeat_us": 100_001},
        {"election_min_us": 600_000},
        {"election_max_us": 300_000},
    ],
)
def test_unreasonable_times_are_refused(config: dict[str, int]) -> None:
    """Times under which a healthy leader would lose its followers."""
    with pytest.raises(AssertionError):
        RaftConfig(**config)


def test_time_never_falls() -> None:
    """A clock that runs backwards is the caller's fault."""
    network = led_network()
    network.tick("a")
    with pytest.raises(AssertionError, match="monotonic"):
        network["a"].tick(network.now_us - 1, 0)


def test_only_the_leader_seals() -> None:
    """A follower must not be asked to."""
    network = led_network()
    with pytest.raises(AssertionError, match="only the leader seals"):
        network["b"].propose([transaction(1)])
