"""The wires between simulated machines: bytes go in, and come out late, twice, elsewhere or never.

Calm wires keep the order of each lane, as TCP does. Links are cut by episodes that may overlap, so
a link is open once every episode that cut it is over. Relies on the event queue and the trace.
"""

from __future__ import annotations

from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Final

from cluster.simulation.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cluster.simulation.events import EventQueue
    from cluster.simulation.faults import Scenario
    from cluster.simulation.record import Trace
    from node.lane import Lane

MIN_DELAY_US: Final = 100
JITTER_US: Final = 400
LATE_US: Final = 300_000
"""A delayed message is at most this late: about one election timeout."""
REMEMBERED: Final = 400
"""How many old messages are kept to be replayed."""

Link = tuple[int, int]


class Network:
    """Machines are numbers here; `deliver(source, target, raw)` hands a message over."""

    def __init__(
        self,
        *,
        queue: EventQueue,
        trace: Trace,
        scenario: Scenario,
        deliver: Callable[[int, int, bytes], None],
    ) -> None:
        self._queue = queue
        self._trace = trace
        self._deliver = deliver
        self._random = scenario.stream("network")
        self._rates = scenario.rates()
        # Each kind draws from a stream of its own: without one, the others strike as they did.
        self._draws = {kind: scenario.stream(f"network {kind}") for kind in self._rates}
        self._cuts: Counter[Link] = Counter()
        self._last_due: dict[tuple[int, int, Lane], int] = {}
        self._old: deque[tuple[int, int, bytes]] = deque(maxlen=REMEMBERED)
        self.repeated = False
        self.jitter_us = JITTER_US
        self.forge: Callable[[int, bytes], bytes | None] = lambda _source, _raw: None

    def calm(self) -> None:
        """Stop all faults; what is on its way still arrives."""
        self._rates = {}
        self._cuts.clear()
        self.quicken()

    def quicken(self) -> None:
        """Messages take their normal time again."""
        self.jitter_us = JITTER_US

    def cut(self, links: Iterable[Link]) -> None:
        """Cut links, one way each."""
        self._cuts.update(links)

    def mend(self, links: Iterable[Link]) -> None:
        """Take back one `cut` of each of these links."""
        for link in links:
            if self._cuts[link] <= 1:
                del self._cuts[link]
            else:
                self._cuts[link] -= 1

    def is_cut(self, source: int, target: int) -> bool:
        """Whether nothing gets through from `source` to `target`."""
        return (source, target) in self._cuts

    def send(self, source: int, target: int, lane: Lane, raw: bytes) -> None:
        """Takes a message; never waits."""
        if (source, target) in self._cuts:
            self._trace.coverage["messages cut off"] += 1
            return
        if self._happens(Fault.LOSS):
            return
        forged = self.forge(source, raw) if self._happens_quietly(Fault.FORGERY) else None
        if forged is not None:
            self._trace.faults[Fault.FORGERY] += 1
            raw = forged
        due_us = self._due_us(source, target, lane)
        self._queue.at(due_us, partial(self._arrive, source, target, raw))
        if self._happens(Fault.DUPLICATE):
            self.repeated = True
            again_us = due_us + int(
                LATE_US * self._draws[Fault.DUPLICATE].random() ** 3
            )  # most of them soon
            self._queue.at(again_us, partial(self._arrive, source, target, raw))
        if Fault.REPLAY in self._rates:
            self._replay(source, target, raw)

    def _due_us(self, source: int, target: int, lane: Lane) -> int:
        draw = self._random.random()
        due_us = self._queue.now_us + MIN_DELAY_US + int(draw * draw * self.jitter_us)
        if self._happens(Fault.DELAY):
            due_us += self._draws[Fault.DELAY].randrange(LATE_US)
        wire = (source, target, lane)
        if self._happens(Fault.REORDER):
            return due_us + self._draws[Fault.REORDER].randrange(LATE_US // 10)
        due_us = max(due_us, self._last_due.get(wire, 0))
        self._last_due[wire] = due_us
        return due_us

    def _replay(self, source: int, target: int, raw: bytes) -> None:
        """Some message of long ago arrives once more."""
        self._old.append((source, target, raw))
        if self._happens(Fault.REPLAY):
            self.repeated = True
            random = self._draws[Fault.REPLAY]
            old = random.choice(self._old)
            delay_us = random.randrange(10 * LATE_US)
            self._queue.after(delay_us, partial(self._arrive, *old))

    def _arrive(self, source: int, target: int, raw: bytes) -> None:
        if (source, target) in self._cuts:
            self._trace.coverage["messages cut off"] += 1
        else:
            self._deliver(source, target, raw)

    def _happens(self, kind: Fault) -> bool:
        happens = self._happens_quietly(kind)
        if happens:
            self._trace.faults[kind] += 1
        return happens

    def _happens_quietly(self, kind: Fault) -> bool:
        rate = self._rates.get(kind, 0.0)
        return rate > 0.0 and self._draws[kind].random() < rate
