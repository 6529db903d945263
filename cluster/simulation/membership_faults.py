"""Breaks what an administrator looks after: wipes disks, wants other members, asks for transfers.

As in `nemesis.py`, each kind has a random stream its own. Relies on `administrator` to do what a
person would do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.simulation.faults import MICROS_PER_SECOND, Fault
from consensus.changes import ChangeError
from consensus.ready import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from cluster.simulation.administrator import Administrator, Site
    from cluster.simulation.events import EventQueue
    from cluster.simulation.faults import Scenario
    from cluster.simulation.machine import Machine
    from cluster.simulation.record import Trace
    from cluster.simulation.watch import Watch
    from consensus.messages import MemberId

MINUTE_S: Final = 60
MAX_MEMBERS: Final = 7
SPARES: Final = 2
"""Machines that are there beside the first members."""
AMID_US: Final = 50_000


class MembershipNemesis:
    """The source of all episodes of faults that have to do with members in one run."""

    def __init__(
        self,
        *,
        scenario: Scenario,
        queue: EventQueue,
        trace: Trace,
        watch: Watch,
        administrator: Administrator,
        on_strike: Callable[[], None],
    ) -> None:
        """Plans the first strike of each kind."""
        self._queue = queue
        self._trace = trace
        self._watch = watch
        self._administrator = administrator
        self._stopped = False
        self._on_strike = on_strike
        sizes = scenario.stream("sizes")
        self._least = min(scenario.nodes, sizes.choice((1, 2, 3, 3, 3)))
        self._most = max(scenario.nodes, min(MAX_MEMBERS, scenario.nodes + sizes.randrange(3)))
        rates = scenario.rates()
        strikes: dict[Fault, Callable[[Random], None]] = {
            Fault.MEMBER_CHANGE: self._want_others,
            Fault.TRANSFER: self._transfer,
            Fault.WIPED_DISK: self._wipe,
        }
        for kind, strike in strikes.items():
            if rates.get(kind, 0.0) > 0.0:
                random = scenario.stream(f"nemesis {kind}")
                self._plan(random, rates[kind] / MINUTE_S, strike)
        self._amid = scenario.stream("amid changes")
        self._amid_rate = rates.get(Fault.CRASH_AMID, 0.0)
        administrator.on_change = self._crash_amid

    def stop(self) -> None:
        """All faults are over."""
        self._stopped = True

    def _plan(self, random: Random, per_second: float, strike: Callable[[Random], None]) -> None:
        def act() -> None:
            if not self._stopped:
                strike(random)
                self._on_strike()
                self._plan(random, per_second, strike)

        self._queue.after(int(random.expovariate(per_second) * MICROS_PER_SECOND), act)

    def _wipe(self, random: Random) -> None:
        """A disk is lost; where that would lose the quorum for good, it is not."""
        sites = [site for site in self._administrator.sites if site.machine.in_service]
        victim = self._leading(sites) if random.random() < 0.3 else None  # noqa: PLR2004 - a share
        victim = victim or random.choice(sites)
        if self._watch.members.is_survivable({victim.machine.member}):
            self._trace.fault(self._queue.now_us, Fault.WIPED_DISK, victim.machine.name)
            self._administrator.wipe(victim)

    def _want_others(self, random: Random) -> None:
        """Grow, shrink or move; who is to go is the leader as often as not."""
        sites = self._administrator.sites
        wanted = [site for site in sites if site.is_wanted]
        spare = [site for site in sites if not site.is_wanted and not site.machine.in_service]
        quiet = [site for site in wanted if self._administrator.is_at_rest(site)]
        draw = random.random()
        if draw < 0.15:  # noqa: PLR2004 - this and the following are shares of what is wanted
            if quiet:
                self._administrator.move(random.choice(quiet), restarts=draw < 0.1)  # noqa: PLR2004 - a share
        elif draw < 0.6 and spare and len(wanted) < self._most:  # noqa: PLR2004 - see above
            self._administrator.enlist(random.choice(spare))
        elif quiet and len(wanted) > self._least:
            leader = self._leading(quiet) if draw < 0.8 else None  # noqa: PLR2004 - see above
            self._administrator.retire(leader or random.choice(quiet))

    def _transfer(self, random: Random) -> None:
        """Whoever leads is to hand over, to any member or to whom it likes."""
        leader = self._leading(self._administrator.sites)
        if leader is None:
            return
        members = leader.machine.running.raft.log.roster.latest.members
        target = random.choice([None, *members])

        def hand_over(machine: Machine) -> None:
            machine.advance()
            try:
                key = target.public_key if target is not None else None
                successor = machine.running.raft.transfer_leadership(key)
            except ChangeError as refusal:
                self._trace.coverage[f"transfers refused: {refusal.reason}"] += 1
                return
            name = target.name if target is not None else "anybody"
            self._trace.fault(self._queue.now_us, Fault.TRANSFER, f"{machine.name} to {name}")
            self._crash_amid(machine, successor)

        leader.machine.call(hand_over)

    def _crash_amid(self, leader: Machine, other: MemberId) -> None:
        """What has just begun does not always end: the leader, or whom it concerns, crashes."""
        if self._stopped or self._amid.random() >= self._amid_rate:
            return
        machines = [site.machine for site in self._administrator.sites]
        concerned = [machine for machine in machines if machine.member == other]
        victim = self._amid.choice([leader, *concerned])
        life = victim.life

        def crash() -> None:
            if victim.life == life and victim.replica is not None and not self._stopped:
                self._trace.fault(self._queue.now_us, Fault.CRASH_AMID, victim.name)
                victim.crash(Fault.CRASH_AMID)

        self._queue.after(int(AMID_US * self._amid.random() ** 3), crash)

    def _leading(self, sites: Sequence[Site]) -> Site | None:
        """The one that leads the latest term."""
        leaders = [
            (site.machine.running.raft.term, site.machine.number, site)
            for site in sites
            if site.machine.replica is not None and site.machine.running.raft.role is Role.LEADER
        ]
        return max(leaders)[-1] if leaders else None
