"""Mistakes in the replica: what is recorded twice, and what clients are told wrongly.

As `core_plants.py` beside it; relies on the insides of `node.replica` and what it is made of.
"""

from __future__ import annotations

from typing import Any

from node.outcomes import Receipt
from storage.recent import Place, ids_of

# Exactly once, and what clients hear


class Forgetful(set[bytes]):
    """A set into which nothing goes."""

    def update(self, *_ids: Any) -> None:
        """Forgets at once."""


def forgets_tail(right: Any) -> Any:
    """What is sealed and not applied yet is sealed again."""

    def init(self: Any, **given: Any) -> None:
        right(self, **given)
        self._tail = Forgetful()

    return init


def looks_in_memory_alone(self: Any, ids: Any) -> Any:
    """What the index store holds is forgotten."""
    return self._recent.places(ids)


def recorded_whatever(wanted: bytes, _raw: bytes, block: Any, place: Any) -> Receipt:
    """An id that is known gets its receipt, whatever the content."""
    return Receipt(wanted, place.index, place.position, block.hash, block.timestamp_us)


def settles_whatever(right: Any) -> Any:
    """A waiter hears a receipt for its id, whatever was recorded."""

    def settle(self: Any, block: Any, ids: Any) -> None:
        for position, wanted in enumerate(ids):
            entry = self._entries.get(wanted)
            for waiter in entry.waiters if entry is not None else ():
                receipt = Receipt(wanted, block.index, position, block.hash, block.timestamp_us)
                waiter.submission.settle(waiter.slot, receipt)
        right(self, block, ids)

    return settle


def acknowledges_sealed(right: Any) -> Any:
    """The leader's clients hear a receipt as soon as a block is sealed."""

    def seal(self: Any) -> Any:
        before = self.raft.log.last_index
        more = right(self)
        for index in range(before + 1, self.raft.log.last_index + 1):
            block = self.raft.log.block(index)
            self._waiting.settle_block(block, ids_of(block))
        return more

    return seal


def remembers_sealed(right: Any) -> Any:
    """The leader notes which ids went into which index ..."""

    def seal(self: Any) -> Any:
        before = self.raft.log.last_index
        more = right(self)
        notes = self.__dict__.setdefault("notes", {})
        for index in range(before + 1, self.raft.log.last_index + 1):
            notes[index] = ids_of(self.raft.log.block(index))
        return more

    return seal


def settles_by_index(right: Any) -> Any:
    """... and acknowledges them when anything is applied there."""

    def apply(self: Any, block: Any) -> None:
        noted = self.__dict__.get("notes", {}).get(block.index, [])
        self._waiting.settle_block(block, ids_of(block))
        for position, wanted in enumerate(noted):
            entry = self._waiting._entries.get(wanted)
            for waiter in entry.waiters if entry is not None else ():
                receipt = Receipt(wanted, block.index, position, block.hash, block.timestamp_us)
                waiter.submission.settle(waiter.slot, receipt)
        right(self, block)

    return apply


def refuses_what_fills(right: Any) -> Any:
    """The transaction that fills the queue is taken, and its client is told that it was not."""

    def add(self: Any, wanted: bytes, raw: bytes) -> bool:
        taken = right(self, wanted, raw)
        return bool(taken and len(self) < self._limits.transactions)

    return add


def repeats_last(right: Any) -> Any:
    """The next page of an ascending history begins with the last row of the page before."""

    def history(self: Any, user_id: str, *, after: Any, limit: int, newest_first: bool) -> Any:
        if after is not None and not newest_first:
            index, position = after
            after = Place(index, position - 1) if position else Place(index - 1, 0xFFFF)
        return right(self, user_id, after=after, limit=limit, newest_first=newest_first)

    return history
