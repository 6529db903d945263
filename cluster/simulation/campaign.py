"""Many seeds on all cores: runs them in processes of their own, adds up what they saw.

A worker gets a scenario and gives a result; nothing is shared, so how the work is spread changes
nothing in what is found. Relies on `multiprocessing` with fresh interpreters.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TYPE_CHECKING

from cluster.simulation.faults import MICROS_PER_SECOND, Scenario
from cluster.simulation.world import Result, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@dataclass(slots=True)
class Summary:
    """What all runs of a campaign came to together."""

    runs: int = 0
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    events: int = 0
    blocks: int = 0
    operations: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    coverage: Counter[str] = field(default_factory=Counter)
    failed: list[Result] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Simulated seconds for each second of one core."""
        return self.simulated_s / self.cpu_s if self.cpu_s else 0.0

    def add(self, result: Result, cpu_s: float) -> None:
        """Count one more run."""
        self.runs += 1
        self.simulated_s += result.simulated_us / MICROS_PER_SECOND
        self.cpu_s += cpu_s
        self.events += result.events
        self.blocks += result.blocks
        self.operations += result.operations
        self.faults.update(result.faults)
        self.coverage.update(result.coverage)
        if result.violation is not None:
            self.failed.append(result)


def run_campaign(
    scenarios: Iterable[Scenario], *, workers: int | None, on_run: Callable[[int], None]
) -> Summary:
    """Run every scenario; `on_run` hears how many are done. Failures are in order of seeds."""
    summary = Summary()
    for result, cpu_s in _results(list(scenarios), workers or os.cpu_count() or 1):
        summary.add(result, cpu_s)
        on_run(summary.runs)
    summary.failed.sort(key=lambda result: result.scenario.seed)
    return summary


def _results(scenarios: list[Scenario], workers: int) -> Iterator[tuple[Result, float]]:
    if workers == 1 or len(scenarios) == 1:
        yield from map(_timed, scenarios)
        return
    with get_context("spawn").Pool(min(workers, len(scenarios))) as pool:
        yield from pool.imap_unordered(_timed, scenarios)


def _timed(scenario: Scenario) -> tuple[Result, float]:
    """A result, and the processor time it cost in seconds."""
    start_s = time.process_time()
    result = simulate(scenario)
    return result, time.process_time() - start_s
