"""The chain of one node in LMDB: blocks, hard state, and the tree over the chain's history.

A save is one write transaction with LMDB's default durability, so after a crash the store is what
it was after some save, never between two. LMDB has no checksums: whatever is read is verified by
hashes before it is handed out. Relies on `storage.environment` for all that LMDB needs, on
`storage.rows` for what is stored, and on `storage.contract` for what a save may ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from consensus.block import MAX_BLOCK_BYTES, Tip, tip_after
from consensus.changes import holds_change
from consensus.merkle import (
    EMPTY_ROOT,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from consensus.ready import HardState
from storage.cache import BlockCache
from storage.contract import check_links, check_save
from storage.environment import META, MIB, Environment, create_environment, has_environment
from storage.errors import (
    BlockNotFoundError,
    DamagedBlockError,
    DamagedStoreError,
    StorageError,
    StoreMissingError,
    WrongClusterError,
)
from storage.history import compact_range, consistency, inclusion
from storage.rows import (
    CHANGES_KEY,
    CLUSTER_KEY,
    HARD_STATE_KEY,
    LAYOUT,
    NODE,
    NUMBER,
    RESTORED_KEY,
    StoredParts,
    append_block,
    cut_blocks,
    decode_changes,
    decode_hard_state,
    encode_changes,
    encode_hard_state,
    number,
    verified_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from consensus.block import Block
    from storage.contract import StoredHeader
    from storage.environment import Databases, Transaction

DEFAULT_MAP_BYTES: Final = 64 * MIB
DEFAULT_RESERVE_BYTES: Final = 128 * MIB
"""Kept free on the disk when blocks are saved, so that votes can still be saved after that."""
DEFAULT_CACHE_BYTES: Final = 32 * MIB

# What a block takes beside its bytes: two pages that are not filled, and its share of inner nodes.
_BLOCK_OVERHEAD_BYTES: Final = 3 * 4096
# What deleting a block takes: copies of the pages that change.
_CUT_OVERHEAD_BYTES: Final = 512


class ChainStore:
    """The durable chain of one node. One thread saves, any thread reads.

    Any read may raise DamagedStoreError or StorageFailedError.
    """

    def __init__(self, environment: Environment, *, cache_bytes: int) -> None:
        """Take up an open environment; for `open`, which tells what it raises."""
        self._environment = environment
        self._databases = environment.databases
        # Blocks that another process truncates would stay in the cache of this one.
        self._cache = BlockCache(0 if environment.readonly else cache_bytes)
        self.cluster_id = environment.read(self._read_cluster_id)
        self._hard_state = environment.read(self._read_hard_state)
        self._changes = environment.read(self._read_changes)
        self._tip = environment.read(lambda txn: self._read_tip(txn, self._read_last_index(txn)))

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        genesis: Block | None = None,
        map_bytes: int = DEFAULT_MAP_BYTES,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        readonly: bool = False,
        may_create: bool = True,
        restored: bool = False,
    ) -> Self:
        """Open the store in the folder `path`, or make it where there is none and a genesis.

        `map_bytes` is the first size of a new store's map. `reserve_bytes` of the disk are kept
        free. A readonly store sees what another process saves. A path can be open once in a
        process. A store made as `restored` stays so until `take_up`.

        Raises:
            StoreMissingError: there is no store, and none may be made, or there is no genesis.
            WrongClusterError: the store has another genesis.
            FormatVersionError: it was written in another version of the format.
            DamagedStoreError, DamagedBlockError: what is there cannot be trusted.
            StorageFailedError: the system does not let us.
        """
        if not has_environment(path):
            if genesis is None or readonly or not may_create:
                raise StoreMissingError(path)
            _create(path, genesis, map_bytes, restored=restored)
        environment = Environment(path, LAYOUT, readonly=readonly, reserve_bytes=reserve_bytes)
        try:
            store = cls(environment, cache_bytes=cache_bytes)
            if genesis is not None and genesis.hash != store.cluster_id:
                raise WrongClusterError(path, found=store.cluster_id, expected=genesis.hash)
            if store.header(0).hash != store.cluster_id:
                raise DamagedStoreError(path, "its genesis block is not the one it names")
        except StorageError:
            environment.close()
            raise
        return store

    @property
    def hard_state(self) -> HardState:
        """The hard state last saved."""
        if self._environment.readonly:
            return self._environment.read(self._read_hard_state)
        return self._hard_state

    @property
    def last_index(self) -> int:
        """The index of the last block saved."""
        if self._environment.readonly:
            return self._environment.read(self._read_last_index)
        return self._tip.index

    def save(
        self,
        *,
        hard_state: HardState | None,
        truncate_from: int | None,
        blocks: Sequence[Block],
    ) -> None:
        """Cut the chain off from `truncate_from`, append `blocks` and set the state: one fsync.

        Returns once all of it is durable. Asserts that the chain stays contiguous and linked, and
        that nothing committed is cut off.

        Raises:
            NoSpaceError: the disk is nearly full; nothing was written, and the same save may be
                tried again.
            StorageFailedError: the disk or LMDB failed; the process must end.
        """
        check_save(
            held=self._hard_state,
            last_index=self._tip.index,
            hard_state=hard_state,
            truncate_from=truncate_from,
            blocks=blocks,
        )
        parent = self._tip if truncate_from is None else self.tip(truncate_from - 1)
        check_links(parent.hash, parent.term, blocks)
        if truncate_from is not None:
            self._cache.close_for_truncation(truncate_from)
        try:
            tip = self._write(parent, hard_state, blocks)
            self._tip = tip
            self._hard_state = self._hard_state if hard_state is None else hard_state
        finally:
            if truncate_from is not None:
                self._cache.reopen()
        self._cache.put(blocks, self._cache.generation)

    @property
    def is_restored(self) -> bool:
        """Whether it came from a backup and no node has taken it up: it remembers no votes."""
        meta = self._databases[META]
        return self._environment.read(lambda txn: txn.get(RESTORED_KEY, db=meta) is not None)

    def take_up(self) -> None:
        """Be a node's own chain from here on, durably.

        Raises:
            NoSpaceError, StorageFailedError: as `save`.
        """
        meta = self._databases[META]
        self._environment.write(
            lambda txn: txn.delete(RESTORED_KEY, db=meta), needed_bytes=0, may_use_reserve=True
        )

    def check_room(self, needed_bytes: int = MAX_BLOCK_BYTES) -> None:
        """Raise NoSpaceError where the disk has no room for blocks of `needed_bytes`."""
        self._environment.check_room(needed_bytes)

    def term_starts(self) -> list[tuple[int, int]]:
        """Return (first index, term) of each run of equal terms, ascending; genesis is (0, 0).

        The headers at both ends of each run are looked at, so that elections, not blocks, are
        what this costs.
        """

        def work(txn: Transaction) -> list[tuple[int, int]]:
            with txn.cursor(self._databases["terms"]) as cursor:
                starts = [(number(first), number(term)) for term, first in cursor]
            lasts = [first - 1 for first, _ in starts[1:]] + [self._read_last_index(txn)]
            is_true = starts[:1] == [(0, 0)] and all(
                self._read_term(txn, first) == term == self._read_term(txn, last)
                for (first, term), last in zip(starts, lasts, strict=True)
            )
            if not is_true:
                what = "its runs of terms are not those of its headers"
                raise DamagedStoreError(self._environment.path, what)
            return starts

        return self._environment.read(work)

    def change_indexes(self) -> list[int]:
        """Return the indexes of the blocks that change the membership, ascending."""
        if self._environment.readonly:
            return self._environment.read(self._read_changes)
        return list(self._changes)

    def header(self, index: int) -> StoredHeader:
        """Return the header at `index`, verified by its digest.

        Raises:
            BlockNotFoundError: the chain does not reach so far.
            DamagedBlockError: what is stored is not what was saved.
        """
        raw = self._environment.read(lambda txn: self._read_header(txn, index))
        return verified_header(index, raw)

    def block(self, index: int) -> Block:
        """Return the block at `index`, verified by its digest, count and transactions root.

        Raises:
            BlockNotFoundError: the chain does not reach so far.
            DamagedBlockError: what is stored is not what was saved.
        """
        cached = self.cached_block(index)
        if cached is not None:
            return cached
        blocks = self.blocks(index, max_blocks=1, max_bytes=0)
        if not blocks:
            raise BlockNotFoundError(index, self.last_index)
        return blocks[0]

    def cached_block(self, index: int) -> Block | None:
        """Return the block at `index` where that takes no disk and no hashing, else None."""
        return self._cache.get(index, self._cache.generation)

    def blocks(self, first: int, *, max_blocks: int, max_bytes: int) -> list[Block]:
        """Return verified blocks from `first` on, of `max_bytes` together at most.

        At least one where there is one, however large; none where the chain does not reach so far.
        Raises DamagedBlockError where a block is not what was saved.
        """
        generation = self._cache.generation

        def work(txn: Transaction) -> list[Block | StoredParts]:
            found: list[Block | StoredParts] = []
            size_bytes = 0
            for index in range(first, first + max_blocks):
                item = self._cache.get(index, generation) or self._read_parts(txn, index)
                if item is None:
                    break
                size_bytes += item.size_bytes
                if found and size_bytes > max_bytes:
                    break
                found.append(item)
            return found

        items = self._environment.read(work)
        # Outside the transaction: hashing takes a hundred times as long as copying.
        blocks = [item.verified() if isinstance(item, StoredParts) else item for item in items]
        self._cache.put(blocks, generation)
        return blocks

    def tip(self, index: int) -> Tip:
        """Return the tip after the block at `index`; its history is checked by that block's root.

        Costs O(log n) reads. Raises BlockNotFoundError or DamagedBlockError.
        """
        return self._environment.read(lambda txn: self._read_tip(txn, index))

    def history_inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Return the proof that block `index` is among the first `size` blocks, lowest hash first.

        The root it leads to is that of `tip(size - 1).history`. Costs O(log n) reads. Raises
        BlockNotFoundError or DamagedBlockError.
        """

        def work(txn: Transaction) -> tuple[bytes, ...]:
            root = self._read_root(txn, size)
            node = self._node_reader(txn)
            proof = inclusion(index, size, node)
            if not verify_inclusion(
                leaf=node(0, index), position=index, size=size, proof=proof, root=root
            ):
                raise self._damaged_history(size)
            return proof

        return self._environment.read(work)

    def history_consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """Return the proof that the first `old_size` blocks are the start of the first `new_size`.

        It is empty where one of the two says nothing. Costs O(log n) reads. Raises
        BlockNotFoundError or DamagedBlockError.
        """

        def work(txn: Transaction) -> tuple[bytes, ...]:
            old_root = self._read_root(txn, old_size)
            new_root = self._read_root(txn, new_size)
            proof = consistency(old_size, new_size, self._node_reader(txn))
            if not verify_consistency(
                old_size=old_size,
                new_size=new_size,
                old_root=old_root,
                new_root=new_root,
                proof=proof,
            ):
                raise self._damaged_history(new_size)
            return proof

        return self._environment.read(work)

    def close(self) -> None:
        """Let go of the files; harmless when done twice."""
        self._environment.close()

    def _write(self, parent: Tip, hard_state: HardState | None, blocks: Sequence[Block]) -> Tip:
        """Make `parent` the tip, append the blocks to it, and return the tip that this leaves."""
        last_index = self._tip.index
        news = None if hard_state == self._hard_state else hard_state
        changes = [index for index in self._changes if index <= parent.index]
        changes += [block.index for block in blocks if holds_change(block)]
        needed_bytes = (last_index - parent.index) * _CUT_OVERHEAD_BYTES + sum(
            block.size_bytes + _BLOCK_OVERHEAD_BYTES for block in blocks
        )

        def work(txn: Transaction) -> Tip:
            cut_blocks(txn, self._databases, keep=parent.index, last_index=last_index)
            tip = parent
            for block in blocks:
                append_block(txn, self._databases, tip, block)
                tip = tip_after(tip, block)
            if news is not None:
                value = encode_hard_state(news)
                txn.put(HARD_STATE_KEY, value, db=self._databases[META])
            if changes != self._changes:
                txn.put(CHANGES_KEY, encode_changes(changes), db=self._databases[META])
            return tip

        tip = self._environment.write(work, needed_bytes=needed_bytes, may_use_reserve=not blocks)
        self._changes = changes
        return tip

    def _read_cluster_id(self, txn: Transaction) -> bytes:
        cluster_id = txn.get(CLUSTER_KEY, db=self._databases[META])
        if cluster_id is None:
            raise DamagedStoreError(self._environment.path, "its cluster id is missing")
        return cluster_id

    def _read_hard_state(self, txn: Transaction) -> HardState:
        raw = txn.get(HARD_STATE_KEY, b"", db=self._databases[META])
        hard_state = decode_hard_state(raw)
        if hard_state is None:
            raise DamagedStoreError(self._environment.path, "its hard state has another digest")
        return hard_state

    def _read_changes(self, txn: Transaction) -> list[int]:
        """Read where the membership changes; a chain on which it never did has no such row."""
        raw = txn.get(CHANGES_KEY, db=self._databases[META])
        changes = [] if raw is None else decode_changes(raw)
        if changes is None:
            what = "its list of membership changes has another digest"
            raise DamagedStoreError(self._environment.path, what)
        return changes

    def _read_last_index(self, txn: Transaction) -> int:
        with txn.cursor(self._databases["headers"]) as cursor:
            if not cursor.last():
                raise DamagedStoreError(self._environment.path, "it has no blocks")
            return number(cursor.key())

    def _read_header(self, txn: Transaction, index: int) -> bytes:
        """Read a header's record; raises BlockNotFoundError or DamagedBlockError."""
        raw = txn.get(NUMBER.pack(index), db=self._databases["headers"]) if index >= 0 else None
        if raw is None:
            last_index = self._read_last_index(txn)
            if not 0 <= index <= last_index:
                raise BlockNotFoundError(index, last_index)
            raise DamagedBlockError(index, "its header is missing")
        return raw

    def _read_term(self, txn: Transaction, index: int) -> int | None:
        try:
            return verified_header(index, self._read_header(txn, index)).header.term
        except BlockNotFoundError:
            return None

    def _read_parts(self, txn: Transaction, index: int) -> StoredParts | None:
        """Read a block that is not verified yet; None where the chain does not reach so far."""
        try:
            record = self._read_header(txn, index)
        except BlockNotFoundError:
            return None
        body = txn.get(NUMBER.pack(index), db=self._databases["bodies"])
        if body is None:
            raise DamagedBlockError(index, "its body is missing")
        return StoredParts(index, record, body)

    def _read_tip(self, txn: Transaction, index: int) -> Tip:
        stored = verified_header(index, self._read_header(txn, index))
        before = compact_range(index, self._node_reader(txn))
        if before.root() != stored.header.history_root:
            raise self._damaged_history(index)
        history = before.append(leaf_hash(stored.hash))
        header = stored.header
        return Tip(index, header.term, stored.hash, header.timestamp_us, history)

    def _read_root(self, txn: Transaction, size: int) -> bytes:
        """Return the root over the first `size` blocks."""
        return self._read_tip(txn, size - 1).history.root() if size else EMPTY_ROOT

    def _node_reader(self, txn: Transaction) -> Callable[[int, int], bytes]:
        """Return the function that reads a complete node of the history tree."""

        def node(level: int, position: int) -> bytes:
            if level == 0:
                raw = self._read_header(txn, position)
                return leaf_hash(verified_header(position, raw).hash)
            stored = txn.get(NODE.pack(level, position), db=self._databases["history"])
            if stored is None:
                raise self._damaged_history((position + 1) << level)
            return stored

        return node

    def _damaged_history(self, size: int) -> DamagedStoreError:
        what = f"the tree over its first {size} blocks does not lead to their root"
        return DamagedStoreError(self._environment.path, what)


def _create(path: Path, genesis: Block, map_bytes: int, *, restored: bool) -> None:
    """Make a store that holds the genesis block and the hard state of a member that never ran."""
    assert genesis.index == 0, "a chain begins with its genesis block"

    def fill(txn: Transaction, databases: Databases) -> None:
        txn.put(CLUSTER_KEY, genesis.hash, db=databases[META])
        txn.put(HARD_STATE_KEY, encode_hard_state(HardState()), db=databases[META])
        append_block(txn, databases, None, genesis)
        if restored:
            txn.put(RESTORED_KEY, b"", db=databases[META])

    create_environment(path, LAYOUT, map_bytes=map_bytes, fill=fill)
