"""The index store of a simulated machine: what the shipped one answers, in memory, a moment behind.

The shipped store is written by a process of its own, from blocks that are applied; this one is
written by events of the simulation. It survives crashes with what was written to it. Relies on the
canonical layout of transactions (`storage.recent`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from storage.recent import Place, ids_of, user_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block


class SimulatedIndex:
    """Places by id and by user, through `applied_index`."""

    def __init__(self) -> None:
        self.applied_index = 0
        self._places: dict[bytes, Place] = {}
        self._histories: dict[bytes, list[Place]] = {}

    def apply(self, blocks: Sequence[Block]) -> None:
        """Take the blocks after `applied_index`."""
        for block in blocks:
            assert block.index == self.applied_index + 1, "the index has no gaps"
            for position, wanted in enumerate(ids_of(block)):
                assert wanted not in self._places, "an id has one place"
                place = Place(block.index, position)
                self._places[wanted] = place
                user = user_of(block.transactions[position])
                self._histories.setdefault(user, []).append(place)
            self.applied_index = block.index

    def places(self, ids: Sequence[bytes]) -> list[Place | None]:
        """The place of each id, None where it is unknown."""
        return [self._places.get(wanted) for wanted in ids]

    def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[Place]:
        """The places of a user's transactions, strictly beyond `after`."""
        rows = self._histories.get(user_id.encode(), [])
        if newest_first:
            end = len(rows) if after is None else bisect_left(rows, after)
            return rows[max(0, end - limit) : end][::-1]
        start = 0 if after is None else bisect_right(rows, after)
        return rows[start : start + limit]
