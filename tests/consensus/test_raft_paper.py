"""Sections 5.1 and 5.2 of the Raft paper, one test for each sentence: terms and elections.

The sentences are those of the extended version (Ongaro and Ousterhout 2014); the cases are those
that etcd tests its own core by. Most tests drive one member and play its peers themselves.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from consensus.messages import (
    AppendRejection,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    PreVoteReply,
    PreVoteRequest,
    ReadReply,
    ReadRequest,
    VoteReply,
    VoteRequest,
)
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import NAMES, append_of, member_id
from tests.consensus.raft_network import Network

if TYPE_CHECKING:
    from consensus.messages import RaftMessage


def network_in_role(role: Role) -> Network:
    """Three members, of which `a` has that role in term 1."""
    if role is Role.FOLLOWER:
        return Network(3, states={"a": HardState(term=1)})
    network = Network(3)
    if role is Role.PRE_CANDIDATE:
        network = Network(3, states={"a": HardState(term=1)})
        network.run(network["a"].wake_us() - network.now_us, lambda: network.role("a") is role)
    else:
        network.stand("a")
    if role is Role.LEADER:
        network.step("a", "b", VoteReply(1, granted=True))
    network.finish_saves()
    network.bag.clear()
    assert (network.role("a"), network["a"].term) == (role, 1)
    return network


HIGHER_TERM: list[RaftMessage] = [
    append_of([2], 0, term=2),
    Heartbeat(2, commit_index=0, round=1, fetch_through=0),
    VoteReply(2, granted=False),
    PreVoteReply(2, granted=False),
    AppendReply(2, match_index=0),
    AppendRejection(2, previous_index=0, hint_index=0, hint_term=0),
    HeartbeatReply(2, round=1, last_index=0, saved_index=0),
    ReadRequest(2, token=1),
    ReadReply(2, token=1, read_index=0),
]


@pytest.mark.parametrize("message", HIGHER_TERM, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("role", list(Role))
def test_higher_term_is_taken_over(role: Role, message: RaftMessage) -> None:
    """Whatever it is told, and by whom, a member follows the higher term, and saves it.

    "If one server's current term is smaller than the other's, then it updates its current term to
    the larger value. If a candidate or leader discovers that its term is out of date, it
    immediately reverts to follower state" (§5.1).
    """
    network = network_in_role(role)
    network.step("a", "b", message)
    assert (Role.FOLLOWER, 2, None) == (network.role("a"), network["a"].term, network["a"].vote)
    network.finish_saves()
    assert network.hosts["a"].chain.hard_state.term == 2


def test_higher_term_in_a_vote_request_is_taken_over() -> None:
    """The one message that can be refused a hearing is heard where no leader is alive (§5.1)."""
    network = network_in_role(Role.FOLLOWER)
    network.step("a", "b", VoteRequest(2, last_index=0, last_term=0, transfer=False))
    assert network["a"].term == 2


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (append_of([1], 0, term=1), HeartbeatReply(2, round=0, last_index=0, saved_index=0)),
        (
            Heartbeat(1, 0, round=1, fetch_through=0),
            HeartbeatReply(2, round=0, last_index=0, saved_index=0),
        ),
        (VoteRequest(1, last_index=9, last_term=1, transfer=False), VoteReply(2, granted=False)),
        (PreVoteRequest(1, last_index=9, last_term=1), PreVoteReply(2, granted=False)),
        (VoteReply(1, granted=True), None),
        (PreVoteReply(1, granted=True), None),
        (AppendReply(1, match_index=0), None),
        (AppendRejection(1, 0, 0, 0), None),
        (HeartbeatReply(1, 1, 0, 0), None),
        (ReadRequest(1, token=1), None),
        (ReadReply(1, token=1, read_index=9), None),
    ],
    ids=lambda m: type(m).__name__,
)
def test_stale_term_is_rejected(message: RaftMessage, answer: RaftMessage | None) -> None:
    """A stale request changes nothing and learns the new term; a stale reply is not heard.

    "If a server receives a request with a stale term number, it rejects the request" (§5.1).
    """
    network = Network(3, states={"a": HardState(term=2)})
    network.step("a", "b", message)
    assert ([] if answer is None else [answer]) == network.sent("a", "b")
    assert (2, None, 0) == (network["a"].term, network["a"].vote, network["a"].log.last_index)
    assert (network["a"].dropped["stale"] == 1) == (answer is None)
    assert network["a"].leader is None


def test_starts_as_follower() -> None:
    """Whatever was before.

    "When servers start up, they begin as followers" (§5.2).
    """
    network = Network(3, states={"a": HardState(term=7, vote=member_id("a"))})
    assert (Role.FOLLOWER, 7) == (network.role("a"), network["a"].term)


def test_leader_sends_heartbeats() -> None:
    """One to each follower in each heartbeat interval, though there is nothing to say.

    "Leaders send periodic heartbeats (AppendEntries RPCs that carry no log entries) to all
    followers in order to maintain their authority" (§5.2).
    """
    network = Network(3)
    network.elect("a")
    for beat in range(1, 11):
        network.now_us += network.config.heartbeat_us
        network.tick("a")
        expected = [Heartbeat(1, commit_index=1, round=1 + beat, fetch_through=0)]
        assert expected == network.sent("a", "b", Heartbeat) == network.sent("a", "c", Heartbeat)
        network.settle()


def test_heartbeats_wait_for_their_time() -> None:
    """A microsecond before the interval is over nothing is sent."""
    network = Network(3)
    network.elect("a")
    network.now_us += network.config.heartbeat_us - 1
    network.tick("a")
    assert network.sent("a") == []


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_election_starts_after_a_timeout(role: Role) -> None:
    """After the pre-vote, that is, and not before its own vote is saved.

    "If a follower receives no communication over a period of time called the election timeout, then
    it assumes there is no viable leader and begins an election to choose a new leader. To begin an
    election, a follower increments its current term and transitions to candidate state. It then
    votes for itself and issues RequestVote RPCs in parallel to each of the other servers in the
    cluster"; a candidate without a majority "will time out and start a new election by incrementing
    its term and initiating another round of RequestVote RPCs" (§5.2).
    """
    network = network_in_role(role)
    network.now_us = network["a"].wake_us() - 1
    network.tick("a")
    assert network.role("a") is role
    network.now_us += 1
    network.tick("a")
    network.step("a", "b", PreVoteReply(2, granted=True))
    assert (Role.CANDIDATE, 2) == (network.role("a"), network["a"].term)
    assert network["a"].vote == member_id("a")
    assert network.sent("a", kind=VoteRequest) == []
    network.finish_save("a")
    request = VoteRequest(2, last_index=0, last_term=0, transfer=False)
    assert [request] == network.sent("a", "b", VoteRequest) == network.sent("a", "c", VoteRequest)


@pytest.mark.parametrize(
    ("size", "votes", "role"),
    [
        (1, {}, Role.LEADER),
        (3, {"b": True, "c": True}, Role.LEADER),
        (3, {"b": True}, Role.LEADER),
        (5, {"b": True, "c": True, "d": True, "e": True}, Role.LEADER),
        (5, {"b": True, "c": True, "d": True}, Role.LEADER),
        (5, {"b": True, "c": True}, Role.LEADER),
        (3, {"b": False, "c": False}, Role.FOLLOWER),
        (5, {"b": False, "c": False, "d": False, "e": False}, Role.FOLLOWER),
        (5, {"b": True, "c": False, "d": False, "e": False}, Role.FOLLOWER),
        (3, {}, Role.CANDIDATE),
        (5, {"b": True}, Role.CANDIDATE),
        (5, {"b": False, "c": False}, Role.CANDIDATE),
        (5, {}, Role.CANDIDATE),
    ],
)
def test_majority_decides_the_election(size: int, votes: dict[str, bool], role: Role) -> None:
    """A majority for it makes a leader, one against it a follower, and neither leaves it open.

    "A candidate wins an election if it receives votes from a majority of the servers in the full
    cluster for the same term" (§5.2).
    """
    network = Network(size)
    network.stand("a")
    for name, granted in votes.items():
        network.step("a", name, VoteReply(1, granted=granted))
    assert (role, 1) == (network.role("a"), network["a"].term)


def test_votes_are_counted_once() -> None:
    """A vote that the network repeats is still one vote of one server (§5.2)."""
    network = Network(5)
    network.stand("a")
    for _ in range(4):
        network.step("a", "b", VoteReply(1, granted=True))
    assert network.role("a") is Role.CANDIDATE


def test_votes_of_another_term_do_not_count() -> None:
    """Votes make a majority only "for the same term" (§5.2)."""
    network = Network(5)
    network.stand("a")
    network.step("a", "b", VoteReply(1, granted=True))
    network.stand("a")
    assert (Role.CANDIDATE, 2) == (network.role("a"), network["a"].term)
    network.step("a", "c", VoteReply(1, granted=True))
    network.step("a", "d", VoteReply(2, granted=True))
    assert network.role("a") is Role.CANDIDATE
    network.step("a", "c", VoteReply(2, granted=True))
    assert network.role("a") is Role.LEADER


@pytest.mark.parametrize(
    ("vote", "candidate", "granted"),
    [
        (None, "b", True),
        (None, "c", True),
        ("b", "b", True),
        ("c", "c", True),
        ("b", "c", False),
        ("c", "b", False),
        ("a", "b", False),
    ],
)
def test_one_vote_a_term(vote: str | None, candidate: str, *, granted: bool) -> None:
    """Also after a restart, and also when asked again by the one that it voted for.

    "Each server will vote for at most one candidate in a given term, on a first-come-first-served
    basis" (§5.2).
    """
    state = HardState(term=1, vote=None if vote is None else member_id(vote))
    network = Network(3, states={"a": state})
    network.step("a", candidate, VoteRequest(1, last_index=0, last_term=0, transfer=False))
    network.finish_saves()
    assert [VoteReply(1, granted=granted)] == network.sent("a", candidate)


@pytest.mark.parametrize("granted", [True, False])
def test_granted_vote_restarts_the_timeout(*, granted: bool) -> None:
    """And a refused one does not: a candidate that cannot win must not keep others from it.

    "A server remains in follower state as long as it receives valid RPCs from a leader or
    candidate" (§5.2); "without … granting vote to candidate" (figure 2).
    """
    network = Network(3, logs={"a": [1]}, states={"a": HardState(term=2)})
    due_us = network["a"].wake_us()
    network.now_us = due_us - 1
    network.tick("a")
    network.step(
        "a", "b", VoteRequest(2, last_index=1 if granted else 0, last_term=1, transfer=False)
    )
    if granted:
        assert network["a"].wake_us() >= network.now_us + network.config.election_min_us
    else:
        assert network["a"].wake_us() == due_us


def test_new_leader_sends_heartbeats_at_once() -> None:
    """And its first block with them.

    "Once a candidate wins an election, it becomes leader. It then sends heartbeat messages to all
    of the other servers to establish its authority and prevent new elections" (§5.2).
    """
    network = Network(3)
    network.stand("a")
    network.step("a", "b", VoteReply(1, granted=True))
    assert (Role.LEADER, member_id("a")) == (network.role("a"), network["a"].leader)
    for name in "bc":
        assert [Heartbeat(1, commit_index=0, round=1, fetch_through=0)] == network.sent(
            "a", name, Heartbeat
        )


@pytest.mark.parametrize("term", [1, 2])
@pytest.mark.parametrize("kind", ["append", "heartbeat"])
def test_candidate_recognises_a_leader(kind: str, term: int) -> None:
    """Of its own term or of a higher one.

    "If the leader's term (included in its RPC) is at least as large as the candidate's current
    term, then the candidate recognizes the leader as legitimate and returns to follower state"
    (§5.2).
    """
    network = network_in_role(Role.CANDIDATE)
    message = (
        append_of([term], 0, term=term)
        if kind == "append"
        else Heartbeat(term, 0, round=1, fetch_through=0)
    )
    network.step("a", "b", message)
    assert (Role.FOLLOWER, term) == (network.role("a"), network["a"].term)
    assert network["a"].leader == member_id("b")


def test_candidate_rejects_a_leader_of_the_past() -> None:
    """And tells it the new term.

    "If the term in the RPC is smaller than the candidate's current term, then the candidate rejects
    the RPC and continues in candidate state" (§5.2).
    """
    network = network_in_role(Role.CANDIDATE)
    network.step("a", "b", append_of([], 0, term=0))
    assert network.role("a") is Role.CANDIDATE
    assert [HeartbeatReply(1, 0, 0, 0)] == network.sent("a", "b")


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_election_timeouts_are_random(role: Role) -> None:
    """They fill the whole interval evenly, to within what chance allows.

    "Raft uses randomized election timeouts to ensure that split votes are rare and that they are
    resolved quickly. … election timeouts are chosen randomly from a fixed interval" (§5.2).
    """
    network = network_in_role(role)
    raft, config = network["a"], network.config
    tenths: Counter[int] = Counter()
    for _ in range(1_000):
        raft._become_follower(raft.term, leader=None)
        if role is Role.CANDIDATE:
            raft._become_pre_candidate()
            raft._become_candidate()
        timeout_us = raft.wake_us() - network.now_us
        assert config.election_min_us <= timeout_us < config.election_max_us
        spread_us = config.election_max_us - config.election_min_us
        tenths[10 * (timeout_us - config.election_min_us) // spread_us] += 1
    assert set(range(10)) == set(tenths)
    assert max(tenths.values()) < 2 * min(tenths.values())


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_timeouts_seldom_conflict(role: Role) -> None:
    """Within the time that an election takes, say ten milliseconds, mostly one of five times out.

    "This spreads out the servers so that in most cases only a single server will time out; it wins
    the election and sends heartbeats before any other servers time out" (§5.2).
    """
    network = Network(5)
    conflicts = 0
    for _ in range(300):
        due = []
        for name in NAMES[:5]:
            raft = network[name]
            raft._become_follower(raft.term, leader=None)
            if role is Role.CANDIDATE:
                raft._become_pre_candidate()
                raft._become_candidate()
            due.append(raft.wake_us())
        first, second, *_ = sorted(due)
        conflicts += second - first < 10_000
    assert conflicts / 300 <= 0.3


def test_split_vote_is_resolved() -> None:
    """Two candidates of one term share four votes; after that the random timeouts part them.

    "Each candidate restarts its randomized election timeout at the start of an election, and it
    waits for that timeout to elapse before starting the next election; this reduces the likelihood
    of another split vote in the new election" (§5.2).
    """
    network = Network(4)
    network.stand("a")
    network.now_us -= network.config.election_max_us
    network.stand("b")
    for voter, candidate in ("ca", "db", "ba", "ab"):
        network.tick(voter)
        network.deliver(candidate, voter, VoteRequest)
    network.bag = [e for e in network.bag if isinstance(e.message, VoteReply)]
    network.settle()
    assert network.leader is None
    assert network["a"].term == network["b"].term == 1
    assert network.run(3_000_000, lambda: network.leader is not None)
    assert max(network[name].term for name in network.up) >= 2
