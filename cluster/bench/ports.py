"""Measures the ZeroMQ client port: one caller, many callers on one connection, many connections.

The callers are coroutines of the Python client on a loop of uvloop's, in a thread of this process;
what they cost is part of every figure. Relies on `stage` for the cluster.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

import uvloop

from cluster.bench.figures import Measure, Workload
from cluster.bench.plan import LEDGER
from cluster.bench.processes import cpu_s
from cluster.bench.stage import BATCH, transaction
from cluster.bench.timings import Timings
from cluster.bench.writes import BATCHES_IN_FLIGHT, per_thousand_ms
from node.api.shapes import NewTransaction
from node.client import LedgerClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cluster.bench.plan import Book, Plan, Trial
    from cluster.bench.stage import Stage


class Callers(NamedTuple):
    """Who loads the port."""

    callers: int
    connections: int
    batch: int | None = None
    """Transactions in each call; None where they are submitted singly."""

    def __str__(self) -> str:
        each = "one at a time" if self.batch is None else f"{self.batch:,} at a time"
        return f"{self.callers} callers on {self.connections} connections, {each}"


LOADS: Final = {
    Workload.PORT_SEQUENTIAL: Callers(1, 1),
    Workload.PORT_64: Callers(64, 1),
    Workload.PORT_64_APART: Callers(64, 64),
    Workload.PORT_256: Callers(256, 1),
    Workload.PORT_BATCHED: Callers(BATCHES_IN_FLIGHT, 1, BATCH),
}


async def measure_ports(stage: Stage, plan: Plan, book: Book) -> None:
    """Measure what the plan asks for, at the leader's client port."""
    for workload in book.wanted(plan, LOADS):
        callers, leader = LOADS[workload], await stage.leader()
        url = stage.client_urls[leader]
        trials: list[Trial] = []
        for _ in range(plan.rounds):
            await stage.rest()
            used_s = cpu_s(stage.all_processes())
            timings = await asyncio.to_thread(_load, url, callers, plan.seconds)
            used_s = cpu_s(stage.all_processes()) - used_s
            size = callers.batch or 1
            trials.append(
                {
                    Measure.PER_S: size * timings.per_s,
                    Measure.P50_MS: timings.p50_ms,
                    Measure.P99_MS: timings.p99_ms,
                    Measure.CPU_MS_PER_1000: per_thousand_ms(used_s, size * timings.count),
                }
            )
        book.add_median(LEDGER, workload, trials, str(callers))


def _load(url: str, callers: Callers, seconds: float) -> Timings:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_call_for(url, callers, seconds))


async def _call_for(url: str, callers: Callers, seconds: float) -> Timings:
    async with AsyncExitStack() as opened:
        ledgers = [
            await opened.enter_async_context(LedgerClient([url]))
            for _ in range(callers.connections)
        ]
        calls = [_call_of(ledger, callers.batch) for ledger in ledgers]
        for call in calls:
            await call()  # connects
        latencies_s: list[float] = []
        started = time.perf_counter()

        async def keep_calling(number: int) -> None:
            call = calls[number % len(calls)]
            now = time.perf_counter()
            while now - started < seconds:
                await call()
                later = time.perf_counter()
                latencies_s.append(later - now)
                now = later

        async with asyncio.TaskGroup() as group:
            for number in range(callers.callers):
                group.create_task(keep_calling(number))
        return Timings.of(latencies_s, elapsed_s=time.perf_counter() - started)


def _call_of(ledger: LedgerClient, batch: int | None) -> Callable[[], Awaitable[object]]:
    """What one caller does again and again."""
    wanted = transaction()
    user_id, kind, payload = str(wanted["user_id"]), str(wanted["kind"]), wanted["payload"]
    if batch is None:
        return lambda: ledger.record_transaction(user_id=user_id, kind=kind, payload=payload)
    news = [NewTransaction(user_id=user_id, kind=kind, payload=payload)] * batch
    return lambda: ledger.record_transactions(news)
