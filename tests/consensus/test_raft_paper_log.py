"""Sections 5.3 to 5.5 of the Raft paper, one test for each sentence, and its figures 7 and 8.

The sentences are those of the extended version (Ongaro and Ousterhout 2014); the cases are those
that etcd tests its own core by. Logs are rows of terms, as the paper draws them; block 0 is genesis
and stands before every row.
"""

from __future__ import annotations

import pytest

from consensus.messages import (
    Append,
    AppendRejection,
    AppendReply,
    Heartbeat,
    PreVoteReply,
    PreVoteRequest,
    VoteReply,
    VoteRequest,
)
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import NAMES, append_of, log_of_terms, transaction
from tests.consensus.raft_network import Network


def terms_of(network: Network, name: str) -> list[int]:
    """A member's log as a row of terms."""
    log = network[name].log
    return [log.term_at(index) for index in range(1, log.last_index + 1)]


def lead_alone(network: Network, name: str) -> None:
    """Makes a member the leader by votes that the test gives it; nobody else notices."""
    network.stand(name)
    for other in NAMES[: network.size]:
        if other != name and network.role(name) is Role.CANDIDATE:
            network.step(name, other, VoteReply(network[name].term, granted=True))
    network.bag.clear()
    network.finish_saves(name)


def test_leader_starts_replication() -> None:
    """In parallel with its own save.

    "The leader appends the command to its log as a new entry, then issues AppendEntries RPCs in
    parallel to each of the other servers to replicate the entry. … When sending an AppendEntries
    RPC, the leader includes the index and term of the entry in its log that immediately precedes
    the new entries" (§5.3).
    """
    network = Network(3)
    network.elect("a")
    before = network["a"].log.last_tip
    block = network.propose("a", transaction(1))
    assert (2, 1, before.hash) == (block.index, block.term, block.previous_hash)
    assert network["a"].log.last_tip.hash == block.hash
    assert network["a"].log.commit_index == 1
    expected = Append(1, before.index, before.term, before.hash, 1, (block.encode(),))
    assert [expected] == network.sent("a", "b", Append) == network.sent("a", "c", Append)
    save = network.hosts["a"].save
    assert save is not None
    assert (block,) == save.blocks


def test_leader_commits() -> None:
    """It hands out the block, and tells the others at once and in what it sends later.

    "When the entry has been safely replicated …, the leader applies the entry to its state machine.
    … The leader keeps track of the highest index it knows to be committed, and it includes that
    index in future AppendEntries RPCs (including heartbeats) so that the other servers eventually
    find out" (§5.3).
    """
    network = Network(3)
    network.elect("a")
    block = network.propose("a", transaction(1))
    network.finish_save("a")
    for name in "bc":
        network.deliver("a", name, Append)
        network.finish_save(name)
    network.deliver("b", "a", AppendReply)
    assert block == network.hosts["a"].applied[-1]
    assert [Heartbeat(1, commit_index=2, round=0, fetch_through=0)] == network.sent("a", "b")
    network.deliver("c", "a", AppendReply)
    assert [Heartbeat(1, commit_index=2, round=0, fetch_through=0)] == network.sent("a", "c")
    network.propose("a", transaction(2))
    (append,) = network.sent("a", "b", Append)
    assert isinstance(append, Append)
    assert append.commit_index == 2


@pytest.mark.parametrize(
    ("size", "acceptors", "is_committed"),
    [
        (1, "", True),
        (3, "", False),
        (3, "b", True),
        (3, "bc", True),
        (5, "", False),
        (5, "b", False),
        (5, "bc", True),
        (5, "bcd", True),
        (5, "bcde", True),
    ],
)
def test_majority_commits(size: int, acceptors: str, *, is_committed: bool) -> None:
    """The leader's own save counts as one.

    "A log entry is committed once the leader that created the entry has replicated it on a majority
    of the servers" (§5.3).
    """
    network = Network(size)
    network.elect("a")
    network.propose("a", transaction(1))
    network.finish_save("a")
    for name in acceptors:
        network.deliver("a", name, Append)
        network.finish_save(name)
        network.deliver(name, "a", AppendReply)
    assert (network["a"].log.commit_index == 2) == is_committed


@pytest.mark.parametrize("terms", [[], [2], [1, 2], [1]])
def test_leader_commits_preceding_blocks(terms: list[int]) -> None:
    """All of them at once, in order.

    "This also commits all preceding entries in the leader's log, including entries created by
    previous leaders" (§5.3).
    """
    state = HardState(term=2)
    network = Network(3, logs=dict.fromkeys("abc", terms), states=dict.fromkeys("abc", state))
    network.elect("a")
    network.propose("a", transaction(1))
    network.settle()
    for name in "abc":
        assert [*terms, 3, 3] == [block.term for block in network.hosts[name].applied]


