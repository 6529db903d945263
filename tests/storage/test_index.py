"""The look-ups in LMDB: against a dict, across reopening, and what makes an index unusable."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.block import ZERO_HASH, transaction_id
from storage.chain import ChainStore
from storage.errors import (
    DamagedStoreError,
    DuplicateTransactionError,
    IndexUnusableError,
    NoSpaceError,
    StoreMissingError,
)
from storage.index import IndexStore
from storage.recent import Lookup, Place, RecentIndex
from tests.storage.builders import RESERVE_BYTES, Author, make_transaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consensus.block import Block

SMALLEST_MAP_BYTES = 16 * 4096
# Ids whose keys could run into each other: prefixes, the byte after NUL, the longest.
USERS = ("a", "aa", "a\x01", "b" * 256, "日本")


@pytest.fixture
def author() -> Author:
    """Who seals the blocks of the test."""
    return Author()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the index is."""
    return tmp_path / "index"


@pytest.fixture
def index(path: Path, author: Author) -> Iterator[IndexStore]:
    """An index of genesis."""
    store = open_index(path, author)
    store.apply([author.genesis])
    yield store
    store.close()


def open_index(
    path: Path,
    author: Author,
    *,
    map_bytes: int = 1 << 20,
    reserve_bytes: int = RESERVE_BYTES,
    readonly: bool = False,
) -> IndexStore:
    """Open an index that does not mind a full disk."""
    return IndexStore.open(
        path,
        cluster_id=author.genesis.hash,
        map_bytes=map_bytes,
        reserve_bytes=reserve_bytes,
        readonly=readonly,
    )


def ids_in(*blocks: Block) -> list[bytes]:
    """Return the ids of all transactions, in order."""
    return [transaction_id(raw) for block in blocks for raw in block.transactions]


def test_a_new_index_has_not_even_genesis(path: Path, author: Author) -> None:
    """It reaches nowhere, and takes genesis first."""
    store = open_index(path, author)
    assert (store.applied_index, store.applied_hash) == (-1, ZERO_HASH)
    store.apply([author.genesis])

    assert (store.applied_index, store.applied_hash) == (0, author.genesis.hash)
    assert [Place(0, 0)] == store.places(ids_in(author.genesis))
    assert [Place(0, 0)] == store.history("cluster", after=None, limit=9, newest_first=True)
    store.close()


def test_what_is_applied_is_there_after_reopening(
    index: IndexStore, path: Path, author: Author
) -> None:
    """Rows and how far they reach are written together."""
    blocks = [author.seal_for("alice", "bob"), author.seal(), author.seal_for("alice")]
    index.apply(blocks)
    index.close()
    store = open_index(path, author)

    assert (store.applied_index, store.applied_hash) == (3, blocks[-1].hash)
    assert [Place(1, 0), Place(1, 1), Place(3, 0), None] == store.places(
        [*ids_in(*blocks), b"i" * 16]
    )
    assert [Place(3, 0), Place(1, 0)] == store.history(
        "alice", after=None, limit=9, newest_first=True
    )
    store.close()


def test_blocks_are_applied_in_order_and_once(index: IndexStore, author: Author) -> None:
    """Neither a gap nor a repetition nor a disorder within a batch is taken."""
    blocks = author.blocks(3)
    index.apply([])
    index.apply(blocks[:1])
    for wrong in (blocks[:1], blocks[2:], [blocks[2], blocks[1]], [blocks[1], blocks[1]]):
        with pytest.raises(AssertionError, match="in order, each once"):
            index.apply(wrong)

    assert index.applied_index == 1
    assert [None] == index.places(ids_in(blocks[2]))


def test_an_id_that_is_there_twice_is_named_with_both_places(
    index: IndexStore, author: Author
) -> None:
    """Across commits or within one; nothing of the batch is written."""
    raw = make_transaction(author.random, user_id="alice")
    first = author.seal([make_transaction(author.random), raw])
    second = author.seal([raw])
    with pytest.raises(DuplicateTransactionError) as caught:
        index.apply([first, second])
    assert (Place(1, 1), Place(2, 0)) == (caught.value.first, caught.value.second)
    assert index.applied_index == 0
    assert [] == index.history("alice", after=None, limit=9, newest_first=True)

    index.apply([first])
    with pytest.raises(DuplicateTransactionError) as caught:
        index.apply([second])
    assert transaction_id(raw) == caught.value.transaction_id
    assert transaction_id(raw).hex() in str(caught.value)
    assert (Place(1, 1), Place(2, 0)) == (caught.value.first, caught.value.second)
    assert index.applied_index == 1


@settings(max_examples=12, deadline=None)
@given(
    users=st.lists(st.lists(st.sampled_from(USERS), max_size=5), max_size=8),
    batches=st.lists(st.integers(1, 4), min_size=8, max_size=8),
    data=st.data(),
)
def test_an_index_answers_as_a_dict_does(
    users: list[list[str]], batches: list[int], data: st.DataObject
) -> None:
    """Any blocks in any batches; both directions, any cursor, any limit."""
    author = Author()
    blocks = [author.genesis, *(author.seal_for(*names) for names in users)]
    rows: dict[str, list[Place]] = {user_id: [] for user_id in USERS}
    for block, names in zip(blocks[1:], users, strict=True):
        for position, name in enumerate(names):
            rows[name].append(Place(block.index, position))
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(Path(folder) / "index", author, map_bytes=SMALLEST_MAP_BYTES)
        first = 0
        for count in batches:
            index.apply(blocks[first : first + count])
            first += count
        known = [place for names in rows.values() for place in names]

        assert sorted(known) == [place for place in index.places(ids_in(*blocks[1:])) if place]
        after = data.draw(st.none() | st.builds(Place, st.integers(0, 9), st.integers(0, 5)))
        limit = data.draw(st.integers(0, 9))
        for user_id, places in rows.items():
            later = [place for place in places if after is None or place > after]
            earlier = [place for place in reversed(places) if after is None or place < after]
            assert later[:limit] == index.history(
                user_id, after=after, limit=limit, newest_first=False
            )
            assert earlier[:limit] == index.history(
                user_id, after=after, limit=limit, newest_first=True
            )
        index.close()


