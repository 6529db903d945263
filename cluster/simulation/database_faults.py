"""Breaks PostgreSQL and what leads to it: the part of the nemesis that strikes checkpoints.

As in `nemesis.py`, each kind has a random stream its own. Relies on `database_client` to do as it
is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.simulation.database_client import CheckpointBoundary
from cluster.simulation.faults import MICROS_PER_SECOND, Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from cluster.simulation.database_client import DatabaseWire
    from cluster.simulation.events import EventQueue
    from cluster.simulation.faults import Scenario
    from cluster.simulation.record import Trace

MINUTE_S: Final = 60
MIN_DOWN_US: Final = 50_000
MAX_DOWN_FACTOR: Final = 300
"""The server is down for 0.05 to 15 s, short times as likely as ten times longer ones."""
MAX_FROZEN_US: Final = 8 * MICROS_PER_SECOND
MAX_SLOW_US: Final = 300_000
"""What a slow server adds to one statement."""
BOUNDARIES: Final = tuple(CheckpointBoundary)


class DatabaseNemesis:
    """The source of all episodes of faults of PostgreSQL in one run."""

    def __init__(
        self, *, scenario: Scenario, queue: EventQueue, trace: Trace, wire: DatabaseWire
    ) -> None:
        """Plans the first strike of each kind."""
        self._queue = queue
        self._trace = trace
        self._wire = wire
        self._stopped = False
        rates = scenario.rates()
        strikes: dict[Fault, Callable[[Random], None]] = {
            Fault.DATABASE_DOWN: self._kill,
            Fault.DATABASE_FROZEN: self._freeze,
            Fault.DATABASE_SLOW: self._slow_down,
            Fault.DATABASE_RESET: self._reset,
            Fault.LOST_COMMIT_ANSWER: self._lose_commit,
            Fault.CRASH_AT_CHECKPOINT: self._crash_at_checkpoint,
        }
        for kind, strike in strikes.items():
            if rates.get(kind, 0.0) > 0.0:
                random = scenario.stream(f"nemesis {kind}")
                self._plan(random, rates[kind] / MINUTE_S, strike)

    def stop(self) -> None:
        """All faults are over: mend what is broken, start what is down."""
        self._stopped = True
        self._wire.heal()

    def _plan(self, random: Random, per_second: float, strike: Callable[[Random], None]) -> None:
        def act() -> None:
            if not self._stopped:
                strike(random)
                self._plan(random, per_second, strike)

        self._queue.after(int(random.expovariate(per_second) * MICROS_PER_SECOND), act)

    def _fault(self, kind: Fault, text: str) -> None:
        self._trace.fault(self._queue.now_us, kind, text)

    def _kill(self, random: Random) -> None:
        duration_us = int(MIN_DOWN_US * MAX_DOWN_FACTOR ** random.random())
        self._fault(Fault.DATABASE_DOWN, f"for {duration_us} µs")
        self._wire.database.die()
        self._queue.after(duration_us, self._wire.database.start)

    def _freeze(self, random: Random) -> None:
        duration_us = random.randrange(100_000, MAX_FROZEN_US)
        self._fault(Fault.DATABASE_FROZEN, f"for {duration_us} µs")
        self._wire.frozen_until_us = self._queue.now_us + duration_us

    def _slow_down(self, random: Random) -> None:
        self._wire.slow_us = random.randrange(2_000, MAX_SLOW_US)
        self._fault(Fault.DATABASE_SLOW, f"up to {self._wire.slow_us} µs a statement")
        self._queue.after(random.randrange(300_000, 8 * MICROS_PER_SECOND), self._quicken)

    def _quicken(self) -> None:
        self._wire.slow_us = 0

    def _reset(self, random: Random) -> None:
        """One connection breaks: half of the time the writer's, which has most to lose."""
        connections = self._wire.connections
        writers = [each for each in connections if each.is_writer]
        if writers and random.random() < 0.5:  # noqa: PLR2004 - half of the time
            connections = writers
        if connections:
            victim = random.choice(connections)
            self._fault(Fault.DATABASE_RESET, victim.session.node)
            victim.break_off()

    def _lose_commit(self, random: Random) -> None:
        self._wire.loses_commit = random.random() < 0.5  # noqa: PLR2004 - half of the time
        fate = "carried out" if self._wire.loses_commit else "lost"
        self._fault(Fault.LOST_COMMIT_ANSWER, f"the next is {fate}")

    def _crash_at_checkpoint(self, random: Random) -> None:
        self._wire.crash_at = random.choice(BOUNDARIES)
        self._fault(Fault.CRASH_AT_CHECKPOINT, self._wire.crash_at)
