"""When the leader seals a block that is not full: at once, unless a crowd makes waiting worth it.

A block costs some milliseconds of processor time over all members, however small it is. Where few
wait, each is sealed at once, beside one block that is on its way. Where many wait for answers, as
many blocks as clients would leave no time for anything else: then one block is under way at a time,
for `APART_US` at most, and whoever was answered a moment ago is waited for, for `GATHER_US` at
most, since it is about to send again. So a crowd gathers in one block instead of several.
"""

from __future__ import annotations

from typing import Final

SMALL_PIPELINE_BLOCKS: Final = 2
"""Uncommitted blocks beyond which only full ones are sealed: transactions gather meanwhile."""
CROWD: Final = 16
"""So many transactions that are not committed make a crowd."""
APART_US: Final = 10_000
"""After this long a block on its way is not waited for: the disks or the network are slow."""
GATHER_US: Final = 4_000
ENOUGH: Final = 8
"""Once all but one in so many of those answered have sent again, the rest is not waited for."""
NEVER_US: Final = 1 << 62
"""Nothing waits for its time."""


class Pace:
    """Times in microseconds, of the monotonic clock."""

    def __init__(self) -> None:
        """Nobody was answered yet."""
        self._sealed_us = 0
        self._due_back = 0
        self._enough = 0
        self._gather_until_us = 0

    def answered(self, count: int, now_us: int) -> None:
        """So many transactions of this node's clients were answered: they may send again."""
        if now_us >= self._gather_until_us:
            self._due_back = 0
        self._due_back += count
        self._enough = self._due_back // ENOUGH
        self._gather_until_us = now_us + GATHER_US

    def arrived(self, count: int) -> None:
        """So many transactions of this node's clients were queued."""
        self._due_back = max(0, self._due_back - count)

    def sealed(self, now_us: int) -> None:
        """A block was sealed."""
        self._sealed_us = now_us

    def due_us(self, now_us: int, *, queued: int, on_their_way: int, under_way: int) -> int:
        """When a block that is not full is to be sealed, unless something happens before.

        `queued` transactions are not sealed; `on_their_way` are, in the `under_way` blocks whose
        clients have no answer yet.
        """
        if queued + on_their_way < CROWD:
            return now_us
        if under_way:
            return max(now_us, self._sealed_us + APART_US)
        if self._due_back <= self._enough:
            return now_us
        return max(now_us, self._gather_until_us)
