"""One run: a cluster, its clients and its nemesis in one event queue, checked after every event.

`simulate` lets faults rage for the scenario's time, then mends everything and demands progress:
every node answers a read and records a transaction within five seconds, all have one head, and
PostgreSQL has every block. What breaks a rule, or raises in shipped code, ends the run as a
violation. Relies on every other file of this folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

from nacl.signing import SigningKey

from cluster.checker import Entry, Row, check_history
from cluster.simulation.administrator import Administrator, Site
from cluster.simulation.checkpoint_watch import CheckpointWatch
from cluster.simulation.clients import Clients
from cluster.simulation.clock import WALL_US
from cluster.simulation.database import SimulatedDatabase
from cluster.simulation.database_client import DatabaseWire
from cluster.simulation.database_faults import DatabaseNemesis
from cluster.simulation.events import EventQueue
from cluster.simulation.faults import MICROS_PER_SECOND, REACHES_MEMBERS
from cluster.simulation.forgery import forge_blocks
from cluster.simulation.machine import Machine
from cluster.simulation.membership_faults import SPARES, MembershipNemesis
from cluster.simulation.nemesis import Nemesis
from cluster.simulation.network import Network
from cluster.simulation.record import Trace
from cluster.simulation.setting import Setting
from cluster.simulation.watch import Watch
from consensus.block import decode_transaction, transaction_id
from consensus.changes import MEMBERSHIP_KIND
from consensus.membership import Genesis, Member, genesis_block
from node.mempool import QueueLimits
from storage.errors import StorageError

if TYPE_CHECKING:
    from cluster.simulation.faults import Scenario
    from consensus.block import Block
    from consensus.messages import MemberId
    from node.lane import Lane

KEY_BYTES: Final = 32
HEAD_BYTES: Final = 2 * KEY_BYTES
"""A message travels with the keys of both ends, which its connection was made with."""
ADMITTED_US: Final = 50_000
SETTLE_MEMBERS_S: Final = 20
PROGRESS_S: Final = 5
FLUSH_US: Final = 400_000
SETTLE_S: Final = 2
CHECKPOINT_S: Final = 4
"""The last of the checkpointers' waits, and the copying after it."""
SMALL_QUEUE: Final = QueueLimits(transactions=3, size_bytes=2_000)
FAILURES: Final = (
    AssertionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    StorageError,
    TypeError,
    ValueError,
)
"""What a broken rule or broken code raises; the node stops at any of them."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to. `violation` is None where nothing was found."""

    scenario: Scenario
    trace_hash: str
    violation: str | None
    violation_us: int
    simulated_us: int
    events: int
    blocks: int
    operations: int
    faults: dict[str, int] = field(default_factory=dict)
    coverage: dict[str, int] = field(default_factory=dict)
    trace: tuple[str, ...] = ()


def simulate(scenario: Scenario, *, readable: bool = False) -> Result:
    """Run a scenario to its end or to its first violation; `readable` keeps a trace in words."""
    world = _World(scenario, readable=readable)
    violation = None
    try:
        world.run()
    except FAILURES as error:
        violation = f"{type(error).__name__}: {error}"
        world.trace.line(world.queue.now_us, f"VIOLATION {violation}")
    finally:
        world.end()
    return world.result(violation)


