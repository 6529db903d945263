"""Look-ups over the window in memory, and over window and store while a flush is under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.block import MAX_USER_ID_BYTES, transaction_id
from storage.errors import DuplicateTransactionError
from storage.recent import Lookup, Place, RecentIndex, ids_of, user_of
from tests.storage.builders import Author, make_transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consensus.block import Block

USERS = ("alice", "bob", "böb")
chains_of_users = st.lists(st.lists(st.sampled_from(USERS), max_size=4), max_size=8)


@dataclass
class ListedRows:
    """A store that is a plain list of rows, sorted anew for each question."""

    rows: list[tuple[Place, bytes, str]] = field(default_factory=list)

    def add(self, block: Block) -> None:
        """Take the rows of a block."""
        for position, raw in enumerate(block.transactions):
            place = Place(block.index, position)
            self.rows.append((place, transaction_id(raw), user_of(raw).decode()))

    def places(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Return the place of each id."""
        known = {row_id: place for place, row_id, _ in self.rows}
        return [known.get(wanted) for wanted in ids]

    def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[Place]:
        """Return a page of a user's places."""
        places = [place for place, _, user in self.rows if user == user_id]
        places.sort(reverse=newest_first)
        if after is not None:
            places = [
                place for place in places if (place < after if newest_first else place > after)
            ]
        return places[:limit]


def seal_all(users: list[list[str]]) -> list[Block]:
    """Seal a block for each list of users, from index 1 on."""
    author = Author()
    return [author.seal_for(*names) for names in users]


@pytest.mark.parametrize(
    "user_id",
    ["a", "a" * 31, "a" * 32, "a" * 255, "a" * MAX_USER_ID_BYTES, "ü" * 16, "日" * 85],
)
def test_the_user_is_read_from_its_offset(user_id: str) -> None:
    """Every length of a user id, which changes how msgpack begins it, is read back."""
    raw = make_transaction(Random(1), user_id=user_id)

    assert user_id == user_of(raw).decode()


def test_ids_are_those_of_the_transactions() -> None:
    """In the order of positions."""
    block = Author().seal_for("alice", "bob")

    assert [transaction_id(raw) for raw in block.transactions] == ids_of(block)


def test_an_empty_window_knows_nothing() -> None:
    """Before the first block there is no place and no border."""
    recent = RecentIndex()

    assert (recent.first_index, recent.last_index, recent.transactions) == (None, None, 0)
    assert [None] == recent.places([b"i" * 16])
    assert b"i" * 16 not in recent
    assert [] == recent.history("alice", after=None, limit=10, newest_first=True)


def test_a_window_knows_its_blocks_and_no_others() -> None:
    """What is added is found until it is dropped."""
    blocks = seal_all([["alice", "bob"], [], ["alice"]])
    recent = RecentIndex()
    for block in blocks:
        recent.add(block)
    ids = [transaction_id(raw) for block in blocks for raw in block.transactions]

    assert (recent.first_index, recent.last_index, recent.transactions) == (1, 3, 3)
    assert [Place(1, 0), Place(1, 1), Place(3, 0)] == recent.places(ids)
    assert Place(3, 0) == recent.place(ids[2])
    assert ids[0] in recent

    recent.drop_through(1)
    assert (recent.first_index, recent.last_index, recent.transactions) == (2, 3, 1)
    assert [None, None, Place(3, 0)] == recent.places(ids)
    assert [] == recent.history("bob", after=None, limit=10, newest_first=True)

    recent.drop_through(7)
    assert (recent.first_index, recent.last_index, recent.transactions) == (None, None, 0)


def test_a_window_has_no_gaps() -> None:
    """The block after the last one is the only one it takes."""
    blocks = seal_all([["alice"], ["alice"], ["alice"]])
    recent = RecentIndex()
    recent.add(blocks[0])
    for wrong in (blocks[0], blocks[2]):
        with pytest.raises(AssertionError, match="no gaps"):
            recent.add(wrong)


