"""Ratios: of this ledger to its peers and to what is possible, and of one run to another.

Only figures of the same workload, measure and terms are compared. Above 1 is always better,
whichever way the measure goes. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.bench.figures import Measure, Workload
from cluster.bench.limits import Bound, bound_of
from cluster.bench.plan import LEDGER, MACHINE

if TYPE_CHECKING:
    from cluster.bench.figures import Figure
    from cluster.bench.result import Result

NOISE: Final = 0.05
"""A difference that says nothing: two runs of the same commit differ by as much."""

STANDS_IN: Final = {
    Workload.PORT_SEQUENTIAL: Workload.SEQUENTIAL,
    Workload.PORT_64: Workload.SINGLE_64,
    Workload.PORT_256: Workload.SINGLE_256,
}
"""What this ledger answers over HTTP, where it has no figure for a peer's other port."""


@dataclass(frozen=True, slots=True)
class Share:
    """A figure, and how much of what is possible it is: at most 1."""

    figure: Figure
    bound: Bound
    share: float


@dataclass(frozen=True, slots=True)
class PeerRatio:
    """How many times better than a peer's this ledger's figure is."""

    ours: Figure
    theirs: Figure
    ratio: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure of one run beside the same of another."""

    before: Figure
    after: Figure
    ratio: float
    """How many times better it is after."""

    @property
    def verdict(self) -> str:
        """In one word."""
        if self.ratio > 1 + NOISE:
            return "better"
        return "worse" if self.ratio < 1 - NOISE else "same"


def shares_of(result: Result) -> list[Share]:
    """The figures of this ledger that something measured in the same run bounds."""
    shares = []
    for figure in result.figures:
        bound = bound_of(figure, result.figures) if figure.subject == LEDGER else None
        if bound is not None:
            value = times_better(figure, figure.value, bound.value)
            shares.append(Share(figure, bound, value))
    return shares


def peers_of(result: Result) -> list[PeerRatio]:
    """This ledger beside everyone else who did the same, by workload and measure."""
    ours = {(one.workload, one.measure): one for one in result.figures if one.subject == LEDGER}
    ratios = []
    for theirs in result.figures:
        stand_in = STANDS_IN.get(theirs.workload, theirs.workload)
        own = ours.get((theirs.workload, theirs.measure)) or ours.get((stand_in, theirs.measure))
        if own is not None and theirs.subject not in {LEDGER, MACHINE}:
            ratios.append(PeerRatio(own, theirs, times_better(own, own.value, theirs.value)))
    workloads, measures = list(Workload), list(Measure)
    return sorted(
        ratios,
        key=lambda one: (
            workloads.index(one.theirs.workload),
            measures.index(one.theirs.measure),
        ),
    )


def headlines(ratios: list[PeerRatio]) -> list[PeerRatio]:
    """For each workload one measure: the rate where somebody has one, else the first."""
    chosen: dict[Workload, Measure] = {}
    for one in ratios:
        workload, measure = one.theirs.workload, one.theirs.measure
        if workload not in chosen or measure is Measure.PER_S:
            chosen[workload] = measure
    return [one for one in ratios if chosen[one.theirs.workload] is one.theirs.measure]


def compare(before: Result, after: Result) -> list[Comparison]:
    """What both runs measured on the same terms, in the order of the later one."""
    earlier = {_key(one): one for one in before.figures}
    return [
        Comparison(earlier[_key(one)], one, times_better(one, one.value, earlier[_key(one)].value))
        for one in after.figures
        if _key(one) in earlier
    ]


def times_better(figure: Figure, value: float, other: float) -> float:
    """How many times better a value of a figure's measure is than another; infinite beside 0."""
    above, below = (value, other) if figure.measure.is_better_higher else (other, value)
    if above == below:
        return 1.0
    return above / below if below else math.inf


def _key(figure: Figure) -> tuple[str, ...]:
    return figure.subject, figure.workload, figure.measure, figure.note
