"""When to offer what again: transactions whose fate is open, in the order of their next turn.

Relies on nothing; time comes in as microseconds.
"""

from __future__ import annotations

from bisect import insort
from operator import attrgetter
from typing import NamedTuple


class Retry(NamedTuple):
    """Transactions to offer again when due; `wait_us` is how long they have waited for that."""

    due_us: int
    wait_us: int
    ids: list[bytes]


class Retries:
    """All retries to come."""

    def __init__(self) -> None:
        """None."""
        self._waiting: list[Retry] = []

    def add(self, ids: list[bytes], *, now_us: int, wait_us: int) -> None:
        """Offer `ids` again in `wait_us`; the long waits are few."""
        retry = Retry(now_us + wait_us, wait_us, ids)
        if not self._waiting or self._waiting[-1].due_us <= retry.due_us:
            self._waiting.append(retry)
        else:
            insort(self._waiting, retry, key=attrgetter("due_us"))

    def take_due(self, now_us: int) -> list[Retry]:
        """Those whose time has come, in order; they are forgotten."""
        count = 0
        while count < len(self._waiting) and self._waiting[count].due_us <= now_us:
            count += 1
        due = self._waiting[:count]
        # Asked at every turn of the loop, and mostly nothing is due: the rest stays where it is.
        del self._waiting[:count]
        return due

    def clear(self) -> None:
        """Forget all of them."""
        self._waiting.clear()
