"""The leader's queue: transactions that are accepted and not sealed yet, in order of arrival.

Pure memory, bounded in count and bytes; ids in it are unique. Relies on the caller to have checked
the bytes and to have refused ids that are in the chain or on their way there.
"""

from __future__ import annotations

from dataclasses import dataclass

from consensus.block import MAX_BLOCK_BYTES, MAX_BLOCK_TRANSACTIONS

TRANSACTION_OVERHEAD_BYTES = 5
"""The most that msgpack adds to one transaction's bytes in a block's body."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait, in transactions and in bytes."""

    transactions: int = 100_000
    size_bytes: int = 64 << 20


class Mempool:
    """Transactions by id, first in, first out."""

    def __init__(self, limits: QueueLimits) -> None:
        """An empty queue."""
        self._limits = limits
        self._queue: dict[bytes, bytes] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        """How many transactions wait."""
        return len(self._queue)

    def __contains__(self, transaction_id: bytes) -> bool:
        """Whether that id waits."""
        return transaction_id in self._queue

    @property
    def fills_block(self) -> bool:
        """Whether a block of the largest size could be sealed."""
        return len(self._queue) >= MAX_BLOCK_TRANSACTIONS or self.size_bytes >= MAX_BLOCK_BYTES

    def add(self, transaction_id: bytes, raw: bytes) -> bool:
        """Queues a transaction; False where there is no room. The id must not be queued yet."""
        assert transaction_id not in self._queue, "ids in the queue are unique"
        if not self.has_room(len(raw)):
            return False
        self._queue[transaction_id] = raw
        self.size_bytes += len(raw)
        return True

    def has_room(self, size_bytes: int) -> bool:
        """Whether one more transaction of that size can be queued."""
        limits = self._limits
        is_long = len(self._queue) >= limits.transactions
        return not is_long and self.size_bytes + size_bytes <= limits.size_bytes

    def take_block(self) -> dict[bytes, bytes]:
        """The oldest transactions that fit one block, by id, taken out of the queue."""
        taken: dict[bytes, bytes] = {}
        room_bytes = MAX_BLOCK_BYTES - TRANSACTION_OVERHEAD_BYTES
        for transaction_id, raw in self._queue.items():
            room_bytes -= len(raw) + TRANSACTION_OVERHEAD_BYTES
            if room_bytes < 0 or len(taken) == MAX_BLOCK_TRANSACTIONS:
                break
            taken[transaction_id] = raw
        for transaction_id, raw in taken.items():
            del self._queue[transaction_id]
            self.size_bytes -= len(raw)
        return taken

    def clear(self) -> None:
        """Forgets everything: the leadership that queued it is over."""
        self._queue.clear()
        self.size_bytes = 0
