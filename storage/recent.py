"""Look-ups over blocks that are applied but not yet in the index store, and both merged.

The index store is written by another process, a moment behind. `RecentIndex` answers for that
moment from memory, and `Lookup` answers for the whole chain: rows below the window come from the
store, rows within it from memory. A block that a flush has just written is still in the window
until `drop_through`, so the window alone decides who answers for a block: no row is given twice
and none is missed. One thread uses these objects. Relies on the canonical layout of transactions
(`consensus.block`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from consensus.block import MAX_BLOCK_TRANSACTIONS, TRANSACTION_ID_BYTES
from storage.errors import DuplicateTransactionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block

# A place as one number: cheaper to keep and to compare than a tuple, a hundred thousand times over.
_POSITION_BITS = 16
_POSITION_MASK = (1 << _POSITION_BITS) - 1
assert MAX_BLOCK_TRANSACTIONS <= _POSITION_MASK

# Canonical msgpack of a transaction: array of 4 (1 byte), bin8 of 16 (2 bytes), the id, and then
# the user id as a string of the shortest form.
_ID_START = 3
_USER_START = _ID_START + TRANSACTION_ID_BYTES
_FIXSTR = 0xA0
_STR8 = 0xD9
_STR16 = 0xDA


class Place(NamedTuple):
    """Where a transaction stands: its block's index, and its position in the block from 0."""

    index: int  # type: ignore[assignment]  # the field hides tuple.index(), which is of no use here
    position: int


class PlaceSource(Protocol):
    """What `Lookup` needs of the index store."""

    def places(self, ids: Sequence[bytes]) -> list[Place | None]:
        """The place of each id, None where it is unknown."""

    def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[Place]:
        """The places of a user's transactions, strictly beyond `after`."""


def ids_of(block: Block) -> list[bytes]:
    """Return the ids of a block's transactions, in order."""
    return [raw[_ID_START:_USER_START] for raw in block.transactions]