@pytest.mark.parametrize("commit", [1, 2])
@pytest.mark.parametrize("terms", [[1], [1, 1]])
def test_follower_commits(terms: list[int], commit: int) -> None:
    """As far as it holds the leader's blocks, and has saved them.

    "Once a follower learns that a log entry is committed, it applies the entry to its local state
    machine (in log order)" (§5.3).
    """
    network = Network(3, logs={"b": terms, "c": terms})
    for name in "bc":  # The others have what the leader calls committed.
        assert network[name].log.last_index == len(terms)
    network.step("a", "b", append_of(terms, 0, term=1, commit=min(commit, len(terms))))
    assert network.hosts["a"].applied == []
    network.finish_save("a")
    count = min(commit, len(terms))
    assert list(log_of_terms(3, tuple(terms))[1 : count + 1]) == network.hosts["a"].applied


@pytest.mark.parametrize(
    ("leader", "after", "match", "hint"),
    [
        ([1, 2], 0, 0, None),
        ([1, 2], 1, 1, None),
        ([1, 2], 2, 2, None),
        ([1, 1], 2, None, (1, 1)),
        ([1, 2, 3], 3, None, (2, 2)),
        ([1, 2, 3, 3, 3], 5, None, (2, 2)),
        ([1, 1, 1, 3], 4, None, (2, 2)),
    ],
)
def test_follower_checks_what_precedes(
    leader: list[int], after: int, match: int | None, hint: tuple[int, int] | None
) -> None:
    """By the hash of the block, and with a hint where to go on.

    "If the follower does not find an entry in its log with the same index and term, then it refuses
    the new entries" (§5.3).
    """
    network = Network(3, logs={"a": [1, 2]}, states={"a": HardState(term=3, commit_index=1)})
    network.step("a", "b", append_of(leader[:after], after, term=3))
    (reply,) = network.sent("a", "b")
    if hint is None:
        assert AppendReply(3, match_index=match or 0) == reply
    else:
        assert AppendRejection(3, after, *hint) == reply
    assert terms_of(network, "a") == [1, 2]


@pytest.mark.parametrize(
    ("leader", "after", "result", "saved"),
    [
        ([1, 2, 3], 2, [1, 2, 3], [3]),
        ([1, 3, 4], 1, [1, 3, 4], [3, 4]),
        ([1], 0, [1, 2], []),
        ([1, 2], 0, [1, 2], []),
        ([3], 0, [3], [3]),
    ],
)
def test_follower_appends(
    leader: list[int], after: int, result: list[int], saved: list[int]
) -> None:
    """And a block that it holds already is not written again, nor anything behind it cut off.

    "If an existing entry conflicts with a new one (same index but different terms), delete the
    existing entry and all that follow it. Append any new entries not already in the log" (figure
    2).
    """
    network = Network(3, logs={"a": [1, 2]})
    network.step("a", "b", append_of(leader, after, term=4))
    assert result == terms_of(network, "a")
    save = network.hosts["a"].save
    assert save is not None
    assert saved == [block.term for block in save.blocks]
    network.finish_save("a")
    assert [AppendReply(4, match_index=len(leader))] == network.sent("a", "b")
    assert network.hosts["a"].chain.last_index == len(result)


def test_new_leader_begins_behind_its_log() -> None:
    """And with the one block that it sealed itself.

    "When a leader first comes to power, it initializes all nextIndex values to the index just after
    the last one in its log" (§5.3).
    """
    network = Network(3, logs=dict.fromkeys("abc", (1, 1, 4)))
    network.stand("a")
    network.step("a", "b", VoteReply(5, granted=True))
    for name in "bc":
        (append,) = network.sent("a", name, Append)
        assert isinstance(append, Append)
        assert (3, 4, 1) == (append.previous_index, append.previous_term, len(append.blocks))


def test_leader_never_overwrites_its_own_log() -> None:
    """Not even for one who claims to lead the same term.

    "A leader never overwrites or deletes entries in its own log" (§5.3).
    """
    network = Network(3, logs={"a": [1, 2]})
    lead_alone(network, "a")
    network.step("a", "b", append_of([1, 1, 1], 0, term=3))
    network.step("a", "b", Heartbeat(3, commit_index=1, round=1, fetch_through=0))
    assert (Role.LEADER, [1, 2, 3]) == (network.role("a"), terms_of(network, "a"))
    assert network["a"].dropped["second leader of a term"] == 2


def test_leader_retries_indefinitely() -> None:
    """A follower that was away for a minute is served within the next heartbeats.

    "If followers crash or run slowly, or if network packets are lost, the leader retries
    AppendEntries RPCs indefinitely (even after it has responded to the client) until all followers
    eventually store all log entries" (§5.3).
    """
    network = Network(3)
    network.elect("a")
    network.cut = {("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")}
    network.propose("a", transaction(1))
    network.run(60_000_000)
    assert (1, 2) == (network["c"].log.last_index, network.commit_index)
    network.cut.clear()
    assert network.run(300_000, lambda: network["c"].log.commit_index == 2)
    assert network["a"].term == 1


