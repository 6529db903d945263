"""Breaks the cluster: begins and ends the episodes of faults, each kind by a random stream its own.

A kind that is left out of a scenario leaves the plans of the others as they are, which is what lets
a failure be shrunk. Relies on the machines and the network to do as they are told.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from cluster.simulation.boundary import BOUNDARIES
from cluster.simulation.disk import SLOW_SAVE_US, Room
from cluster.simulation.faults import MICROS_PER_SECOND, Fault
from consensus.quorum import majority_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from cluster.simulation.events import EventQueue
    from cluster.simulation.faults import Scenario
    from cluster.simulation.machine import Machine
    from cluster.simulation.network import Link, Network
    from cluster.simulation.record import Trace

MINUTE_S: Final = 60
MIN_PAUSE_US: Final = 100_000
MAX_PAUSE_FACTOR: Final = 300
"""Pauses last 0.1 to 30 s, short ones as likely as ten times longer ones."""
MAX_STEP_US: Final = 3600 * MICROS_PER_SECOND
TOGETHER: Final = 0.1
"""How often several machines crash on one boundary."""
MAX_DAMAGED: Final = 12
"""Blocks that go bad at once."""


class Nemesis:
    """The source of all episodes of faults of one run."""

    def __init__(
        self,
        *,
        scenario: Scenario,
        queue: EventQueue,
        trace: Trace,
        network: Network,
        machines: Sequence[Machine],
        on_strike: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._trace = trace
        self._network = network
        self._machines = machines
        self._stopped = False
        self._on_strike = on_strike
        self._restarts = scenario.stream("restarts")
        rates = scenario.rates()
        strikes: dict[Fault, Callable[[Random], None]] = {
            Fault.CRASH_ONE: self._crash_one,
            Fault.CRASH_AT_SAVE: partial(self._crash_at, Fault.CRASH_AT_SAVE),
            Fault.CRASH_AT_COMMIT: partial(self._crash_at, Fault.CRASH_AT_COMMIT),
            Fault.CRASH_AT_INDEX: partial(self._crash_at, Fault.CRASH_AT_INDEX),
            Fault.CRASH_IN_RECOVERY: self._crash_in_recovery,
            Fault.CRASH_MAJORITY: self._crash_majority,
            Fault.CRASH_ALL: self._crash_all,
            Fault.PARTITION: self._partition,
            Fault.ONE_WAY: self._one_way,
            Fault.LINK: self._cut_link,
            Fault.FLAP: self._flap,
            Fault.SWIZZLE: self._swizzle,
            Fault.SLOW_NETWORK: self._slow_network,
            Fault.PAUSE: self._pause,
            Fault.DISK_STALL: self._stall,
            Fault.SLOW_DISK: self._slow_disk,
            Fault.FULL_DISK: self._fill_disk,
            Fault.CORRUPT_READ: self._corrupt_reads,
            Fault.CLOCK_STEP: self._step_clock,
        }
        for kind, strike in strikes.items():
            if rates.get(kind, 0.0) > 0.0:
                random = scenario.stream(f"nemesis {kind}")
                self._plan(random, rates[kind] / MINUTE_S, strike)
        self._fresh = scenario.stream("fresh leaders")
        self._fresh_rate = rates.get(Fault.CRASH_FRESH, 0.0)
        drift, random = rates.get(Fault.CLOCK_DRIFT, 0.0), scenario.stream("drift")
        for machine in machines:
            machine.on_crash = self._restart_later
            machine.clock.drift = random.uniform(-drift, drift)

    def stop(self) -> None:
        """All faults are over: mend what is broken, start what is down."""
        self._stopped = True
        self._network.calm()
        for machine in self._machines:
            machine.crash_at = None
            machine.disk.mend()
            machine.wake_up()
            if machine.replica is None:
                machine.start()

    def _plan(self, random: Random, per_second: float, strike: Callable[[Random], None]) -> None:
        def act() -> None:
            if not self._stopped:
                strike(random)
                self._on_strike()
                self._plan(random, per_second, strike)

        self._queue.after(int(random.expovariate(per_second) * MICROS_PER_SECOND), act)

    def _fault(self, kind: Fault, text: str) -> None:
        self._trace.fault(self._queue.now_us, kind, text)

    # Crashes

    def _up(self) -> list[Machine]:
        return [machine for machine in self._machines if machine.replica is not None]

    def _victim(self, random: Random) -> Machine | None:
        """Someone who runs; half of the time the leader, who has most to lose."""
        up = self._up()
        leaders = [m for m in up if m.running.raft.leadership is not None]
        if leaders and random.random() < 0.5:  # noqa: PLR2004 - half of the time
            return random.choice(leaders)
        return random.choice(up) if up else None

    def _restart_later(self, machine: Machine) -> None:
        delay_us = int(self._restarts.expovariate(1.0) * MICROS_PER_SECOND) + 20_000

        def start() -> None:
            if machine.replica is None:
                machine.start()
                for other in self._up():
                    if other is not machine:
                        self._queue.after(5_000, partial(other.hint_reachable, machine.member))

        self._queue.after(delay_us, start)
        for other in self._up():
            if not self._network.is_cut(machine.number, other.number):
                notice_us = self._restarts.randrange(2_000)
                hint = partial(other.hint_unreachable, machine.member)
                self._queue.after(notice_us, hint)

    def _crash(self, kind: Fault, victims: Sequence[Machine]) -> None:
        self._fault(kind, ", ".join(machine.name for machine in victims))
        for machine in victims:
            machine.crash(kind)

    def _crash_one(self, random: Random) -> None:
        victim = self._victim(random)
        if victim is not None:
            self._crash(Fault.CRASH_ONE, [victim])

    def _victims(self, random: Random) -> list[Machine]:
        """One, as a rule; now and then a majority or all, as when the power fails."""
        up = self._up()
        if up and random.random() < TOGETHER:
            most = min(len(up), majority_of(len(self._machines)))
            return random.sample(up, random.choice((most, len(up))))
        victim = self._victim(random)
        return [] if victim is None else [victim]

    def _crash_at(self, kind: Fault, random: Random) -> None:
        victims, boundary = self._victims(random), random.choice(BOUNDARIES[kind])
        if victims:
            for victim in victims:
                victim.crash_at = boundary
            self._fault(kind, f"{', '.join(victim.name for victim in victims)} {boundary}")

    def _crash_in_recovery(self, random: Random) -> None:
        """Crash somebody, and then again before they have recovered."""
        victims = self._victims(random)
        if victims:
            self._crash(Fault.CRASH_IN_RECOVERY, victims)
            for victim in victims:
                victim.crash_at = random.choice(BOUNDARIES[Fault.CRASH_IN_RECOVERY])

    def elected(self, machine: Machine) -> None:
        """A leader's first moments are the most delicate: some do not survive them."""
        if not self._stopped and self._fresh.random() < self._fresh_rate:
            life = machine.life

            def crash() -> None:
                if machine.life == life and not self._stopped:
                    self._crash(Fault.CRASH_FRESH, [machine])

            delay_us = int(50_000 * self._fresh.random() ** 3)  # as a rule at once
            self._queue.after(delay_us, crash)

    def _crash_majority(self, random: Random) -> None:
        up = self._up()
        count = min(len(up), majority_of(len(self._machines)))
        self._crash(Fault.CRASH_MAJORITY, random.sample(up, count))

    def _crash_all(self, random: Random) -> None:
        up = self._up()
        self._crash(Fault.CRASH_ALL, random.sample(up, len(up)))

    # The network

    def _for_a_while(self, random: Random, links: list[Link], *, longest_s: float) -> None:
        self._network.cut(links)
        duration_us = int(random.uniform(0.05, longest_s) * MICROS_PER_SECOND)
        self._queue.after(duration_us, partial(self._mend, links))

    def _mend(self, links: list[Link]) -> None:
        if not self._stopped:
            self._network.mend(links)

    def _side(self, random: Random) -> set[int]:
        """One side of a partition: the leader alone, or any part of the cluster."""
        leader = self._victim(random)
        if leader is not None and random.random() < 0.5:  # noqa: PLR2004 - half of the time
            return {leader.number}
        numbers = range(len(self._machines))
        return set(random.sample(numbers, random.randrange(1, len(numbers))))

    def _partition(self, random: Random) -> None:
        side = self._side(random)
        links = [(one, other) for one, other in self._links() if (one in side) != (other in side)]
        self._fault(Fault.PARTITION, _names(side))
        self._for_a_while(random, links, longest_s=6.0)

    def _one_way(self, random: Random) -> None:
        side = self._side(random)
        links = [(one, other) for one, other in self._links() if one in side and other not in side]
        if random.random() < 0.5:  # noqa: PLR2004 - into the side instead of out of it
            links = [(other, one) for one, other in links]
        self._fault(Fault.ONE_WAY, _names(side))
        self._for_a_while(random, links, longest_s=4.0)

    def _cut_link(self, random: Random) -> None:
        one, other = random.sample(range(len(self._machines)), 2)
        self._fault(Fault.LINK, _names({one, other}))
        self._for_a_while(random, [(one, other), (other, one)], longest_s=8.0)

    def _flap(self, random: Random) -> None:
        side = self._side(random)
        links = [(one, other) for one, other in self._links() if (one in side) != (other in side)]
        self._fault(Fault.FLAP, _names(side))
        start_us = 0
        for _ in range(random.randrange(4, 16)):
            start_us += random.randrange(50_000, 500_000)
            cut = partial(self._flap_once, random, links)
            self._queue.after(start_us, cut)

    def _flap_once(self, random: Random, links: list[Link]) -> None:
        if not self._stopped:
            self._for_a_while(random, links, longest_s=0.4)

    def _swizzle(self, random: Random) -> None:
        """Cut some nodes off one by one, and mend them one by one in another order.

        FoundationDB's "swizzle-clogging": rare states come up while only some are back.
        """
        numbers = range(len(self._machines))
        victims = random.sample(numbers, random.randrange(1, len(numbers) + 1))
        self._fault(Fault.SWIZZLE, ", ".join(self._machines[one].name for one in victims))
        at_us = 0
        for victim in victims:
            at_us += random.randrange(400_000)
            self._queue.after(at_us, partial(self._cut_off, victim))
        at_us += random.randrange(2 * MICROS_PER_SECOND)
        for victim in random.sample(victims, len(victims)):
            at_us += random.randrange(400_000)
            self._queue.after(at_us, partial(self._mend, self._links_of(victim)))

    def _cut_off(self, victim: int) -> None:
        if not self._stopped:
            self._network.cut(self._links_of(victim))

    def _links_of(self, victim: int) -> list[Link]:
        return [link for link in self._links() if victim in link]

    def _slow_network(self, random: Random) -> None:
        self._network.jitter_us = random.randrange(2_000, 200_000)
        self._fault(Fault.SLOW_NETWORK, f"up to {self._network.jitter_us} µs a message")
        duration_us = random.randrange(300_000, 8 * MICROS_PER_SECOND)
        self._queue.after(duration_us, self._network.quicken)

    def _links(self) -> list[Link]:
        numbers = range(len(self._machines))
        return [(one, other) for one in numbers for other in numbers if one != other]

    # Processors, disks, clocks

    def _pause(self, random: Random) -> None:
        victim = self._victim(random)
        if victim is not None:
            duration_us = int(MIN_PAUSE_US * MAX_PAUSE_FACTOR ** (random.random() ** 2))
            self._fault(Fault.PAUSE, f"{victim.name} for {duration_us} µs")
            victim.pause(duration_us)

    def _stall(self, random: Random) -> None:
        victim = random.choice(self._machines)
        duration_us = random.randrange(100_000, 4 * MICROS_PER_SECOND)
        self._fault(Fault.DISK_STALL, f"{victim.name} for {duration_us} µs")
        victim.disk.stalled_until_us = self._queue.now_us + duration_us

    def _slow_disk(self, random: Random) -> None:
        victim = random.choice(self._machines)
        victim.disk.save_us = random.randrange(SLOW_SAVE_US)
        self._fault(Fault.SLOW_DISK, f"{victim.name}: {victim.disk.save_us} µs a save")
        self._queue.after(random.randrange(6 * MICROS_PER_SECOND), victim.disk.quicken)

    def _fill_disk(self, random: Random) -> None:
        """The node stops at what it cannot save, and is started in vain until there is room."""
        victim = self._victim(random) or random.choice(self._machines)
        room = random.choice((Room.NONE_FOR_BLOCKS, Room.NONE_FOR_INDEX, Room.NONE))
        duration_us = random.randrange(200_000, 6 * MICROS_PER_SECOND)
        self._fault(Fault.FULL_DISK, f"{victim.name}, {room.name}, for {duration_us} µs")
        victim.disk.room = room
        self._queue.after(duration_us, partial(self._make_room, victim))

    def _make_room(self, victim: Machine) -> None:
        victim.disk.room = Room.PLENTY

    def _corrupt_reads(self, random: Random) -> None:
        """Some of what a node knows to be committed is read badly, until its disk is repaired."""
        victim = random.choice(self._machines)
        old = range(1, min(victim.chain.hard_state.commit_index + 1, victim.chain.last_index))
        bad = sorted(random.sample(old, min(len(old), random.randrange(1, MAX_DAMAGED))))
        duration_us = random.randrange(300_000, 8 * MICROS_PER_SECOND)
        self._fault(Fault.CORRUPT_READ, f"{victim.name}, blocks {bad} for {duration_us} µs")
        victim.chain.damaged.update(bad)
        self._queue.after(duration_us, partial(victim.disk.repair, bad))

    def _step_clock(self, random: Random) -> None:
        victim = random.choice(self._machines)
        victim.clock.wall_offset_us += random.randrange(-MAX_STEP_US, MAX_STEP_US)
        self._fault(Fault.CLOCK_STEP, f"{victim.name} is off by {victim.clock.wall_offset_us} µs")


def _names(numbers: set[int]) -> str:
    return ", ".join(f"node{number + 1}" for number in sorted(numbers))
