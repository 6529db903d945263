"""Calls that wait for the fate of their transactions, by id.

A `Submission` is one call: a single transaction or a batch. `Waiting` holds every transaction of
this node's own clients that is not settled, with its bytes, so that it can be offered again to the
next leader. Relies on canonical bytes: equal content is equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from consensus.block import transaction_id
from node.outcomes import Accepted, Outcome, Receipt, Refusal, RefusalReason, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from consensus.block import Block
    from storage.recent import Place

UNKNOWN_DETAIL: Final = "no answer in time: it may be recorded; retry with the same id"
CONFLICT_DETAIL: Final = "the id is recorded with other content"
FULL_DETAIL: Final = "the queue is full; this transaction was not taken"
RETRY_AFTER_S: Final = 1


class Submission:
    """One call's transactions and their outcomes, in the order sent.

    `on_done` is called once, with the outcomes, as soon as there is one for each. `on_end` is
    called when the call is over, at least once and never before that: just before `on_done`, or,
    for a call that does not wait for the commit, when besides nothing of it is held any more.
    """

    __slots__ = (
        "_held",
        "_on_done",
        "_on_end",
        "_open",
        "_outcomes",
        "ids",
        "transactions",
        "wait",
    )

    def __init__(
        self,
        transactions: Sequence[bytes],
        *,
        wait: Wait,
        on_done: Callable[[list[Outcome]], None],
        on_end: Callable[[Submission], None] | None = None,
    ) -> None:
        """Takes canonical bytes; at least one."""
        assert transactions, "a submission is never empty"
        self.transactions = transactions
        self.ids = [transaction_id(raw) for raw in transactions]
        self.wait = wait
        self._on_done = on_done
        self._on_end = on_end
        self._outcomes: list[Outcome | None] = [None] * len(transactions)
        self._open = len(transactions)
        self._held = 0

    @property
    def is_done(self) -> bool:
        """Whether every transaction has its outcome."""
        return self._open == 0

    def settle(self, slot: int, outcome: Outcome) -> None:
        """Sets the outcome of one transaction; the first one counts."""
        if self._outcomes[slot] is not None:
            return
        self._outcomes[slot] = outcome
        self._open -= 1
        if self._open == 0:
            if self._on_end is not None and (self._held == 0 or self.wait is Wait.COMMITTED):
                self._on_end(self)
            self._on_done([outcome for outcome in self._outcomes if outcome is not None])

    def open_slots(self) -> list[int]:
        """The transactions without an outcome."""
        return [slot for slot, outcome in enumerate(self._outcomes) if outcome is None]

    def hold(self) -> None:
        """One more of its transactions is held for offering."""
        self._held += 1

    def release(self) -> None:
        """One of them is not held any more."""
        self._held -= 1
        if self._held == 0 and self.is_done and self._on_end is not None:
            self._on_end(self)

    @property
    def is_held(self) -> bool:
        """Whether any of its transactions is held for offering."""
        return self._held > 0


class Waiter(NamedTuple):
    """One slot of a submission that waits, and the bytes it wants to see recorded."""

    raw: bytes
    submission: Submission
    slot: int


@dataclass(slots=True)
class _Entry:
    """Who waits for one id, and what is known of its offers.

    `forward` is the number of the only forward that it left in. Once it was offered in any other
    way `is_traceable` is False: no single refusal says any more that it was not taken.
    """

    waiters: list[Waiter]
    forward: int | None = None
    is_traceable: bool = True


class Waiting:
    """Unsettled transactions of this node's own clients."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._entries: dict[bytes, _Entry] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        """How many ids are waited for."""
        return len(self._entries)

    def __contains__(self, wanted: bytes) -> bool:
        """Whether that id is waited for."""
        return wanted in self._entries

    def __iter__(self) -> Iterator[bytes]:
        """The ids, in order of arrival."""
        return iter(self._entries)

    @property
    def size_bytes(self) -> int:
        """The bytes of all transactions that are held."""
        return self._size_bytes

    def add(self, wanted: bytes, waiter: Waiter) -> None:
        """Waits for the fate of an id. Equal bytes are held once."""
        waiter.submission.hold()
        entry = self._entries.get(wanted)
        if entry is None:
            self._entries[wanted] = _Entry([waiter])
            self._size_bytes += len(waiter.raw)
        else:
            same = next((held.raw for held in entry.waiters if held.raw == waiter.raw), None)
            if same is None:
                self._size_bytes += len(waiter.raw)
            entry.waiters.append(waiter if same is None else waiter._replace(raw=same))
        if waiter.submission.wait is Wait.ACCEPTED:
            waiter.submission.settle(waiter.slot, Accepted(wanted))

    def raw_of(self, wanted: bytes) -> bytes | None:
        """The bytes to offer for an id: those that came first."""
        entry = self._entries.get(wanted)
        return None if entry is None else entry.waiters[0].raw

    def note_queued(self, wanted: bytes) -> None:
        """This member queued an id as leader: if it loses the lead nobody knows the fate."""
        self._entries[wanted].is_traceable = False

    def note_forward(self, wanted: bytes, number: int) -> None:
        """An id leaves in the forward `number`; from the second on none of them tells its fate."""
        entry = self._entries[wanted]
        entry.is_traceable = entry.is_traceable and entry.forward is None
        entry.forward = number

    def settle_block(self, block: Block, ids: Sequence[bytes]) -> None:
        """The block is applied: whoever waits for one of its ids hears a receipt or a conflict."""
        if not self._entries:
            return
        index, block_hash, timestamp_us = block.index, block.hash, block.timestamp_us
        for position, wanted in enumerate(ids):
            if wanted not in self._entries:
                continue
            receipt = Receipt(wanted, index, position, block_hash, timestamp_us)
            for raw, submission, slot in self._pop(wanted).waiters:
                same = raw == block.transactions[position]
                submission.settle(slot, receipt if same else conflict(wanted))
                submission.release()

    def refuse_full(self, wanted: bytes, number: int) -> None:
        """The leader had no room for an id in the forward `number`.

        Its waiters hear so only if that was the only offer: of another one nobody knows the fate,
        so it goes on waiting, and is unknown at the end of its time. What was accepted without
        waiting is kept and offered again. A forward that arrives twice would make this untrue: the
        transport delivers at most once.
        """
        entry = self._entries.get(wanted)
        if entry is None or not entry.is_traceable or entry.forward != number:
            return
        for waiter in entry.waiters:
            if waiter.submission.wait is not Wait.ACCEPTED:
                waiter.submission.settle(waiter.slot, queue_full(wanted))
        self._keep(wanted, lambda waiter: waiter.submission.wait is Wait.ACCEPTED)

    def expire(self, submission: Submission) -> None:
        """The submission's time is up: what is open is unknown, and is not offered again."""
        if submission.is_held:
            # In the order of the call, never in that of hashes: it becomes the order of forwards.
            for wanted in dict.fromkeys(submission.ids):
                if wanted in self._entries:
                    self._keep(wanted, lambda waiter: waiter.submission is not submission)
        for slot in submission.open_slots():
            wanted = submission.ids[slot]
            refusal = Refusal(wanted, RefusalReason.UNKNOWN, UNKNOWN_DETAIL, RETRY_AFTER_S)
            submission.settle(slot, refusal)

    def _keep(self, wanted: bytes, stays: Callable[[Waiter], bool]) -> None:
        """Only those of whom that is true go on waiting for an id."""
        entry = self._pop(wanted)
        kept: list[Waiter] = []
        gone: list[Waiter] = []
        for waiter in entry.waiters:
            (kept if stays(waiter) else gone).append(waiter)
        if kept:
            entry.waiters = kept
            self._entries[wanted] = entry
            self._size_bytes += _held_bytes(kept)
        for waiter in gone:
            waiter.submission.release()

    def _pop(self, wanted: bytes) -> _Entry:
        entry = self._entries.pop(wanted)
        self._size_bytes -= _held_bytes(entry.waiters)
        return entry


