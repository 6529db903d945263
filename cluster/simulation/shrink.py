"""Makes a failing run small: fewer kinds of faults, fewer clients, fewer nodes, a shorter time.

Each step is kept if the run still fails, with whatever violation: a smaller run that breaks another
rule is as good a beginning. Kinds of faults draw from streams of their own, so leaving one out does
not disturb the others. Relies on `world.simulate` alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cluster.simulation.faults import MICROS_PER_SECOND
from cluster.simulation.world import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.simulation.faults import Scenario
    from cluster.simulation.world import Result

MAX_RUNS: Final = 60
"""How many runs a shrink may cost."""


def shrink(failed: Result) -> Result:
    """Return the smallest failing run that was found; `failed` itself where none is smaller."""
    best, runs = failed, 0
    progress = True
    while progress:
        progress = False
        for candidate in _smaller(best):
            runs += 1
            if runs > MAX_RUNS:
                return best
            result = simulate(candidate)
            if result.violation is not None:
                best, progress = result, True
                break
    return best


def _smaller(result: Result) -> Iterator[Scenario]:
    """Scenarios that are smaller in one way, the most promising first."""
    scenario = result.scenario
    until_violation_s = result.violation_us / MICROS_PER_SECOND
    if until_violation_s < scenario.seconds * 0.9:
        yield replace(scenario, seconds=round(until_violation_s + 0.01, 3))
    for kind, rate in scenario.rates().items():
        if rate > 0.0:
            yield replace(scenario, without=(*scenario.without, kind))
    if scenario.clients > 1:
        yield replace(scenario, clients=scenario.clients - 1)
    if scenario.nodes > 3:  # noqa: PLR2004 - the smallest cluster that survives a crash
        yield replace(scenario, nodes=scenario.nodes - 2)