class _World:
    """Everything there is, made from a scenario."""

    def __init__(self, scenario: Scenario, *, readable: bool) -> None:
        self.scenario = scenario
        self.queue = EventQueue()
        self.trace = Trace(columns=self._columns if readable else None)
        genesis = genesis_of(scenario.nodes)
        self.machines: list[Machine] = []
        self._numbers: dict[MemberId, int] = {}
        self.network = Network(
            queue=self.queue, trace=self.trace, scenario=scenario, deliver=self._deliver
        )
        self.watch = Watch(
            machines=self.machines,
            genesis=genesis,
            trace=self.trace,
            now_us=lambda: self.queue.now_us,
        )
        random = scenario.stream("world")
        setting = Setting(
            queue=self.queue,
            trace=self.trace,
            watch=self.watch,
            genesis=genesis,
            # Sometimes so small that clients see it full.
            limits=random.choice((QueueLimits(), QueueLimits(), SMALL_QUEUE)),
            wire=self._make_database(),
            send=self._send,
            admitted=self._admitted,
            numbers=self._numbers,
        )
        sites = self._make_machines(setting)
        self._forgeries = scenario.stream("forgeries")
        self.network.forge = self._forge
        self.clients = Clients(
            scenario=scenario,
            queue=self.queue,
            trace=self.trace,
            network=self.network,
            machines=self.machines,
            watch=self.watch,
        )
        self.nemesis = Nemesis(
            scenario=scenario,
            queue=self.queue,
            trace=self.trace,
            network=self.network,
            machines=self.machines,
            on_strike=self.clients.burst,
        )
        self.administrator = Administrator(
            scenario=scenario, queue=self.queue, trace=self.trace, watch=self.watch, sites=sites
        )
        self.membership_nemesis = MembershipNemesis(
            scenario=scenario,
            queue=self.queue,
            trace=self.trace,
            watch=self.watch,
            administrator=self.administrator,
            on_strike=self.clients.burst,
        )
        self.watch.on_elected = self._elected

    def run(self) -> None:
        """The whole course; raises at the first violation."""
        for machine in self.machines:
            machine.start()
        if self._has_administrator:
            self.administrator.begin()
        self._flush()
        self.queue.run_until(int(self.scenario.seconds * MICROS_PER_SECOND))
        self._heal()
        self._check_history()

    def end(self) -> None:
        """Nothing goes on: whatever still waits is dropped."""
        for machine in self.machines:
            machine.checkpoints.crash()

    def result(self, violation: str | None) -> Result:
        """What there is to say."""
        return Result(
            scenario=self.scenario,
            trace_hash=self.trace.digest,
            violation=violation,
            violation_us=self.queue.now_us if violation else 0,
            simulated_us=self.queue.now_us,
            events=self.queue.events,
            blocks=len(self.watch.committed),
            operations=len(self.clients.history),
            faults={str(kind): count for kind, count in sorted(self.trace.faults.items()) if count},
            coverage={name: n for name, n in sorted(self.trace.coverage.items()) if n},
            trace=tuple(self.trace.text()),
        )

    @property
    def _has_administrator(self) -> bool:
        rates = self.scenario.rates()
        return any(rates.get(kind, 0.0) > 0.0 for kind in REACHES_MEMBERS)

    def _make_machines(self, setting: Setting) -> list[Site]:
        """The first members, ready to start, and spare machines."""
        scenario, sites = self.scenario, []
        members = genesis_members(scenario.nodes)
        spares = SPARES if self._has_administrator else 0
        keys = (*keys_of(scenario.nodes), *map(_key, range(100, 100 + spares)))
        for number, key in enumerate(keys):
            machine = Machine(number, key, setting, scenario.stream(f"machine {number}"))
            self.machines.append(machine)
            is_member = number < scenario.nodes
            member = members[number] if is_member else _member(number, key)
            if is_member:
                machine.set_up(key, seeds={}, seeds_index=0, bind=member.peer)
            sites.append(Site(machine, member, is_wanted=is_member))
        return sites

    def _elected(self, machine: Machine) -> None:
        self.nemesis.elected(machine)
        if self._has_administrator:
            self.administrator.elected(machine)

    def _make_database(self) -> DatabaseWire:
        """PostgreSQL, what leads to it, who looks at it and who breaks it."""
        wire = DatabaseWire(
            database=SimulatedDatabase(),
            queue=self.queue,
            trace=self.trace,
            random=self.scenario.stream("database"),
        )
        self.checkpoint_watch = CheckpointWatch(
            database=wire.database,
            committed=self.watch.committed,
            trace=self.trace,
            now_us=lambda: self.queue.now_us,
        )
        self.database_nemesis = DatabaseNemesis(
            scenario=self.scenario, queue=self.queue, trace=self.trace, wire=wire
        )
        return wire

    def _send(
        self, source: Machine, target: MemberId, address: str, lane: Lane, raw: bytes
    ) -> None:
        """A connection leads to an address, and is made only where the right key answers."""
        machine = self.machines[self._numbers[target]]
        if machine.listens_at == address:
            framed = source.member + target + raw
            self.network.send(source.number, machine.number, lane, framed)
        else:
            self.trace.coverage["messages to where nobody listens"] += 1

    def _admitted(self, machine: Machine, peer: MemberId) -> None:
        """Who has tried to connect all along gets through now; after a restart the nemesis says."""
        other = self.machines[self._numbers[peer]]
        if self.queue.now_us > 0 and other.member == peer and machine.member in other.peers:
            hint = partial(other.hint_reachable, machine.member)
            self.queue.after(ADMITTED_US, hint)

    def _deliver(self, _source: int, target: int, framed: bytes) -> None:
        machine = self.machines[target]
        if machine.member == framed[KEY_BYTES:HEAD_BYTES]:
            machine.receive(framed[:KEY_BYTES], framed[HEAD_BYTES:])

    def _forge(self, source: int, framed: bytes) -> bytes | None:
        key = self.machines[source].key
        forged = forge_blocks(framed[HEAD_BYTES:], key, self._forgeries)
        return None if forged is None else framed[:HEAD_BYTES] + forged

    def _flush(self) -> None:
        """The index processes do their work, once in a while, one after another."""
        for machine in self.machines:
            machine.flush_index()
        self.queue.after(FLUSH_US, self._flush)

    def _heal(self) -> None:
        """Faults stop; then reads and writes at every node, and one head, in time."""
        self.trace.event(self.queue.now_us, "heal")
        self.trace.line(self.queue.now_us, "HEAL")
        self.nemesis.stop()
        self.database_nemesis.stop()
        self.membership_nemesis.stop()
        self.clients.stop()
        if self._has_administrator:
            self._settle_members()
            # It restarts nodes, whose end PostgreSQL would notice late.
            self.database_nemesis.stop()
        members = self._members()
        end_us = self.queue.now_us + PROGRESS_S * MICROS_PER_SECOND
        # Reads alone come first: they must not need a write to be answered.
        self.clients.probe(members)
        self.queue.run_until(end_us, stop=lambda: not self.clients.probes_open)
        assert not self.clients.probes_open, f"no read at every node {PROGRESS_S} s after healing"
        self.clients.probe_writes(members)
        self.queue.run_until(end_us, stop=lambda: not self.clients.probes_open)
        assert not self.clients.probes_open, f"no commit at every node {PROGRESS_S} s after healing"
        settled_us = end_us + SETTLE_S * MICROS_PER_SECOND
        self.queue.run_until(settled_us, stop=lambda: len(self._heads()) == 1)
        assert len(self._heads()) == 1, "not one head everywhere after healing"
        copied_us = self.queue.now_us + CHECKPOINT_S * MICROS_PER_SECOND
        self.queue.run_until(copied_us, stop=lambda: self.checkpoint_watch.is_caught_up)
        assert self.checkpoint_watch.is_caught_up, "PostgreSQL lacks blocks after healing"
        self.checkpoint_watch.check_all()

    def _settle_members(self) -> None:
        """The administrator gets what is wanted, every learner votes, and who is removed knows."""
        self.administrator.finish()
        end_us = self.queue.now_us + SETTLE_MEMBERS_S * MICROS_PER_SECOND
        self.queue.run_until(end_us, stop=lambda: self.administrator.is_settled)
        assert self.administrator.is_settled, (
            f"not the members that are wanted {SETTLE_MEMBERS_S} s after healing"
        )

    def _members(self) -> list[Machine]:
        keys = self.watch.members.present.keys
        return [machine for machine in self.machines if machine.member in keys]

    def _heads(self) -> set[tuple[int, bytes]]:
        """What each machine has applied, and what is the end of its log."""
        heads = set()
        for machine in self._members():
            log = machine.running.raft.log
            heads |= {(log.applied_index, log.hash_at(log.applied_index))}
            heads |= {(log.last_index, log.last_tip.hash)}
        return heads

    def _check_history(self) -> None:
        """What the clients saw, against what was committed."""
        entries = []
        for block in self.watch.committed[1:]:
            for position, raw in enumerate(block.transactions):
                if decode_transaction(raw).kind == MEMBERSHIP_KIND:
                    continue
                row = Row((block.index, position), transaction_id(raw), raw)
                entries.append(Entry(decode_transaction(raw).user_id, row))
        breaches = check_history(self.clients.history, entries)
        assert not breaches, f"{len(breaches)} breaches, the first: {breaches[0]}"

    def _columns(self) -> list[str]:
        return [_column(machine) for machine in self.machines]