def _held_bytes(waiters: list[Waiter]) -> int:
    """The bytes that waiters of one id hold: equal transactions are one object."""
    if len(waiters) == 1:
        return len(waiters[0].raw)
    return sum(len(raw) for raw in {waiter.raw for waiter in waiters})


def conflict(wanted: bytes) -> Refusal:
    """The refusal of an id that is committed with other content."""
    return Refusal(wanted, RefusalReason.CONFLICT, CONFLICT_DETAIL)


def queue_full(wanted: bytes) -> Refusal:
    """The refusal of a transaction that found no room."""
    return Refusal(wanted, RefusalReason.QUEUE_FULL, FULL_DETAIL, RETRY_AFTER_S)


def recorded_outcome(wanted: bytes, raw: bytes, block: Block, place: Place) -> Outcome:
    """What to answer for an id that is recorded at `place` in `block`."""
    if block.transactions[place.position] != raw:
        return conflict(wanted)
    return Receipt(wanted, place.index, place.position, block.hash, block.timestamp_us)


def unreadable(wanted: bytes, place: Place) -> Refusal:
    """What to answer for an id whose block is damaged here: only others know its content."""
    detail = f"it is in block {place.index}, which cannot be read here: ask another node"
    return Refusal(wanted, RefusalReason.UNKNOWN, detail, RETRY_AFTER_S)


def removed_by(removed_at: int) -> str:
    """Why a member that was removed takes nothing."""
    return (
        f"REMOVED: block {removed_at} removed this node from the cluster; "
        "to come back, add it as a new member with a new data folder"
    )


def unavailable(wanted: bytes, obstacle: str) -> Refusal:
    """What to answer while this member takes no transactions."""
    return Refusal(wanted, RefusalReason.UNAVAILABLE, obstacle)
