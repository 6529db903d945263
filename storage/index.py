"""Derived look-ups over committed blocks, in LMDB: id to place, and user to places.

Everything here can be made again from the chain, so an index that is of another cluster, of another
chain, damaged, or in another format is deleted and rebuilt by its owner. How far it reaches is
written in the same transaction as what it describes. Sub-databases, numbers big-endian:

    meta   "cluster" -> 32 bytes; "applied" -> u64 number of blocks || hash of the last one
    ids    16 bytes of transaction id -> u64 index || u16 position
    users  user id in UTF-8 || 0x00 || u64 index -> u16 position for each transaction in that block

A user id never contains NUL, so no user's keys lie among another's. Relies on
`storage.environment`, and on `storage.recent` for places and for the layout of transactions.
"""

from __future__ import annotations

from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Final, Self

from consensus.block import HASH_BYTES, MAX_BLOCK_TRANSACTIONS, ZERO_HASH
from storage.environment import (
    META,
    MIB,
    Environment,
    Layout,
    create_environment,
    has_environment,
    is_damage,
)
from storage.errors import (
    DamagedStoreError,
    DuplicateTransactionError,
    FormatVersionError,
    IndexUnusableError,
    StorageFailedError,
    StoreMissingError,
)
from storage.recent import Place, ids_of, user_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import lmdb

    from consensus.block import Block
    from storage.environment import Databases, Transaction

DEFAULT_MAP_BYTES: Final = 64 * MIB
DEFAULT_RESERVE_BYTES: Final = 32 * MIB
"""Less than the chain's, so that what was committed can still be indexed as the disk fills up."""

_LAYOUT: Final = Layout("index", 1, ("ids", "users"))
_CLUSTER_KEY: Final = b"cluster"
_APPLIED_KEY: Final = b"applied"
_NUMBER: Final = Struct(">Q")
_PLACE: Final = Struct(">QH")
_POSITION_BYTES: Final = 2
_POSITIONS: Final = [
    position.to_bytes(_POSITION_BYTES, "big") for position in range(MAX_BLOCK_TRANSACTIONS)
]
_LAST_KEY: Final = b"\xff" * _NUMBER.size
# What one put takes, at a guess between a place in a shared page and a page of its own.
_PUT_BYTES: Final = 512

_Items = list[tuple[bytes, bytes]]


