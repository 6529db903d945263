"""Damage to the chain in LMDB: every byte is guarded, and what cannot be trusted is not opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lmdb
import pytest

from consensus.ready import HardState
from storage.errors import (
    BlockNotFoundError,
    DamagedBlockError,
    DamagedStoreError,
)
from tests.storage.chain_folder import MIB, append, drop, edit, flip, key_of, open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from consensus.block import Block
    from storage.chain import ChainStore
    from tests.storage.builders import Author

SMALLEST_MAP_BYTES = 16 * 4096

Edit = tuple[str, bytes, bytes | None]


def test_a_truncated_file_is_an_error_not_a_signal(stored: list[Block], path: Path) -> None:
    """A file that lost its end at any page is refused before it is mapped."""
    data = (path / "data.mdb").read_bytes()
    for size in (*range(0, len(data), 4096), 100, len(data) - 1):
        (path / "data.mdb").write_bytes(data[:size])
        with pytest.raises(DamagedStoreError):
            open_store(path, genesis=stored[0])


def test_a_file_may_end_before_its_last_free_pages(path: Path, author: Author) -> None:
    """Free pages at the end need not have been written; such a file is whole, and grows again."""
    store = open_store(path, genesis=author.genesis)
    start = author.tip
    append(store, *author.blocks(5, memo="m" * 50_000))
    store.save(hard_state=None, truncate_from=1, blocks=())
    for term in (1, 2, 3):
        store.save(hard_state=HardState(term), truncate_from=None, blocks=())
    store.close()
    data = (path / "data.mdb").read_bytes()

    (path / "data.mdb").write_bytes(data[:-4096])
    store = open_store(path)
    author.back_to(start)
    block = author.seal_for("alice")
    append(store, block)
    assert block == store.block(1)
    store.close()

    (path / "data.mdb").write_bytes(data[: -20 * 4096])
    with pytest.raises(DamagedStoreError, match=r"has \d+ of \d+ bytes: .*beyond EOF"):
        open_store(path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"g" * 65_536, bytes(65_536)])
def test_garbage_is_an_error_of_its_own(path: Path, author: Author, content: bytes) -> None:
    """A folder whose data file is something else is damaged, and is left as it is."""
    path.mkdir()
    (path / "data.mdb").write_bytes(content)
    with pytest.raises(DamagedStoreError):
        open_store(path, genesis=author.genesis)
    assert content == (path / "data.mdb").read_bytes()


def test_a_folder_without_its_data_file_is_damaged(stored: list[Block], path: Path) -> None:
    """A chain that was deleted by hand is not silently begun anew."""
    (path / "data.mdb").unlink()
    with pytest.raises(DamagedStoreError, match=r"data\.mdb is missing"):
        open_store(path, genesis=stored[0])


def test_a_file_in_place_of_the_folder_is_damaged(path: Path, author: Author) -> None:
    """The chain is a folder."""
    path.write_text("not a folder")
    with pytest.raises(DamagedStoreError):
        open_store(path, genesis=author.genesis)


def test_another_lmdb_store_is_no_chain(path: Path, author: Author) -> None:
    """An LMDB environment of somebody else's is left alone."""
    lmdb.open(str(path)).close()
    with pytest.raises(DamagedStoreError):
        open_store(path, genesis=author.genesis)


def test_every_byte_of_a_block_is_guarded(
    stored: list[Block], path: Path, opened: Callable[[Path], ChainStore]
) -> None:
    """A bit that flips in a body, a header or a signature is found, and other blocks are served."""
    record_bytes = len(stored[3].header_bytes) + 64 + 32 + 7
    rows = [("bodies", offset) for offset in range(0, len(stored[3].body), 11)]
    rows += [("headers", offset) for offset in range(0, record_bytes, 9)]
    for name, offset in rows:
        edit(path, name, key_of(3), flip(offset))
        store = opened(path)
        with pytest.raises(DamagedBlockError) as caught:
            store.block(3)
        assert caught.value.index == 3
        with pytest.raises(DamagedBlockError):
            store.blocks(2, max_blocks=3, max_bytes=MIB)
        assert stored[4:] == store.blocks(4, max_blocks=10, max_bytes=MIB)
        store.close()
        edit(path, name, key_of(3), flip(offset))


def test_a_block_under_a_wrong_key_is_damage(
    stored: list[Block], path: Path, opened: Callable[[Path], ChainStore]
) -> None:
    """A whole and valid block in another's place is still not the block that was saved."""
    environment = lmdb.open(str(path), max_dbs=8, map_size=0)
    with environment.begin(write=True) as transaction:
        for name in (b"headers", b"bodies"):
            database = environment.open_db(name, txn=transaction)
            other = transaction.get(key_of(2), db=database)
            assert other is not None
            transaction.put(key_of(3), other, db=database)
    environment.close()
    with pytest.raises(DamagedBlockError, match="block 2 is stored there"):
        opened(path).block(3)
    assert stored


@pytest.mark.parametrize("name", ["headers", "bodies"])
def test_a_missing_row_is_damage_not_the_end(
    stored: list[Block], path: Path, opened: Callable[[Path], ChainStore], name: str
) -> None:
    """A block within the chain that is not there was lost; only beyond the end is it not found."""
    edit(path, name, key_of(3), drop)
    store = opened(path)
    with pytest.raises(DamagedBlockError, match="is missing"):
        store.block(3)
    with pytest.raises(BlockNotFoundError):
        store.block(len(stored))


@pytest.mark.parametrize(
    ("name", "key", "change", "read"),
    [
        ("history", b"\x01" + key_of(0), flip(0), lambda store: store.tip(3)),
        ("history", b"\x01" + key_of(0), drop, lambda store: store.tip(3)),
        ("history", b"\x01" + key_of(0), flip(9), lambda store: store.history_inclusion(3, 8)),
        ("history", b"\x01" + key_of(1), flip(9), lambda store: store.history_consistency(2, 7)),
        ("terms", key_of(2), flip(7), lambda store: store.term_starts()),
        ("terms", key_of(2), flip(3), lambda store: store.term_starts()),
        ("terms", key_of(2), drop, lambda store: store.term_starts()),
        ("terms", key_of(0), drop, lambda store: store.term_starts()),
    ],
)
def test_damage_beside_the_blocks_is_found(
    stored: list[Block],
    path: Path,
    opened: Callable[[Path], ChainStore],
    name: str,
    key: bytes,
    change: Callable[[bytes], bytes | None],
    read: Callable[[ChainStore], object],
) -> None:
    """What is derived from the blocks is checked against them whenever it is read."""
    edit(path, name, key, change)
    store = opened(path)
    with pytest.raises(DamagedStoreError):
        read(store)
    assert stored == store.blocks(0, max_blocks=100, max_bytes=MIB)


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("meta", b"hard-state", flip(33)),
        ("meta", b"hard-state", drop),
        ("meta", b"cluster", flip(0)),
        ("meta", b"cluster", drop),
        ("headers", key_of(0), flip(40)),
        ("headers", key_of(7), flip(40)),
        ("history", b"\x02" + key_of(0), flip(0)),
        ("history", b"\x01" + key_of(2), drop),
    ],
)
def test_a_store_that_cannot_be_trusted_is_not_opened(
    stored: list[Block],
    path: Path,
    name: str,
    key: bytes,
    change: Callable[[bytes], bytes | None],
) -> None:
    """A hard state, a genesis or a last block that is not what was saved stops the start."""
    edit(path, name, key, change)
    with pytest.raises((DamagedStoreError, DamagedBlockError)):
        open_store(path)
    assert stored
