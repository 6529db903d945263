"""How loads become figures: of batches, of stalls, and of clients of any kind."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from cluster.bench import writes
from cluster.bench.figures import Measure, Workload
from cluster.bench.plan import Book, Plan
from cluster.bench.timings import Timings
from cluster.bench.writes import measure_clients, measure_writes, per_thousand_ms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.bench.stage import Stage

pytestmark = pytest.mark.asyncio


class ScriptedStage:
    """Two nodes whose loops stall as the test says, once they are asked."""

    def __init__(self, stalls_us: Iterator[int]) -> None:
        self.urls = {"node1": "http://one", "node2": "http://two"}
        self._stalls_us = stalls_us

    async def leader_url(self) -> str:
        """The first."""
        return self.urls["node1"]

    async def follower_url(self) -> str:
        """The second."""
        return self.urls["node2"]

    async def rest(self) -> None:
        """Always."""

    def all_processes(self) -> list[int]:
        """This one."""
        return [os.getpid()]

    async def metrics(self, name: str) -> dict[str, float]:
        """The next stall."""
        assert name in self.urls
        return {"loop_stall_worst_us": float(next(self._stalls_us))}


class CountingRecorder:
    """A client of no particular kind."""

    def __init__(self) -> None:
        self.recorded = 0
        self.under_way = self.most_under_way = 0

    async def record_transaction(self, *, user_id: str, kind: str, payload: object) -> object:
        """Count, after one turn of the loop."""
        assert all((user_id, kind, payload))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        self.recorded += 1
        return None


async def test_the_worst_stall_is_that_of_any_round_and_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each reading of the metrics forgets, so each round is read for itself."""

    async def submit(url: str, seconds: float) -> Timings:
        assert ("http://one", 1.0) == (url, seconds)
        return Timings(count=7, per_s=3.0, p50_ms=1.0, p99_ms=1.0, worst_ms=1.0)

    monkeypatch.setattr(writes, "_submit_batches", submit)
    stage: Stage = ScriptedStage(iter([5_000, 90_000, 7_000, 8_000]))  # type: ignore[assignment] # as much of one as is asked for
    book = Book(lambda _line: None)
    workloads = frozenset({Workload.BATCHED, Workload.STALL})
    await measure_writes(stage, Plan(seconds=1.0, rounds=2, workloads=workloads), book, None)

    values = {(one.workload, one.measure): one.value for one in book.figures}
    assert 90.0 == values[Workload.STALL, Measure.WORST_MS]
    assert 3_000.0 == values[Workload.BATCHED, Measure.PER_S]


async def test_clients_of_any_kind_wait_for_their_receipts() -> None:
    """As many under way as there are clients, and no more."""
    recorder = CountingRecorder()
    trial = await measure_clients(recorder, 0.01, clients=5)

    assert 5 == recorder.most_under_way
    assert recorder.recorded >= 5
    assert trial[Measure.P99_MS] >= trial[Measure.P50_MS] > 0


async def test_processor_time_is_told_for_a_thousand() -> None:
    """Two seconds for 4,000 operations are half a second for each thousand."""
    assert 500.0 == per_thousand_ms(2.0, 4_000)
