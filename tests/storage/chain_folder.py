"""A chain on disk for tests: fixtures, and hands that change it behind the store's back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lmdb
import pytest

from consensus.ready import HardState
from storage.chain import ChainStore
from tests.storage.builders import RESERVE_BYTES, Author

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from consensus.block import Block

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the chain is."""
    return tmp_path / "chain"


@pytest.fixture
def author() -> Author:
    """Who seals the blocks of the test."""
    return Author()


@pytest.fixture
def stored(path: Path, author: Author) -> list[Block]:
    """A closed chain of genesis and seven blocks, in terms 1 and 2."""
    blocks = [*author.blocks(4, term=1), *author.blocks(3, term=2)]
    store = open_store(path, genesis=author.genesis)
    store.save(hard_state=HardState(2, None, 5), truncate_from=None, blocks=blocks)
    store.close()
    return [author.genesis, *blocks]


@pytest.fixture
def opened() -> Iterator[Callable[[Path], ChainStore]]:
    """Open stores that the test need not close."""
    stores: list[ChainStore] = []

    def opener(path: Path) -> ChainStore:
        stores.append(open_store(path))
        return stores[-1]

    yield opener
    for store in stores:
        store.close()


def open_store(
    path: Path,
    *,
    genesis: Block | None = None,
    map_bytes: int = MIB,
    reserve_bytes: int = RESERVE_BYTES,
    readonly: bool = False,
) -> ChainStore:
    """Open a store that does not mind a full disk."""
    return ChainStore.open(
        path, genesis=genesis, map_bytes=map_bytes, reserve_bytes=reserve_bytes, readonly=readonly
    )


def append(store: ChainStore, *blocks: Block) -> None:
    """Save blocks and nothing else."""
    store.save(hard_state=None, truncate_from=None, blocks=blocks)


def edit(path: Path, name: str, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Change or delete (None) one value behind the store's back, as rot or a bug would."""
    environment = lmdb.open(str(path), max_dbs=8, map_size=0, create=False)
    database = environment.open_db(name.encode(), create=False)
    with environment.begin(write=True) as transaction:
        value = transaction.get(key, db=database)
        assert value is not None
        changed = change(value)
        if changed is None:
            transaction.delete(key, db=database)
        else:
            assert changed != value
            transaction.put(key, changed, db=database)
    environment.close()


def rows_of(path: Path) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """Return everything that is stored, by sub-database."""
    with lmdb.open(str(path), max_dbs=8, map_size=0, create=False) as environment:
        rows: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for name in environment.dbs():
            database = environment.open_db(name, create=False)
            with environment.begin() as transaction, transaction.cursor(database) as cursor:
                rows[name] = list(cursor)
    return rows


def key_of(index: int) -> bytes:
    """Return the key of a block."""
    return index.to_bytes(8, "big")


def flip(offset: int) -> Callable[[bytes], bytes]:
    """Return a change of one bit of the byte at `offset`."""

    def change(value: bytes) -> bytes:
        changed = bytearray(value)
        changed[offset] ^= 4
        return bytes(changed)

    return change


def drop(_value: bytes) -> None:
    """Delete the row."""
