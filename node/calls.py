"""The submits of this node's own clients that are under way, each with its deadline.

A call ends by its outcomes, by its deadline, or when its caller gives it up; a call that does not
wait for the commit is held beyond its answer, until its transactions are settled or its time is up.
Relies on `node.submissions` for outcomes, and on the asyncio loop for the time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from node.outcomes import Wait
from node.submissions import Submission

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from node.outcomes import Outcome


GRAIN_S: Final = 0.01
"""How much later than asked for a call may end. All that end within it share one timer: to start
and to stop one for each call took 4 us of the 90 that a submit costs its leader."""


class Calls:
    """Submits under way. Lives on one asyncio loop."""

    def __init__(
        self, *, offer: Callable[[Submission], None], expire: Callable[[Submission], None]
    ) -> None:
        """`offer` takes a new submission; `expire` settles what is open of one as unknown."""
        self._offer = offer
        self._expire = expire
        self._grain_of: dict[Submission, int] = {}
        self._due: dict[int, dict[Submission, None]] = {}
        """The calls that end in each grain of time, in the order of their beginning."""

    def begin(
        self,
        transactions: Sequence[bytes],
        *,
        wait: Wait,
        timeout_s: float,
        on_done: Callable[[list[Outcome]], None],
    ) -> Submission:
        """Offers canonical transactions; `on_done` hears their outcomes once, maybe at once."""
        submission = Submission(transactions, wait=wait, on_done=on_done, on_end=self._forget)
        loop = asyncio.get_running_loop()
        grain = int((loop.time() + timeout_s) / GRAIN_S) + 1
        due = self._due.get(grain)
        if due is None:
            due = self._due[grain] = {}
            loop.call_at(grain * GRAIN_S, self._end_grain, grain)
        due[submission] = None
        self._grain_of[submission] = grain
        self._offer(submission)
        return submission

    def abandon(self, submission: Submission) -> None:
        """The caller has gone: what waits for the commit is offered no longer."""
        if submission.wait is Wait.COMMITTED:
            self._expire(submission)

    def end_all(self) -> None:
        """Whoever waits hears "unknown"."""
        for submission in list(self._grain_of):
            self._expire(submission)

    def _end_grain(self, grain: int) -> None:
        for submission in self._due.pop(grain):
            self._expire(submission)

    def _forget(self, submission: Submission) -> None:
        grain = self._grain_of.pop(submission, None)
        due = None if grain is None else self._due.get(grain)
        if due is not None:
            del due[submission]
