"""The disk of a simulated machine: what is durable, how long a save takes, and what goes wrong.

A save takes virtual time, longer on a slow or stalled disk, and is refused where there is no room,
as `storage.chain` refuses it: with NoSpaceError and nothing written. A block that went bad is read
through the shipped verification, so what the shipped code gets is what it would get from LMDB. The
disk survives crashes with what was durable. Relies on `storage.memory` and `storage.rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.simulation.index import SimulatedIndex
from storage.errors import NoSpaceError
from storage.memory import MemoryChain
from storage.rows import StoredParts, header_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from cluster.simulation.events import EventQueue
    from consensus.block import Block
    from consensus.ready import Save
    from storage.memory import PendingSave

SAVE_US: Final = 400
SLOW_SAVE_US: Final = 150_000
_FLIPPED_BIT: Final = 1


@unique
class Room(IntEnum):
    """How full a disk is: each stage refuses what the one before does, and one thing more.

    The reserves of chain and index, and that a save without blocks may use them, are the shipped
    stores'.
    """

    PLENTY = 0
    NONE_FOR_BLOCKS = 1
    NONE_FOR_INDEX = 2
    NONE = 3


class SimulatedChain(MemoryChain):
    """A chain on a disk that may give back other bodies than it was given."""

    def __init__(self, genesis: Block) -> None:
        super().__init__(genesis)
        self.damaged: set[int] = set()

    def block(self, index: int) -> Block:
        """As the shipped store's; raises BlockNotFoundError or DamagedBlockError."""
        return self._as_read(super().block(index))

    def blocks(self, first: int, *, max_blocks: int, max_bytes: int) -> list[Block]:
        """As the shipped store's; raises DamagedBlockError."""
        found = super().blocks(first, max_blocks=max_blocks, max_bytes=max_bytes)
        return [self._as_read(block) for block in found] if self.damaged else found

    def _as_read(self, block: Block) -> Block:
        if block.index not in self.damaged:
            return block
        body = block.body[:-1] + bytes([block.body[-1] ^ _FLIPPED_BIT])
        return StoredParts(block.index, header_record(block), body).verified()


class DiskIndex(SimulatedIndex):
    """An index on a disk that may be full."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk

    def apply(self, blocks: Sequence[Block]) -> None:
        """As the shipped store's; raises NoSpaceError."""
        if self._disk.room >= Room.NONE_FOR_INDEX:
            raise self._disk.no_space()
        super().apply(blocks)


@dataclass(frozen=True, slots=True, eq=False)
class _InFlight:
    """A save under way; `pending` is None where it will be refused."""

    save: Save
    pending: PendingSave | None


class Disk:
    """One machine's disk: the chain and the index on it, and at most one save under way."""

    def __init__(
        self,
        genesis: Block,
        *,
        name: str,
        queue: EventQueue,
        random: Random,
        on_durable: Callable[[Save], None],
        on_refused: Callable[[NoSpaceError], None],
    ) -> None:
        """With room, at full speed, and with nothing on it but genesis."""
        self.chain = SimulatedChain(genesis)
        self.index = DiskIndex(self)
        self.save_us = SAVE_US
        self.stalled_until_us = 0
        self.room = Room.PLENTY
        self._name = name
        self._queue = queue
        self._random = random
        self._on_durable = on_durable
        self._on_refused = on_refused
        self._in_flight: _InFlight | None = None

    def begin(self, save: Save) -> int:
        """Take a save; when it will be durable, or refused, in microseconds of the world."""
        needed = Room.NONE_FOR_BLOCKS if save.blocks else Room.NONE
        pending = None
        if self.room < needed:
            pending = self.chain.begin_save(
                hard_state=save.hard_state, truncate_from=save.truncate_from, blocks=save.blocks
            )
        self._in_flight = _InFlight(save, pending)
        takes_us = self.save_us // 2 + self._random.randrange(max(1, self.save_us))
        durable_us = max(self._queue.now_us, self.stalled_until_us) + takes_us
        self._queue.at(durable_us, partial(self._end, self._in_flight))
        return durable_us

    def finish(self) -> None:
        """End the save under way at once: a process that stops waits for it."""
        if self._in_flight is not None:
            self._end(self._in_flight)

    def crash(self) -> None:
        """Lose the save under way."""
        self.chain.crash()
        self._in_flight = None

    def quicken(self) -> None:
        """Work at full speed again, also on the save under way."""
        self.stalled_until_us = 0
        self.save_us = SAVE_US
        if self._in_flight is not None:
            self._queue.after(SAVE_US, partial(self._end, self._in_flight))

    def mend(self) -> None:
        """Nothing is wrong with it any more; a save that there was no room for is refused now."""
        if self._in_flight is not None and self._in_flight.pending is None:
            self._end(self._in_flight)
        self.room = Room.PLENTY
        self.chain.damaged.clear()
        self.quicken()

    def repair(self, indexes: Iterable[int]) -> None:
        """These blocks read well again."""
        self.chain.damaged.difference_update(indexes)

    def no_space(self) -> NoSpaceError:
        """What the shipped stores raise on a full disk."""
        return NoSpaceError(Path(self._name), free_bytes=0, needed_bytes=1)

    def _end(self, ended: _InFlight) -> None:
        """The save is durable or refused, whether or not the process is awake to hear of it."""
        if ended is not self._in_flight:
            return
        self._in_flight = None
        if ended.pending is None:
            self._on_refused(self.no_space())
        else:
            self.chain.finish_save(ended.pending)
            self._on_durable(ended.save)
