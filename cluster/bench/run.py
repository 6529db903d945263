"""One run: the machine's limits, then this ledger; what needs an untouched ledger comes first.

What cannot be run is noted and the rest goes on. Relies on the modules that measure.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.bench.errors import BenchError
from cluster.bench.failover import measure_failovers
from cluster.bench.figures import Subject, Workload
from cluster.bench.growth import measure_archive, measure_catch_up, measure_memory
from cluster.bench.limits import measure_limits
from cluster.bench.machine import look_at_commit, look_at_machine, look_at_versions
from cluster.bench.overload import measure_overload
from cluster.bench.plan import LEDGER, Book
from cluster.bench.reads import measure_reads
from cluster.bench.result import Result
from cluster.bench.stage import options_for, running, single_body
from cluster.bench.writes import measure_with_wrk, measure_writes
from cluster.bench.wrk import find_wrk
from cluster.errors import ClusterError
from node import VERSION
from node.client_errors import LedgerClientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from collections.abc import Set as AbstractSet

    from cluster.bench.plan import Plan
    from cluster.bench.stage import Stage
    from cluster.bench.wrk import Wrk

OURS: Final = frozenset(one for one in Workload if not one.name.startswith("PORT_"))
"""What this package measures."""
_OTHER_SIZES: Final = {Workload.NODES_1: 1, Workload.NODES_5: 5}
_LIMITS: Final = (
    Workload.FDATASYNC,
    Workload.LMDB_1,
    Workload.LMDB_3,
    Workload.ZEROMQ,
    Workload.SHA256,
    Workload.HTTP_ECHO,
)
_ON_CLUSTERS_OF_THEIR_OWN: Final = (
    {Workload.NODES_1},
    {Workload.NODES_5},
    {Workload.FAILOVER},
    {Workload.FAILOVER_TUNED},
    {Workload.CATCH_UP},
    {Workload.VERIFY, Workload.CHECKPOINT},
)
"""Those that share a ledger stand together."""
_ON_THREE_NODES: Final = (
    {Workload.MEMORY},
    {Workload.SEQUENTIAL},
    {Workload.SEQUENTIAL_FOLLOWER},
    {Workload.SINGLE_64},
    {Workload.SINGLE_256},
    {Workload.PAYLOAD_100},
    {Workload.PAYLOAD_1K},
    {Workload.PAYLOAD_16K},
    {Workload.CLIENT_64},
    {Workload.BATCHED, Workload.STALL},
    {Workload.READ_64},
    {Workload.LOCAL_READ_64},
    {Workload.HISTORY},
    {Workload.OVERLOAD},
)
"""In this order in one cluster, memory while it is young; those of one load stand together."""
_EXPECTED: Final = (BenchError, ClusterError, LedgerClientError, OSError, TimeoutError)


async def measure(plan: Plan, *, report: Callable[[str], None]) -> Result:
    """Measure what the plan asks for; says each step to `report`, one line each."""
    book = Book(report)
    with tempfile.TemporaryDirectory(prefix="bitnexus-bench-") as name:
        folder = Path(name)
        wrk = find_wrk(folder)
        machine = look_at_machine(folder)
        for limit in _LIMITS:
            part = _only(plan, {limit})
            await _try(part, partial(measure_limits, folder, part, book, wrk), book)
        part = _only(plan, set().union(*_ON_THREE_NODES))
        await _try(part, partial(_measure_three, folder / "three", part, book, wrk), book)
        for workloads in _ON_CLUSTERS_OF_THEIR_OWN:
            part = _only(plan, workloads)
            await _try(part, partial(_measure_alone, folder, part, book, wrk), book)
    if any(one.subject == LEDGER for one in book.figures):
        book.subjects.append(
            Subject(LEDGER, VERSION, "on the disks of a majority, fsynced", is_durable=True)
        )
    return Result(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=look_at_commit(),
        machine=machine,
        versions=look_at_versions(),
        seconds=plan.seconds,
        rounds=plan.rounds,
        subjects=tuple(book.subjects),
        figures=tuple(book.figures),
        load=tuple(book.load),
        skipped=tuple(book.skipped),
    )


def _only(plan: Plan, workloads: AbstractSet[Workload]) -> Plan:
    """The part of a plan that is some workloads."""
    return replace(plan, workloads=plan.workloads & workloads)


async def _try(part: Plan, work: Callable[[], Awaitable[None]], book: Book) -> None:
    """Measure a part of the plan, if there is any; note what it misses where it fails."""
    if not part.workloads:
        return
    before = {one.workload for one in book.figures}
    try:
        await work()
    except* _EXPECTED as errors:
        measured = {one.workload for one in book.figures} - before
        causes = "; ".join(f"{type(one).__name__}: {one}" for one in _leaves(errors))
        book.skip(", ".join(sorted(part.workloads - measured)), causes)


def _leaves(group: BaseExceptionGroup[Exception]) -> list[BaseException]:
    found: list[BaseException] = []
    for one in group.exceptions:
        found += _leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found


async def _measure_three(folder: Path, plan: Plan, book: Book, wrk: Wrk | None) -> None:
    """Everything that is measured on one and the same cluster of three."""
    async with running(options_for(folder, nodes=3)) as stage:
        for workloads in _ON_THREE_NODES:
            part = _only(plan, workloads)
            await _try(part, partial(_measure_stage, stage, part, book, wrk), book)


async def _measure_stage(stage: Stage, plan: Plan, book: Book, wrk: Wrk | None) -> None:
    """Each of these measures what the plan has of it."""
    await measure_memory(stage, plan, book)
    await measure_writes(stage, plan, book, wrk)
    await measure_reads(stage, plan, book, wrk)
    await measure_overload(stage, plan, book)


async def _measure_alone(folder: Path, plan: Plan, book: Book, wrk: Wrk | None) -> None:
    """Each of these measures what the plan has of it."""
    for workload in book.wanted(plan, _OTHER_SIZES):
        nodes = _OTHER_SIZES[workload]
        async with running(options_for(folder / f"nodes-{nodes}", nodes=nodes)) as stage:
            await measure_with_wrk(stage, plan, book, wrk, workload, single_body(), clients=64)
    await measure_failovers(folder, plan, book)
    await measure_catch_up(folder / "catch-up", plan, book)
    await measure_archive(folder / "archive", plan, book)
