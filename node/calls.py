"""The submits of this node's own clients that are under way, each with its deadline.

A call ends by its outcomes, by its deadline, or when its caller gives it up; a call that does not
wait for the commit is held beyond its answer, until its transactions are settled or its time is up.
Relies on `node.submissions` for outcomes, and on the asyncio loop for the time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from node.outcomes import Wait
from node.submissions import Submission

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from node.outcomes import Outcome


class Calls:
    """Submits under way. Lives on one asyncio loop."""

    def __init__(
        self, *, offer: Callable[[Submission], None], expire: Callable[[Submission], None]
    ) -> None:
        """`offer` takes a new submission; `expire` settles what is open of one as unknown."""
        self._offer = offer
        self._expire = expire
        self._open: dict[Submission, asyncio.TimerHandle] = {}

    def begin(
        self,
        transactions: Sequence[bytes],
        *,
        wait: Wait,
        timeout_s: float,
        on_done: Callable[[list[Outcome]], None],
    ) -> Submission:
        """Offers canonical transactions; `on_done` hears their outcomes once, maybe at once."""

        def end(outcomes: list[Outcome]) -> None:
            if not submission.is_held or wait is Wait.COMMITTED:
                self._forget(submission)
            on_done(outcomes)

        submission = Submission(
            transactions, wait=wait, on_done=end, on_released=lambda: self._forget(submission)
        )
        loop = asyncio.get_running_loop()
        self._open[submission] = loop.call_later(timeout_s, self._expire, submission)
        self._offer(submission)
        return submission

    def abandon(self, submission: Submission) -> None:
        """The caller has gone: what waits for the commit is offered no longer."""
        if submission.wait is Wait.COMMITTED:
            self._expire(submission)

    def end_all(self) -> None:
        """Whoever waits hears "unknown"."""
        for submission in list(self._open):
            self._expire(submission)

    def _forget(self, submission: Submission) -> None:
        timer = self._open.pop(submission, None)
        if timer is not None:
            timer.cancel()
