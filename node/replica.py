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

from bisect import insort
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from consensus.block import (
    RESERVED_KINDS,
    InvalidTransactionError,
    check_transaction,
    transaction_id,
)
from consensus.messages import Append, Forward, ForwardRefusal
from node.lane import Lane
from node.mempool import Mempool, QueueLimits
from node.outcomes import Receipt, ReceiptStatus, Refusal, RefusalReason, TransactionState
from node.submissions import Waiter, Waiting, conflict, queue_full
from storage.recent import ids_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from consensus.block import Block
    from consensus.leadership import Leadership
    from consensus.messages import AnyMessage, MemberId
    from consensus.raft import Raft
    from consensus.ready import Save
    from node.outcomes import Outcome
    from node.submissions import Submission
    from storage.recent import Lookup, Place, RecentIndex

SMALL_PIPELINE_BLOCKS: Final = 2
"""Uncommitted blocks beyond which only full ones are sealed: transactions gather meanwhile."""
PIPELINE_BLOCKS: Final = 16
FORWARD_BYTES: Final = 1 << 20
FORWARD_TRANSACTIONS: Final = 2_000
RETRY_US: Final = 1_000_000
"""After this long an unsettled transaction is offered again, since a forward may have been lost;
each further wait is twice as long, so that a long queue is not made longer."""


class Envelope(NamedTuple):
    """A message for a peer, and its lane."""

    target: MemberId
    lane: Lane
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Effects:
    """What the server must do now: send at once, and run `save` beside everything else.

    `more` asks for another pump as soon as other work had its turn.
    """

    envelopes: tuple[Envelope, ...]
    save: Save | None
    more: bool


@dataclass(slots=True)
class _Retry:
    """Transactions to offer again when due."""

    due_us: int
    wait_us: int
    ids: list[bytes]


