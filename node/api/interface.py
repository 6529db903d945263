"""What the HTTP face needs of a node, so that it can be tested with one held in memory.

Relies on the types in `node.outcomes` alone; `node.server.Node` is what serves in earnest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from consensus.block import Block
    from consensus.membership import Member
    from node.administration import MadeChange
    from node.outcomes import ClusterStatus, HistoryRow, Outcome, ReceiptStatus, Wait
    from node.submissions import Submission
    from storage.recent import Place


class ClusterCalls(Protocol):
    """The calls that change the cluster, as `node.administration.Administration` has them.

    Each may raise ChangeError, as `not-leader` where this node does not lead.
    """

    async def add(self, member: Member, *, timeout_s: float) -> MadeChange:
        """Add a learner; raises UnknownChangeError, as all changes do."""
        ...

    async def promote(self, name: str, *, timeout_s: float) -> MadeChange:
        """Make a learner a voter."""
        ...

    async def remove(self, name: str, *, timeout_s: float) -> MadeChange:
        """Remove a member."""
        ...

    async def move(
        self, name: str, *, peer: str | None, http: str | None, timeout_s: float
    ) -> MadeChange:
        """Give a member other addresses."""
        ...

    async def transfer_leadership(self, to: str | None = None, *, timeout_s: float) -> str:
        """Hand over and return who leads then; raises NoLeaderError."""
        ...


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
    def is_full(self) -> bool:
        """Whether a submit would find no room."""
        ...

    @property
    def obstacle(self) -> str | None:
        """Why this node takes no part though it runs, if it does not."""
        ...

    @property
    def failed(self) -> BaseException | None:
        """Why the node has stopped itself, if it has."""
        ...

    @property
    def metrics(self) -> Mapping[str, int]:
        """The node's counters by name."""
        ...

    @property
    def administration(self) -> ClusterCalls:
        """The calls that change the cluster."""
        ...

    async def submit(
        self, transactions: Sequence[bytes], *, wait: Wait, timeout_s: float
    ) -> list[Outcome]:
        """Record canonical transactions; one outcome for each, in their order."""
        ...

    def begin_submit(
        self,
        transactions: Sequence[bytes],
        *,
        wait: Wait,
        timeout_s: float,
        on_done: Callable[[list[Outcome]], None],
    ) -> Submission:
        """As `submit`; `on_done` hears the outcomes once, maybe before this returns."""
        ...

    def abandon(self, call: Submission) -> None:
        """Take note that the caller has gone."""
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
