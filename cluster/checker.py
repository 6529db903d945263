"""Says whether what clients saw of a ledger can be true: pure, fast, the same for any harness.

A history is what clients asked and heard, with the times at which they asked and heard it. The
chain of committed transactions is the order in which everything took effect, so nothing must be
searched for: a history is linearizable exactly if each answer agrees with the chain and the chain
agrees with the clock (Herlihy and Wing 1990). Sorting is the most expensive step. Relies on msgspec
alone.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum, unique
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NEVER_US = 1 << 62
"""Later than anything: the completion of an operation that nobody heard of again."""


@unique
class Fate(StrEnum):
    """What a client heard of a write."""

    ACKNOWLEDGED = "acknowledged"
    CONFLICT = "conflict"
    REFUSED = "refused"
    """It was not taken: by this call it will never be in the chain."""
    UNKNOWN = "unknown"


class Operation(msgspec.Struct, kw_only=True, gc=False):
    """One call of one client. `complete_us` is `NEVER_US` where no answer came."""

    client: int
    invoke_us: int
    complete_us: int = NEVER_US
    user: str


class Write(Operation, kw_only=True, gc=False):
    """A transaction offered once: its id, its content, and what became of it."""

    id: bytes
    content: bytes
    fate: Fate = Fate.UNKNOWN
    place: tuple[int, int] | None = None


class Row(msgspec.Struct, frozen=True, gc=False):
    """A transaction in an answer or in the chain; places rise along the chain."""

    place: tuple[int, int]
    id: bytes
    content: bytes


class Read(Operation, kw_only=True, gc=False):
    """A user's newest transactions, newest first; None where no answer came.

    `limit` is how many were asked for: fewer rows mean that there were no more.
    """

    limit: int
    rows: tuple[Row, ...] | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A committed transaction and the user it belongs to."""

    user: str
    row: Row


@dataclass(frozen=True, slots=True)
class Breach:
    """Something that cannot be true, and the operation that shows it, if one does."""

    rule: str
    detail: str
    operation: Operation | None = None


def check_history(operations: Iterable[Operation], chain: Sequence[Entry]) -> list[Breach]:
    """Return everything in `operations` that cannot be true if `chain` is what was committed."""
    writes: list[Write] = []
    reads: list[Read] = []
    for operation in operations:
        if isinstance(operation, Write):
            writes.append(operation)
        elif isinstance(operation, Read) and operation.rows is not None:
            reads.append(operation)
    ledger = _Ledger(chain)
    return [
        *ledger.breaches,
        *_check_writes(ledger, writes),
        *_check_order(ledger),
        *_check_reads(ledger, writes, reads),
    ]


class _Ledger:
    """The chain by id and by user, and for each entry when it was first offered and first heard."""

    def __init__(self, chain: Sequence[Entry]) -> None:
        self.chain = chain
        self.breaches: list[Breach] = []
        self.order: dict[bytes, int] = {}
        self.rows: dict[str, list[Row]] = {}
        self.ranks: list[int] = []
        self.offered_us = [NEVER_US] * len(chain)
        self.heard_us = [NEVER_US] * len(chain)
        last = (-1, -1)
        for number, entry in enumerate(chain):
            if self.order.setdefault(entry.row.id, number) != number:
                self.breaches.append(Breach("ids are unique", entry.row.id.hex()))
            if entry.row.place <= last:
                self.breaches.append(Breach("places rise", f"{entry.row.place} after {last}"))
            last = entry.row.place
            rows = self.rows.setdefault(entry.user, [])
            self.ranks.append(len(rows))
            rows.append(entry.row)

    def find(self, wanted: bytes) -> tuple[int, Row] | None:
        """Where an id stands: its number in the chain, and its row."""
        number = self.order.get(wanted)
        return None if number is None else (number, self.chain[number].row)


