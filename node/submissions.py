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

UNKNOWN_DETAIL: Final = "no answer in time: it may be recorded; retry with the same id"
CONFLICT_DETAIL: Final = "the id is recorded with other content"
FULL_DETAIL: Final = "the queue is full; this transaction was not taken"
RETRY_AFTER_S: Final = 1


class Submission:
    """One call's transactions and their outcomes, in the order sent.

    `on_done` is called once, with the outcomes, as soon as there is one for each.
    """

    __slots__ = ("_open", "_outcomes", "ids", "on_done", "transactions", "wait")

    def __init__(
        self,
        transactions: Sequence[bytes],
        *,
        wait: Wait,
        on_done: Callable[[list[Outcome]], None],
    ) -> None:
        """Takes canonical bytes; at least one."""
        assert transactions, "a submission is never empty"
        self.transactions = transactions
        self.ids = [transaction_id(raw) for raw in transactions]
        self.wait = wait
        self.on_done = on_done
        self._outcomes: list[Outcome | None] = [None] * len(transactions)
        self._open = len(transactions)

    def settle(self, slot: int, outcome: Outcome) -> None:
        """Sets the outcome of one transaction; the first one counts."""
        if self._outcomes[slot] is not None:
            return
        self._outcomes[slot] = outcome
        self._open -= 1
        if self._open == 0:
            self.on_done([outcome for outcome in self._outcomes if outcome is not None])

    def open_slots(self) -> list[int]:
        """The transactions without an outcome."""
        return [slot for slot, outcome in enumerate(self._outcomes) if outcome is None]


class Waiter(NamedTuple):
    """One slot of a submission that waits, and the bytes it wants to see recorded."""

    raw: bytes
    submission: Submission
    slot: int


@dataclass(slots=True)
class _Entry:
    """Who waits for one id, and whether it was offered to a leader more than once."""

    waiters: list[Waiter]
    offered_again: bool = False


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
        """Waits for the fate of an id."""
        entry = self._entries.get(wanted)
        if entry is None:
            self._entries[wanted] = _Entry([waiter])
        else:
            entry.waiters.append(waiter)
        self._size_bytes += len(waiter.raw)
        if waiter.submission.wait is Wait.ACCEPTED:
            waiter.submission.settle(waiter.slot, Accepted(wanted))

    def raw_of(self, wanted: bytes) -> bytes | None:
        """The bytes to offer for an id: those that came first."""
        entry = self._entries.get(wanted)
        return None if entry is None else entry.waiters[0].raw

    def note_offered_again(self, wanted: bytes) -> bool:
        """Remembers that an id is offered once more; False where nobody waits for it."""
        entry = self._entries.get(wanted)
        if entry is None:
            return False
        entry.offered_again = True
        return True

    def settle_block(self, block: Block, ids: Sequence[bytes]) -> None:
        """The block is applied: whoever waits for one of its ids hears a receipt or a conflict."""
        if not self._entries:
            return
        index, block_hash, timestamp_us = block.index, block.hash, block.timestamp_us
        for position, wanted in enumerate(ids):
            if wanted not in self._entries:
                continue
            receipt = Receipt(wanted, index, position, block_hash, timestamp_us)
            for raw, submission, slot in self._pop(wanted):
                same = raw == block.transactions[position]
                submission.settle(slot, receipt if same else conflict(wanted))

    def refuse_full(self, wanted: bytes) -> None:
        """The leader had no room for an id.

        Only what was offered once is refused: of an earlier offer nobody knows the fate, so that
        transaction goes on waiting, and is unknown at the end of its time.
        """
        entry = self._entries.get(wanted)
        if entry is None or entry.offered_again:
            return
        for waiter in self._pop(wanted):
            waiter.submission.settle(waiter.slot, queue_full(wanted))

    def expire(self, submission: Submission) -> None:
        """The submission's time is up: what is open is unknown, and is not offered again."""
        for wanted in set(submission.ids).intersection(self._entries):
            kept = [w for w in self._entries[wanted].waiters if w.submission is not submission]
            self._pop(wanted)
            for waiter in kept:
                self.add(wanted, waiter)
                self.note_offered_again(wanted)
        for slot in submission.open_slots():
            wanted = submission.ids[slot]
            refusal = Refusal(wanted, RefusalReason.UNKNOWN, UNKNOWN_DETAIL, RETRY_AFTER_S)
            submission.settle(slot, refusal)

    def _pop(self, wanted: bytes) -> list[Waiter]:
        waiters = self._entries.pop(wanted).waiters
        for waiter in waiters:
            self._size_bytes -= len(waiter.raw)
        return waiters


def conflict(wanted: bytes) -> Refusal:
    """The refusal of an id that is committed with other content."""
    return Refusal(wanted, RefusalReason.CONFLICT, CONFLICT_DETAIL)


def queue_full(wanted: bytes) -> Refusal:
    """The refusal of a transaction that found no room."""
    return Refusal(wanted, RefusalReason.QUEUE_FULL, FULL_DETAIL, RETRY_AFTER_S)
