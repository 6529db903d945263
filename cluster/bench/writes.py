"""Measures how a running ledger records: one client, many, batches, payloads of several sizes.

Beside rates and latencies each workload tells the CPU time of all servers. Relies on `stage` for
the cluster and on wrk for many clients at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Final, Protocol

from cluster.bench.connection import Connection, make_post
from cluster.bench.errors import BenchError
from cluster.bench.figures import Measure, Workload
from cluster.bench.plan import LEDGER
from cluster.bench.processes import cpu_s
from cluster.bench.stage import BATCH, SUBMIT_PATH, USER, batch_body, single_body, transaction
from cluster.bench.timings import Timings
from cluster.bench.wrk import MISSING
from node.client import LedgerClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cluster.bench.plan import Book, Plan, Trial
    from cluster.bench.stage import Stage
    from cluster.bench.wrk import Wrk

CLIENTS: Final = {Workload.SINGLE_64: 64, Workload.SINGLE_256: 256}
PAYLOADS: Final = {
    Workload.PAYLOAD_100: 100,
    Workload.PAYLOAD_1K: 1_000,
    Workload.PAYLOAD_16K: 16_000,
}
"""Bytes of the payload's longest text."""
PYTHON_CLIENTS: Final = 64
BATCHES_IN_FLIGHT: Final = 8
_HTTP_CREATED: Final = 201


class Recorder(Protocol):
    """Whoever records one transaction and waits until it is committed: a client of any kind."""

    async def record_transaction(self, *, user_id: str, kind: str, payload: object) -> object:
        """Record one."""
        ...


async def measure_writes(stage: Stage, plan: Plan, book: Book, wrk: Wrk | None) -> None:
    """Measure all ways to record that the plan asks for, on three nodes."""
    follower = await stage.follower_url() if len(stage.urls) > 1 else ""
    leader = await stage.leader_url()
    for workload, url in (
        (Workload.SEQUENTIAL, leader),
        (Workload.SEQUENTIAL_FOLLOWER, follower),
    ):
        for chosen in book.wanted(plan, (workload,)):
            await _measure_sequential(stage, plan, book, chosen, url)
    for workload in book.wanted(plan, CLIENTS):
        body = single_body()
        await measure_with_wrk(stage, plan, book, wrk, workload, body, clients=CLIENTS[workload])
    for workload in book.wanted(plan, PAYLOADS):
        body = json.dumps(transaction("m" * PAYLOADS[workload])).encode()
        await measure_with_wrk(stage, plan, book, wrk, workload, body, clients=64)
    for workload in book.wanted(plan, (Workload.CLIENT_64,)):
        async with LedgerClient([leader]) as ledger:
            trials = [await measure_clients(ledger, plan.seconds) for _ in range(plan.rounds)]
        book.add_median(LEDGER, workload, trials, "the client's Python takes part of the machine")
    if plan.wants(Workload.BATCHED, Workload.STALL):
        await _measure_batches(stage, plan, book)


async def measure_with_wrk(
    stage: Stage,
    plan: Plan,
    book: Book,
    wrk: Wrk | None,
    workload: Workload,
    body: bytes,
    *,
    clients: int,
) -> None:
    """Clients that each post one transaction and wait for its receipt, at the leader."""
    if wrk is None:
        book.skip(workload.value, MISSING)
        return
    url = await stage.leader_url() + SUBMIT_PATH
    trials = []
    for _ in range(plan.rounds):
        await stage.rest()
        used_s = cpu_s(stage.all_processes())
        load = await wrk.post(url, body, clients=clients, seconds=plan.seconds)
        used_s = cpu_s(stage.all_processes()) - used_s
        trials.append(
            {
                Measure.PER_S: load.per_s,
                Measure.P50_MS: load.p50_ms,
                Measure.P99_MS: load.p99_ms,
                Measure.CPU_MS_PER_1000: per_thousand_ms(used_s, load.requests),
            }
        )
    book.add_median(LEDGER, workload, trials)


