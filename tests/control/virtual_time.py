"""An asyncio loop in virtual time: whoever sleeps in it sleeps until the next event, not longer.

Its clock is the simulator's event queue, and what happens there (a message arrives, a machine
crashes) happens while the loop waits, as in a real selector. So code written for asyncio runs
behind the simulator's own network and nemesis, and a seed gives the same run every time. Relies on
CPython's `BaseEventLoop`, which asks its selector to wait and its subclass for the time.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, TypeVarTuple

from cluster.simulation.faults import MICROS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from cluster.simulation.events import EventQueue

_Args = TypeVarTuple("_Args")
FOREVER_US = 1 << 62


class VirtualLoop(asyncio.BaseEventLoop):
    """A loop without sockets, whose time is the queue's; `look` is called once in every turn."""

    def __init__(self, queue: EventQueue, look: Callable[[], None]) -> None:
        super().__init__()
        self._queue = queue
        self._look = look
        self._woken = False
        self._selector = self  # `BaseEventLoop` waits by `self._selector.select`

    def time(self) -> float:
        """Virtual seconds."""
        return self._queue.now_us / MICROS_PER_SECOND

    def select(self, timeout: float | None) -> list[object]:
        """Let the queue's events happen until one of them gives the loop something to do."""
        self._look()
        if timeout == 0:
            return []
        self._woken = False
        wait_us = FOREVER_US if timeout is None else math.ceil(timeout * MICROS_PER_SECOND)
        self._queue.run_until(self._queue.now_us + wait_us, stop=lambda: self._woken)
        assert self._woken or timeout is not None, "everybody waits, and nothing will happen"
        return []

    def call_soon(
        self, callback: Callable[[*_Args], object], *args: *_Args, context: Context | None = None
    ) -> asyncio.Handle:
        """As in any loop; it also ends the wait."""
        self._woken = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Args], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As in any loop; it also ends the wait, which may have to be shorter now."""
        self._woken = True
        return super().call_at(when, callback, *args, context=context)

    def _process_events(self, event_list: list[object]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There are no other threads that would have to wake this one."""