def test_an_id_that_is_there_twice_is_named_with_both_places() -> None:
    """In two blocks of the window, or twice in one; the window stays as it was."""
    author = Author()
    raw, other = (make_transaction(author.random) for _ in range(2))
    recent = RecentIndex()
    recent.add(author.seal([other, raw]))
    for transactions, second in (
        ([raw], Place(2, 0)),
        ([make_transaction(author.random), raw], Place(2, 1)),
    ):
        tip = author.tip
        with pytest.raises(DuplicateTransactionError) as caught:
            recent.add(author.seal(transactions))
        assert (Place(1, 1), second) == (caught.value.first, caught.value.second)
        assert transaction_id(raw) == caught.value.transaction_id
        author.back_to(tip)
    fresh = make_transaction(author.random)
    with pytest.raises(DuplicateTransactionError, match="block 2 position 0 and at block 2 pos"):
        recent.add(author.seal([fresh, fresh]))
    assert recent.transactions == 2


@given(users=chains_of_users, data=st.data())
def test_a_window_answers_as_a_list_does(users: list[list[str]], data: st.DataObject) -> None:
    """Both directions, any cursor, any limit, any part of the chain dropped."""
    blocks = seal_all(users)
    recent, rows = RecentIndex(), ListedRows()
    dropped = data.draw(st.integers(0, len(blocks)))
    for block in blocks:
        recent.add(block)
    recent.drop_through(dropped)
    for block in blocks[dropped:]:
        rows.add(block)

    assert_same_answers(recent, rows, blocks, data)


@given(users=chains_of_users, data=st.data())
def test_look_ups_during_a_flush_miss_nothing_and_repeat_nothing(
    users: list[list[str]], data: st.DataObject
) -> None:
    """However far the store is ahead of what was dropped from the window."""
    blocks = seal_all(users)
    recent, flushed, rows = RecentIndex(), ListedRows(), ListedRows()
    dropped = data.draw(st.integers(0, len(blocks)))
    flushed_through = data.draw(st.integers(dropped, len(blocks)))
    for block in blocks:
        recent.add(block)
        rows.add(block)
    recent.drop_through(dropped)
    for block in blocks[:flushed_through]:
        flushed.add(block)

    assert_same_answers(Lookup(flushed, recent), rows, blocks, data)


def assert_same_answers(
    asked: RecentIndex | Lookup, rows: ListedRows, blocks: list[Block], data: st.DataObject
) -> None:
    """Ask both the same questions."""
    ids = [transaction_id(raw) for block in blocks for raw in block.transactions]
    ids.append(b"unknown-id-16byt")
    assert rows.places(ids) == asked.places(ids)
    places = [Place(index, position) for index in range(len(blocks) + 2) for position in range(4)]
    after = data.draw(st.none() | st.sampled_from(places))
    limit = data.draw(st.integers(0, 9))
    for user_id in (*USERS, "nobody"):
        for newest_first in (False, True):
            assert rows.history(
                user_id, after=after, limit=limit, newest_first=newest_first
            ) == asked.history(user_id, after=after, limit=limit, newest_first=newest_first)


def test_pages_follow_each_other_while_blocks_move_to_the_store() -> None:
    """A reader who pages through a history sees each row once, though a flush ends in between."""
    blocks = seal_all([["alice", "bob", "alice"]] * 6)
    for newest_first in (False, True):
        recent, flushed, rows = RecentIndex(), ListedRows(), ListedRows()
        for block in blocks:
            recent.add(block)
            rows.add(block)
        lookup = Lookup(flushed, recent)
        seen: list[Place] = []
        after: Place | None = None
        for block in blocks:
            page = lookup.history("alice", after=after, limit=2, newest_first=newest_first)
            seen += page
            after = page[-1]
            flushed.add(block)
            if block.index % 2 == 0:
                recent.drop_through(block.index)
        assert seen == rows.history("alice", after=None, limit=99, newest_first=newest_first)
