"""What many latencies come to. Percentiles are values that were measured, never between two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MILLIS: int = 1_000


def percentile(ascending: Sequence[float], fraction: float) -> float:
    """The least value that at least `fraction` of the values do not exceed; there must be one."""
    assert ascending, "nothing has no percentile"
    assert 0 < fraction <= 1
    return ascending[math.ceil(fraction * len(ascending)) - 1]


@dataclass(frozen=True, slots=True)
class Timings:
    """Latencies in milliseconds, and how many there were a second."""

    count: int
    per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float

    @classmethod
    def of(cls, latencies_s: Iterable[float], *, elapsed_s: float) -> Self:
        """Sum up latencies of at least one operation, all of which took `elapsed_s`."""
        ascending = sorted(latencies_s)
        return cls(
            count=len(ascending),
            per_s=len(ascending) / elapsed_s,
            p50_ms=_MILLIS * percentile(ascending, 0.5),
            p99_ms=_MILLIS * percentile(ascending, 0.99),
            worst_ms=_MILLIS * ascending[-1],
        )
