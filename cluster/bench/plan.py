"""What a run is to measure and how much of it, and where its figures gather.

Relies on nothing but the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Final

from cluster.bench.figures import Figure, Measure, Subject, Workload
from cluster.bench.result import LoadPoint, Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    Trial = Mapping[Measure, float]
    """What one round measured."""

LEDGER: Final = "bitnexus"
MACHINE: Final = "this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure. The defaults are those of a whole run."""

    seconds: float = 5.0
    """The length of each measured load."""
    rounds: int = 3
    """Loads of which the median counts."""
    workloads: frozenset[Workload] = frozenset(Workload)
    failovers: int = 20
    transactions: int = 100_000
    """In the ledger whose memory, catch-up, verification and checkpoint are measured."""
    multiples: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 10.0)
    """Of the capacity, in the order in which that much load is offered."""

    def wants(self, *workloads: Workload) -> bool:
        """Whether one of these is to be measured."""
        return not self.workloads.isdisjoint(workloads)


QUICK: Final = Plan(
    seconds=1.0, rounds=1, failovers=3, transactions=10_000, multiples=(0.5, 1.0, 2.0)
)
"""Enough to see that everything runs, too little to tell anything about speed."""


@dataclass(slots=True)
class Book:
    """What has been measured so far; says each step to `report`, one line each."""

    report: Callable[[str], None]
    subjects: list[Subject] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    load: list[LoadPoint] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def add(
        self, subject: str, workload: Workload, values: Mapping[Measure, float], note: str = ""
    ) -> None:
        """Note the values of one workload."""
        for measure, value in values.items():
            self.figures.append(Figure(subject, workload, measure, value, note))

    def add_median(
        self, subject: str, workload: Workload, trials: Sequence[Trial], note: str = ""
    ) -> None:
        """Note the median of the rounds, for each measure by itself."""
        values = {measure: median(trial[measure] for trial in trials) for measure in trials[0]}
        self.add(subject, workload, values, note)

    def skip(self, what: str, why: str) -> None:
        """Note what could not be run."""
        self.report(f"{what}: skipped: {why}")
        self.skipped.append(Skipped(what, why))

    def wanted(self, plan: Plan, workloads: Collection[Workload]) -> Iterator[Workload]:
        """Those of the workloads that are to be measured, each said as its turn comes."""
        for workload in workloads:
            if plan.wants(workload):
                self.report(workload.value)
                yield workload
