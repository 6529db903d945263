"""Ratios: of this ledger to its peers and to what is possible, and of one run to another.

Only figures of the same workload, measure and terms are compared. Above 1 is always better,
whichever way the measure goes. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.bench.limits import Bound, bound_of
from cluster.bench.plan import LEDGER, MACHINE

if TYPE_CHECKING:
    from cluster.bench.figures import Figure
    from cluster.bench.result import Result

NOISE: Final = 0.05
"""A difference that says nothing: two runs of the same commit differ by as much."""


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
    """This ledger beside everyone else who did the same."""
    ours = {(one.workload, one.measure): one for one in result.figures if one.subject == LEDGER}
    ratios = []
    for theirs in result.figures:
        own = ours.get((theirs.workload, theirs.measure))
        if own is not None and theirs.subject not in {LEDGER, MACHINE}:
            ratios.append(PeerRatio(own, theirs, times_better(own, own.value, theirs.value)))
    return ratios


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
