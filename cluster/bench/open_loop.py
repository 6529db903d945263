"""An open loop: requests fall due at moments of their own, whatever becomes of those before them.

A latency counts from the moment a request fell due, not from when a connection was free to send it:
a server that stalls is charged for everyone who had to wait, and coordinated omission cannot hide
it. Pure: the clock comes in as an argument, so that the accounting is tested in virtual time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.bench.timings import percentile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from random import Random

_MILLIS = 1_000


def poisson(rate_per_s: float, seconds: float, random: Random) -> Iterator[float]:
    """The moments of independent arrivals at a rate, ascending, within so many seconds."""
    moment = random.expovariate(rate_per_s)
    while moment < seconds:
        yield moment
        moment += random.expovariate(rate_per_s)


@dataclass(slots=True)
class Tally:
    """What became of what was offered, in transactions."""

    accepted: int = 0
    refused: int = 0
    """Answered 429."""
    failed: int = 0
    """Answered otherwise, or cut off."""


@dataclass(slots=True, kw_only=True)
class OpenLoop:
    """The requests of one load, and the connections that carry one of them at a time.

    `due` are moments in seconds from the start, ascending; `transactions` is how many a request
    holds. Only what is accepted by `seconds` counts as goodput.
    """

    due: Iterable[float]
    connections: int
    seconds: float
    transactions: int = 1
    tally: Tally = field(default_factory=Tally)
    in_time: int = 0
    latencies_s: list[float] = field(default_factory=list)
    _due: Iterator[float] = field(init=False)
    _next: float | None = field(init=False)
    _idle: deque[int] = field(init=False)
    _under_way: dict[int, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing is under way."""
        self._due = iter(self.due)
        self._next = next(self._due, None)
        self._idle = deque(range(self.connections))

    @property
    def next_due(self) -> float | None:
        """When the next request falls due that is not sent; None after the last one."""
        return self._next

    @property
    def is_over(self) -> bool:
        """Whether all that fell due has been sent and answered."""
        return self._next is None and not self._under_way

    def start_due(self, now: float) -> list[int]:
        """Take what is due as far as connections are idle; those that must send one now."""
        starting = []
        while self._next is not None and self._next <= now and self._idle:
            connection = self._idle.popleft()
            self._under_way[connection] = self._next
            self._next = next(self._due, None)
            starting.append(connection)
        return starting

    def answered(self, connection: int, now: float, tally: Tally) -> None:
        """A connection has its answer, and is idle again."""
        due = self._under_way.pop(connection)
        self._idle.append(connection)
        self._count(tally)
        if tally.accepted:
            self.latencies_s.append(now - due)
            if now <= self.seconds:
                self.in_time += tally.accepted

    def broke(self, connection: int) -> None:
        """A connection is gone: what was under way on it failed, and nothing more is sent on it."""
        if connection in self._under_way:
            del self._under_way[connection]
            self._count(Tally(failed=self.transactions))
        else:
            self._idle.remove(connection)

    def unanswered(self) -> int:
        """Transactions that were not sent or not answered by now; nothing is sent any more."""
        unsent = 0 if self._next is None else 1 + sum(1 for _ in self._due)
        self._next = None
        return (unsent + len(self._under_way)) * self.transactions

    def percentile_ms(self, fraction: float) -> float | None:
        """A percentile of the latencies of accepted requests; None where there is none."""
        if not self.latencies_s:
            return None
        return _MILLIS * percentile(sorted(self.latencies_s), fraction)

    def _count(self, tally: Tally) -> None:
        self.tally.accepted += tally.accepted
        self.tally.refused += tally.refused
        self.tally.failed += tally.failed