def user_of(raw: bytes) -> bytes:
    """Return the user id, as UTF-8, of canonical transaction bytes, which hold it at byte 19.

    This runs for each transaction on the event loop: slicing takes half as long as decoding.
    """
    mark = raw[_USER_START]
    if mark < _STR8:
        start = _USER_START + 1
        return raw[start : start + mark - _FIXSTR]
    if mark == _STR8:
        start = _USER_START + 2
        return raw[start : start + raw[_USER_START + 1]]
    assert mark == _STR16, "a user id is a string of at most 256 bytes"
    start = _USER_START + 3
    return raw[start : start + int.from_bytes(raw[_USER_START + 1 : start], "big")]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What must be forgotten when a block leaves the window."""

    index: int
    ids: list[bytes]
    users: list[bytes]


class RecentIndex:
    """Look-ups over a window of consecutive blocks held in memory."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._histories: dict[bytes, list[int]] = {}
        self._entries: deque[_Entry] = deque()

    @property
    def first_index(self) -> int | None:
        """The index of the oldest block in the window, None while it is empty."""
        return self._entries[0].index if self._entries else None

    @property
    def last_index(self) -> int | None:
        """The index of the newest block in the window, None while it is empty."""
        return self._entries[-1].index if self._entries else None

    @property
    def transactions(self) -> int:
        """How many transactions the window holds."""
        return len(self._places)

    def __contains__(self, transaction_id: bytes) -> bool:
        return transaction_id in self._places

    def add(self, block: Block) -> None:
        """Take the block after the last one. Costs about half a microsecond a transaction.

        Raises:
            DuplicateTransactionError: an id of the block is in the window, or in the block twice.
        """
        assert self.last_index in {None, block.index - 1}, "the window has no gaps"
        ids = ids_of(block)
        users = [user_of(raw) for raw in block.transactions]
        start = block.index << _POSITION_BITS
        places = range(start, start + len(ids))
        fresh = dict(zip(ids, places, strict=True))
        if len(fresh) < len(ids) or not self._places.keys().isdisjoint(fresh):
            raise self._duplicate(ids, places)
        self._places.update(fresh)
        histories = self._histories
        for user, place in zip(users, places, strict=True):
            history = histories.get(user)
            if history is None:
                histories[user] = [place]
            else:
                history.append(place)
        self._entries.append(_Entry(block.index, ids, users))

    def drop_through(self, index: int) -> None:
        """Forget the blocks up to and including `index`, which the index store answers for."""
        end = (index + 1) << _POSITION_BITS
        while self._entries and self._entries[0].index <= index:
            entry = self._entries.popleft()
            for transaction_id in entry.ids:
                del self._places[transaction_id]
            for user in entry.users:
                history = self._histories.get(user)
                if history is None:
                    continue  # a user's rows go all at once, at the first of their transactions
                del history[: bisect_left(history, end)]
                if not history:
                    del self._histories[user]

    def place(self, transaction_id: bytes) -> Place | None:
        """Return where a transaction stands, or None where it is not in the window."""
        packed = self._places.get(transaction_id)
        return None if packed is None else _unpack(packed)

    def places(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Return the place of each id, None where it is not in the window."""
        return [self.place(transaction_id) for transaction_id in ids]

    def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[Place]:
        """Return at most `limit` places of a user's transactions, strictly beyond `after`."""
        history = self._histories.get(user_id.encode(), [])
        if newest_first:
            end = len(history) if after is None else bisect_left(history, _pack(after))
            page = history[max(0, end - limit) : end][::-1]
        else:
            start = 0 if after is None else bisect_right(history, _pack(after))
            page = history[start : start + limit]
        return [_unpack(packed) for packed in page]

    def _duplicate(self, ids: Sequence[bytes], places: Sequence[int]) -> DuplicateTransactionError:
        """Find the first id of a block that is already known."""
        known = self._places.copy()
        for transaction_id, place in zip(ids, places, strict=True):
            first = known.setdefault(transaction_id, place)
            if first != place:
                return DuplicateTransactionError(
                    transaction_id, first=_unpack(first), second=_unpack(place)
                )
        raise AssertionError("called where an id is there twice")


class Lookup:
    """Answers for the whole chain up to the last block added to `recent`.

    Every block below the window must be in `store` before it is dropped from `recent`.
    """

    def __init__(self, store: PlaceSource, recent: RecentIndex) -> None:
        self._store = store
        self._recent = recent

    def places(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Return the place of each id, None where it is not in the chain."""
        places = self._recent.places(ids)
        missing = [slot for slot, place in enumerate(places) if place is None]
        if missing:
            found = self._store.places([ids[slot] for slot in missing])
            for slot, place in zip(missing, found, strict=True):
                places[slot] = place
        return places

    def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[Place]:
        """Return at most `limit` places of a user's transactions, strictly beyond `after`.

        `after` is the last place of the page before, or None for the first page.
        """
        first_index = self._recent.first_index
        if first_index is None:
            return self._store.history(user_id, after=after, limit=limit, newest_first=newest_first)
        border = Place(first_index, 0)
        if newest_first:
            page = self._recent.history(user_id, after=after, limit=limit, newest_first=True)
            below = border if after is None else min(after, border)
            page += self._store.history(
                user_id, after=below, limit=limit - len(page), newest_first=True
            )
            return page
        # A flush may have written blocks that are still in the window: those rows are memory's.
        flushed = self._store.history(user_id, after=after, limit=limit, newest_first=False)
        page = [place for place in flushed if place < border]
        page += self._recent.history(
            user_id, after=after, limit=limit - len(page), newest_first=False
        )
        return page


def _pack(place: Place) -> int:
    return place.index << _POSITION_BITS | place.position


def _unpack(packed: int) -> Place:
    return Place(packed >> _POSITION_BITS, packed & _POSITION_MASK)
