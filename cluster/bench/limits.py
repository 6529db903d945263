"""Measures what the machine can do at best, and says which of it bounds which figure of the ledger.

Every limit is measured in the same run as the ledger, each by a process of its own (`probe`,
`echo`), so that a figure also stands as a fraction of what is physically possible.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.bench.connection import Connection, make_post
from cluster.bench.figures import Figure, Measure, Workload
from cluster.bench.plan import MACHINE
from cluster.bench.probe import HASHED_BYTES, Probed
from cluster.bench.programs import run_program, serving
from cluster.bench.stage import single_body
from cluster.bench.timings import Timings
from cluster.bench.wrk import MISSING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cluster.bench.plan import Book, Plan, Trial
    from cluster.bench.wrk import Wrk

ECHO_CLIENTS: Final = 64
_PROBE: Final = "cluster.bench.probe"
_ECHO: Final = "cluster.bench.echo"
_BYTES_PER_MB: Final = 1_000_000
_ENVIRONMENTS: Final = {Workload.LMDB_1: 1, Workload.LMDB_3: 3}

_ON_HTTP: Final = (
    Workload.SINGLE_64,
    Workload.SINGLE_256,
    Workload.PAYLOAD_100,
    Workload.NODES_1,
    Workload.NODES_5,
    Workload.READ_64,
    Workload.LOCAL_READ_64,
    Workload.HISTORY,
)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure cannot be better than, and what that is made of."""

    value: float
    made_of: str


async def measure_limits(folder: Path, plan: Plan, book: Book, wrk: Wrk | None) -> None:
    """Measure the limits that the plan asks for."""
    for workload in book.wanted(plan, (Workload.FDATASYNC,)):
        trials = [
            await _probe(plan, "fdatasync", _fresh(folder, f"fdatasync{number}"))
            for number in range(plan.rounds)
        ]
        book.add_median(MACHINE, workload, trials, "4 KiB into a file that has its room already")
    for workload in book.wanted(plan, _ENVIRONMENTS):
        trials = [
            await _probe_lmdb(folder / f"{workload.name}-{number}", plan, _ENVIRONMENTS[workload])
            for number in range(plan.rounds)
        ]
        book.add_median(MACHINE, workload, trials, "a record of 4 KiB, each environment by itself")
    for workload in book.wanted(plan, (Workload.ZEROMQ,)):
        async with serving(_PROBE, ["zeromq-server"]) as line:
            endpoint, key = msgspec.json.decode(line, type=tuple[str, str])
            trials = [await _probe(plan, "zeromq", endpoint, key) for _ in range(plan.rounds)]
        book.add_median(MACHINE, workload, trials, "256 B, two processes, CURVE")
    for workload in book.wanted(plan, (Workload.SHA256,)):
        speeds = [await _probe(plan, "sha256") for _ in range(plan.rounds)]
        scale = HASHED_BYTES / _BYTES_PER_MB
        trials = [{Measure.MB_PER_S: scale * one[Measure.PER_S]} for one in speeds]
        book.add_median(MACHINE, workload, trials, "one core")
    for workload in book.wanted(plan, (Workload.HTTP_ECHO,)):
        await _measure_echo(plan, book, workload, wrk)


def bound_of(figure: Figure, figures: Sequence[Figure]) -> Bound | None:
    """What bounds a figure, from the limits measured in the same run; None where nothing does.

    A lone write waits for one exchange over HTTP, one round trip between members and one durable
    commit while the other members commit too. Many clients are bounded by what the server stack
    answers in one process, and whatever reads a chain by the hashing of its bytes.
    """
    limits = {(one.workload, one.measure): one.value for one in figures if one.subject == MACHINE}
    parts: tuple[tuple[Workload, Measure], ...] = ()
    if figure.workload is Workload.SEQUENTIAL and figure.measure is Measure.P50_MS:
        p50 = Measure.P50_MS
        parts = ((Workload.HTTP_ECHO, p50), (Workload.ZEROMQ, p50), (Workload.LMDB_3, p50))
    elif figure.workload in _ON_HTTP and figure.measure is Measure.PER_S:
        parts = ((Workload.HTTP_ECHO, Measure.PER_S),)
    elif figure.workload is Workload.VERIFY and figure.measure is Measure.MB_PER_S:
        parts = ((Workload.SHA256, Measure.MB_PER_S),)
    if not parts or any(part not in limits for part in parts):
        return None
    value = sum(limits[part] for part in parts)
    return Bound(value, " + ".join(workload.value for workload, _ in parts))


async def _probe(plan: Plan, what: str, *arguments: str) -> Trial:
    probed = await run_program(_PROBE, [what, str(plan.seconds), *arguments], Probed)
    return {
        Measure.PER_S: probed.per_s,
        Measure.P50_MS: probed.p50_ms,
        Measure.P99_MS: probed.p99_ms,
    }


async def _probe_lmdb(folder: Path, plan: Plan, environments: int) -> Trial:
    """Environments that commit at the same time, each in its process; the mean of theirs."""
    trials = await asyncio.gather(
        *(_probe(plan, "lmdb", _fresh(folder, str(number))) for number in range(environments))
    )
    return {
        measure: sum(trial[measure] for trial in trials) / environments for measure in trials[0]
    }


def _fresh(folder: Path, name: str) -> str:
    (folder / name).mkdir(parents=True)
    return str(folder / name)


async def _measure_echo(plan: Plan, book: Book, workload: Workload, wrk: Wrk | None) -> None:
    async with serving(_ECHO) as port:
        url = f"http://127.0.0.1:{port}/"
        lone = [await asyncio.to_thread(_ask, url, plan.seconds) for _ in range(plan.rounds)]
        book.add_median(MACHINE, workload, lone, "one client")
        if wrk is None:
            book.skip(f"{workload}, {ECHO_CLIENTS} clients", MISSING)
            return
        loads = [
            await wrk.post(url, single_body(), clients=ECHO_CLIENTS, seconds=plan.seconds)
            for _ in range(plan.rounds)
        ]
    trials = [{Measure.PER_S: load.per_s} for load in loads]
    book.add_median(MACHINE, workload, trials, f"{ECHO_CLIENTS} clients")


def _ask(url: str, seconds: float) -> Trial:
    """The latency of one client that asks again and again."""
    request = make_post(url, single_body())
    latencies_s = []
    with Connection(url) as connection:
        started = now = time.perf_counter()
        while now - started < seconds:
            connection.exchange(request)
            later = time.perf_counter()
            latencies_s.append(later - now)
            now = later
    timings = Timings.of(latencies_s, elapsed_s=now - started)
    return {Measure.P50_MS: timings.p50_ms, Measure.P99_MS: timings.p99_ms}
