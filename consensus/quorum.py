"""Majorities: who must agree before something is decided.

Relies on nothing. Any two majorities of one set of voters share a member (Raft paper §5.2); every
safety argument of the core rests on that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from consensus.messages import MemberId


def majority_of(voters: int) -> int:
    """The smallest number of voters that is more than half."""
    assert voters > 0, "a cluster has at least one voter"
    return voters // 2 + 1


def has_majority(agreeing: Iterable[MemberId], voters: Collection[MemberId]) -> bool:
    """Whether distinct members of `voters` that agree are a majority of them."""
    return len(set(agreeing).intersection(voters)) >= majority_of(len(voters))


def majority_index(indexes: Collection[int]) -> int:
    """The highest index that a majority has reached; one entry for each voter."""
    return sorted(indexes, reverse=True)[majority_of(len(indexes)) - 1]