def test_the_map_grows_under_many_puts(path: Path, author: Author) -> None:
    """From the smallest map, batches of any size go through."""
    index = open_index(path, author, map_bytes=SMALLEST_MAP_BYTES)
    index.apply([author.genesis])
    blocks = [author.seal_for(*(f"user-{number}" for number in range(600))) for _ in range(6)]
    index.apply(blocks)

    assert None not in index.places(ids_in(*blocks))
    assert (path / "data.mdb").stat().st_size > SMALLEST_MAP_BYTES
    index.close()


def test_look_ups_merge_the_real_store_and_the_window(index: IndexStore, author: Author) -> None:
    """While the store is already ahead of what was dropped, each row is given once."""
    blocks = [author.seal_for("alice", "bob", "alice") for _ in range(6)]
    recent = RecentIndex()
    for block in blocks:
        recent.add(block)
    lookup = Lookup(index, recent)
    expected = [Place(number, position) for number in range(1, 7) for position in (0, 2)]
    for flushed, dropped in ((0, 0), (2, 0), (4, 2), (6, 4), (6, 6)):
        index.apply(blocks[index.applied_index : flushed])
        recent.drop_through(dropped)
        assert expected == lookup.history("alice", after=None, limit=99, newest_first=False)
        assert expected[::-1] == lookup.history("alice", after=None, limit=99, newest_first=True)
        assert expected[3:8] == lookup.history(
            "alice", after=expected[2], limit=5, newest_first=False
        )
        assert None not in lookup.places(ids_in(*blocks))


def test_reading_makes_no_index(path: Path, author: Author) -> None:
    """Only the writer begins one."""
    with pytest.raises(StoreMissingError):
        open_index(path, author, readonly=True)


def test_an_index_of_another_cluster_is_unusable(index: IndexStore, path: Path) -> None:
    """Its owner deletes and rebuilds it; the refusal leaves it closed."""
    index.close()
    for _ in range(2):
        with pytest.raises(IndexUnusableError, match="another cluster"):
            IndexStore.open(path, cluster_id=b"x" * 32)


def test_a_chain_is_no_index(path: Path, author: Author) -> None:
    """Another kind of store in the folder is unusable, not misread."""
    ChainStore.open(path, genesis=author.genesis, reserve_bytes=RESERVE_BYTES).close()
    with pytest.raises(IndexUnusableError, match="not a store of kind index"):
        open_index(path, author)


@pytest.mark.parametrize(
    ("key", "value"), [(b"format", b"index/2"), (b"applied", b"short"), (b"applied", None)]
)
def test_an_index_in_another_format_is_unusable(
    index: IndexStore, path: Path, author: Author, key: bytes, value: bytes | None
) -> None:
    """An unknown version, or a reach that cannot be read, is for the owner to rebuild."""
    index.close()
    environment = lmdb.open(str(path), max_dbs=3, map_size=0)
    database = environment.open_db(b"meta")
    with environment.begin(write=True) as transaction:
        if value is None:
            transaction.delete(key, db=database)
        else:
            transaction.put(key, value, db=database)
    environment.close()
    with pytest.raises(IndexUnusableError):
        open_index(path, author)


@pytest.mark.parametrize("content", [b"", b"garbage" * 10_000])
def test_a_damaged_index_is_unusable(
    index: IndexStore, path: Path, author: Author, content: bytes
) -> None:
    """Whatever cannot be opened is for the owner to rebuild."""
    index.close()
    (path / "data.mdb").write_bytes(content)
    with pytest.raises(IndexUnusableError):
        open_index(path, author)


def test_near_the_end_of_the_disk_nothing_is_written(path: Path, author: Author) -> None:
    """The same blocks may be applied when room returns."""
    index = open_index(path, author, reserve_bytes=1 << 62)
    with pytest.raises(NoSpaceError):
        index.apply([author.genesis])

    assert index.applied_index == -1
    index.close()


def test_pages_that_turn_out_damaged_make_it_unusable(path: Path, author: Author) -> None:
    """An index that opens, but whose trees cannot be written, is for the owner to rebuild."""
    users = [f"user-{number}" for number in range(900)]
    index = open_index(path, author)
    index.apply([author.genesis, author.seal_for(*users)])
    index.close()
    data = bytearray((path / "data.mdb").read_bytes())
    for page in range(2 * 4096, len(data), 4096):
        # LMDB 0.9: the page's flags (2 is a leaf), and the end of its entries of 2 bytes each.
        flags, lower = struct.unpack_from("=HH", data, page + 10)
        if flags == 2 and lower > 16 + 2 * 10:
            data[page + 10 : page + 16] = b"\xff" * 6
    (path / "data.mdb").write_bytes(data)

    index = open_index(path, author)
    with pytest.raises(DamagedStoreError):
        index.history("user-7", after=None, limit=9, newest_first=True)
    with pytest.raises(IndexUnusableError):
        index.apply([author.seal_for(*users)])
    index.close()
