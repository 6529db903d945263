"""When a block that is not full is sealed: the rules of `Pace`, in virtual time."""

from __future__ import annotations

import pytest

from node.pacing import APART_US, CROWD, ENOUGH, GATHER_US, Pace

NOW_US = 1_000_000


@pytest.mark.parametrize(("queued", "on_their_way"), [(1, 0), (1, CROWD - 2), (CROWD - 1, 0)])
def test_few_are_sealed_at_once(queued: int, on_their_way: int) -> None:
    """Beside a block that is under way, too, whoever was answered a moment ago."""
    pace = Pace()
    pace.sealed(NOW_US)
    pace.answered(100, NOW_US)
    due_us = pace.due_us(NOW_US, queued=queued, on_their_way=on_their_way, under_way=1)
    assert due_us == NOW_US


@pytest.mark.parametrize(("queued", "on_their_way"), [(1, CROWD - 1), (CROWD, 0)])
def test_a_crowd_has_one_block_under_way(queued: int, on_their_way: int) -> None:
    """The next one waits for it, but not for a slow one."""
    pace = Pace()
    pace.sealed(NOW_US)
    due_us = pace.due_us(NOW_US + 1, queued=queued, on_their_way=on_their_way, under_way=1)
    assert due_us == NOW_US + APART_US
    late_us = NOW_US + APART_US + 7
    assert late_us == pace.due_us(late_us, queued=queued, on_their_way=on_their_way, under_way=1)


def test_a_crowd_waits_for_those_just_answered() -> None:
    """Until nearly all of them have sent again, or it has been long enough."""
    pace = Pace()
    pace.answered(4 * ENOUGH, NOW_US)
    assert pace.due_us(NOW_US + 1, queued=CROWD, on_their_way=0, under_way=0) == NOW_US + GATHER_US
    pace.arrived(4 * ENOUGH - 5)
    assert pace.due_us(NOW_US + 1, queued=CROWD, on_their_way=0, under_way=0) == NOW_US + GATHER_US
    pace.arrived(1)
    assert pace.due_us(NOW_US + 2, queued=CROWD, on_their_way=0, under_way=0) == NOW_US + 2


def test_whoever_does_not_come_back_is_not_waited_for_twice() -> None:
    """What was due before counts no longer once its time is over."""
    pace = Pace()
    pace.answered(100, NOW_US)
    later_us = NOW_US + GATHER_US
    assert pace.due_us(later_us, queued=CROWD, on_their_way=0, under_way=0) == later_us
    pace.answered(1, later_us)
    pace.arrived(1)
    assert pace.due_us(later_us, queued=CROWD, on_their_way=0, under_way=0) == later_us


def test_answers_that_follow_each_other_are_waited_for_together() -> None:
    """Two blocks answered one after the other are one crowd."""
    pace = Pace()
    pace.answered(50, NOW_US)
    pace.answered(50, NOW_US + 100)
    pace.arrived(50)
    due_us = pace.due_us(NOW_US + 200, queued=50, on_their_way=0, under_way=0)
    assert due_us == NOW_US + 100 + GATHER_US
