"""What a member says only once it is durable, and what it knows again after a crash.

"Updated on stable storage before responding to RPCs" (Raft paper, figure 2). `Network` checks that
of every message of every test; here it is shown step by step.
"""

from __future__ import annotations

import pytest

from consensus.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    PreVoteReply,
    PreVoteRequest,
    VoteReply,
    VoteRequest,
)
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import append_of, log_of_terms, member_id, transaction
from tests.consensus.raft_mail import MILLISECOND_US, SECOND_US
from tests.consensus.raft_network import Network


def led_network(size: int = 3) -> Network:
    """A cluster in which `a` leads term 1."""
    network = Network(size)
    network.elect("a")
    return network


# Nothing leaves before its save


def test_vote_waits_for_its_save() -> None:
    """The vote and the term are on disk before the candidate hears of them."""
    network = Network(3)
    network.step("a", "b", VoteRequest(1, last_index=0, last_term=0, transfer=False))
    assert network.sent("a") == []
    assert HardState(0, None, 0) == network.hosts["a"].chain.hard_state
    network.finish_save("a")
    assert [VoteReply(1, granted=True)] == network.sent("a", "b")
    assert HardState(1, member_id("b"), 0) == network.hosts["a"].chain.hard_state


def test_refusal_waits_for_the_term() -> None:
    """A refused vote tells a new term as well, and so it waits for it."""
    network = Network(3, logs={"a": [1]})
    network.step("a", "b", VoteRequest(5, last_index=0, last_term=0, transfer=False))
    assert network.sent("a") == []
    network.finish_save("a")
    assert [VoteReply(5, granted=False)] == network.sent("a", "b")


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (append_of([2], 0, term=2), AppendReply),
        (Heartbeat(2, commit_index=0, round=1, fetch_through=0), HeartbeatReply),
    ],
    ids=["append", "heartbeat"],
)
def test_answers_wait_for_the_term(message: Append | Heartbeat, answer: type) -> None:
    """Nobody is told of a term that a crash would make this member forget."""
    network = Network(3, states={"a": HardState(term=1)})
    network.step("a", "b", message)
    assert network.sent("a") == []
    network.finish_saves()
    assert len(network.sent("a", "b", answer)) == 1


def test_acknowledgement_waits_for_the_blocks() -> None:
    """And each one only for its own."""
    network = led_network()
    network.propose("a", transaction(1))
    network.deliver("a", "b")
    network.propose("a", transaction(2))
    network.deliver("a", "b")
    assert network["b"].log.last_index == 3
    assert network.sent("b", "a", AppendReply) == []
    network.finish_save("b")
    assert [AppendReply(1, match_index=2)] == network.sent("b", "a", AppendReply)
    network.finish_save("b")
    assert AppendReply(1, match_index=3) == network.sent("b", "a", AppendReply)[-1]


def test_heartbeats_are_answered_while_blocks_are_saved() -> None:
    """A slow save of blocks does not look like a dead follower."""
    network = led_network()
    network.propose("a", transaction(1))
    network.deliver("a", "b")
    network.step("b", "a", Heartbeat(1, commit_index=1, round=2, fetch_through=0))
    expected = HeartbeatReply(1, round=2, last_index=2, saved_index=1)
    assert [expected] == network.sent("b", "a", HeartbeatReply)


def test_answers_to_heartbeats_do_not_pile_up() -> None:
    """While the term is being saved the last answer takes the place of those before it."""
    network = Network(3, states={"a": HardState(term=1)})
    for contact_round in range(1, 100):
        network.step("a", "b", Heartbeat(2, commit_index=0, round=contact_round, fetch_through=0))
    network.step("a", "c", Heartbeat(1, commit_index=0, round=7, fetch_through=0))
    network.step("a", "b", append_of([], 0, term=2))
    network.finish_saves()
    replies = network.sent("a", "b")
    assert [HeartbeatReply(2, 99, 0, 0), AppendReply(2, match_index=0)] == replies
    assert [HeartbeatReply(2, 0, 0, 0)] == network.sent("a", "c")


def test_candidate_asks_once_its_vote_is_saved() -> None:
    """It counts itself only then as well, however many others grant."""
    network = Network(3)
    network.run(SECOND_US, lambda: network["a"].term == 1 or network["b"].term == 1)
    name = "a" if network["a"].term == 1 else "b"
    assert network.role(name) is Role.CANDIDATE
    assert network.sent(name, kind=VoteRequest) == []
    assert network[name]._poll._answers == {}
    network.finish_save(name)
    assert len(network.sent(name, kind=VoteRequest)) == 2
    assert network[name]._poll._answers == {member_id(name): True}


def test_leader_sends_while_it_saves() -> None:
    """Its blocks travel in parallel with its own write (dissertation §10.2.1)."""
    network = led_network()
    network.propose("a", transaction(1))
    assert len(network.sent("a", "b", Append)) == 1
    assert network.hosts["a"].chain.last_index == 1


