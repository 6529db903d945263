"""Figures 7 and 8 of the Raft paper as scenarios, and how few probes backtracking needs.

The sentences are those of the extended version (Ongaro and Ousterhout 2014). Logs are rows of
terms, as the paper draws them; block 0 is genesis and stands before every row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from consensus.messages import AppendRejection, AppendReply, VoteReply, VoteRequest
from consensus.ready import HardState, Role
from tests.consensus.raft_chains import append_of
from tests.consensus.raft_network import Network

if TYPE_CHECKING:
    from collections.abc import Sequence


def terms_of(network: Network, name: str) -> list[int]:
    """A member's log as a row of terms."""
    log = network[name].log
    return [log.term_at(index) for index in range(1, log.last_index + 1)]


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
        network[voter]._patience.heard_us = network[voter]._now_us - network.config.election_min_us
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
