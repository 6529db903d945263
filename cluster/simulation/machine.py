"""One simulated machine: what survives a crash, the shipped replica that does not, and its clock.

It does what `node.loop` and `node.server` do: catches the index up and boots, decodes and hands
over messages, pumps, encodes and sends, saves, tells the replica when a save is durable, and
answers clients after the pump that settled them. Several inputs may share one pump, as on a busy
loop. A crash may fall on any `Boundary`. A full disk or a damaged block that reaches the loop stops
the node, as `node.loop` does. A paused machine does nothing while its disk and its peers go on, and
then gets everything at once. Relies on `disk`, which forgets what was not durable.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from cluster.simulation.boundary import KIND_OF, Boundary
from cluster.simulation.checkpoints import Checkpoints
from cluster.simulation.clock import Clock
from cluster.simulation.disk import Disk
from cluster.simulation.indexing import IndexProcess
from cluster.simulation.record import describe, describe_save
from cluster.simulation.setting import BUSY, IDLE_US, INBOX, TOLD_US, TURN_US
from consensus.block import Sealer
from consensus.leadership import RaftConfig
from consensus.messages import decode_message, encode_message
from consensus.raft import Raft
from node.catchup import serve
from node.lane import Lane
from node.replica import Replica
from storage.errors import DamagedBlockError
from storage.recent import Lookup, RecentIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nacl.signing import SigningKey

    from cluster.simulation.setting import Setting
    from consensus.block import Block
    from consensus.membership import Member
    from consensus.messages import AnyMessage, MemberId
    from consensus.ready import Save
    from node.effects import Effects, Recorded, Serving
    from storage.errors import StorageError


class Machine:
    """One node of the cluster, up or down."""

    def __init__(self, number: int, key: SigningKey, setting: Setting, random: Random) -> None:
        """Down, with a chain of nothing but genesis; without a place in the cluster: `set_up`."""
        self.number = number
        self.name = f"node{number + 1}"
        self.key = key
        self.member: MemberId = bytes(key.verify_key)
        self.in_service = False
        """Whether there is a data folder; a machine without one does not start."""
        self.bind = self.listens_at = ""
        self.seeds: Mapping[MemberId, Member] = {}
        self.seeds_index = 0
        self.peers: dict[MemberId, str] = {}
        self.replica: Replica | None = None
        self.lookup: Lookup | None = None
        self.life = 0
        self.clock = Clock(setting.queue)
        self.paused_until_us = 0
        self.crash_at: Boundary | None = None
        self.on_crash: Callable[[Machine], None] = lambda _machine: None
        self.checkpoints = Checkpoints(
            self, wire=setting.wire, queue=setting.queue, trace=setting.trace
        )
        self._setting = setting
        self._queue = setting.queue
        self._random = random
        self._pump_planned = False
        self._timer_due_us: int | None = None
        self._inbox: list[Callable[[], None]] = []
        self._answers: list[Callable[[], None]] = []
        self._is_pumping = False
        self._furnish()

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

    def _furnish(self) -> None:
        """Give it a disk with a chain of nothing but genesis, and an index process."""
        self.disk = Disk(
            self._setting.genesis,
            name=self.name,
            queue=self._queue,
            random=self._random,
            on_durable=self._durable,
            on_refused=self._stop,
        )
        self.chain = self.disk.chain
        self.index = self.disk.index
        self._indexing = IndexProcess(
            self.disk,
            queue=self._queue,
            random=self._random,
            trace=self._setting.trace,
            crashes_at=self._crashes_at,
        )

    def set_up(
        self, key: SigningKey, *, seeds: Mapping[MemberId, Member], seeds_index: int, bind: str
    ) -> None:
        """Make a new data folder: a key, an empty chain, members to ask and where to listen."""
        assert self.replica is None, f"{self.name} runs"
        self.key = key
        self.member = bytes(key.verify_key)
        self._setting.numbers[self.member] = self.number
        self.invite(seeds, seeds_index)
        self.bind = bind
        self._furnish()
        self.in_service = True

    def invite(self, seeds: Mapping[MemberId, Member], seeds_index: int) -> None:
        """Tell it who was a member when `seeds_index` was committed, for its next start."""
        self.seeds = seeds
        self.seeds_index = seeds_index

    def start(self) -> None:
        """Boot from what is durable, with the clock of this life, if there is a data folder."""
        assert self.replica is None, f"{self.name} runs already"
        if not self.in_service:
            return
        self.listens_at = self.bind
        self.peers = {}
        self.life += 1
        if not self._catch_up():
            return
        random = Random(self._random.getrandbits(64))
        self.clock.boot(random)
        recent = RecentIndex()
        self.lookup = Lookup(self.index, recent)
        try:
            raft = self._make_raft(random)
        except DamagedBlockError as error:
            self._fail_boot(type(error).__name__)
            return
        self.replica = Replica(
            raft=raft,
            recent=recent,
            lookup=self.lookup,
            limits=self._setting.limits,
            seeds=self.seeds,
            seeds_index=self.seeds_index,
        )
        self._connect_peers()
        self._note(b"start", "starts")
        self._setting.watch.started(self)
        self.checkpoints.start()
        self._pump()

    def _make_raft(self, random: Random) -> Raft:
        """The core reads the blocks that say who the members are, and those not known committed."""
        return Raft(
            config=RaftConfig(),
            member=self.member,
            cluster_id=self._setting.genesis.hash,
            sealer=Sealer(self.key, self._setting.genesis.hash, random),
            chain=self.chain,
            hard_state=self.chain.hard_state,
            applied_index=self.index.applied_index,
            random=random,
        )

    def _catch_up(self) -> bool:
        """Index what is known to be committed, as a node does before it joins; or fail to boot."""
        is_cut_short = self.crash_at is Boundary.INDEXING
        why = self._indexing.catch_up(is_cut_short=is_cut_short)
        if is_cut_short:
            why = Boundary.INDEXING
            self._setting.trace.faults[f"{KIND_OF[why]}, {why}"] += 1
        return self._fail_boot(why) if why else True

    def _fail_boot(self, why: str) -> bool:
        """Down again before it joined; somebody starts it once more."""
        self._note(b"boot", f"fails to boot: {why}")
        self._setting.trace.coverage[f"boots failed: {why}"] += 1
        self.crash_at = None
        self.on_crash(self)
        return False

    def _stop(self, error: StorageError) -> None:
        """End the process for a fault of the disk: a save under way still ends, nothing else."""
        self._setting.trace.coverage[f"nodes stopped: {type(error).__name__}"] += 1
        self.crash_at = None
        self.disk.finish()
        if self.replica is not None:  # that save may have been refused, which stops it as well
            self.crash(f"stopped: {error}")

    def crash(self, why: str) -> None:
        """Lose everything that is not durable."""
        replica = self.running
        self._note(b"crash", f"crashes: {why}")
        self._setting.watch.crashed(self)
        for counted in (replica.raft.dropped, replica.dropped):
            for what, times in counted.items():
                self._setting.trace.coverage[f"dropped: {what}"] += times
        self.checkpoints.crash()
        self.disk.crash()
        self.replica = self.lookup = self.crash_at = None
        self.life += 1
        self.paused_until_us = 0
        self._pump_planned = False
        self._timer_due_us = None
        self._inbox.clear()
        self._answers.clear()
        self._is_pumping = False
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
                self._guarded(action)
        if life == self.life:
            self._pump()

    # Inputs

    def receive(self, source: MemberId, raw: bytes) -> None:
        """A peer's bytes arrive."""
        self._when_awake(partial(self._receive, source, raw))

    def hint_unreachable(self, peer: MemberId) -> None:
        """The connection to a peer broke."""
        self._when_awake(partial(self._note_connection, peer, is_there=False))

    def hint_reachable(self, peer: MemberId) -> None:
        """The connection to a peer is there again."""
        self._when_awake(partial(self._note_connection, peer, is_there=True))

    def call(self, action: Callable[[Machine], None]) -> None:
        """A client's call arrives; `action` runs on this machine's loop."""
        self._when_awake(partial(self._call, action))

    def answer(self, send: Callable[[], None]) -> None:
        """An answer leaves for a client: after the pump that settled it, as on an event loop."""
        if self._is_pumping:
            self._answers.append(send)
        else:
            send()

    def flush_index(self) -> None:
        """The index process does its work; see `indexing`."""
        if self.replica is not None and not self.is_paused:
            on_written = partial(self._indexed, self.life)
            self._guarded(partial(self._indexing.flush, self.replica.applied_index, on_written))

    def _indexed(self, life: int, applied_index: int) -> None:
        if life == self.life:
            self._when_awake(partial(self.running.flushed, applied_index))

    def _when_awake(self, action: Callable[[], None]) -> None:
        if self.replica is None:
            return
        if not self.is_paused:
            self._guarded(action)
        elif len(self._inbox) < INBOX:
            self._inbox.append(action)

    def _guarded(self, action: Callable[[], None]) -> None:
        """A damaged block that the loop comes upon stops the node."""
        try:
            action()
        except DamagedBlockError as error:
            self._stop(error)

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
        self.running.advance(self.clock.mono_us(), self.clock.wall_us())

    def _connect_peers(self) -> None:
        """As `node.server` does: of whom the chain does not know, the seeds tell."""
        known = self.peers.keys()
        peers = self.running.fetching.peers.items()
        self.peers = {key: member.peer for key, member in peers}
        for peer in sorted(self.peers.keys() - known):
            self._setting.admitted(self, peer)

    def _note_connection(self, peer: MemberId, *, is_there: bool) -> None:
        if is_there:
            self.running.reachable(peer)
        else:
            self._setting.watch.lost_connection(self, peer)
            self.running.unreachable(peer)
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
        self._later(delay_us, self._planned_pump)

    def _planned_pump(self) -> None:
        if self._pump_planned:
            self._pump_planned = False
            if self.is_paused:
                self._inbox.append(self._pump)
            else:
                self._pump()

    def _pump(self) -> None:
        self._guarded(self._take_turn)

    def _take_turn(self) -> None:
        replica, life = self.running, self.life
        replica.tick(self.clock.mono_us(), self.clock.wall_us())
        log = replica.raft.log
        applied_index = log.applied_index
        if log.commit_index > applied_index and self._crashes_at(Boundary.COMMITTED):
            return
        self._is_pumping = True
        effects = replica.pump()
        self._is_pumping = False
        if log.applied_index > applied_index and self._crashes_at(Boundary.APPLIED):
            return
        self._carry_out(effects, life)
        if life != self.life:
            return
        if effects.more and not self._pump_planned:
            self._plan_pump(0)
        self._setting.watch.look(self)
        self.checkpoints.turn()
        self._plan_timer()

    def _carry_out(self, effects: Effects, life: int) -> None:
        """Send, save, read and answer, in the order of the loop, if no crash comes between."""
        if effects.save is not None and (
            self._crashes_at(Boundary.BEFORE_SENDING) or self._crashes_at(Boundary.FIRST_SAVE)
        ):
            return
        for target, lane, message in effects.envelopes:
            self._setting.watch.leaves(self, target, message)
            self._send(target, lane, message)
        if effects.save is not None:
            self._begin_save(effects.save)
        if life != self.life:
            return
        for recorded in effects.recorded:
            self._later(self._random.randrange(1, TURN_US), partial(self._read_recorded, recorded))
        for serving in effects.servings:
            self._later(self._random.randrange(1, TURN_US), partial(self._serve, serving))
        if self._answers:
            answers, self._answers = self._answers, []
            for send in answers:
                send()
            self._crashes_at(Boundary.ACKNOWLEDGED)
        if life == self.life and effects.has_new_members:
            self._connect_peers()

    def _later(self, delay_us: int, action: Callable[[], object]) -> None:
        """Do that in this life of the machine, or not at all."""
        self._queue.after(delay_us, partial(self._unless_dead, self.life, action))

    def _unless_dead(self, life: int, action: Callable[[], object]) -> None:
        if life == self.life:
            action()

    def _serve(self, serving: Serving) -> None:
        """The reader's thread has the blocks that a peer fetches."""
        self.running.fetching.served(serving.target)
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

    def _read_recorded(self, recorded: Recorded) -> None:
        """The reader's thread has the block of an old retry, or has found it damaged."""
        block: Block | None = None
        try:
            block = self.chain.block(recorded.place.index)
        except DamagedBlockError:
            self._setting.trace.coverage["retries refused: DamagedBlockError"] += 1
        self._when_awake(partial(recorded.settle, block))

    def _plan_timer(self) -> None:
        """One timer is out; one that comes too early looks again, one too late is overtaken."""
        wait_us = self.clock.wait_us(self.running.wake_us())
        due_us = self._queue.now_us + min(max(wait_us, 1), IDLE_US)
        if self._timer_due_us is None or due_us < self._timer_due_us:
            self._timer_due_us = due_us
            self._later(due_us - self._queue.now_us, partial(self._timer, due_us))

    def _timer(self, due_us: int) -> None:
        if due_us != self._timer_due_us:
            return
        self._timer_due_us = None
        if self.is_paused:
            self._queue.at(self.paused_until_us, partial(self._resume, self.life))
        elif self.running.wake_us() <= self.clock.mono_us() or self._random.random() < BUSY:
            self._pump()
        else:
            self._plan_timer()

    # The disk

    def _begin_save(self, save: Save) -> None:
        if self._crashes_at(Boundary.BEFORE_SAVE):
            return
        self._setting.watch.saving(self, save)
        durable_us = self.disk.begin(save)
        if self.crash_at is Boundary.TORN or (
            self.crash_at is Boundary.CATCHING_UP and save.blocks
        ):
            delay_us = self._random.randrange(max(1, durable_us - self._queue.now_us))
            self._later(delay_us, partial(self._crashes_at, self.crash_at))

    def _durable(self, save: Save) -> None:
        """The disk has it, whether or not the process is awake to hear of it."""
        self._setting.watch.saved(self, save)
        if not self._crashes_at(Boundary.UNTOLD):
            tell = partial(self._when_awake, partial(self._saved, save))
            self._later(self._random.randrange(TOLD_US), tell)

    def _saved(self, save: Save) -> None:
        self._setting.trace.event(self._queue.now_us, self.name, b"saved")
        self.running.saved(save)
        if self._setting.trace.is_readable:
            self._setting.trace.line(self._queue.now_us, f"{self.name} {describe_save(save)}")
        self._wake()

    def _crashes_at(self, boundary: Boundary) -> bool:
        if self.crash_at is not boundary:
            return False
        self._setting.trace.faults[f"{KIND_OF[boundary]}, {boundary}"] += 1
        self.crash(boundary)
        return True

    def _note(self, detail: bytes, text: str) -> None:
        self._setting.trace.event(self._queue.now_us, self.name, detail)
        self._setting.trace.line(self._queue.now_us, f"{self.name} {text}")
