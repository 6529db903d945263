"""Blocks that were verified a moment ago, so that a page of rows does not verify one block often.

The cache must never hand out a block that a truncation has removed, nor mix blocks from before and
after one. A reader therefore takes the `generation` before it begins its read transaction and
passes it on. A truncation closes the cache before it commits and opens it, under a new generation,
after it: what a reader of an older generation asks for or brings is ignored. Any thread may call.
Relies on nothing else in the package.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from consensus.block import Block

_TRANSACTION_OVERHEAD_BYTES = 48
"""A bytes object's own fields and the tuple's pointer to it."""
_BLOCK_OVERHEAD_BYTES = 2048
"""The header's fields, the objects around them and the entry itself."""


class BlockCache:
    """The blocks used last, within `limit_bytes` of memory; 0 keeps none."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._size_bytes = 0
        self._generation = 0
        self._is_open = True
        self._lock = threading.Lock()

    @property
    def generation(self) -> int:
        """What a reader notes before it begins its read transaction."""
        return self._generation

    @property
    def size_bytes(self) -> int:
        """The memory the cached blocks take, estimated."""
        return self._size_bytes

    def get(self, index: int, generation: int) -> Block | None:
        """Return the block at `index` as a reader of `generation` would find it on disk."""
        with self._lock:
            if not self._is_open or generation != self._generation:
                return None
            block = self._blocks.get(index)
            if block is not None:
                self._blocks.move_to_end(index)
            return block

    def put(self, blocks: Iterable[Block], generation: int) -> None:
        """Keep blocks that a reader of `generation` has verified, or that were just saved."""
        with self._lock:
            if not self._is_open or generation != self._generation:
                return
            for block in blocks:
                self._forget(block.index)
                self._blocks[block.index] = block
                self._size_bytes += _memory_bytes(block)
            while self._size_bytes > self._limit_bytes:
                self._forget(next(iter(self._blocks)))

    def close_for_truncation(self, truncate_from: int) -> None:
        """Forget the blocks from `truncate_from` on, and take and give none until `reopen`."""
        with self._lock:
            self._is_open = False
            for index in [index for index in self._blocks if index >= truncate_from]:
                self._forget(index)

    def reopen(self) -> None:
        """Take and give blocks again, to and from readers that begin from now on."""
        with self._lock:
            self._generation += 1
            self._is_open = True

    def _forget(self, index: int) -> None:
        block = self._blocks.pop(index, None)
        if block is not None:
            self._size_bytes -= _memory_bytes(block)


def _memory_bytes(block: Block) -> int:
    """Estimate a block's memory: its body is held twice, whole and as transactions."""
    transactions = len(block.transactions) * _TRANSACTION_OVERHEAD_BYTES
    return _BLOCK_OVERHEAD_BYTES + 2 * len(block.body) + transactions
