"""One member's state machine: the core, the queue, the look-ups and whoever waits. No I/O.

The server feeds it time, peers' messages, clients' submissions and finished saves, and calls
`pump()` for what must happen: messages to send and a save to run. The same object runs in the
simulator. Order of a transaction: `submit` → queue here or forwarded to the leader → sealed →
saved by a majority → committed → applied here → the waiter hears its receipt.

Exactly once rests on ids: the leader seals none that is in the index, in its unapplied tail or in
its queue, so a transaction may be offered again, to any leader, as often as it takes. Relies on the
core (`consensus`) and on look-ups that answer for every applied block (`storage.recent`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from consensus.block import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TRANSACTIONS,
    RESERVED_KINDS,
    TRANSACTION_ID_BYTES,
    InvalidTransactionError,
    check_transaction,
    transaction_id,
)
from consensus.messages import BlocksReply, BlocksRequest, Forward, ForwardRefusal
from node.barriers import Barriers
from node.effects import Effects, Envelope, Load, Recorded
from node.fetching import Fetching
from node.lane import Lane, lane_of
from node.mempool import Mempool, QueueLimits
from node.open_changes import OpenChanges
from node.pacing import NEVER_US, SMALL_PIPELINE_BLOCKS, Pace
from node.retries import Retries
from node.submissions import (
    Waiter,
    Waiting,
    queue_full,
    removed_by,
    unavailable,
)
from storage.recent import ids_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from consensus.block import Block
    from consensus.changes import Change
    from consensus.leadership import Leadership
    from consensus.membership import Member
    from consensus.messages import AnyMessage, MemberId
    from consensus.raft import Raft
    from consensus.ready import ConfirmedRead, Save
    from node.submissions import Submission
    from storage.recent import Lookup, Place, RecentIndex

PIPELINE_BLOCKS: Final = 16
SEALS_PER_PUMP: Final = 2
"""Full blocks sealed in one turn of the loop, a few milliseconds each."""
RECENT_TRANSACTIONS: Final = 500_000
"""Applied transactions that may wait for the index; beyond, the leader seals no more."""
FORWARD_BYTES: Final = 1 << 20
FORWARD_TRANSACTIONS: Final = 2_000
FORWARDS_PER_PUMP: Final = 4
RETRY_US: Final = 1_000_000
"""An unsettled transaction is offered again after this, then after twice as long, and so on."""


class Replica:
    """The whole of a member that is not sockets, clocks, disks and threads."""

    def __init__(
        self,
        *,
        raft: Raft,
        recent: RecentIndex,
        lookup: Lookup,
        limits: QueueLimits,
        seeds: Mapping[MemberId, Member] | None = None,
        seeds_index: int = 0,
    ) -> None:
        """`lookup` answers for all that is applied; for the seeds see `Fetching`."""
        self.raft = raft
        self.dropped: Counter[str] = Counter()
        self.transactions_applied = 0
        self.blocks_sealed = 0
        self._recent = recent
        self._lookup = lookup
        self._limits = limits
        self._mempool = Mempool(limits)
        self._waiting = Waiting()
        self._tail: set[bytes] = set()
        self._outbox: list[bytes] = []
        self._retries = Retries()
        self._pace = Pace()
        self.seal_us = NEVER_US
        """When the next pump is to seal what gathers, if no event brings one sooner."""
        self._leadership: Leadership | None = None
        self._leader: MemberId | None = None
        self._leader_term = 0
        self._forward_number = raft.random.getrandbits(62)
        self._now_us = 0
        self._envelopes: list[Envelope] = []
        self._recorded: list[Recorded] = []
        self._barriers = Barriers(patience_us=raft.config.election_min_us)
        self.fetching = Fetching(raft, seeds or {}, seeds_index)
        self._changes = OpenChanges()

    @property
    def applied_index(self) -> int:
        """The last block whose transactions this member answers for."""
        return self.raft.log.applied_index

    def wake_us(self) -> int:
        """When there is something to do next if nothing else happens; a pump finds it."""
        return min(self.raft.wake_us(), self.seal_us)

    @property
    def load(self) -> Load:
        """How much is under way here."""
        return Load(len(self._mempool), len(self._waiting))

    @property
    def is_full(self) -> bool:
        """Whether not even one more transaction would find room now."""
        return not (self._has_room(1) and (self._leadership is None or self._mempool.has_room(1)))

    @property
    def obstacle(self) -> str | None:
        """Why this member takes no transactions at all, for a person to look at."""
        removed_at = self.raft.removed_at
        if self.raft.alarm is None and removed_at is not None:
            return removed_by(removed_at)
        return self.raft.alarm

    # Inputs

    def advance(self, now_us: int, wall_us: int) -> None:
        """The clock moves, before a message is taken; see `Raft.advance`."""
        self._now_us = now_us
        self.raft.advance(now_us, wall_us)

    def tick(self, now_us: int, wall_us: int) -> None:
        """Time passes; see `Raft.tick`."""
        self._now_us = now_us
        self.raft.tick(now_us, wall_us)
        for retry in self._retries.take_due(now_us):
            self._offer_again(retry.ids, wait_us=2 * retry.wait_us)

    def receive(self, source: MemberId, message: AnyMessage) -> None:
        """Takes one decoded message from an authenticated member."""
        self.fetching.heard(source)
        match message:
            case Forward():
                self._on_forward(source, message)
            case ForwardRefusal():
                self._on_forward_refusal(message)
            case BlocksRequest():
                self.fetching.on_request(source, message)
            case BlocksReply():
                self.fetching.on_reply(source, message, self._now_us)
            case _:
                self.raft.step(source, message)

    def submit(self, *submissions: Submission) -> None:
        """Takes clients' transactions; canonical bytes, none of a reserved kind.

        Those of many calls are looked up at once: a read of the index costs more than a look-up.
        """
        waiting = [submission for submission in submissions if not submission.is_done]
        obstacle = self.obstacle
        if obstacle is not None:
            for submission in waiting:
                for slot, wanted in enumerate(submission.ids):
                    submission.settle(slot, unavailable(wanted, obstacle))
            return
        places = self._lookup.places([wanted for one in waiting for wanted in one.ids])
        slots = [(one, slot) for one in waiting for slot in range(len(one.ids))]
        offered: list[bytes] = []
        for (submission, slot), place in zip(slots, places, strict=True):
            wanted, raw = submission.ids[slot], submission.transactions[slot]
            if place is not None:
                self._answer_retry(submission, slot, place)
            elif self._has_room(len(raw)) and self._offer(wanted, raw):
                self._waiting.add(wanted, Waiter(raw, submission, slot))
                if self._leadership is not None:
                    self._waiting.note_queued(wanted)
                offered.append(wanted)
            else:
                submission.settle(slot, queue_full(wanted))
        if offered:
            self._pace.arrived(len(offered))
            self._retries.add(offered, now_us=self._now_us, wait_us=RETRY_US)

    def expire(self, submission: Submission) -> None:
        """The submission's time is up: whatever is open is answered as unknown."""
        self._waiting.expire(submission)

    def read(self, on_applied: Callable[[int], None]) -> int:
        """Calls `on_applied(read_index)` once all that is committed now is applied here.

        By ReadIndex (dissertation §6.4). It goes on over changes of leader; the number returned is
        for `forget_read`, when the caller's time is up.
        """
        return self._barriers.add(on_applied)

    def forget_read(self, number: int) -> None:
        """Nobody waits for that read any more."""
        self._barriers.forget(number)

    def is_pending(self, wanted: bytes) -> bool:
        """Whether a transaction is on its way as far as this member knows."""
        return wanted in self._waiting or self._is_on_its_way(wanted)

    def saved(self, save: Save) -> None:
        """`save` is durable."""
        self.raft.saved(save)

    def unreachable(self, peer: MemberId) -> None:
        """The connection to `peer` broke."""
        self.raft.unreachable(peer)
        self.fetching.unreachable(peer)

    def change_membership(self, change: Change, on_settled: Callable[[bool], None]) -> Block:
        """Seals the block that makes `change`; `on_settled` says later whether it is committed.

        Raises:
            ChangeError: the change is not made; see `Raft.change_membership`.
        """
        block = self.raft.change_membership(change)
        self._changes.add(block, on_settled)
        return block

    def reachable(self, peer: MemberId) -> None:
        """The connection to `peer` is there (again): what was sent to it before may be lost."""
        self.fetching.reachable(peer)
        if peer == self._leader:
            self._offer_everything_again()

    def flushed(self, index: int) -> None:
        """The index store answers for everything through `index`."""
        self._recent.drop_through(index)

    # Outputs

    def pump(self) -> Effects:
        """Goes on as far as possible without waiting; what the server must do for the rest."""
        self._note_leader()
        has_more = self._seal() or self._send_forwards()
        self._ask_read()
        # While the index is behind, nothing is fetched.
        if self._recent.transactions < RECENT_TRANSACTIONS:
            has_more = self.fetching.go_on(self._now_us) or has_more
        ready = self.raft.ready()
        for block in ready.committed:
            self._apply(block)
        for read in ready.reads:
            self._on_read(read)
        self._barriers.release(self.applied_index)
        for outgoing in ready.messages:
            lane = lane_of(outgoing.message)
            self._envelopes.append(Envelope(outgoing.target, lane, outgoing.message))
        envelopes = (*self._envelopes, *self.fetching.take_envelopes())
        self._envelopes = []
        recorded, self._recorded = tuple(self._recorded), []
        more = bool(ready.committed or ready.reads) or has_more
        has_new_members = self.fetching.note_members()
        servings = self.fetching.take_servings()
        return Effects(envelopes, ready.save, recorded, servings, has_new_members, more)

    # Leadership

    def _note_leader(self) -> None:
        """After a change of leader everything unsettled is offered to the new one."""
        leadership, leader = self.raft.leadership, self.raft.leader
        if leader == self._leader and self.raft.term == self._leader_term:
            return
        if leadership is not self._leadership:
            self._leadership = leadership
            self._mempool.clear()
            self._tail.clear()
            if leadership is not None:
                self._tail.update(self._unapplied_ids())
        self._leader, self._leader_term = leader, self.raft.term
        self._outbox.clear()
        if leader is not None:
            self._offer_everything_again()

    def _offer_everything_again(self) -> None:
        self._retries.clear()
        self._offer_again(list(self._waiting), wait_us=RETRY_US)

    def _unapplied_ids(self) -> Iterable[bytes]:
        """The ids in the blocks after the applied one: a new leader must not seal them again."""
        log = self.raft.log
        index = log.applied_index + 1
        while index <= log.last_index:
            blocks = log.blocks_from(index, max_blocks=PIPELINE_BLOCKS, max_bytes=FORWARD_BYTES)
            for block in blocks:
                yield from ids_of(block)
            index = blocks[-1].index + 1

    def _has_room(self, size_bytes: int) -> bool:
        """Whether this member may hold another transaction of its own clients.

        A leader holds those in its queue, which has the same limits, and those in its pipeline.
        """
        blocks = 0 if self._leadership is None else PIPELINE_BLOCKS
        limit = self._limits.transactions + blocks * MAX_BLOCK_TRANSACTIONS
        limit_bytes = self._limits.size_bytes + blocks * MAX_BLOCK_BYTES
        held_bytes = self._waiting.size_bytes + size_bytes
        return len(self._waiting) < limit and held_bytes <= limit_bytes

    def _offer(self, wanted: bytes, raw: bytes) -> bool:
        """Queues a transaction here, or for forwarding; False where the queue is full.

        Without a leader it only waits: the next one is offered everything.
        """
        if self._leadership is not None:
            return self._is_on_its_way(wanted) or self._mempool.add(wanted, raw)
        if self._leader is not None and wanted not in self._waiting:
            self._outbox.append(wanted)
        return True

    def _offer_again(self, ids: Sequence[bytes], *, wait_us: int) -> None:
        """Offers what is still unsettled once more; harmless where it is on its way already."""
        unsettled = [wanted for wanted in ids if wanted in self._waiting]
        if not unsettled:
            return
        self._retries.add(unsettled, now_us=self._now_us, wait_us=wait_us)
        if self._leadership is None:
            if self._leader is not None:
                self._outbox += unsettled
            return
        for wanted in unsettled:
            raw = self._waiting.raw_of(wanted)
            assert raw is not None, "what is unsettled is held"
            if not self._is_on_its_way(wanted):
                self._mempool.add(wanted, raw)
            self._waiting.note_queued(wanted)

    # Sealing

    def _seal(self) -> bool:
        """Seals full blocks while the pipeline has room, others when it is time: see `Pace`.

        True where more could be sealed: a turn of the loop must not take longer than a heartbeat.
        """
        self.seal_us = NEVER_US
        if not self.raft.may_propose:
            return False
        log = self.raft.log
        for _ in range(SEALS_PER_PUMP):
            if not self._mempool or self._recent.transactions >= RECENT_TRANSACTIONS:
                return False
            is_full = self._mempool.fills_block
            limit = PIPELINE_BLOCKS if is_full else SMALL_PIPELINE_BLOCKS
            if log.last_index - log.commit_index >= limit:
                return False  # a commit ends the wait, whether this member's disk is slow or not
            if not is_full:
                due_us = self._pace.due_us(
                    self._now_us,
                    queued=len(self._mempool),
                    on_their_way=len(self._tail),
                    under_way=log.last_index - log.applied_index,
                )
                if due_us > self._now_us:
                    self.seal_us = due_us
                    return False
            taken = self._mempool.take_block()
            self.raft.propose(tuple(taken.values()))
            self._pace.sealed(self._now_us)
            self._tail.update(taken)
            self.blocks_sealed += 1
        return True

    def _is_on_its_way(self, wanted: bytes) -> bool:
        """Whether the leader has an id in its queue or in a block that is not applied."""
        return wanted in self._tail or wanted in self._mempool

    # Forwarding

    def _send_forwards(self) -> bool:
        """A follower passes its clients' transactions on; it never passes on those of others.

        True where some are left for the next turn of the loop.
        """
        if self._leadership is not None or self._leader is None:
            return False
        for _ in range(FORWARDS_PER_PUMP):
            batch = self._next_forward()
            if not batch:
                break
            forward = Forward(self._forward_number, batch)
            self._envelopes.append(Envelope(self._leader, Lane.BULK, forward))
        return bool(self._outbox)

    def _next_forward(self) -> tuple[bytes, ...]:
        """The oldest transactions of the outbox that fit one message, under a new number."""
        self._forward_number += 1
        batch: list[bytes] = []
        size_bytes = taken = 0
        for wanted in self._outbox:
            raw = self._waiting.raw_of(wanted)
            if raw is not None:
                size_bytes += len(raw)
                if (batch and size_bytes > FORWARD_BYTES) or len(batch) == FORWARD_TRANSACTIONS:
                    break
                batch.append(raw)
                self._waiting.note_forward(wanted, self._forward_number)
            taken += 1
        del self._outbox[:taken]
        return tuple(batch)

    def _on_forward(self, source: MemberId, forward: Forward) -> None:
        """Queues what is new.

        The member that forwarded answers its clients from its own chain, so only a full queue needs
        a reply.
        """
        self._note_leader()
        if source not in self.raft.log.roster.latest.keys:
            self.dropped["forward of a former member"] += 1
            return
        if self._leadership is None:
            self.dropped["forward to no leader"] += 1
            return
        refused = [
            wanted
            for wanted, raw in self._new_ones(forward.transactions)
            if self._is_lawful(raw) and not self._offer(wanted, raw)
        ]
        if refused:
            refusal = ForwardRefusal(forward.number, tuple(refused))
            self._envelopes.append(Envelope(source, Lane.CONTROL, refusal))

    def _new_ones(self, transactions: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Those that are neither recorded nor on their way, with their ids; the cheap look first.

        After a change of leader most of what is offered again is recorded already.
        """
        news = [
            (wanted, raw)
            for wanted, raw in ((transaction_id(raw), raw) for raw in transactions)
            if not self._is_on_its_way(wanted)
        ]
        if any(len(wanted) != TRANSACTION_ID_BYTES for wanted, _ in news):
            news = [(wanted, raw) for wanted, raw in news if self._is_lawful(raw)]
        places = self._lookup.places([wanted for wanted, _ in news])
        return [one for one, place in zip(news, places, strict=True) if place is None]

    def _is_lawful(self, raw: bytes) -> bool:
        try:
            lawful = check_transaction(raw).kind not in RESERVED_KINDS
        except InvalidTransactionError:
            lawful = False
        if not lawful:
            self.dropped["forwarded transaction is invalid"] += 1
        return lawful

    def _on_forward_refusal(self, refusal: ForwardRefusal) -> None:
        for wanted in refusal.transaction_ids:
            self._waiting.refuse_full(wanted, refusal.number)

    # Applying

    def _apply(self, block: Block) -> None:
        self._recent.add(block)
        self._changes.settle(block)
        self.transactions_applied += len(block.transactions)
        ids = ids_of(block)
        self._tail.difference_update(ids)
        before = len(self._waiting)
        self._waiting.settle_block(block, ids)
        self._pace.answered(before - len(self._waiting), self._now_us)

    def _answer_retry(self, submission: Submission, slot: int, place: Place) -> None:
        """A retry gets the original receipt; the same id with other content is a conflict."""
        recorded = Recorded(submission, slot, place)
        block = self.raft.log.recent_block(place.index)
        if block is None:
            self._recorded.append(recorded)
        else:
            recorded.settle(block)

    # Reads

    def _ask_read(self) -> None:
        if self._leader is None:
            return
        token = self._barriers.next_token(self._now_us)
        if token is not None:
            self.raft.read(token)

    def _on_read(self, read: ConfirmedRead) -> None:
        if read.read_index is None:
            self._barriers.lose(read.token)
        else:
            self._barriers.confirm(read.token, read.read_index)
