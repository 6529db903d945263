"""The person who looks after the members of a simulated cluster, and does as such persons do.

It knows which machines are to be members and looks again and again at what the leader says: asks
that one to remove what is dead or not wanted, to add what is missing, and to move what has another
address. What is refused, or lost with its leader, is simply found undone by a later look. A wiped
machine gets a new key, an empty chain and the present members to ask, and is added as a new member;
never are so many disks given up that a quorum is lost for good. Relies on `Replica`'s own calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from nacl.signing import SigningKey

from cluster.simulation.faults import MICROS_PER_SECOND, Fault
from consensus.changes import Change, ChangeError, ChangeKind, ChangeRefusal
from consensus.membership import Member
from consensus.ready import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cluster.simulation.events import EventQueue
    from cluster.simulation.faults import Scenario
    from cluster.simulation.machine import Machine
    from cluster.simulation.record import Trace
    from cluster.simulation.watch import Watch
    from consensus.changes import Membership

LOOK_S: Final = 0.6
"""How long after one look the next is taken, on average; much sooner once all faults are over."""
TIDY_LOOK_US: Final = 60_000
LEADERLESS_US: Final = 2 * MICROS_PER_SECOND
"""After this long without a leader something must be done about it."""
LINGER_S: Final = 3.0
"""How long a removed node still runs, on average."""
SET_UP_S: Final = 1.5
"""How long it takes until a new data folder is made, on average."""


@dataclass(slots=True)
class Site:
    """A machine, and what is wanted of it."""

    machine: Machine
    member: Member
    """As it is to be in the cluster."""
    is_wanted: bool
    generation: int = 0
    switch_off_us: int | None = None


class Administrator:
    """Keeps the members as they are wanted."""

    def __init__(
        self,
        *,
        scenario: Scenario,
        queue: EventQueue,
        trace: Trace,
        watch: Watch,
        sites: Sequence[Site],
    ) -> None:
        """Nothing is done before `begin`."""
        self.sites = sites
        self.on_change: Callable[[Machine, bytes], None] = lambda _leader, _other: None
        self._queue = queue
        self._trace = trace
        self._watch = watch
        self._random = scenario.stream("administrator")
        self._is_over = False
        self._led_us = 0

    def begin(self) -> None:
        """Look after the cluster from now on."""
        self._queue.after(0, self._look)

    def finish(self) -> None:
        """All faults are over: make good what is broken, and quickly."""
        self._is_over = True
        for site in self.sites:
            if site.is_wanted:
                self._set_up(site)
        self._look()

    @property
    def is_settled(self) -> bool:
        """Whether the members are those that are wanted, all of them vote, and the others know."""
        present = self._watch.members.present
        wanted = tuple(sorted((s.member for s in self.sites if s.is_wanted), key=_name))
        if present.learners or present.members != wanted:
            return False
        machines = {site.machine.member: site.machine for site in self.sites}
        if any(machines[member.public_key].listens_at != member.peer for member in wanted):
            return False
        return all(
            site.machine.running.raft.removed_at is not None
            for site in self.sites
            if site.machine.replica is not None
            and site.machine.member in present.ever - present.keys
            and site.machine.listens_at == site.member.peer
            and self._reaches_member(site.machine)
        )

    # What is wanted

    def wipe(self, site: Site) -> None:
        """A disk is gone; some time later its machine gets a new one."""
        self._give_up(site, "its disk is wiped")
        delay_us = self._delay_us(SET_UP_S)
        self._queue.after(delay_us, partial(self._set_up, site))

    def enlist(self, site: Site) -> None:
        """A spare machine is to be a member."""
        site.is_wanted = True
        self._set_up(site)

    def retire(self, site: Site) -> None:
        """A member is to be one no longer."""
        site.is_wanted = False

    def move(self, site: Site, *, restarts: bool) -> None:
        """A member gets another address for clients, and where it then restarts for peers too."""
        site.generation += 1
        peer = _address(site, 7000) if restarts else site.member.peer
        old = site.member
        site.member = Member(old.name, old.public_key, peer, _address(site, 8000))

    def elected(self, machine: Machine) -> None:
        """Somebody leads: sometimes the person asks at once, before anything is committed."""
        if self._random.random() < 0.5:  # noqa: PLR2004 - half of the time
            delay_us = self._random.randrange(3_000)
            self._queue.after(delay_us, partial(machine.call, self._ask))

    def is_at_rest(self, site: Site) -> bool:
        """Whether a site is a member as it is wanted, and listens where the others look for it."""
        machine = site.machine
        return (
            site.is_wanted
            and site.member in self._watch.members.present.members
            and machine.listens_at == machine.bind == site.member.peer
        )

    # Looking and asking

    def _look(self) -> None:
        self._switch_off_removed()
        self._invite_lost()
        self._follow_moves()
        up = [site.machine for site in self.sites if site.machine.replica is not None]
        leaders = [machine for machine in up if machine.running.raft.role is Role.LEADER]
        if up and self._random.random() < 0.1:  # noqa: PLR2004 - sometimes the wrong one is asked
            leaders = up
        if leaders:
            self._random.choice(leaders).call(self._ask)
        delay_us = TIDY_LOOK_US if self._is_over else self._delay_us(LOOK_S)
        self._queue.after(delay_us, self._look)

    def _ask(self, machine: Machine) -> None:
        """Ask a node, which should lead, for one of the changes that are due by its own word."""
        due = self._due(machine.running.raft.log.roster.latest)
        if not due:
            return
        change = self._random.choice(due)
        machine.advance()
        if change.kind is ChangeKind.MOVE and change.member.public_key == machine.member:
            self._hand_over(machine)
            return
        try:
            machine.running.change_membership(change, self._settled)
        except ChangeError as refusal:
            self._trace.coverage[f"changes refused: {refusal.reason}"] += 1
            return
        now_us, text = self._queue.now_us, f"{machine.name}: {change.kind} {change.member.name}"
        self._trace.fault(now_us, Fault.MEMBER_CHANGE, text)
        self.on_change(machine, change.member.public_key)

    def _hand_over(self, leader: Machine) -> None:
        """A leader is moved only once it leads no longer.

        Else those that have not got the block that moves it would answer it where it was; where
        nobody else can lead, it stays there.
        """
        try:
            leader.running.raft.transfer_leadership(None)
        except ChangeError as refusal:
            self._trace.coverage[f"transfers refused: {refusal.reason}"] += 1
            if refusal.reason is ChangeRefusal.NO_QUORUM:
                for site in self.sites:
                    if site.machine is leader:
                        site.member = leader.running.raft.log.roster.latest.named(site.member.name)

    def _settled(self, is_committed: bool) -> None:  # noqa: FBT001 - as `OpenChanges` calls it
        fate = "committed" if is_committed else "lost"
        self._trace.coverage[f"changes heard to be {fate}"] += 1

    def _due(self, membership: Membership) -> list[Change]:
        """All changes that would bring the members nearer to what is wanted."""
        due = []
        wanted = {site.member.public_key: site.member for site in self.sites if site.is_wanted}
        dead = self._watch.members.dead
        for member in membership.members:
            ours = wanted.get(member.public_key)
            if member.public_key in dead or ours is None:
                due.append(Change(ChangeKind.REMOVE, member))
            elif ours != member:
                due.append(Change(ChangeKind.MOVE, ours))
        due += [
            Change(ChangeKind.ADD, site.member)
            for site in self.sites
            if site.is_wanted
            and site.machine.in_service
            and site.member.public_key not in membership.keys
        ]
        return [change for change in due if self._leaves_majority(membership, change)]

    def _leaves_majority(self, membership: Membership, change: Change) -> bool:
        """Nobody removes a member where the disks of too many others are gone."""
        if change.kind is not ChangeKind.REMOVE:
            return True
        gone = self._watch.members.dead
        rest = membership.keys - {change.member.public_key}
        voters = rest - (membership.learners - gone)
        return 2 * len(voters - gone) > len(voters)

    # Machines

    def _give_up(self, site: Site, why: str) -> None:
        machine = site.machine
        machine.in_service = False
        if machine.replica is not None:
            machine.crash(why)
        self._watch.wiped(machine)
        site.switch_off_us = None

    def _set_up(self, site: Site) -> None:
        """A new data folder, with a new key: the old one has forgotten what it promised."""
        machine = site.machine
        if machine.in_service or not site.is_wanted:
            return
        site.generation += 1
        key = SigningKey(self._random.randbytes(32))
        has_new_address = self._random.random() < 0.5  # noqa: PLR2004 - half of the time
        peer = _address(site, 7000) if has_new_address else site.member.peer
        http = _address(site, 8000) if has_new_address else site.member.http
        name = f"{machine.name}-{site.generation}" if has_new_address else site.member.name
        site.member = Member(name, bytes(key.verify_key), peer, http)
        index = self._watch.committed[-1].index
        machine.set_up(key, seeds=self._invitation(), seeds_index=index, bind=peer)
        self._trace.line(self._queue.now_us, f"{machine.name} gets a new data folder, as {name}")
        delay_us = 0 if self._is_over else self._random.randrange(MICROS_PER_SECOND)
        self._queue.after(delay_us, partial(_start, machine))

    def _invitation(self) -> dict[bytes, Member]:
        return {member.public_key: member for member in self._watch.members.present.members}

    def _reaches_member(self, machine: Machine) -> bool:
        present = self._watch.members.present.members
        return any(
            machine.peers.get(member.public_key) == member.peer
            for member in present
            if member.public_key not in self._watch.members.dead
        )

    def _switch_off_removed(self) -> None:
        """A node whose removal is committed runs on for a while, and is then taken away."""
        present = self._watch.members.present
        for site in self.sites:
            machine, now_us = site.machine, self._queue.now_us
            if site.is_wanted or not machine.in_service or machine.member in present.keys:
                continue
            if site.switch_off_us is None:
                site.switch_off_us = now_us + self._delay_us(LINGER_S)
            elif now_us >= site.switch_off_us and not self._is_over:
                self._give_up(site, "it is switched off")

    def _invite_lost(self) -> None:
        """A node that reaches nobody who is a member still is told who is, or made anew."""
        present = self._watch.members.present
        for site in self.sites:
            machine = site.machine
            if machine.replica is None or machine.member not in present.keys:
                continue
            if len(present.keys) == 1 or self._reaches_member(machine):
                continue
            self._trace.coverage["nodes that could reach no member any more"] += 1
            invitation = self._invitation()
            index = self._watch.committed[-1].index
            if machine.seeds != invitation or machine.seeds_index < index:
                machine.invite(invitation, index)
                self._restart(machine)
            elif self._watch.members.is_survivable({machine.member}):
                self._give_up(site, "it is given up")
                self._set_up(site)

    def _follow_moves(self) -> None:
        """A node whom the others look for elsewhere is restarted there.

        What is committed counts, and beyond that, of the others, the one with the longest log: what
        it says will be so, or is undone by a later leader. The node's own log does not count:
        nobody else may have heard of its move, and where nobody leads, its vote may be needed by
        those that have not.
        """
        present, tip = self._watch.members.present, self._watch.committed[-1]
        up = [site.machine for site in self.sites if site.machine.replica is not None]
        if any(machine.running.raft.role is Role.LEADER for machine in up):
            self._led_us = self._queue.now_us
        voters = [machine for machine in up if machine.member in present.voters]
        is_led = self._queue.now_us - self._led_us < LEADERLESS_US or len(voters) == 1
        for machine in up:
            listed = _listed(machine, [other for other in voters if other is not machine])
            listed += [
                (tip.term, tip.index, member.peer)
                for member in present.members
                if member.public_key == machine.member and is_led
            ]
            peer = max(listed)[-1] if listed else machine.bind
            if peer != machine.bind and machine.replica is not None:
                machine.bind = peer
                self._restart(machine)

    def _restart(self, machine: Machine) -> None:
        machine.crash("it is restarted")
        _start(machine)

    def _delay_us(self, mean_s: float) -> int:
        return int(self._random.expovariate(1 / mean_s) * MICROS_PER_SECOND)


def _start(machine: Machine) -> None:
    if machine.replica is None:
        machine.start()


def _address(site: Site, base: int) -> str:
    """An address that no member ever had."""
    return f"127.0.0.1:{base + site.machine.number + 1 + 2_000 * site.generation}"


def _listed(machine: Machine, others: list[Machine]) -> list[tuple[int, int, str]]:
    """Where those that know a machine look for it, each with how far its log reaches."""
    found = []
    for other in others:
        address = other.peers.get(machine.member)
        if other.replica is not None and address is not None:
            log = other.running.raft.log
            found.append((log.last_term, log.last_index, address))
    return found


def _name(member: Member) -> str:
    return member.name
