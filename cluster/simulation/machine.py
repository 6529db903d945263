"""One simulated machine: what survives a crash, the shipped replica that does not, and its clock.

It does what `node.loop` does: decodes and hands over messages, pumps, encodes and sends, saves, and
tells the replica when a save is durable. Several inputs may share one pump, as on a busy loop. A
save passes five moments, and a crash may fall on each: nothing left yet, messages out, save begun,
durable, durable and told. A paused machine does nothing while its disk and its peers go on, and
then gets everything at once. Relies on `storage.memory`, which forgets what was not durable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum, unique
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from cluster.simulation.checkpoints import Checkpoints
from cluster.simulation.faults import MICROS_PER_SECOND, Fault
from cluster.simulation.index import SimulatedIndex
from cluster.simulation.record import describe
from consensus.block import Sealer
from consensus.leadership import RaftConfig
from consensus.messages import decode_message, encode_message
from consensus.raft import Raft
from node.catchup import serve
from node.lane import Lane
from node.replica import Replica
from storage.memory import MemoryChain
from storage.recent import Lookup, RecentIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nacl.signing import SigningKey

    from cluster.simulation.database_client import DatabaseWire
    from cluster.simulation.events import EventQueue
    from cluster.simulation.record import Trace
    from cluster.simulation.watch import Watch
    from consensus.block import Block
    from consensus.membership import Member
    from consensus.messages import AnyMessage, MemberId
    from consensus.ready import Save
    from node.effects import Recorded, Serving
    from node.mempool import QueueLimits
    from storage.memory import PendingSave

WALL_US: Final = 1_700_000_000_000_000
BUSY: Final = 0.15
"""How often an input waits for the next turn of the loop."""
TURN_US: Final = 2_000
IDLE_US: Final = 200_000
"""A replica is pumped at least this often, for what it offers again by itself."""
SAVE_US: Final = 400
SLOW_SAVE_US: Final = 150_000
TOLD_US: Final = 200
"""A save is durable for about this long before the loop hears of it."""
INBOX: Final = 1_000
"""What the sockets of a paused machine hold; what comes beyond that is lost."""


@unique
class Boundary(StrEnum):
    """Where in the course of a save a machine crashes."""

    BEFORE_SENDING = "before anything left"
    BEFORE_SAVE = "after sending, before the save"
    TORN = "in the middle of the save"
    UNTOLD = "after the save, before it is known"


@dataclass(slots=True)
class Setting:
    """What all machines of a world share."""

    queue: EventQueue
    trace: Trace
    watch: Watch
    genesis: Block
    limits: QueueLimits
    wire: DatabaseWire
    send: Callable[[Machine, MemberId, str, Lane, bytes], None]
    """By whom, to which key, at which address."""
    admitted: Callable[[Machine, MemberId], None]
    """A machine lets in whom it did not know before."""
    numbers: dict[MemberId, int] = field(default_factory=dict)
    """Which machine has, or had, a key."""


class Machine:
    """One node of the cluster, up or down."""

    def __init__(self, number: int, key: SigningKey, setting: Setting, random: Random) -> None:
        """Down, with a chain of nothing but genesis; without a place in the cluster: `set_up`."""
        self.number = number
        self.name = f"node{number + 1}"
        self.key = key
        self.member: MemberId = bytes(key.verify_key)
        self.chain = MemoryChain(setting.genesis)
        self.index = SimulatedIndex()
        self.in_service = False
        """Whether there is a data folder; a machine without one does not start."""
        self.bind = self.listens_at = ""
        self.seeds: Mapping[MemberId, Member] = {}
        self.peers: dict[MemberId, str] = {}
        self.replica: Replica | None = None
        self.lookup: Lookup | None = None
        self.life = 0
        self.drift = 0.0
        self.wall_offset_us = 0
        self.save_us = SAVE_US
        self.stalled_until_us = 0
        self.paused_until_us = 0
        self.crash_at: Boundary | None = None
        self.on_crash: Callable[[Machine], None] = lambda _machine: None
        self.checkpoints = Checkpoints(
            self, wire=setting.wire, queue=setting.queue, trace=setting.trace
        )
        self._setting = setting
        self._queue = setting.queue
        self._random = random
        self._booted_us = 0
        self._mono_base_us = 0
        self._pump_planned = False
        self._timer_due_us: int | None = None
        self._inbox: list[Callable[[], None]] = []
        self._in_flight: tuple[Save, PendingSave] | None = None

    # Life and death

    @property
    def running(self) -> Replica:
        """The replica; the machine must be up."""
        assert self.replica is not None, f"{self.name} is down"
        return self.replica

    @property
    def is_paused(self) -> bool:
        """Whether it is up and does nothing."""
        return self._queue.now_us < self.paused_until_us

    def set_up(self, key: SigningKey, *, seeds: Mapping[MemberId, Member], bind: str) -> None:
        """Make a new data folder: a key, an empty chain, members to ask and where to listen."""
        assert self.replica is None, f"{self.name} runs"
        self.key = key
        self.member = bytes(key.verify_key)
        self._setting.numbers[self.member] = self.number
        self.seeds = seeds
        self.bind = bind
        self.chain = MemoryChain(self._setting.genesis)
        self.index = SimulatedIndex()
        self.in_service = True

    def start(self) -> None:
        """Boot from what is durable, with the clock of this life, if there is a data folder."""
        assert self.replica is None, f"{self.name} runs already"
        if not self.in_service:
            return
        self.listens_at = self.bind
        self.peers = {}
        self.life += 1
        random = Random(self._random.getrandbits(64))
        self._booted_us = self._queue.now_us
        self._mono_base_us = random.randrange(MICROS_PER_SECOND)
        recent = RecentIndex()
        self.lookup = Lookup(self.index, recent)
        raft = Raft(
            config=RaftConfig(),
            member=self.member,
            cluster_id=self._setting.genesis.hash,
            sealer=Sealer(self.key, self._setting.genesis.hash, random),
            chain=self.chain,
            hard_state=self.chain.hard_state,
            applied_index=self.index.applied_index,
            random=random,
        )
        self.replica = Replica(
            raft=raft,
            recent=recent,
            lookup=self.lookup,
            limits=self._setting.limits,
            seeds=self.seeds,
        )
        self._connect_peers()
        self._note(b"start", "starts")
        self._setting.watch.started(self)
        self.checkpoints.start()
        self._pump()

    def crash(self, why: str) -> None:
        """Lose everything that is not durable."""
        replica = self.running
        self._note(b"crash", f"crashes: {why}")
        self._setting.watch.crashed(self)
        for counted in (replica.raft.dropped, replica.dropped):
            for what, times in counted.items():
                self._setting.trace.coverage[f"dropped: {what}"] += times
        self.chain.crash()
        self.checkpoints.crash()
        self._in_flight = None
        self.replica = self.lookup = self.crash_at = None
        self.life += 1
        self.paused_until_us = 0
        self._pump_planned = False
        self._timer_due_us = None
        self._inbox.clear()
        self.on_crash(self)

    def pause(self, duration_us: int) -> None:
        """Do nothing for a while, as under a stopped virtual machine."""
        self.paused_until_us = max(self.paused_until_us, self._queue.now_us + duration_us)
        self._queue.at(self.paused_until_us, partial(self._resume, self.life))

    def wake_up(self) -> None:
        """End a pause early."""
        if self.is_paused:
            self.paused_until_us = self._queue.now_us
            self._resume(self.life)

    def _resume(self, life: int) -> None:
        if life != self.life or self.is_paused:
            return
        self._note(b"resume", "goes on after a pause")
        inbox, self._inbox = self._inbox, []
        for action in inbox:
            if life == self.life:
                action()
        if life == self.life:
            self._pump()

    # Inputs

    def receive(self, source: MemberId, raw: bytes) -> None:
        """A peer's bytes arrive."""
        self._when_awake(partial(self._receive, source, raw))

    def hint_unreachable(self, peer: MemberId) -> None:
        """The connection to a peer broke."""
        self._when_awake(partial(self._unreachable, peer))

    def hint_reachable(self, peer: MemberId) -> None:
        """The connection to a peer is there again."""
        self._when_awake(partial(self._reachable, peer))

    def call(self, action: Callable[[Machine], None]) -> None:
        """A client's call arrives; `action` runs on this machine's loop."""
        self._when_awake(partial(self._call, action))

    def flush_index(self) -> None:
        """The index process has written most of what is applied, and says so, or dies before."""
        if self.replica is None or self.is_paused:
            return
        applied_index = self.replica.applied_index
        through = applied_index - self._random.randrange(3)
        first = self.index.applied_index + 1
        if through < first:
            return
        count = through - first + 1
        self.index.apply(self.chain.blocks(first, max_blocks=count, max_bytes=1 << 40))
        if self._random.random() < 0.9:  # noqa: PLR2004 - told at once as a rule, else next time
            self.replica.flushed(self.index.applied_index)

    def _when_awake(self, action: Callable[[], None]) -> None:
        if self.replica is None:
            return
        if not self.is_paused:
            action()
        elif len(self._inbox) < INBOX:
            self._inbox.append(action)

    def _receive(self, source: MemberId, raw: bytes) -> None:
        """As `node.transport` does: who is no peer here is not heard."""
        if source not in self.peers:
            self._setting.trace.coverage["messages of strangers"] += 1
            return
        self._setting.trace.event(self._queue.now_us, self.name, raw)
        message = decode_message(raw)
        term = self.running.raft.term
        self.advance()
        self.running.receive(source, message)
        if self._setting.trace.is_readable:
            name = f"node{self._setting.numbers[source] + 1}"
            text = f"{name} → {self.name} {describe(message)}"
            self._setting.trace.line(self._queue.now_us, text)
        self._setting.watch.heard(self, source, message, term)
        self._wake()

    def advance(self) -> None:
        """The replica's clocks move on, before it takes a message or a call."""
        self.running.advance(self.mono_us(), WALL_US + self._queue.now_us + self.wall_offset_us)

    def _connect_peers(self) -> None:
        """As `node.server` does: of whom the chain does not know, the seeds tell."""
        known = self.peers.keys()
        peers = self.running.peers.items()
        self.peers = {key: (member or self.seeds[key]).peer for key, member in peers}
        for peer in sorted(self.peers.keys() - known):
            self._setting.admitted(self, peer)

    def _unreachable(self, peer: MemberId) -> None:
        self._setting.watch.lost_connection(self, peer)
        self.running.unreachable(peer)
        self._wake()

    def _reachable(self, peer: MemberId) -> None:
        self.running.reachable(peer)
        self._wake()

    def _call(self, action: Callable[[Machine], None]) -> None:
        action(self)
        self._wake()

    # The loop

    def _wake(self) -> None:
        if self._pump_planned:
            return
        if self._random.random() < BUSY:
            self._plan_pump(self._random.randrange(TURN_US))
        else:
            self._pump()

    def _plan_pump(self, delay_us: int) -> None:
        self._pump_planned = True
        self._queue.after(delay_us, partial(self._planned_pump, self.life))

    def _planned_pump(self, life: int) -> None:
        if life == self.life and self._pump_planned:
            self._pump_planned = False
            if self.is_paused:
                self._inbox.append(self._pump)
            else:
                self._pump()

    def _pump(self) -> None:
        replica, life = self.running, self.life
        replica.tick(self.mono_us(), WALL_US + self._queue.now_us + self.wall_offset_us)
        effects = replica.pump()
        if effects.save is not None and self._crashes_at(Boundary.BEFORE_SENDING):
            return
        for target, lane, message in effects.envelopes:
            self._setting.watch.leaves(self, target, message)
            self._send(target, lane, message)
        if effects.save is not None:
            self._begin_save(effects.save)
        for recorded in effects.recorded:
            read = partial(self._read_recorded, life, recorded)
            self._queue.after(self._random.randrange(1, TURN_US), read)
        for serving in effects.servings:
            read = partial(self._serve, life, serving)
            self._queue.after(self._random.randrange(1, TURN_US), read)
        if life != self.life:
            return
        if effects.has_new_members:
            self._connect_peers()
        if effects.more and not self._pump_planned:
            self._plan_pump(0)
        self._setting.watch.look(self)
        self.checkpoints.turn()
        self._plan_timer()

    def _serve(self, life: int, serving: Serving) -> None:
        """The reader's thread has the blocks that a peer fetches."""
        if life == self.life:
            reply = serve(self.chain, serving)
            self._setting.watch.serves(self, reply)
            self._send(serving.target, Lane.BULK, reply)

    def _send(self, target: MemberId, lane: Lane, message: AnyMessage) -> None:
        """As `node.transport` does: who is no peer is not sent to."""
        address = self.peers.get(target)
        if address is None:
            self._setting.trace.coverage["messages to strangers"] += 1
        else:
            self._setting.send(self, target, address, lane, encode_message(message))

    def _read_recorded(self, life: int, recorded: Recorded) -> None:
        """The reader's thread has the block of an old retry."""
        if life == self.life:
            block = self.chain.block(recorded.place.index)
            answer = partial(self.running.answer_recorded, recorded, block)
            self._when_awake(answer)

    def mono_us(self) -> int:
        """This life's monotonic clock: from a base of its own, at a rate of its own."""
        elapsed_us = self._queue.now_us - self._booted_us
        return self._mono_base_us + elapsed_us + int(elapsed_us * self.drift)

    def _plan_timer(self) -> None:
        """One timer is out; one that comes too early looks again, one too late is overtaken."""
        wait_us = int((self.running.raft.wake_us() - self.mono_us()) / (1 + self.drift)) + 1
        due_us = self._queue.now_us + min(max(wait_us, 1), IDLE_US)
        if self._timer_due_us is None or due_us < self._timer_due_us:
            self._timer_due_us = due_us
            self._queue.at(due_us, partial(self._timer, self.life, due_us))

    def _timer(self, life: int, due_us: int) -> None:
        if life != self.life or due_us != self._timer_due_us:
            return
        self._timer_due_us = None
        if self.is_paused:
            self._queue.at(self.paused_until_us, partial(self._resume, life))
        elif self.running.raft.wake_us() <= self.mono_us() or self._random.random() < BUSY:
            self._pump()
        else:
            self._plan_timer()

    # The disk

    def _begin_save(self, save: Save) -> None:
        if self._crashes_at(Boundary.BEFORE_SAVE):
            return
        self._setting.watch.saving(self, save)
        pending = self.chain.begin_save(
            hard_state=save.hard_state, truncate_from=save.truncate_from, blocks=save.blocks
        )
        takes_us = self.save_us // 2 + self._random.randrange(self.save_us)
        durable_us = max(self._queue.now_us, self.stalled_until_us) + takes_us
        if self.crash_at is Boundary.TORN:
            when_us = self._queue.now_us + self._random.randrange(
                max(1, durable_us - self._queue.now_us)
            )
            self._queue.at(when_us, partial(self._torn, self.life))
        self._in_flight = (save, pending)
        self._queue.at(durable_us, partial(self._durable, self.life, save))

    def _torn(self, life: int) -> None:
        if life == self.life:
            self._crashes_at(Boundary.TORN)

    def unstall(self) -> None:
        """The disk works at full speed again, also on the save under way."""
        self.stalled_until_us = 0
        self.save_us = SAVE_US
        if self._in_flight is not None:
            save, _ = self._in_flight
            self._queue.after(SAVE_US, partial(self._durable, self.life, save))

    def _durable(self, life: int, save: Save) -> None:
        """The disk has it, whether or not the process is awake to hear of it."""
        if life != self.life or self._in_flight is None or self._in_flight[0] is not save:
            return
        self.chain.finish_save(self._in_flight[1])
        self._in_flight = None
        self._setting.watch.saved(self, save)
        if not self._crashes_at(Boundary.UNTOLD):
            delay_us = self._random.randrange(TOLD_US)
            self._queue.after(delay_us, partial(self._tell_saved, life, save))

    def _tell_saved(self, life: int, save: Save) -> None:
        if life == self.life:
            self._when_awake(partial(self._saved, save))

    def _saved(self, save: Save) -> None:
        self._setting.trace.event(self._queue.now_us, self.name, b"saved")
        self.running.saved(save)
        if self._setting.trace.is_readable:
            blocks = f" through {save.blocks[-1].index}" if save.blocks else ""
            cut = "" if save.truncate_from is None else f", cut from {save.truncate_from}"
            text = f"{self.name} saved term {save.hard_state.term}{blocks}{cut}"
            self._setting.trace.line(self._queue.now_us, text)
        self._wake()

    def _crashes_at(self, boundary: Boundary) -> bool:
        if self.crash_at is not boundary:
            return False
        self._setting.trace.faults[f"{Fault.CRASH_AT_SAVE}, {boundary}"] += 1
        self.crash(boundary)
        return True

    def _note(self, detail: bytes, text: str) -> None:
        self._setting.trace.event(self._queue.now_us, self.name, detail)
        self._setting.trace.line(self._queue.now_us, f"{self.name} {text}")