@pytest.mark.parametrize(("terms", "term"), [([1], 2), ([1, 2], 3)], ids=["one term", "two terms"])
def test_vote_request_tells_of_the_log(terms: list[int], term: int) -> None:
    """To all of the other servers.

    "The RPC includes information about the candidate's log" (§5.4.1).
    """
    network = Network(3)
    network.step("a", "b", append_of(terms, 0, term=term - 1))
    network.finish_saves()
    network.stand("a")
    for name in "bc":
        expected = VoteRequest(term, last_index=len(terms), last_term=terms[-1], transfer=False)
        assert [expected] == network.sent("a", name, VoteRequest)


VOTERS = [
    ([1], 1, 1, True),
    ([1], 1, 2, True),
    ([1, 1], 1, 1, False),
    ([1], 2, 1, True),
    ([1], 2, 2, True),
    ([1, 1], 2, 1, True),
    ([2], 1, 1, False),
    ([2], 1, 2, False),
    ([2, 2], 1, 1, False),
    ([1, 2], 1, 9, False),
]


@pytest.mark.parametrize(("terms", "last_term", "last_index", "granted"), VOTERS)
def test_voter_compares_logs(
    terms: list[int], last_term: int, last_index: int, *, granted: bool
) -> None:
    """The later last term first, then the longer log.

    "The voter denies its vote if its own log is more up-to-date than that of the candidate. … If
    the logs have last entries with different terms, then the log with the later term is more
    up-to-date. If the logs end with the same term, then whichever log is longer is more up-to-date"
    (§5.4.1).
    """
    network = Network(3, logs={"a": terms})
    network.step(
        "a", "b", VoteRequest(3, last_index=last_index, last_term=last_term, transfer=False)
    )
    network.finish_saves()
    assert [VoteReply(3, granted=granted)] == network.sent("a", "b")


@pytest.mark.parametrize(("terms", "last_term", "last_index", "granted"), VOTERS)
def test_pre_voter_compares_logs(
    terms: list[int], last_term: int, last_index: int, *, granted: bool
) -> None:
    """By the same rule (dissertation §9.6), and without a new term or a save."""
    network = Network(3, logs={"a": terms})
    term = network["a"].term
    network.step("a", "b", PreVoteRequest(term + 1, last_index=last_index, last_term=last_term))
    expected = PreVoteReply(term + 1 if granted else term, granted=granted)
    assert [expected] == network.sent("a", "b")
    assert (term, None, None) == (network["a"].term, network["a"].vote, network.hosts["a"].save)


@pytest.mark.parametrize(("match", "commit"), [(1, 0), (2, 0), (3, 3)])
def test_only_blocks_of_the_own_term_are_counted(match: int, commit: int) -> None:
    """A block of an earlier term on a majority is not committed by that.

    "Only log entries from the leader's current term are committed by counting replicas; once an
    entry from the current term has been committed in this way, then all prior entries are committed
    indirectly because of the Log Matching Property" (§5.4.2).
    """
    network = Network(3, logs={"a": [1, 2], "b": [1, 2], "c": [1, 2]})
    network.stand("a")
    network.step("a", "b", VoteReply(3, granted=True))
    network.deliver("a", "b", Append)
    network.finish_saves()
    network.bag.clear()
    network.step("a", "b", AppendReply(3, match_index=match))
    assert commit == network["a"].log.commit_index


def test_repeated_requests_do_no_harm() -> None:
    """Every message of a term delivered twice, and once more in the opposite order.

    "Raft RPCs are idempotent, so this causes no harm. For example, if a follower receives an
    AppendEntries request that includes log entries already present in its log, it ignores those
    entries in the new request" (§5.5).
    """
    network = Network(3)
    network.elect("a")
    for number in range(5):
        network.propose("a", transaction(number))
    first = list(network.bag)
    for envelope in [*first, *reversed(first)]:
        network.deliver_one(envelope, keep=True)
    network.settle()
    assert terms_of(network, "a") == terms_of(network, "b") == terms_of(network, "c") == [1] * 6
    assert network.commit_index == 6
    for envelope in first:
        network.bag.append(envelope)
    network.settle()
    assert network["b"].log.last_index == 6


def test_crashed_follower_is_brought_back() -> None:
    """With what it missed.

    "Raft handles these failures by retrying indefinitely; if the crashed server restarts, then the
    RPC will complete successfully" (§5.5).
    """
    network = Network(3)
    network.elect("a")
    network.crash("c")
    for number in range(40):
        network.propose("a", transaction(number))
        network.settle()
    network.run(2_000_000)
    network.start("c", applied_index=1)
    assert network.run(400_000, lambda: network.hosts["c"].applied_index == 41)
