"""When a learner is near enough to vote: rounds of replication (dissertation §4.2.1)."""

from __future__ import annotations

from consensus.learners import Round

LONG_US = 9_000_000


def test_a_round_that_leaves_nothing_to_send_is_a_short_one() -> None:
    """A learner that has all of an idle log votes, however long it took to get there."""
    learning = Round(target_index=5, began_us=0)
    learning.acknowledged(5, last_index=5, now_us=LONG_US, within_us=300_000)
    assert learning.was_short


def test_a_long_round_that_leaves_something_to_send_is_not_short() -> None:
    """What was sealed meanwhile makes the next round, which is measured."""
    learning = Round(target_index=5, began_us=0)
    learning.acknowledged(5, last_index=6, now_us=LONG_US, within_us=300_000)
    assert not learning.was_short