class IndexStore:
    """The look-ups of one node. One process writes; others may read."""

    def __init__(self, environment: Environment) -> None:
        """Take up an open environment; for `open`, which tells what it raises."""
        self._environment = environment
        self._databases = environment.databases

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        cluster_id: bytes,
        map_bytes: int = DEFAULT_MAP_BYTES,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
        readonly: bool = False,
    ) -> Self:
        """Open the index in the folder `path`, or make an empty one where there is none.

        Raises:
            IndexUnusableError: it must be deleted and rebuilt.
            StoreMissingError: there is none, and `readonly` forbids to make one.
            StorageFailedError: the system does not let us.
        """
        if not has_environment(path):
            if readonly:
                raise StoreMissingError(path)
            _create(path, cluster_id, map_bytes)
        try:
            environment = Environment(path, _LAYOUT, readonly=readonly, reserve_bytes=reserve_bytes)
        except (DamagedStoreError, FormatVersionError) as error:
            raise IndexUnusableError(path, str(error)) from error
        store = cls(environment)
        try:
            store._check_cluster(cluster_id)
        except IndexUnusableError:
            environment.close()
            raise
        return store

    @property
    def applied_index(self) -> int:
        """The index of the last block applied, -1 before genesis."""
        return self._environment.read(self._read_applied)[0]

    @property
    def applied_hash(self) -> bytes:
        """The hash of the last block applied, all zero before genesis."""
        return self._environment.read(self._read_applied)[1]

    def apply(self, blocks: Sequence[Block]) -> None:
        """Index the blocks that follow the last one applied, in one durable transaction.

        Ids in any order cost the most: give many blocks at once.

        Raises:
            DuplicateTransactionError: an id is in the chain twice; nothing was written.
            NoSpaceError: the disk is nearly full; nothing was written.
            IndexUnusableError, DamagedStoreError: it must be deleted and rebuilt.
            StorageFailedError: the disk or LMDB failed; the process must end.
        """
        if not blocks:
            return
        ids: _Items = []
        users: _Items = []
        for block in blocks:
            ids.extend(_id_items(block))
            users.extend(_user_items(block))
        # Neighbouring keys share pages: in order, each page is found and copied once.
        ids.sort()
        users.sort()

        def work(txn: Transaction) -> None:
            applied_index, _ = self._read_applied(txn)
            for index, block in enumerate(blocks, applied_index + 1):
                assert block.index == index, "blocks are applied in order, each once"
            self._put_ids(txn, ids)
            with txn.cursor(self._databases["users"]) as cursor:
                _, added = cursor.putmulti(users, overwrite=False)
            assert added == len(users), "a block's users are put once"
            applied = _NUMBER.pack(blocks[-1].index + 1) + blocks[-1].hash
            txn.put(_APPLIED_KEY, applied, db=self._databases[META])

        needed_bytes = (len(ids) + len(users)) * _PUT_BYTES
        try:
            self._environment.write(work, needed_bytes=needed_bytes, may_use_reserve=False)
        except StorageFailedError as error:
            if is_damage(error.cause):
                raise IndexUnusableError(self._environment.path, str(error.cause)) from error
            raise

    def places(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Return the place of each id, None where it is not in the index."""

        def work(txn: Transaction) -> list[bytes | None]:
            database = self._databases["ids"]
            return [txn.get(transaction_id, db=database) for transaction_id in ids]

        return [None if raw is None else _place(raw) for raw in self._environment.read(work)]

    def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[Place]:
        """Return at most `limit` places of a user's transactions, strictly beyond `after`.

        Beyond is later in the chain, or earlier where `newest_first`; None begins at the end.
        """
        prefix = user_id.encode() + b"\x00"

        scan = _backward if newest_first else _forward

        def work(txn: Transaction) -> list[Place]:
            with txn.cursor(self._databases["users"]) as cursor:
                return list(islice(scan(cursor, prefix, after), limit))

        return self._environment.read(work)

    def close(self) -> None:
        """Let go of the files; harmless when done twice."""
        self._environment.close()

    def _check_cluster(self, cluster_id: bytes) -> None:
        try:
            found = self._environment.read(
                lambda txn: txn.get(_CLUSTER_KEY, db=self._databases[META])
            )
            self._environment.read(self._read_applied)
        except DamagedStoreError as error:
            raise IndexUnusableError(self._environment.path, error.what) from error
        if found != cluster_id:
            raise IndexUnusableError(self._environment.path, "it belongs to another cluster")

    def _read_applied(self, txn: Transaction) -> tuple[int, bytes]:
        raw = txn.get(_APPLIED_KEY, b"", db=self._databases[META])
        if len(raw) != _NUMBER.size + HASH_BYTES:
            raise DamagedStoreError(self._environment.path, "how far it reaches is missing")
        return _number(raw[: _NUMBER.size]) - 1, raw[_NUMBER.size :]

    def _put_ids(self, txn: Transaction, ids: _Items) -> None:
        with txn.cursor(self._databases["ids"]) as cursor:
            _, added = cursor.putmulti(ids, overwrite=False)
        if added == len(ids):
            return
        for transaction_id, place in ids:
            # What was there before stays: the one that differs is the one that was refused.
            stored = txn.get(transaction_id, place, db=self._databases["ids"])
            if stored != place:
                raise DuplicateTransactionError(
                    transaction_id, first=_place(stored), second=_place(place)
                )


def _create(path: Path, cluster_id: bytes, map_bytes: int) -> None:
    """Make an index of nothing, not even of genesis."""

    def fill(txn: Transaction, databases: Databases) -> None:
        txn.put(_CLUSTER_KEY, cluster_id, db=databases[META])
        txn.put(_APPLIED_KEY, _NUMBER.pack(0) + ZERO_HASH, db=databases[META])

    create_environment(path, _LAYOUT, map_bytes=map_bytes, fill=fill)


def _id_items(block: Block) -> Iterator[tuple[bytes, bytes]]:
    """Return what is put for the ids of a block, in the order of positions."""
    index = _NUMBER.pack(block.index)
    return zip(ids_of(block), map(index.__add__, _POSITIONS), strict=False)


def _user_items(block: Block) -> Iterator[tuple[bytes, bytes]]:
    """Return what is put for the users of a block: one item for each of them."""
    positions: dict[bytes, bytes] = {}
    for position, raw in zip(_POSITIONS, block.transactions, strict=False):
        user = user_of(raw)
        positions[user] = positions.get(user, b"") + position
    suffix = b"\x00" + _NUMBER.pack(block.index)
    return ((user + suffix, packed) for user, packed in positions.items())


def _forward(cursor: lmdb.Cursor[bytes], prefix: bytes, after: Place | None) -> Iterator[Place]:
    """Yield the places under a user's prefix that are later than `after`, ascending."""
    if not cursor.set_range(prefix + _NUMBER.pack(0 if after is None else after.index)):
        return
    for key, packed in cursor.iternext():
        if not key.startswith(prefix):
            return
        for place in _row(key, packed, newest_first=False):
            if after is None or place > after:
                yield place


def _backward(cursor: lmdb.Cursor[bytes], prefix: bytes, after: Place | None) -> Iterator[Place]:
    """Yield the places under a user's prefix that are earlier than `after`, descending."""
    start = prefix + (_LAST_KEY if after is None else _NUMBER.pack(after.index))
    if not (cursor.set_range(start) or cursor.last()):
        return
    if cursor.key() > start and not cursor.prev():
        return
    for key, packed in cursor.iterprev():
        if not key.startswith(prefix):
            return
        for place in _row(key, packed, newest_first=True):
            if after is None or place < after:
                yield place


def _row(key: bytes, packed: bytes, *, newest_first: bool) -> Iterator[Place]:
    """Decode the places of one user in one block, as far as they are asked for.

    Of a block full of one user's transactions a page may want ten.
    """
    index = _number(key[-_NUMBER.size :])
    starts = range(0, len(packed), _POSITION_BYTES)
    for start in reversed(starts) if newest_first else starts:
        yield Place(index, _number(packed[start : start + _POSITION_BYTES]))


def _place(raw: bytes) -> Place:
    """Decode where a transaction stands."""
    return Place(*_PLACE.unpack(raw))


def _number(raw: bytes) -> int:
    """Decode a number."""
    return int.from_bytes(raw, "big")
