"""What is to happen, by virtual time: the only clock of a simulation.

Events of one moment happen in the order in which they were planned, so nothing depends on how
callables compare. Relies on nothing.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class EventQueue:
    """Virtual time in microseconds, and what is planned in it."""

    def __init__(self) -> None:
        self.now_us = 0
        self.events = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._planned = 0

    def at(self, due_us: int, action: Callable[[], None]) -> None:
        """Plan `action` for `due_us`, or for now where that is past."""
        self._planned += 1
        heappush(self._heap, (max(due_us, self.now_us), self._planned, action))

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        """Plan `action` in `delay_us`."""
        self.at(self.now_us + delay_us, action)

    def run_until(self, end_us: int, *, stop: Callable[[], bool] | None = None) -> None:
        """Let everything happen that is due before `end_us`, or until `stop` says so."""
        heap = self._heap
        while heap and heap[0][0] < end_us:
            if stop is not None and stop():
                return
            self.now_us, _, action = heappop(heap)
            self.events += 1
            action()
        self.now_us = max(self.now_us, end_us)