async def measure_clients(
    recorder: Recorder, seconds: float, *, clients: int = PYTHON_CLIENTS
) -> Trial:
    """One load of clients in this process that record through one connected client, each waiting.

    It takes any client with `record_transaction`, over whatever port it speaks.
    """
    latencies_s: list[float] = []
    started = time.perf_counter()

    async def keep_recording() -> None:
        now = time.perf_counter()
        while now - started < seconds:
            await recorder.record_transaction(user_id=USER, kind="deposit", payload={"amount": 1})
            later = time.perf_counter()
            latencies_s.append(later - now)
            now = later

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(keep_recording())
    timings = Timings.of(latencies_s, elapsed_s=time.perf_counter() - started)
    return {
        Measure.PER_S: timings.per_s,
        Measure.P50_MS: timings.p50_ms,
        Measure.P99_MS: timings.p99_ms,
    }


def per_thousand_ms(used_s: float, operations: int) -> float:
    """Milliseconds of CPU time for each thousand operations."""
    return 1_000 * used_s / (operations / 1_000)


async def _measure_sequential(
    stage: Stage, plan: Plan, book: Book, workload: Workload, url: str
) -> None:
    """One client that waits for each receipt."""
    trials = []
    for _ in range(plan.rounds):
        timings, used_s = await _timed(
            stage, lambda: asyncio.to_thread(_submit_for, url, single_body(), plan.seconds)
        )
        trials.append(
            {
                Measure.P50_MS: timings.p50_ms,
                Measure.P99_MS: timings.p99_ms,
                Measure.CPU_MS_PER_1000: per_thousand_ms(used_s, timings.count),
            }
        )
    book.add_median(LEDGER, workload, trials)


async def _measure_batches(stage: Stage, plan: Plan, book: Book) -> None:
    """Batches of 1,000, eight under way; and how long that holds the nodes' loops."""
    url = await stage.leader_url()
    trials, stalls_ms = [], []
    for _ in range(plan.rounds):
        timings, used_s = await _timed(stage, lambda: _submit_batches(url, plan.seconds))
        stalls_ms.append(await _worst_stall_ms(stage))
        trials.append(
            {
                Measure.PER_S: BATCH * timings.per_s,
                Measure.CPU_MS_PER_1000: per_thousand_ms(used_s, BATCH * timings.count),
            }
        )
    for workload in book.wanted(plan, (Workload.BATCHED,)):
        book.add_median(LEDGER, workload, trials, f"{BATCH:,} a request, 8 under way")
    for workload in book.wanted(plan, (Workload.STALL,)):
        note = "the latest tick of any node's loop; ticks are 10 ms apart"
        book.add(LEDGER, workload, {Measure.WORST_MS: max(stalls_ms)}, note)


async def _timed(stage: Stage, load: Callable[[], Awaitable[Timings]]) -> tuple[Timings, float]:
    """A load on nodes that were at rest, and the seconds of CPU time that they spent on it."""
    await stage.rest()
    used_s = cpu_s(stage.all_processes())
    timings = await load()
    return timings, cpu_s(stage.all_processes()) - used_s


async def _worst_stall_ms(stage: Stage) -> float:
    """The worst of all nodes since they came to rest, when their metrics were last read."""
    metrics = [await stage.metrics(name) for name in stage.urls]
    return max(one["loop_stall_worst_us"] for one in metrics) / 1_000


async def _submit_batches(url: str, seconds: float) -> Timings:
    started = time.perf_counter()
    body = batch_body()
    loads = await asyncio.gather(
        *(asyncio.to_thread(_latencies_of, url, body, seconds) for _ in range(BATCHES_IN_FLIGHT))
    )
    latencies_s = [one for load in loads for one in load]
    return Timings.of(latencies_s, elapsed_s=time.perf_counter() - started)


def _submit_for(url: str, body: bytes, seconds: float) -> Timings:
    started = time.perf_counter()
    latencies_s = _latencies_of(url, body, seconds)
    return Timings.of(latencies_s, elapsed_s=time.perf_counter() - started)


def _latencies_of(url: str, body: bytes, seconds: float) -> list[float]:
    """Submit a body again and again, each time when the answer has come."""
    request = make_post(url + SUBMIT_PATH, body)
    latencies_s = []
    with Connection(url) as connection:
        started = now = time.perf_counter()
        while now - started < seconds:
            answer = connection.exchange(request)
            if answer.status != _HTTP_CREATED:
                raise BenchError(f"a submit was answered with {answer.status}")
            later = time.perf_counter()
            latencies_s.append(later - now)
            now = later
    return latencies_s
