"""The clocks of one machine: a monotonic one, anew in each life, and that on the wall.

Relies on the events' virtual time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.simulation.faults import MICROS_PER_SECOND

if TYPE_CHECKING:
    from random import Random

    from cluster.simulation.events import EventQueue

WALL_US: Final = 1_700_000_000_000_000
"""What every wall shows when a run begins."""


class Clock:
    """Runs at a rate of its own: `drift` is how much faster, as a part of one."""

    def __init__(self, queue: EventQueue) -> None:
        self.drift = 0.0
        self.wall_offset_us = 0
        self._queue = queue
        self._booted_us = 0
        self._base_us = 0

    def boot(self, random: Random) -> None:
        """A new life: the monotonic clock begins anywhere."""
        self._booted_us = self._queue.now_us
        self._base_us = random.randrange(MICROS_PER_SECOND)

    def mono_us(self) -> int:
        """This life's monotonic clock."""
        elapsed_us = self._queue.now_us - self._booted_us
        return self._base_us + elapsed_us + int(elapsed_us * self.drift)

    def wall_us(self) -> int:
        """What the wall shows."""
        return WALL_US + self._queue.now_us + self.wall_offset_us

    def wait_us(self, mono_us: int) -> int:
        """How long, in virtual time, until the monotonic clock has come so far."""
        return int((mono_us - self.mono_us()) / (1 + self.drift)) + 1
