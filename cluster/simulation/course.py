"""A coroutine in virtual time: shipped `async` code runs without an event loop, a step at a time.

What the coroutine waits for is a function that begins something and is handed a `Resume`, to be
called at some later event with the value, or with the error to raise. Nothing but such calls moves
it, so it has no order of its own. `asyncio.sleep(0)` works too, and takes a turn. Relies on the
event queue.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.simulation.events import EventQueue

Resume = Callable[[object], None]
Begin = Callable[[Resume], None]


@coroutine
def waiting(begin: Begin) -> Generator[Begin, Any, Any]:
    """Wait for what `begin` begins: the value that `Resume` is called with, or its error."""
    return (yield begin)


class Course:
    """One coroutine on its way, which never ends."""

    def __init__(
        self,
        steps: Coroutine[Begin | None, Any, object],
        *,
        queue: EventQueue,
        when_awake: Callable[[Callable[[], None]], None],
    ) -> None:
        """Goes as far as it can; each later step is taken by `when_awake`, now or later."""
        self._steps = steps
        self._queue = queue
        self._when_awake = when_awake
        self._step = 0
        self._go_on(0, None)

    def drop(self) -> None:
        """Its machine is gone: it takes no further step. What it holds must let go unawaited."""
        self._step = -1
        self._steps.close()

    def _resume(self, step: int, outcome: object) -> None:
        self._when_awake(partial(self._go_on, step, outcome))

    def _go_on(self, step: int, outcome: object) -> None:
        if step != self._step:
            return  # resumed before, or dropped
        self._step += 1
        resume = partial(self._resume, self._step)
        try:
            if isinstance(outcome, Exception):
                begin = self._steps.throw(outcome)
            else:
                begin = self._steps.send(outcome)
        except StopIteration as end:
            raise AssertionError("a coroutine that never ends has ended") from end
        if begin is None:
            self._queue.after(0, partial(resume, None))
        else:
            begin(resume)
