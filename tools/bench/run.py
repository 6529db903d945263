"""One run of everything: rounds in which this ledger and its peers take turns, then one result.

The machine drifts, so what is compared is measured turn by turn, and the median of the rounds
counts. Every turn begins with fresh servers that have the machine to themselves. What is measured
once, of the ledger and the machine, comes first. Relies on `cluster.bench.run` for those.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import httpx
import msgspec
import psycopg

from cluster.bench.errors import BenchError
from cluster.bench.figures import Figure, Measure, Workload
from cluster.bench.result import Result, Skipped
from cluster.bench.run import measure
from tools.bench.peer import Effort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cluster.bench.figures import Subject
    from cluster.bench.plan import Plan
    from tools.bench.peer import Peer, Steps

IN_TURNS: Final = frozenset(
    {
        Workload.SEQUENTIAL,
        Workload.SINGLE_64,
        Workload.SINGLE_256,
        Workload.BATCHED,
        Workload.READ_64,
        Workload.LOCAL_READ_64,
    }
)
"""What of the ledger is measured in every round; the rest of it once."""
STEP_TIMEOUT_S: Final = 900.0
_EXPECTED: Final = (BenchError, OSError, httpx.HTTPError, psycopg.Error)
"""How a peer fails; anything else is a mistake of ours, and ends the run."""


@dataclass(slots=True)
class Run:
    """What has been measured so far."""

    report: Callable[[str], None]
    subjects: dict[str, Subject] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, what: str, why: str) -> None:
        """Note once what could not be done, and say it."""
        self.report(f"{what}: {why}")
        if Skipped(what, why) not in self.skipped:
            self.skipped.append(Skipped(what, why))

    def take(self, result: Result) -> None:
        """Add a result of the ledger's own measuring."""
        self.subjects |= {subject.name: subject for subject in result.subjects}
        self.figures += result.figures
        self.skipped += [one for one in result.skipped if one not in self.skipped]


async def run_all(
    plan: Plan, peers: Sequence[Peer], *, with_ledger: bool, report: Callable[[str], None]
) -> Result:
    """Measure the ledger, the machine and those of the peers that are installed."""
    ours = plan.workloads if with_ledger else frozenset[Workload]()
    base = await measure(replace(plan, workloads=ours - IN_TURNS), report=report)
    run = Run(report)
    run.take(base)
    present = [peer for peer in peers if _is_present(peer, run)]
    for number in range(1, plan.rounds + 1):
        say = _numbered(report, f"round {number} of {plan.rounds}")
        if ours & IN_TURNS:
            turn = replace(plan, workloads=ours & IN_TURNS, rounds=1)
            run.take(await measure(turn, report=say))
        is_last = number == plan.rounds
        effort = Effort(
            seconds=max(1, round(plan.seconds)),
            failovers=plan.failovers if is_last else 0,
            records=plan.transactions if is_last else 0,
        )
        for peer in tuple(present):
            if not await take_turn(peer, effort, plan, run, say):
                present.remove(peer)
    return msgspec.structs.replace(
        base,
        subjects=tuple(run.subjects.values()),
        figures=tuple(merge(run.figures)),
        skipped=tuple(run.skipped),
    )


async def take_turn(
    peer: Peer, effort: Effort, plan: Plan, run: Run, say: Callable[[str], None]
) -> bool:
    """Start a peer and measure it; False where it does not start."""
    say(f"{peer.name}: is started")
    with tempfile.TemporaryDirectory(prefix="bitnexus-bench-") as name:
        is_started = False
        try:
            async with peer.running(Path(name), effort) as steps:
                is_started = True
                run.subjects[peer.name] = peer.subject()
                await _take_steps(peer, steps, plan, run, say)
        except _EXPECTED as error:
            run.skip(peer.name, f"could not be measured: {_words(error)}")
        return is_started


async def _take_steps(
    peer: Peer, steps: Steps, plan: Plan, run: Run, say: Callable[[str], None]
) -> None:
    for workload, step in steps.items():
        if workload not in plan.workloads:
            continue
        say(f"{peer.name}: {workload}")
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                readings = await step()
        except _EXPECTED as error:
            run.skip(f"{peer.name}, {workload}", f"could not be measured: {_words(error)}")
            continue
        run.figures += [
            Figure(peer.name, workload, reading.measure, reading.value, reading.note)
            for reading in readings
        ]


def merge(figures: Iterable[Figure]) -> list[Figure]:
    """One figure where several rounds measured the same: the median, or the worst of the worst.

    Notes tell figures apart, but for one that says how much a round found missing: they are fixed
    texts of the workload.
    """
    rounds: defaultdict[tuple[str, Workload, Measure, str], list[float]] = defaultdict(list)
    for figure in figures:
        key = (figure.subject, figure.workload, figure.measure, figure.note)
        rounds[key].append(figure.value)
    return [
        Figure(
            subject,
            workload,
            of_what,
            max(values) if of_what is Measure.WORST_MS else median(values),
            note,
        )
        for (subject, workload, of_what, note), values in rounds.items()
    ]


def _is_present(peer: Peer, run: Run) -> bool:
    if peer.is_installed():
        return True
    run.skip(peer.name, f"skipped: {peer.install}")
    return False


def _numbered(report: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda line: report(f"{prefix}: {line}")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
