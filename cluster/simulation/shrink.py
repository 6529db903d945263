"""Makes a failing run small: a shorter time, fewer kinds of faults, fewer clients, fewer nodes.

Each step is kept if the run still fails, with whatever violation: a smaller run that breaks another
rule is as good a beginning. Kinds of faults draw from streams of their own, so leaving one out does
not disturb the others; they are left out by halves, quarters and so on ("delta debugging", Zeller
and Hildebrandt 2002). Relies on `world.simulate` alone.
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
MIN_NODES: Final = 3
"""The smallest cluster that survives a crash."""
MIN_SECONDS: Final = 0.06
DECIMALS: Final = 3
"""Of a run's seconds: few enough to be given again on a command line without a loss."""
_MARGIN_S: Final = 0.01


def shrink(failed: Result) -> Result:
    """Return the smallest failing run that was found; `failed` itself where none is smaller."""
    search = _Search(failed)
    while search.narrow() and search.has_runs:
        pass
    return search.best


class _Search:
    """The smallest failing run so far, and how many runs it has cost."""

    def __init__(self, failed: Result) -> None:
        self.best = failed
        self._runs = 0

    @property
    def has_runs(self) -> bool:
        """Whether another run may be made."""
        return self._runs < MAX_RUNS

    def narrow(self) -> bool:
        """Try to make it smaller in every way once; whether anything helped."""
        before = self.best
        self._shorten()
        self._leave_out([kind for kind in self._kinds() if not self.best.faults.get(kind)])
        self._leave_out_by_parts()
        while self._scenario.clients > 1 and self._fails(clients=self._scenario.clients - 1):
            pass
        if self._scenario.nodes - 2 >= MIN_NODES:
            self._fails(nodes=self._scenario.nodes - 2)
        return self.best is not before

    @property
    def _scenario(self) -> Scenario:
        return self.best.scenario

    def _kinds(self) -> list[Fault]:
        return [kind for kind, rate in self._scenario.rates().items() if rate > 0.0]

    def _shorten(self) -> None:
        """End right after the violation; or at half time, where it came after all was healed."""
        seconds = self.best.violation_us / MICROS_PER_SECOND + _MARGIN_S
        if seconds >= self._scenario.seconds:
            seconds = self._scenario.seconds / 2
        seconds = round(max(MIN_SECONDS, seconds), DECIMALS)
        if seconds < self._scenario.seconds - 2 * _MARGIN_S:
            self._fails(seconds=seconds)

    def _leave_out_by_parts(self) -> None:
        size = (len(self._kinds()) + 1) // 2
        while size:
            kinds = self._kinds()
            for start in range(0, len(kinds), size):
                self._leave_out(kinds[start : start + size])
            size //= 2

    def _leave_out(self, kinds: list[Fault]) -> None:
        if kinds:
            self._fails(without=(*self._scenario.without, *kinds))

    def _fails(self, **smaller: object) -> bool:
        """Run the best scenario with that changed; where it fails, it is the best."""
        if not self.has_runs:
            return False
        self._runs += 1
        result = simulate(replace(self._scenario, **smaller))  # type: ignore[arg-type]  # its fields
        if result.violation is None:
            return False
        self.best = result
        return True
