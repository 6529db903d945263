"""Makes a failing run small: fewer kinds of faults, fewer clients, fewer nodes, a shorter time.

Each step is kept if the run still fails, with whatever violation: a smaller run that breaks another
rule is as good a beginning. Kinds are left out by halves, then quarters, down to one by one (Zeller
and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002). Leaving one out gives
the run another course, which needs time to fail again: so the time is cut last. Relies on
`world.simulate` alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cluster.simulation.faults import MICROS_PER_SECOND
from cluster.simulation.world import simulate

if TYPE_CHECKING:
    from cluster.simulation.faults import Fault, Scenario
    from cluster.simulation.world import Result

MAX_RUNS: Final = 100
"""How many runs a shrink may cost."""
SMALLEST_CLUSTER: Final = 3
"""The smallest that survives a crash."""


def shrink(failed: Result) -> Result:
    """Return the smallest failing run that was found; `failed` itself where none is smaller."""
    shrinking = _Shrinking(failed)
    shrinking.leave_out_kinds()
    shrinking.leave_out_clients()
    shrinking.leave_out_nodes()
    shrinking.cut_time()
    return shrinking.best


class _Shrinking:
    """The smallest failing run so far."""

    def __init__(self, failed: Result) -> None:
        self.best = failed
        self._runs = 0

    def leave_out_kinds(self) -> None:
        """Until none of those that are left can be left out alone."""
        size = max(1, len(self._kinds()) // 2)
        while self._runs < MAX_RUNS:
            is_smaller = False
            kinds = self._kinds()
            for first in range(0, len(kinds), size):
                is_smaller |= self._leave_out(kinds[first : first + size])
            if size == 1 and not is_smaller:
                return
            size = max(1, size // 2)

    def leave_out_clients(self) -> None:
        """By halves, as long as it fails."""
        while (clients := self._scenario.clients) > 1:
            if not self._try(replace(self._scenario, clients=clients // 2)):
                return

    def leave_out_nodes(self) -> None:
        """Two at a time, so that majorities stay what they are."""
        while (nodes := self._scenario.nodes) > SMALLEST_CLUSTER:
            if not self._try(replace(self._scenario, nodes=nodes - 2)):
                return

    def cut_time(self) -> None:
        """The faults end where the violation was: earlier ones may have been enough."""
        until_us = self.best.violation_us
        if until_us < self._scenario.seconds * 0.9 * MICROS_PER_SECOND:
            seconds = round(until_us / MICROS_PER_SECOND + 0.01, 3)
            self._try(replace(self._scenario, seconds=seconds))

    @property
    def _scenario(self) -> Scenario:
        return self.best.scenario

    def _kinds(self) -> list[Fault]:
        return [kind for kind, rate in self._scenario.rates().items() if rate > 0.0]

    def _leave_out(self, kinds: list[Fault]) -> bool:
        return self._try(replace(self._scenario, without=(*self._scenario.without, *kinds)))

    def _try(self, candidate: Scenario) -> bool:
        if self._runs == MAX_RUNS:
            return False
        self._runs += 1
        result = simulate(candidate)
        if result.violation is not None:
            self.best = result
        return result.violation is not None
