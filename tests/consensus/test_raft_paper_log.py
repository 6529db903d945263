"""Sections 5.3 to 5.5 of the Raft paper, one test for each sentence, and its figures 7 and 8.

The sentences are those of the extended version (Ongaro and Ousterhout 2014); the cases are those
that etcd tests its own core by. Logs are rows of terms, as the paper draws them; block 0 is genesis
and stands before every row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    assert [Heartbeat(1, commit_index=2, round=0)] == network.sent("a", "b")
    network.deliver("c", "a", AppendReply)
    assert [Heartbeat(1, commit_index=2, round=0)] == network.sent("a", "c")
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
        assert AppendRejection(3, after, *hint, last_index=2) == reply
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


FIGURE_7 = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]


@pytest.mark.parametrize(
    ("follower", "rejections"),
    [
        pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6], 1, id="a"),
        pytest.param([1, 1, 1, 4], 1, id="b"),
        pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6], 0, id="c"),
        pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7], 0, id="d"),
        pytest.param([1, 1, 1, 4, 4, 4, 4], 1, id="e"),
        pytest.param([1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3], 1, id="f"),
    ],
)
def test_figure_7(follower: list[int], rejections: int) -> None:
    """Each follower of the figure ends with the leader's log, after at most one rejection.

    "In Raft, the leader handles inconsistencies by forcing the followers' logs to duplicate its
    own. … the leader must find the latest log entry where the two logs agree, delete any entries in
    the follower's log after that point, and send the follower all of the leader's entries after
    that point" (§5.3).
    """
    assert rejections == rejections_until_equal(FIGURE_7, follower, term=7)


@pytest.mark.parametrize("length", [1, 40])
def test_backtracking_skips_whole_terms(length: int) -> None:
    """Terms that alternate between the two logs cost one rejection each, however long they are.

    "With this information, the leader can decrement nextIndex to bypass all of the conflicting
    entries in that term; one AppendEntries RPC will be required for each term with conflicting
    entries, rather than one RPC per entry" (§5.3).
    """
    leader = [1, *[3] * length, *[5] * length, *[7] * length]
    follower = [1, *[2] * length, *[4] * length, *[6] * length]
    assert rejections_until_equal(leader, follower, term=7) == 3


def rejections_until_equal(leader: Sequence[int], follower: Sequence[int], term: int) -> int:
    """How often `b` refuses an append of a new leader `a` before their logs are equal."""
    states = {"a": HardState(term=term), "b": HardState(term=term), "c": HardState(term=term)}
    network = Network(3, logs={"a": leader, "b": follower, "c": leader}, states=states)
    network.elect("a", "ac")
    rejections = 0
    while network.deliver("a", "b"):
        network.finish_saves()
        rejections += network.deliver("b", "a", AppendRejection)
        network.deliver("b", "a")
        network.finish_saves()
    assert [*leader, term + 1] == terms_of(network, "b")
    assert network["b"].log.last_tip == network["a"].log.last_tip
    return rejections


def test_new_leader_begins_behind_its_log() -> None:
    """And with the one block that it sealed itself.

    "When a leader first comes to power, it initializes all nextIndex values to the index just after
    the last one in its log" (§5.3).
    """
    network = Network(3, logs=dict.fromkeys("abc", FIGURE_7))
    network.stand("a")
    network.step("a", "b", VoteReply(7, granted=True))
    for name in "bc":
        (append,) = network.sent("a", name, Append)
        assert isinstance(append, Append)
        assert (10, 6, 1) == (append.previous_index, append.previous_term, len(append.blocks))


def test_leader_never_overwrites_its_own_log() -> None:
    """Not even for one who claims to lead the same term.

    "A leader never overwrites or deletes entries in its own log" (§5.3).
    """
    network = Network(3, logs={"a": [1, 2]})
    lead_alone(network, "a")
    network.step("a", "b", append_of([1, 1, 1], 0, term=3))
    network.step("a", "b", Heartbeat(3, commit_index=1, round=1))
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
        expected = VoteRequest(term, last_index=len(terms), last_term=terms[-1])
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
    network.step("a", "b", VoteRequest(3, last_index=last_index, last_term=last_term))
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


class TestFigure8:
    """Why blocks of earlier terms are not committed by counting; S1 … S5 are `a` … `e`."""

    def at_c(self) -> Network:
        """Steps (a) to (c): block 2 of term 2 is on a majority, no block of term 4 is."""
        states = dict.fromkeys("abcde", HardState(term=2, commit_index=1))
        # (a) Block 2 of term 2 reached b alone.
        logs = {"a": [1, 2], "b": [1, 2], "c": [1], "d": [1], "e": [1]}
        network = Network(5, logs=logs, states=states)
        network.crash("a")
        # (b) e leads term 3 by the votes of c, d and itself; its block 2 reaches nobody.
        win(network, "e", "cd")
        network.crash("e")
        # (c) a leads term 4 by the votes of b, c and itself; it goes on with its block of term 2.
        network.start("a", applied_index=1)
        network.stand("a")
        win(network, "a", "bc")
        assert (Role.LEADER, 4) == (network.role("a"), network["a"].term)
        for name in "bc":
            hand_over(network, name, through=2)
        assert terms_of(network, "b") == terms_of(network, "c") == [1, 2]
        return network

    def test_block_of_an_earlier_term_can_still_be_lost(self) -> None:
        """(c) and (d): on a majority but not committed, and so e may replace it everywhere."""
        network = self.at_c()
        assert network["a"].log.commit_index == 1
        network.crash("a")
        network.start("e", applied_index=1)
        network.stand("e")
        network.elect("e", "ebcd")
        for name in "bcde":
            assert [1, 3, 5] == terms_of(network, name)
        network.start("a", applied_index=1)
        assert network.run(2_000_000, lambda: terms_of(network, "a")[:3] == [1, 3, 5])

    def test_block_of_the_own_term_protects_those_before_it(self) -> None:
        """(e): once its block of term 4 is on a majority, e cannot be elected any more."""
        network = self.at_c()
        network.run(500_000, lambda: network.commit_index == 3)
        assert network["a"].log.commit_index == 3
        network.crash("a")
        network.start("e", applied_index=1)
        network.cut = {("b", "e"), ("c", "e"), ("d", "e")}
        network.stand("e")
        network.cut.clear()
        network.deliver("e", kind=VoteRequest)
        network.settle()
        assert network.leader != "e"
        network.run(3_000_000, lambda: network.leader in {"b", "c"})
        assert network.run(2_000_000, lambda: terms_of(network, "e")[:3] == [1, 2, 4])


def win(network: Network, name: str, voters: str) -> None:
    """Elects `name` by the votes of others whose logs allow it; its appends are lost."""
    network.bag.clear()
    network.stand(name)
    for voter in voters:
        network[voter]._leader_heard_us = network[voter]._now_us - network.config.election_min_us
        network.deliver(name, voter, VoteRequest)
        network.finish_save(voter)
        network.deliver(voter, name, VoteReply)
    assert network.role(name) is Role.LEADER
    network.finish_saves(name)
    network.bag.clear()


def hand_over(network: Network, name: str, *, through: int) -> None:
    """Has the leader `a` replicate to one follower, but no further than block `through`."""
    raft = network["a"]
    append = append_of([1, 2], 1, term=raft.term, commit=raft.log.commit_index, size=network.size)
    assert append.previous_index + len(append.blocks) == through
    network.step(name, "a", append)
    network.finish_saves(name)
    network.deliver(name, "a", AppendReply)