def _column(machine: Machine) -> str:
    """A node at a glance: role, term, and last/saved/commit/applied index."""
    if machine.replica is None:
        return "down"
    raft = machine.replica.raft
    log = raft.log
    mark = "‖" if machine.is_paused else ""
    indexes = f"{log.last_index}/{log.saved_index}/{log.commit_index}/{log.applied_index}"
    return f"{mark}{raft.role[:4]} t{raft.term} {indexes}"


@lru_cache(maxsize=16)
def keys_of(nodes: int) -> tuple[SigningKey, ...]:
    """The members' keys, the same in every run, in the order of their public keys."""
    keys = [_key(number) for number in range(1, nodes + 1)]
    return tuple(sorted(keys, key=lambda key: bytes(key.verify_key)))


@lru_cache(maxsize=16)
def genesis_of(nodes: int) -> Block:
    """The first block of a simulated cluster."""
    members = genesis_members(nodes)
    return genesis_block(Genesis(name="simulated", created_us=WALL_US, members=members))


@lru_cache(maxsize=16)
def genesis_members(nodes: int) -> tuple[Member, ...]:
    """The first members of a simulated cluster."""
    return tuple(_member(number, key) for number, key in enumerate(keys_of(nodes)))


def _key(number: int) -> SigningKey:
    return SigningKey(number.to_bytes(32, "big"))


def _member(number: int, key: SigningKey) -> Member:
    return Member(
        name=f"node{number + 1}",
        public_key=bytes(key.verify_key),
        peer=f"127.0.0.1:{7001 + number}",
        http=f"127.0.0.1:{8001 + number}",
    )