def _check_writes(ledger: _Ledger, writes: Sequence[Write]) -> list[Breach]:
    """Acknowledged: there, as it was. Conflict: never there. What is there was offered."""
    breaches = []
    for write in writes:
        found = ledger.find(write.id)
        if found is None:
            if write.fate in {Fate.ACKNOWLEDGED, Fate.CONFLICT}:
                breaches.append(Breach(f"{write.fate} means present", write.id.hex(), write))
            continue
        number, row = found
        same = row.content == write.content
        if write.fate is Fate.ACKNOWLEDGED:
            if not same or row.place != write.place:
                breaches.append(Breach("acknowledged stays as it was", write.id.hex(), write))
            ledger.heard_us[number] = min(ledger.heard_us[number], write.complete_us)
        elif write.fate is Fate.CONFLICT and same:
            breaches.append(Breach("conflict means never present", write.id.hex(), write))
        if same and write.fate in {Fate.ACKNOWLEDGED, Fate.UNKNOWN}:
            ledger.offered_us[number] = min(ledger.offered_us[number], write.invoke_us)
    for number, offered_us in enumerate(ledger.offered_us):
        if offered_us == NEVER_US:
            wanted = ledger.chain[number].row.id.hex()
            breaches.append(Breach("nothing is recorded that was refused or not offered", wanted))
    return breaches


def _check_order(ledger: _Ledger) -> list[Breach]:
    """What was acknowledged before another was offered stands before it."""
    breaches = []
    latest_us = -1
    for number, offered_us in enumerate(ledger.offered_us):
        if ledger.heard_us[number] < latest_us:
            wanted = ledger.chain[number].row.id.hex()
            breaches.append(Breach("the chain agrees with the clock", wanted))
        if offered_us < NEVER_US:
            latest_us = max(latest_us, offered_us)
    return breaches


def _check_reads(ledger: _Ledger, writes: Sequence[Write], reads: Sequence[Read]) -> list[Breach]:
    """Each read is a prefix of its user's history, neither stale nor from the future."""
    known: dict[str, list[tuple[int, int]]] = {}
    for write in writes:
        if write.fate is Fate.ACKNOWLEDGED and write.id in ledger.order:
            number = ledger.order[write.id]
            user = ledger.chain[number].user
            known.setdefault(user, []).append((write.complete_us, ledger.ranks[number] + 1))
    breaches = []
    lengths: list[tuple[Read, int]] = []
    for read in reads:
        length = _length_seen(ledger, read)
        if length is None:
            breaches.append(Breach("a read is a piece of the chain", read.user, read))
        else:
            lengths.append((read, length))
            known.setdefault(read.user, []).append((read.complete_us, length))
    floors = {user: _Floor(pairs) for user, pairs in known.items()}
    offered = _latest_offers(ledger)
    for read, length in lengths:
        if length < floors[read.user].before(read.invoke_us):
            breaches.append(Breach("a read is not stale", f"{read.user}: {length} rows", read))
        if length and offered[read.user][length - 1] > read.complete_us:
            breaches.append(Breach("a read is not from the future", read.user, read))
    return breaches


def _length_seen(ledger: _Ledger, read: Read) -> int | None:
    """How much of its user's history a read saw; None where it saw what is not there."""
    assert read.rows is not None, "only answered reads are checked"
    if not read.rows:
        return 0
    rows = ledger.rows.get(read.user, [])
    number = ledger.order.get(read.rows[0].id)
    if number is None or ledger.chain[number].user != read.user:
        return None
    length = ledger.ranks[number] + 1
    first = max(0, length - read.limit)
    return length if list(read.rows) == rows[first:length][::-1] else None


def _latest_offers(ledger: _Ledger) -> dict[str, list[int]]:
    """For each length of a user's history, when the last offered of its rows was offered."""
    times: dict[str, list[int]] = {}
    for entry, offered_us in zip(ledger.chain, ledger.offered_us, strict=True):
        times.setdefault(entry.user, []).append(-1 if offered_us == NEVER_US else offered_us)
    return {user: list(accumulate(each, max)) for user, each in times.items()}


class _Floor:
    """How much of one user's history was known to somebody, over time."""

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        pairs.sort()
        self._times = [time_us for time_us, _ in pairs]
        self._lengths = list(accumulate((length for _, length in pairs), max))

    def before(self, time_us: int) -> int:
        """How much was known before that time."""
        count = bisect_left(self._times, time_us)
        return self._lengths[count - 1] if count else 0
