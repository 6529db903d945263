"""Whom a member asks for blocks where most of those that it knows are gone: pure, in virtual time.

Relies on `CatchUp` alone.
"""

from __future__ import annotations

from random import Random

from consensus.messages import BlocksReply, BlocksRequest
from node.catchup import (
    FIRST_PATIENCE_US,
    PATIENCE_US,
    RANGES_IN_FLIGHT,
    SHUN_US,
    CatchUp,
)

GONE = [bytes([number]) for number in range(1, 8)]
LEADER, SEED = b"leader", b"seed"


class Asking:
    """A catch-up in which a few members answer and the others do not."""

    def __init__(self, *, leader: bytes | None, seeds: list[bytes]) -> None:
        """It knows that ten blocks are committed."""
        self.now_us = 0
        self.catch_up = CatchUp(election_max_us=600_000, random=Random(1))
        self.catch_up.target_index = 10
        self._leader = leader
        self._seeds = seeds

    def targets(self, wanted: int) -> list[bytes]:
        """Whom it asks, one after another, none of whom answers."""
        asked: list[bytes] = []
        while len(asked) < wanted:
            peers = [*GONE, *([self._leader] if self._leader else [])]
            asked += [
                target
                for target, _ in self.catch_up.requests(
                    now_us=self.now_us,
                    commit_index=0,
                    leader=self._leader,
                    peers=peers,
                    seeds=[*peers, *self._seeds],
                )
            ]
            self.now_us += 100_000
        return asked


def test_the_leader_is_asked_once_the_others_were_silent() -> None:
    """Nobody is asked twice before the leader, which surely lives."""
    asked = Asking(leader=LEADER, seeds=[]).targets(len(GONE) + 1)
    assert sorted(GONE) == sorted(asked[:-1])
    assert asked[-1] == LEADER


def test_seeds_are_asked_once_the_members_were_silent() -> None:
    """All that the chain knows may have left; whom an invitation names may be there."""
    asked = Asking(leader=None, seeds=[SEED]).targets(len(GONE) + 1)
    assert sorted(GONE) == sorted(asked[:-1])
    assert asked[-1] == SEED


def test_who_was_silent_and_speaks_is_asked_again() -> None:
    """A word from somebody, or a connection, counts more than an answer that never came."""
    asking = Asking(leader=None, seeds=[])
    asked = asking.targets(len(GONE))
    asking.now_us += PATIENCE_US
    asking.catch_up.heard(asked[3])
    assert [asked[3]] == asking.targets(1)


def test_among_the_silent_the_turn_goes_round() -> None:
    """Where nobody is known to live, whoever was silent the longest is asked."""
    asking = Asking(leader=None, seeds=[])
    first = asking.targets(len(GONE))
    assert first == asking.targets(len(GONE))


def test_several_of_the_silent_are_tried_at_once() -> None:
    """Ranges that are open together do not wait for one and the same member that may be gone."""
    catch_up = CatchUp(election_max_us=600_000, random=Random(1))
    catch_up.target_index = 1_000
    (first,) = catch_up.requests(now_us=0, commit_index=0, leader=None, peers=[SEED])
    assert first == (SEED, BlocksRequest(1, 64))
    assert catch_up.arrived(SEED, BlocksReply(1, 1_000, (b"block",) * 64), now_us=1)
    asked = catch_up.requests(now_us=1, commit_index=64, leader=None, peers=GONE)
    targets = [target for target, _ in asked]
    assert RANGES_IN_FLIGHT == len(set(targets))
    assert RANGES_IN_FLIGHT == len(targets)


def test_a_first_answer_is_waited_for_less_long_than_a_second() -> None:
    """Most of those that a new node is told of may be gone; one that answers may be slow."""
    catch_up = CatchUp(election_max_us=600_000, random=Random(1))
    catch_up.target_index = 10
    asked_us = [
        now_us
        for now_us in range(0, 5_000_000, 100_000)
        if catch_up.requests(now_us=now_us, commit_index=0, leader=None, peers=[SEED])
    ]
    second_us = FIRST_PATIENCE_US + SHUN_US
    assert [0, second_us, second_us + PATIENCE_US + SHUN_US] == asked_us
