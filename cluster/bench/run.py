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

    from cluster.bench.plan import Plan
    from cluster.bench.wrk import Wrk

OURS: Final = frozenset(one for one in Workload if not one.name.startswith("PORT_"))
"""What this package measures."""
_LIMITS: Final = (
    Workload.FDATASYNC,
    Workload.LMDB_1,
    Workload.LMDB_3,
    Workload.ZEROMQ,
    Workload.SHA256,
    Workload.HTTP_ECHO,
)
_OTHER_SIZES: Final = {Workload.NODES_1: 1, Workload.NODES_5: 5}
_OTHER_CLUSTERS: Final = frozenset(
    {
        *_LIMITS,
        *_OTHER_SIZES,
        Workload.FAILOVER,
        Workload.FAILOVER_TUNED,
        Workload.CATCH_UP,
        Workload.VERIFY,
        Workload.CHECKPOINT,
    }
)
_EXPECTED: Final = (BenchError, ClusterError, LedgerClientError, OSError, TimeoutError)


async def measure(plan: Plan, *, report: Callable[[str], None]) -> Result:
    """Measure what the plan asks for; says each step to `report`, one line each."""
    book = Book(report)
    with tempfile.TemporaryDirectory(prefix="bitnexus-bench-") as name:
        folder = Path(name)
        wrk = find_wrk(folder)
        machine = look_at_machine(folder)
        for what, work in _works(folder, plan, book, wrk):
            await _try(what, work, book)
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


def _works(
    folder: Path, plan: Plan, book: Book, wrk: Wrk | None
) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    """The parts of a run, each with a name for the case that it fails."""
    limits = [
        (one.value, partial(measure_limits, folder, _only(plan, one), book, wrk)) for one in _LIMITS
    ]
    sizes = [
        (one.value, partial(_measure_size, folder, _only(plan, one), book, wrk))
        for one in _OTHER_SIZES
    ]
    return [
        *limits,
        ("three nodes", partial(_measure_three, folder / "three", plan, book, wrk)),
        *sizes,
        ("failover", partial(measure_failovers, folder, plan, book)),
        ("catch-up", partial(measure_catch_up, folder / "catch-up", plan, book)),
        ("verification and checkpoint", partial(measure_archive, folder / "archive", plan, book)),
    ]


def _only(plan: Plan, workload: Workload) -> Plan:
    """The part of a plan that is one workload."""
    return replace(plan, workloads=plan.workloads & {workload})


async def _try(what: str, work: Callable[[], Awaitable[None]], book: Book) -> None:
    try:
        await work()
    except* _EXPECTED as errors:
        causes = "; ".join(f"{type(one).__name__}: {one}" for one in _leaves(errors))
        book.skip(f"{what}, or the rest of it", causes)


def _leaves(group: BaseExceptionGroup[Exception]) -> list[BaseException]:
    found: list[BaseException] = []
    for one in group.exceptions:
        found += _leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found


async def _measure_three(folder: Path, plan: Plan, book: Book, wrk: Wrk | None) -> None:
    """Everything that three nodes are measured in, memory first, while they are young."""
    if plan.workloads & OURS <= _OTHER_CLUSTERS:
        return
    async with running(options_for(folder, nodes=3)) as stage:
        await _try("memory", partial(measure_memory, stage, plan, book), book)
        await _try("writes", partial(measure_writes, stage, plan, book, wrk), book)
        await _try("reads", partial(measure_reads, stage, plan, book, wrk), book)
        await _try("load beyond capacity", partial(measure_overload, stage, plan, book), book)


async def _measure_size(folder: Path, plan: Plan, book: Book, wrk: Wrk | None) -> None:
    for workload in book.wanted(plan, _OTHER_SIZES):
        nodes = _OTHER_SIZES[workload]
        async with running(options_for(folder / f"{nodes}", nodes=nodes)) as stage:
            await measure_with_wrk(stage, plan, book, wrk, workload, single_body(), clients=64)
