"""Majorities of up to nine voters, and that any two of them overlap."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.quorum import Poll, majority_index, majority_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


@pytest.mark.parametrize(
    ("voters", "majority"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4), (8, 5), (9, 5)]
)
def test_majority_is_more_than_half(voters: int, majority: int) -> None:
    """The smallest number that is more than half."""
    assert majority == majority_of(voters)


def test_nobody_is_no_cluster() -> None:
    """A majority of no voters would decide everything."""
    with pytest.raises(AssertionError, match="at least one voter"):
        majority_of(0)


def poll_of(voters: Collection[bytes], *, granted: Iterable[bytes] = ()) -> Poll:
    """A poll in which some have granted."""
    poll = Poll(voters)
    for voter in granted:
        poll.count(voter, granted=True)
    return poll


@pytest.mark.parametrize("size", range(1, 8))
def test_any_two_majorities_overlap(size: int) -> None:
    """Every safety argument of Raft rests on that (paper §5.2)."""
    voters = [bytes([i]) for i in range(size)]
    majorities = [
        set(some)
        for count in range(size + 1)
        for some in combinations(voters, count)
        if poll_of(voters, granted=some).is_won
    ]
    assert majorities
    assert all(one & other for one, other in combinations(majorities, 2))


def test_each_voter_counts_once_and_strangers_never() -> None:
    """Repeated names and names of others add nothing."""
    voters = {b"a", b"b", b"c"}
    assert not poll_of(voters, granted=[b"a", b"a", b"a"]).is_won
    assert not poll_of(voters, granted=[b"a", b"x", b"y", b"z"]).is_won
    assert poll_of(voters, granted=[b"a", b"x", b"b"]).is_won


def test_majority_of_refusals_loses() -> None:
    """Refusals count as votes do; a vote that was given is not taken back by a late refusal."""
    poll = poll_of({b"a", b"b", b"c"}, granted=[b"a"])
    poll.count(b"a", granted=False)
    poll.count(b"b", granted=False)
    assert not poll.is_lost
    poll.count(b"c", granted=False)
    assert poll.is_lost
    assert not poll.is_won


@pytest.mark.parametrize(
    ("indexes", "index"),
    [
        ([7], 7),
        ([7, 3], 3),
        ([1, 2, 3], 2),
        ([3, 3, 0], 3),
        ([9, 0, 0], 0),
        ([5, 1, 9, 3], 3),
        ([1, 2, 3, 4, 5], 3),
        ([5, 5, 1, 1, 1], 1),
    ],
)
def test_majority_index(indexes: list[int], index: int) -> None:
    """What a majority has reached, in whatever order it is told."""
    assert index == majority_index(indexes)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9))
def test_majority_index_is_the_highest_that_a_majority_reached(indexes: list[int]) -> None:
    """A majority is there, and no majority is beyond."""
    index = majority_index(indexes)
    majority = majority_of(len(indexes))
    assert sum(other >= index for other in indexes) >= majority
    assert sum(other > index for other in indexes) < majority