def test_what_comes_meanwhile_joins_the_next_save() -> None:
    """One save at a time; the next takes all that gathered (group commit)."""
    network = led_network()
    for number in range(5):
        network.propose("a", transaction(number))
    network.finish_save("a")
    save = network.hosts["a"].save
    assert save is not None
    assert [3, 4, 5, 6] == [block.index for block in save.blocks]
    network.finish_save("a")
    assert network.hosts["a"].save is None


def test_saves_end_in_order() -> None:
    """A save that was not given, or is over, cannot end."""
    network = led_network()
    network.propose("a", transaction(1))
    save = network.hosts["a"].save
    assert save is not None
    network.finish_save("a")
    with pytest.raises(AssertionError, match="saves end in the order"):
        network["a"].saved(save)


# Promises of an earlier term


def test_vote_of_an_earlier_term_is_void() -> None:
    """A vote whose save ends when its term is over is not sent."""
    network = Network(3)
    network.step("a", "b", VoteRequest(1, last_index=0, last_term=0, transfer=False))
    network.step("a", "c", VoteRequest(2, last_index=0, last_term=0, transfer=False))
    network.finish_save("a")
    assert network.sent("a") == []
    network.finish_save("a")
    assert ([], [VoteReply(2, granted=True)]) == (network.sent("a", "b"), network.sent("a", "c"))


def test_acknowledgement_of_an_earlier_term_is_void() -> None:
    """What a new leader truncates must not be acknowledged to the old one."""
    network = Network(3)
    network.step("a", "b", append_of([1, 1], 0, term=1))
    network.step("a", "c", append_of([2], 0, term=2))
    assert network["a"].log.last_index == 1
    while network.finish_saves():
        assert network.sent("a", "b") == []
    assert [AppendReply(2, match_index=1)] == network.sent("a", "c")
    assert network.hosts["a"].chain.holds(1, log_of_terms(3, (2,))[1].hash)


def test_pre_votes_of_an_earlier_term_are_void() -> None:
    """Neither a grant for a term that came to pass nor a refusal from one that did not last."""
    network = Network(3, logs={"a": [1]}, states={"a": HardState(term=1)})
    network.step("a", "b", Heartbeat(2, commit_index=0, round=0, fetch_through=0))
    network["a"]._patience.heard_us = -network.config.election_min_us
    network.step("a", "c", PreVoteRequest(3, last_index=9, last_term=2))
    network.step("a", "b", PreVoteRequest(3, last_index=0, last_term=0))
    assert network.sent("a") == []
    network.step("a", "c", Heartbeat(3, commit_index=0, round=0, fetch_through=0))
    while network.finish_saves():
        pass
    assert network.sent("a", kind=PreVoteReply) == []


def test_own_vote_of_an_earlier_term_is_void() -> None:
    """A candidate that meets a leader before its vote is saved is no candidate any more."""
    network = Network(1 + 2)
    network.run(SECOND_US, lambda: network["a"].term == 1 or network["b"].term == 1)
    name, other = "ab" if network["a"].term == 1 else "ba"
    network.step(name, other, Heartbeat(1, commit_index=0, round=1, fetch_through=0))
    network.finish_save(name)
    assert (Role.FOLLOWER, member_id(other)) == (network.role(name), network[name].leader)
    assert [HeartbeatReply] == [type(message) for message in network.sent(name, other)[-1:]]


# Truncation and saves under way


def test_truncation_while_the_old_blocks_are_saved() -> None:
    """A save that ends after its blocks were truncated makes only the others count as saved."""
    network = Network(3)
    network.step("a", "b", append_of([1, 1, 1], 0, term=1))
    network.finish_save("a")
    network.bag.clear()
    network.step("a", "b", append_of([1, 1, 1, 1, 1], 3, term=1))
    save = network.hosts["a"].save
    assert save is not None
    assert [4, 5] == [block.index for block in save.blocks]
    network.step("a", "c", append_of([1, 1, 2], 2, term=2))
    assert (3, 2) == (network["a"].log.last_index, network["a"].log.saved_index)
    network.finish_save("a")
    assert network["a"].log.saved_index == 2
    save = network.hosts["a"].save
    assert save is not None
    assert (3, [3]) == (save.truncate_from, [block.index for block in save.blocks])
    network.finish_save("a")
    assert [AppendReply(2, match_index=3)] == network.sent("a", "c")
    assert network.hosts["a"].chain.last_index == 3


def test_block_that_returns_is_saved_anew() -> None:
    """Truncated while its save ran, and sent again: the old save does not count for it."""
    network = Network(3)
    network.step("a", "b", append_of([1], 0, term=1))
    network.step("a", "c", append_of([2], 0, term=2))
    network.step("a", "b", append_of([1, 3], 0, term=3))
    assert network["a"].log.hash_at(1) == log_of_terms(3, (1,))[1].hash
    network.finish_save("a")
    assert network["a"].log.saved_index == 0
    network.finish_saves()
    network.finish_saves()
    assert network["a"].log.saved_index == 2
    assert network.hosts["a"].chain.holds(2, log_of_terms(3, (1, 3))[2].hash)
    assert AppendReply(3, match_index=2) == network.sent("a", "b")[-1]


