"""Whom a member that is far behind asks: those who answer, and else the leader."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from consensus.messages import BlocksReply
from node.catchup import FIRST_PATIENCE_US, PATIENCE_US, SILENCE_SHUN_US, CatchUp

LEADER, ONE, TWO = (bytes([number]) * 32 for number in (9, 1, 2))
PEERS = {LEADER, ONE, TWO}
STEP_US = 100_000


@pytest.fixture
def catch_up() -> CatchUp:
    """A member that lacks a thousand blocks."""
    catch_up = CatchUp(election_max_us=600_000, random=Random(1))
    catch_up.target_index = 1_000
    return catch_up


def asked(catch_up: CatchUp, now_us: int) -> list[bytes]:
    """Whom it asks at a moment, without a block of its own."""
    requests = catch_up.requests(now_us=now_us, commit_index=0, leader=LEADER, peers=PEERS)
    return [target for target, _ in requests]


def test_the_leader_is_asked_where_nobody_else_answers(catch_up: CatchUp) -> None:
    """Two silent members must not be waited for in turns for ever."""
    now_us = 0
    while LEADER not in asked(catch_up, now_us):
        now_us += STEP_US
        assert now_us <= 2 * PATIENCE_US


def test_who_stays_silent_is_asked_less_and_less(catch_up: CatchUp) -> None:
    """Each time after twice as long; and as soon as ever once it has answered."""
    asked_at = [
        now_us
        for now_us in range(0, 60 * PATIENCE_US, STEP_US)
        for target, _ in catch_up.requests(now_us=now_us, commit_index=0, leader=None, peers={ONE})
        if target == ONE
    ]
    pauses = [
        later - earlier - FIRST_PATIENCE_US for earlier, later in itertools.pairwise(asked_at)
    ]
    assert [SILENCE_SHUN_US << times for times in range(len(pauses))] == pauses
    assert len(pauses) >= 3


def test_an_answer_makes_up_for_silence(catch_up: CatchUp) -> None:
    """Who answers after a while is shunned no longer than anyone the next time."""
    now_us = 0
    for _ in range(2):
        assert [ONE] == sole(catch_up, now_us)
        now_us += PATIENCE_US
        assert [] == sole(catch_up, now_us)
        now_us += SILENCE_SHUN_US
        assert [ONE] == sole(catch_up, now_us)
        reply = BlocksReply(1, first=1, commit_index=1_000, blocks=(b"block",))
        assert catch_up.arrived(ONE, reply, now_us)
        catch_up.take(0, 1)


def sole(catch_up: CatchUp, now_us: int) -> list[bytes]:
    """Whom it asks where there is but one."""
    requests = catch_up.requests(now_us=now_us, commit_index=0, leader=None, peers={ONE})
    return [target for target, _ in requests][:1]


def test_who_is_connected_is_asked_first(catch_up: CatchUp) -> None:
    """Nobody waits for an answer from those that are known to be away."""
    catch_up.heard(TWO)
    catch_up.heard(LEADER)
    assert [TWO] == asked(catch_up, 0)


def test_what_was_asked_of_a_broken_connection_is_asked_of_another(catch_up: CatchUp) -> None:
    """At once, not only after the time for an answer is over."""
    catch_up.heard(ONE)
    catch_up.heard(LEADER)
    assert [ONE] == asked(catch_up, 0)
    assert [] == asked(catch_up, 1)
    catch_up.unreachable(ONE)
    assert [LEADER] == asked(catch_up, 2)


def test_late_answers_are_taken(catch_up: CatchUp) -> None:
    """Over a slow link none comes in time; without them such a node would never have a block."""
    ((target, request),) = catch_up.requests(now_us=0, commit_index=0, leader=None, peers={ONE})
    catch_up.requests(now_us=FIRST_PATIENCE_US, commit_index=0, leader=None, peers={ONE})
    reply = BlocksReply(1, first=1, commit_index=1_000, blocks=(b"block",) * request.through)
    assert catch_up.arrived(target, reply, FIRST_PATIENCE_US + 1)
    assert not catch_up.arrived(target, reply, FIRST_PATIENCE_US + 2), "once"
    taken = catch_up.take(0, 1 << 20)
    assert taken is not None
    assert request.through == taken.last_index


def test_nothing_is_kept_of_who_sent_a_bad_block(catch_up: CatchUp) -> None:
    """What is there of the ranges behind it must not keep the next block from being asked for."""
    commit_index = 0
    for now_us in range(0, 40, 10):
        peers = {ONE}
        for target, request in catch_up.requests(
            now_us=now_us, commit_index=commit_index, leader=None, peers=peers
        ):
            count = request.through - request.first + 1
            blocks = (b"block",) * count
            catch_up.arrived(target, BlocksReply(1, request.first, 1_000, blocks), now_us)
        if commit_index == 0:
            taken = catch_up.take(0, 1 << 20)
            assert taken is not None
            commit_index = taken.last_index
    slice_ = catch_up.take(commit_index, 1)
    assert slice_ is not None
    catch_up.shun(slice_.source, 50)
    requests = catch_up.requests(now_us=50, commit_index=commit_index, leader=None, peers={TWO})
    assert commit_index + 1 in {request.first for _, request in requests}


def test_who_speaks_and_does_not_answer_is_asked_less_and_less(catch_up: CatchUp) -> None:
    """It may have moved: what it says arrives here, and nothing arrives there.

    Others that have said nothing are asked meanwhile.
    """
    seen: list[bytes] = []
    for now_us in range(0, 4 * PATIENCE_US, STEP_US):
        catch_up.heard(ONE)
        seen += [
            target
            for target, _ in catch_up.requests(
                now_us=now_us, commit_index=0, leader=None, peers={ONE, TWO}
            )
        ]
    assert ONE == seen[0]
    assert TWO in seen[:2]
    assert seen.count(ONE) <= 4


def test_who_speaks_and_does_not_answer_is_asked_again_before_long(catch_up: CatchUp) -> None:
    """Where it was only the way there that was cut, however long."""
    asked_at = []
    for now_us in range(0, 30 * PATIENCE_US, STEP_US):
        catch_up.heard(ONE)
        asked_at += [now_us] * len(sole(catch_up, now_us))
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
    assert FIRST_PATIENCE_US + SILENCE_SHUN_US == max(pauses)


def test_an_answer_shows_that_a_member_is_reached(catch_up: CatchUp) -> None:
    """However late it comes, hearing that member counts again."""
    catch_up.heard(ONE)
    assert [ONE] == sole(catch_up, 0)
    assert [] == sole(catch_up, PATIENCE_US)
    catch_up.heard(ONE)
    assert [] == sole(catch_up, PATIENCE_US)
    assert catch_up.arrived(ONE, BlocksReply(1, 1, 1_000, (b"block",)), PATIENCE_US)
    assert [ONE] == sole(catch_up, PATIENCE_US)


def test_a_connection_ends_being_passed_over(catch_up: CatchUp) -> None:
    """Nothing got there for a while, and now it does: it must not be waited for longer."""
    now_us = 0
    for now_us in range(0, 30 * PATIENCE_US, STEP_US):
        catch_up.heard(ONE)
        catch_up.requests(now_us=now_us, commit_index=0, leader=None, peers={ONE})
    catch_up.reachable(ONE)
    assert [ONE] == sole(catch_up, now_us + PATIENCE_US)
