"""Mistakes about what is durable, damaged or full: they need a bad disk, or a crash beside it.

As `core_plants.py` beside it; relies on the insides of the simulated disk and index, which stand
for LMDB, and of the machine, which stands for the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import NoSpaceError
from storage.recent import ids_of

if TYPE_CHECKING:
    from consensus.ready import HardState


def reports_unwritten(right: Any) -> Any:
    """The index tells how far it reaches before the rows are written, with the next batch."""

    def apply(self: Any, blocks: Any) -> None:
        staged = self.__dict__.setdefault("staged", [])
        if staged:
            self.applied_index = staged[0].index - 1
            right(self, staged)
        self.applied_index = blocks[-1].index
        staged[:] = blocks

    return apply


def takes_commit_for_applied(right: Any) -> Any:
    """A restart goes on from what was committed, whether or not the index has it."""

    def init(self: Any, **given: Any) -> None:
        held: HardState = given["hard_state"]
        given["applied_index"] = max(held.commit_index, given["applied_index"])
        right(self, **given)

    return init


def saved_without_room(right: Any) -> Any:
    """A save for which there is no room is taken for durable."""

    def end(self: Any, ended: Any) -> None:
        if ended is self._in_flight and ended.pending is None:
            self._in_flight = None
            self._on_durable(ended.save)
        else:
            right(self, ended)

    return end


def goes_on_without_room(right: Any) -> Any:
    """A save that was refused is forgotten, and the node goes on."""

    def stop(self: Any, error: Any) -> None:
        if not isinstance(error, NoSpaceError):
            right(self, error)

    return stop


def acknowledges_unapplied(right: Any) -> Any:
    """Clients hear of a block as soon as it is committed, before it is applied or even saved."""

    def pump(self: Any) -> Any:
        log = self.raft.log
        for index in range(log.applied_index + 1, log.commit_index + 1):
            block = log.block(index)
            self._waiting.settle_block(block, ids_of(block))
        return right(self)

    return pump
