"""Majorities: who must agree before something is decided.

Relies on nothing. Any two majorities of one set of voters share a member (Raft paper §5.2); every
safety argument of the core rests on that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from consensus.messages import MemberId


def majority_of(voters: int) -> int:
    """The smallest number of voters that is more than half."""
    assert voters > 0, "a cluster has at least one voter"
    return voters // 2 + 1


def majority_index(indexes: Collection[int]) -> int:
    """The highest index that a majority has reached; one entry for each voter."""
    return sorted(indexes, reverse=True)[majority_of(len(indexes)) - 1]


class Poll:
    """One vote among `voters`; each is counted once, and a vote that was given stays given."""

    def __init__(self, voters: Collection[MemberId]) -> None:
        """Nobody has answered."""
        self._voters = voters
        self._answers: dict[MemberId, bool] = {}

    def count(self, voter: MemberId, *, granted: bool) -> None:
        """Takes one answer; that of a stranger does not count."""
        if voter in self._voters:
            self._answers[voter] = granted or self._answers.get(voter, False)

    @property
    def is_won(self) -> bool:
        """Whether a majority granted."""
        return sum(self._answers.values()) >= majority_of(len(self._voters))

    @property
    def is_lost(self) -> bool:
        """Whether a majority refused."""
        refusals = len(self._answers) - sum(self._answers.values())
        return refusals >= majority_of(len(self._voters))
