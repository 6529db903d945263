"""Measures a failover: from `kill -9` of the leader to the next acknowledged write, many times.

The write is sent to a survivor right after the kill, and waits there until there is a leader again.
Relies on `stage` for the cluster, whose supervisor starts the killed node again.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from cluster.bench.figures import Measure, Workload
from cluster.bench.plan import LEDGER
from cluster.bench.stage import (
    SUBMIT_PATH,
    options_for,
    running,
    single_body,
    submit_until_answered,
)
from cluster.bench.timings import Timings

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.bench.plan import Book, Plan
    from cluster.bench.stage import Stage

TUNED_HEARTBEAT_MS: Final = 20
TUNED_ELECTION_MS: Final = (100, 200)


async def measure_failovers(folder: Path, plan: Plan, book: Book) -> None:
    """Measure with the default timeouts and with short ones, as the plan asks for."""
    for workload in book.wanted(plan, (Workload.FAILOVER, Workload.FAILOVER_TUNED)):
        is_tuned = workload is Workload.FAILOVER_TUNED
        options = options_for(
            folder / ("tuned" if is_tuned else "default"),
            nodes=3,
            heartbeat_ms=TUNED_HEARTBEAT_MS if is_tuned else None,
            election_timeout_ms=TUNED_ELECTION_MS if is_tuned else None,
        )
        async with running(options) as stage:
            times_s = [await _fail_over(stage) for _ in range(plan.failovers)]
        timings = Timings.of(times_s, elapsed_s=sum(times_s))
        values = {Measure.P50_MS: timings.p50_ms, Measure.WORST_MS: timings.worst_ms}
        book.add(LEDGER, workload, values, f"{plan.failovers} times kill -9 of the leader")


async def _fail_over(stage: Stage) -> float:
    """Seconds from the kill to the receipt."""
    await stage.rest()
    leader = await stage.leader()
    url = await stage.follower_url() + SUBMIT_PATH
    await asyncio.to_thread(submit_until_answered, url, single_body())
    started = time.perf_counter()
    await stage.cluster.kill(leader)
    await asyncio.to_thread(submit_until_answered, url, single_body())
    return time.perf_counter() - started