class Replica:
    """The whole of a member that is not sockets, clocks, disks and threads."""

    def __init__(
        self,
        *,
        raft: Raft,
        recent: RecentIndex,
        lookup: Lookup,
        limits: QueueLimits,
    ) -> None:
        """`lookup` must answer for every block through the core's applied index."""
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
        self._retries: deque[_Retry] = deque()
        self._leadership: Leadership | None = None
        self._leader: MemberId | None = None
        self._now_us = 0
        self._envelopes: list[Envelope] = []
        self._barriers: list[Callable[[int], None]] = []
        self._asked: list[Callable[[int], None]] = []
        self._asked_us = 0
        self._read_token = 0
        self._behind: list[tuple[int, Callable[[int], None]]] = []

    @property
    def applied_index(self) -> int:
        """The last block whose transactions this member answers for."""
        return self.raft.log.applied_index

    @property
    def queued(self) -> int:
        """Transactions in the leader's queue."""
        return len(self._mempool)

    @property
    def waiting(self) -> int:
        """Transactions of this node's clients that are not settled."""
        return len(self._waiting)

    # Inputs

    def tick(self, now_us: int, wall_us: int) -> None:
        """Time passes; see `Raft.tick`."""
        self._now_us = now_us
        self.raft.tick(now_us, wall_us)
        while self._retries and self._retries[0].due_us <= now_us:
            retry = self._retries.popleft()
            self._offer_again(retry.ids, wait_us=2 * retry.wait_us)

    def receive(self, source: MemberId, message: AnyMessage) -> None:
        """Takes one decoded message from an authenticated member."""
        match message:
            case Forward():
                self._on_forward(source, message)
            case ForwardRefusal():
                self._on_forward_refusal(message)
            case _:
                self.raft.step(source, message)

    def submit(self, submission: Submission) -> None:
        """Takes a client's transactions; canonical bytes, none of a reserved kind."""
        if self.raft.alarm is not None:
            for slot, wanted in enumerate(submission.ids):
                submission.settle(slot, _unavailable(wanted, self.raft.alarm))
            return
        offered = []
        for slot, place in enumerate(self._lookup.places(submission.ids)):
            wanted, raw = submission.ids[slot], submission.transactions[slot]
            if place is not None:
                submission.settle(slot, self._recorded(wanted, raw, place))
            elif wanted in self._waiting or self._offer(wanted, raw):
                self._waiting.add(wanted, Waiter(raw, submission, slot))
                offered.append(wanted)
            else:
                submission.settle(slot, queue_full(wanted))
        if offered:
            self._retry_later(offered, wait_us=RETRY_US)

    def expire(self, submission: Submission) -> None:
        """The submission's time is up: whatever is open is answered as unknown."""
        self._waiting.expire(submission)

    def read(self, on_applied: Callable[[int], None]) -> None:
        """Calls `on_applied(read_index)` once all that is committed now is applied here.

        By ReadIndex (dissertation §6.4). It goes on over changes of leader and has no deadline.
        """
        self._barriers.append(on_applied)

    def receipt_status(self, wanted: bytes) -> ReceiptStatus:
        """What this member knows of a transaction id."""
        place = self._lookup.places([wanted])[0]
        if place is not None:
            block = self.raft.log.block(place.index)
            return ReceiptStatus(TransactionState.COMMITTED, _receipt(wanted, block, place))
        if wanted in self._waiting or wanted in self._mempool or wanted in self._tail:
            return ReceiptStatus(TransactionState.PENDING)
        return ReceiptStatus(TransactionState.UNKNOWN)

    def saved(self, save: Save) -> None:
        """`save` is durable."""
        self.raft.saved(save)

    def unreachable(self, peer: MemberId) -> None:
        """The connection to `peer` broke."""
        self.raft.unreachable(peer)

    def flushed(self, index: int) -> None:
        """The index store answers for everything through `index`."""
        self._recent.drop_through(index)

    # Outputs

    def pump(self) -> Effects:
        """Goes on as far as possible without waiting; what the server must do for the rest."""
        self._note_leader()
        self._seal()
        self._send_forwards()
        self._ask_read()
        ready = self.raft.ready()
        for block in ready.committed:
            self._apply(block)
        for read in ready.reads:
            self._on_read(read.token, read.read_index)
        self._release_reads()
        for outgoing in ready.messages:
            lane = _lane_of(outgoing.message)
            self._envelopes.append(Envelope(outgoing.target, lane, outgoing.message))
        envelopes, self._envelopes = tuple(self._envelopes), []
        return Effects(envelopes, ready.save, more=bool(ready.committed or ready.reads))

    # Leadership

    def _note_leader(self) -> None:
        """After a change of leader everything unsettled is offered to the new one."""
        leadership, leader = self.raft.leadership, self.raft.leader
        if leadership is self._leadership and leader == self._leader:
            return
        if leadership is not self._leadership:
            self._leadership = leadership
            self._mempool.clear()
            self._tail.clear()
            if leadership is not None:
                self._tail.update(self._unapplied_ids())
        self._leader = leader
        if leader is not None:
            self._outbox.clear()
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

    def _offer(self, wanted: bytes, raw: bytes) -> bool:
        """Queues a transaction here, or for forwarding; False where there is no room."""
        if self._leadership is not None:
            if wanted in self._tail or wanted in self._mempool:
                return True
            return self._mempool.add(wanted, raw)
        full = len(self._waiting) >= self._limits.transactions
        if full or self._waiting.size_bytes + len(raw) > self._limits.size_bytes:
            return False
        self._outbox.append(wanted)
        return True

    def _offer_again(self, ids: Sequence[bytes], *, wait_us: int) -> None:
        """Offers what is still unsettled once more; harmless where it is on its way already."""
        unsettled = [wanted for wanted in ids if self._waiting.note_offered_again(wanted)]
        if not unsettled:
            return
        self._retry_later(unsettled, wait_us=wait_us)
        if self._leadership is None:
            self._outbox += unsettled
            return
        for wanted in unsettled:
            raw = self._waiting.raw_of(wanted)
            if raw is not None and wanted not in self._tail and wanted not in self._mempool:
                self._mempool.add(wanted, raw)

    def _retry_later(self, ids: list[bytes], *, wait_us: int) -> None:
        """Keeps the retries in order of time; the long waits are few."""
        retry = _Retry(self._now_us + wait_us, wait_us, ids)
        insort(self._retries, retry, key=lambda waiting: waiting.due_us)

    # Sealing

    def _seal(self) -> None:
        """Seals at once while the pipeline has room; otherwise transactions gather (design §6)."""
        if self._leadership is None:
            return
        log = self.raft.log
        while self._mempool:
            uncommitted = log.last_index - log.commit_index
            limit = PIPELINE_BLOCKS if self._mempool.fills_block else SMALL_PIPELINE_BLOCKS
            if uncommitted >= limit:
                return
            taken = self._mempool.take_block()
            self.raft.propose(tuple(taken.values()))
            self._tail.update(taken)
            self.blocks_sealed += 1

    # Forwarding

    def _send_forwards(self) -> None:
        """A follower passes its clients' transactions on; it never passes on those of others."""
        if not self._outbox or self._leadership is not None or self._leader is None:
            return
        batch: list[bytes] = []
        size_bytes = 0
        for wanted in self._outbox:
            raw = self._waiting.raw_of(wanted)
            if raw is None:
                continue
            if size_bytes + len(raw) > FORWARD_BYTES or len(batch) == FORWARD_TRANSACTIONS:
                self._envelopes.append(Envelope(self._leader, Lane.BULK, Forward(tuple(batch))))
                batch, size_bytes = [], 0
            batch.append(raw)
            size_bytes += len(raw)
        if batch:
            self._envelopes.append(Envelope(self._leader, Lane.BULK, Forward(tuple(batch))))
        self._outbox.clear()

    def _on_forward(self, source: MemberId, forward: Forward) -> None:
        """Queues what is new.

        The member that forwarded answers its clients from its own chain, so only a full queue needs
        a reply.
        """
        self._note_leader()
        if self._leadership is None:
            self.dropped["forward to no leader"] += 1
            return
        fresh = [raw for raw in forward.transactions if self._is_new(raw) and self._is_lawful(raw)]
        ids = [transaction_id(raw) for raw in fresh]
        refused = [
            wanted
            for wanted, raw, place in zip(ids, fresh, self._lookup.places(ids), strict=True)
            if place is None and not self._offer(wanted, raw)
        ]
        if refused:
            refusal = ForwardRefusal(tuple(refused))
            self._envelopes.append(Envelope(source, Lane.CONTROL, refusal))

    def _is_new(self, raw: bytes) -> bool:
        wanted = transaction_id(raw)
        return wanted not in self._tail and wanted not in self._mempool

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
            self._waiting.refuse_full(wanted)

    # Applying

    def _apply(self, block: Block) -> None:
        self._recent.add(block)
        self.transactions_applied += len(block.transactions)
        ids = ids_of(block)
        self._tail.difference_update(ids)
        self._waiting.settle_block(block, ids)

    def _recorded(self, wanted: bytes, raw: bytes, place: Place) -> Outcome:
        """A retry gets the original receipt; the same id with other content is a conflict."""
        block = self.raft.log.block(place.index)
        if block.transactions[place.position] != raw:
            return conflict(wanted)
        return _receipt(wanted, block, place)

    # Reads

    def _ask_read(self) -> None:
        """All reads that came meanwhile share one request to the core; a lost one is repeated."""
        patience_us = self.raft.config.election_min_us
        if self._asked and self._now_us - self._asked_us < patience_us:
            return
        if self._leader is None or not (self._barriers or self._asked):
            return
        self._asked += self._barriers
        self._barriers = []
        self._asked_us = self._now_us
        self._read_token += 1
        self.raft.read(self._read_token)

    def _on_read(self, token: int, read_index: int | None) -> None:
        if token != self._read_token:
            return
        if read_index is None:
            self._barriers = self._asked + self._barriers
        else:
            self._behind += [(read_index, on_applied) for on_applied in self._asked]
        self._asked = []

    def _release_reads(self) -> None:
        if not self._behind:
            return
        applied_index = self.applied_index
        still_behind = []
        for read_index, on_applied in self._behind:
            if read_index <= applied_index:
                on_applied(read_index)
            else:
                still_behind.append((read_index, on_applied))
        self._behind = still_behind


def _lane_of(message: AnyMessage) -> Lane:
    """Blocks take the bulk lane, everything small the urgent one."""
    return Lane.BULK if isinstance(message, Append) and message.blocks else Lane.CONTROL


def _receipt(wanted: bytes, block: Block, place: Place) -> Receipt:
    return Receipt(wanted, place.index, place.position, block.hash, block.timestamp_us)


def _unavailable(wanted: bytes, alarm: str) -> Refusal:
    return Refusal(wanted, RefusalReason.UNAVAILABLE, alarm)
