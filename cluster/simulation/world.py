"""One run: a cluster, its clients and its nemesis in one event queue, checked after every event.

`simulate` lets faults rage for the scenario's time, then mends everything and demands progress:
every node answers a read and records a transaction within five seconds, all have one head, and
PostgreSQL has every block. What breaks a rule, or raises in shipped code, ends the run as a
violation. Relies on every other file of this folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from nacl.signing import SigningKey

from cluster.checker import Entry, Row, check_history
from cluster.simulation.checkpoint_watch import CheckpointWatch
from cluster.simulation.clients import Clients
from cluster.simulation.database import SimulatedDatabase
from cluster.simulation.database_client import DatabaseWire
from cluster.simulation.database_faults import DatabaseNemesis
from cluster.simulation.events import EventQueue
from cluster.simulation.faults import MICROS_PER_SECOND
from cluster.simulation.forgery import forge_append
from cluster.simulation.machine import WALL_US, Machine, Setting
from cluster.simulation.nemesis import Nemesis
from cluster.simulation.network import Network
from cluster.simulation.record import Trace
from cluster.simulation.watch import Watch
from consensus.block import decode_transaction, transaction_id
from consensus.membership import Genesis, Member, genesis_block
from node.mempool import QueueLimits
from storage.errors import StorageError

if TYPE_CHECKING:
    from cluster.simulation.faults import Scenario
    from consensus.block import Block

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
        self._keys = keys_of(scenario.nodes)
        genesis = genesis_of(scenario.nodes)
        voters = tuple(bytes(key.verify_key) for key in self._keys)
        self.machines: list[Machine] = []
        self.network = Network(
            queue=self.queue, trace=self.trace, scenario=scenario, deliver=self._deliver
        )
        self.watch = Watch(
            machines=self.machines,
            voters=voters,
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
            voters=voters,
            # Sometimes so small that clients see it full.
            limits=random.choice((QueueLimits(), QueueLimits(), SMALL_QUEUE)),
            wire=self._make_database(),
            send=self.network.send,
            numbers={voter: number for number, voter in enumerate(voters)},
        )
        for number, key in enumerate(self._keys):
            stream = scenario.stream(f"machine {number}")
            self.machines.append(Machine(number, key, setting, stream))
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
        self.watch.on_elected = self.nemesis.elected

    def run(self) -> None:
        """The whole course; raises at the first violation."""
        for machine in self.machines:
            machine.start()
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

    def _deliver(self, source: int, target: int, raw: bytes) -> None:
        self.machines[target].receive(self.machines[source], raw)

    def _forge(self, source: int, raw: bytes) -> bytes | None:
        return forge_append(raw, self._keys[source], self._forgeries)

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
        self.clients.stop()
        end_us = self.queue.now_us + PROGRESS_S * MICROS_PER_SECOND
        # Reads alone come first: they must not need a write to be answered.
        self.clients.probe()
        self.queue.run_until(end_us, stop=lambda: not self.clients.probes_open)
        assert not self.clients.probes_open, f"no read at every node {PROGRESS_S} s after healing"
        self.clients.probe_writes()
        self.queue.run_until(end_us, stop=lambda: not self.clients.probes_open)
        assert not self.clients.probes_open, f"no commit at every node {PROGRESS_S} s after healing"
        settled_us = end_us + SETTLE_S * MICROS_PER_SECOND
        self.queue.run_until(settled_us, stop=lambda: len(self._heads()) == 1)
        assert len(self._heads()) == 1, "not one head everywhere after healing"
        copied_us = self.queue.now_us + CHECKPOINT_S * MICROS_PER_SECOND
        self.queue.run_until(copied_us, stop=lambda: self.checkpoint_watch.is_caught_up)
        assert self.checkpoint_watch.is_caught_up, "PostgreSQL lacks blocks after healing"
        self.checkpoint_watch.check_all()

    def _heads(self) -> set[tuple[int, bytes]]:
        """What each machine has applied, and what is the end of its log."""
        heads = set()
        for machine in self.machines:
            log = machine.running.raft.log
            heads |= {(log.applied_index, log.hash_at(log.applied_index))}
            heads |= {(log.last_index, log.last_tip.hash)}
        return heads

    def _check_history(self) -> None:
        """What the clients saw, against what was committed."""
        entries = []
        for block in self.watch.committed[1:]:
            for position, raw in enumerate(block.transactions):
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
    keys = [SigningKey(number.to_bytes(32, "big")) for number in range(1, nodes + 1)]
    return tuple(sorted(keys, key=lambda key: bytes(key.verify_key)))


@lru_cache(maxsize=16)
def genesis_of(nodes: int) -> Block:
    """The first block of a simulated cluster."""
    members = tuple(
        Member(
            name=f"node{number}",
            public_key=bytes(key.verify_key),
            peer=f"127.0.0.1:{7000 + number}",
            http=f"127.0.0.1:{8000 + number}",
        )
        for number, key in enumerate(keys_of(nodes), start=1)
    )
    return genesis_block(Genesis(name="simulated", created_us=WALL_US, members=members))