def test_commit_index_is_saved_with_its_blocks() -> None:
    """Never ahead of the blocks that the same save makes durable."""
    network = led_network()
    network.propose("a", transaction(1))
    network.deliver("a")
    network.finish_saves("bc")
    network.deliver(kind=AppendReply)
    network.propose("a", transaction(2))
    assert (2, 1) == (network["a"].log.commit_index, network["a"].log.saved_index)
    network.finish_save("a")
    save = network.hosts["a"].save
    assert save is not None
    assert (2, 3) == (save.hard_state.commit_index, save.blocks[-1].index)


# Restarts


@pytest.mark.parametrize("applied_index", range(4))
@pytest.mark.parametrize("commit_index", range(4))
def test_restart_at_every_boundary(commit_index: int, applied_index: int) -> None:
    """From any commit index that was saved and any applied index, the rest is handed out once."""
    state = HardState(term=2, vote=member_id("b"), commit_index=commit_index)
    states = {"a": HardState(2, None, 3), "b": HardState(2, None, 3), "c": state}
    network = Network(3, logs=dict.fromkeys("abc", (1, 1, 2)), states=states)
    network.crash("c")
    raft = network.start("c", applied_index=applied_index)
    assert max(commit_index, applied_index) == raft.log.commit_index
    assert (2, member_id("b"), Role.FOLLOWER) == (raft.term, raft.vote, raft.role)
    expected = range(applied_index + 1, raft.log.commit_index + 1)
    assert list(expected) == [block.index for block in network.hosts["c"].applied]
    network.elect("a")
    assert list(range(applied_index + 1, 5)) == [b.index for b in network.hosts["c"].applied]


def test_vote_survives_a_crash() -> None:
    """A member that voted, crashed and came back votes for nobody else in that term."""
    network = Network(3)
    network.step("a", "b", VoteRequest(1, last_index=0, last_term=0, transfer=False))
    network.crash_after_save("a")
    network.start("a")
    network.step("a", "c", VoteRequest(1, last_index=5, last_term=1, transfer=False))
    assert [VoteReply(1, granted=False)] == network.sent("a", "c")
    network.step("a", "b", VoteRequest(1, last_index=0, last_term=0, transfer=False))
    assert [VoteReply(1, granted=True)] == network.sent("a", "b")


def test_vote_that_was_not_saved_is_forgotten_unsaid() -> None:
    """A crash before the save lets the member vote for another: nobody heard of the first vote."""
    network = Network(3)
    network.step("a", "b", VoteRequest(1, last_index=0, last_term=0, transfer=False))
    network.crash("a")
    assert network.bag == []
    network.start("a")
    network.step("a", "c", VoteRequest(1, last_index=0, last_term=0, transfer=False))
    network.finish_save("a")
    assert [VoteReply(1, granted=True)] == network.sent("a", "c")


def test_leader_never_leads_its_term_twice() -> None:
    """After a crash its unsaved blocks exist elsewhere, so no two may have one index and term."""
    network = led_network()
    network.propose("a", transaction(1))
    network.deliver("a", "b")
    network.crash("a")
    network.start("a")
    assert (1, 1) == (network["a"].term, network["a"].log.last_index)
    network.run(3 * SECOND_US, lambda: network.leader is not None)
    assert network.leader is not None
    assert network[network.leader].term > 1


def test_whole_cluster_restarts() -> None:
    """All crash at once with saves under way; nothing committed is lost."""
    network = led_network()
    for number in range(10):
        network.propose("a", transaction(number))
        if number < 7:
            network.settle()
    network.deliver()
    committed = network.commit_index
    for name in "abc":
        network.crash(name)
    for name in "abc":
        network.start(name)
    assert network.run(3 * SECOND_US, lambda: network.commit_index > committed)


def play(events: int, victim: str, *, after_save: bool) -> Network:
    """Runs a scripted life for so many events, crashes a member there, and starts it again."""
    network = Network(3, seed=7)
    proposals = iter(range(1_000))
    for event in range(events):
        due_us, happen = network._next_event()
        network.now_us = max(network.now_us, due_us)
        happen()
        leader = network.leader
        if leader is not None and event % 5 == 0:
            network.propose(leader, transaction(next(proposals)))
    (network.crash_after_save if after_save else network.crash)(victim)
    network.run(20 * MILLISECOND_US)
    network.start(victim)
    return network


@pytest.mark.parametrize("victim", ["a", "b", "c"])
@pytest.mark.parametrize("after_save", [False, True])
def test_crash_at_many_moments(victim: str, *, after_save: bool) -> None:
    """A crash between any two events, before or after the save under way, loses nothing."""
    for events in range(1, 150, 6):
        network = play(events, victim, after_save=after_save)
        committed = network.commit_index

        def is_one(network: Network = network, committed: int = committed) -> bool:
            ends = {network[name].log.commit_index for name in "abc"}
            return len(ends) == 1 and min(ends) > committed

        network.run(2 * SECOND_US, lambda network=network: network.leader is not None)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        assert network.leader is not None
        network.propose(network.leader, transaction(5_000))
        assert network.run(3 * SECOND_US, is_one), f"after {events} events"
