"""What the HTTP face needs of a node, so that it can be tested with one held in memory.

Relies on the types in `node.outcomes` alone; `node.server.Node` is what serves in earnest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from consensus.block import Block
    from node.outcomes import ClusterStatus, HistoryRow, Outcome, ReceiptStatus, Wait
    from storage.recent import Place


class LedgerNode(Protocol):
    """A running node, as the HTTP face sees it. Times are in seconds."""

    @property
    def commit_index(self) -> int:
        """The last index known to be committed."""
        ...

    @property
    def applied_index(self) -> int:
        """The last index whose transactions this node answers for."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a leader is known and this node has applied what is committed."""
        ...

    @property
    def failed(self) -> BaseException | None:
        """Why the node has stopped itself, if it has."""
        ...

    @property
    def metrics(self) -> Mapping[str, int]:
        """The node's counters by name."""
        ...

    async def submit(
        self, transactions: Sequence[bytes], *, wait: Wait, timeout_s: float
    ) -> list[Outcome]:
        """Record canonical transactions; one outcome for each, in their order."""
        ...

    async def read_barrier(self, *, timeout_s: float) -> int:
        """Return an index confirmed by the leader and applied here; raises NoLeaderError."""
        ...

    async def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[HistoryRow]:
        """Return a user's applied transactions, strictly beyond `after`."""
        ...

    async def receipt_status(self, transaction_id: bytes) -> ReceiptStatus:
        """Return what this node knows of an id."""
        ...

    async def block(self, index: int) -> Block:
        """Return a committed block; raises BlockNotFoundError or DamagedBlockError."""
        ...

    def status(self) -> ClusterStatus:
        """Return the cluster as this node sees it."""
        ...
