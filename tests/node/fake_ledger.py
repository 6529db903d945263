"""A ledger of one node held in memory, for tests of the HTTP face and of the client.

Blocks are real: made by the sealer, one for each submit call. What the node should refuse, delay or
fail at is set by the test. Relies on the core alone.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from consensus.block import (
    MAX_BLOCK_TRANSACTIONS,
    Block,
    Sealer,
    decode_transaction,
    tip_after,
    transaction_id,
)
from consensus.changes import Membership
from consensus.membership import Genesis, Member, genesis_block
from node.outcomes import (
    Accepted,
    ClusterStatus,
    HistoryRow,
    MemberStatus,
    NoLeaderError,
    Outcome,
    Receipt,
    ReceiptStatus,
    Refusal,
    RefusalReason,
    TransactionState,
    Wait,
)
from node.submissions import Submission
from storage.errors import BlockNotFoundError, DamagedBlockError
from storage.recent import Place
from tests.node.fake_administration import FakeAdministration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

START_US = 1_700_000_000_000_000


class FakeNode:
    """What `node.api.interface.LedgerNode` asks for, without disk, peers or consensus."""

    def __init__(self, cluster: str = "test") -> None:
        key = SigningKey(bytes(32))
        self.member = Member(
            name="node1",
            public_key=bytes(key.verify_key),
            peer="127.0.0.1:7001",
            http="127.0.0.1:8001",
        )
        genesis = genesis_block(Genesis(cluster, START_US, (self.member,)))
        self.administration = FakeAdministration(self)
        self.membership = Membership((self.member,))
        self.name = "node1"
        self.catching_up_to: int | None = None
        self._sealer = Sealer(key, genesis.hash, random.Random(1))
        self.cluster_id = self.incarnation = genesis.hash
        self.blocks: list[Block] = [genesis]
        self._tip = tip_after(None, genesis)
        self._receipts: dict[bytes, tuple[Receipt, bytes]] = {}
        self.pending: set[bytes] = set()
        self.submits: list[tuple[list[bytes], Wait, float]] = []
        self.calls: dict[Submission, asyncio.Task[None]] = {}
        self.refusals: dict[bytes, Refusal] = {}
        """By user id."""
        self.fault: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.leader: str | None = "node1"
        self.damaged: set[int] = set()
        self.alarms: tuple[str, ...] = ()
        self.obstacle: str | None = None
        self.commit_ahead = 0
        self.is_full = False
        self.failed: BaseException | None = None
        self.metrics = {"transactions_applied_total": 7, "queue": 3}

    @property
    def applied_index(self) -> int:
        """The last block."""
        return len(self.blocks) - 1

    @property
    def commit_index(self) -> int:
        """The last block, or as far beyond it as the test says."""
        return self.applied_index + self.commit_ahead

    @property
    def ready(self) -> bool:
        """As the real one."""
        return self.leader is not None and self.commit_ahead == 0

    @property
    def recorded(self) -> int:
        """How many transactions were given to the node in all."""
        return sum(len(transactions) for transactions, _, _ in self.submits)

    async def submit(
        self, transactions: Sequence[bytes], *, wait: Wait, timeout_s: float
    ) -> list[Outcome]:
        """Seal all that is new at once."""
        if self.fault is not None:
            raise self.fault
        if self.gate is not None:
            await self.gate.wait()
        self.submits.append((list(transactions), wait, timeout_s))
        refused = {
            transaction_id(raw): self.refusals[user.encode()]
            for raw in transactions
            if (user := decode_transaction(raw).user_id).encode() in self.refusals
        }
        new = [
            raw
            for raw in transactions
            if transaction_id(raw) not in self._receipts and transaction_id(raw) not in refused
        ]
        if new and wait is Wait.COMMITTED:
            self.seal(new)
        return [self._outcome(raw, refused) for raw in transactions]

    def begin_submit(
        self,
        transactions: Sequence[bytes],
        *,
        wait: Wait,
        timeout_s: float,
        on_done: Callable[[list[Outcome]], None],
    ) -> Submission:
        """As `submit`, in a task; a fault is raised here."""
        if self.fault is not None:
            raise self.fault
        call = Submission(transactions, wait=wait, on_done=on_done)
        self.calls[call] = asyncio.create_task(self._carry_out(call, timeout_s))
        return call

    async def _carry_out(self, call: Submission, timeout_s: float) -> None:
        outcomes = await self.submit(call.transactions, wait=call.wait, timeout_s=timeout_s)
        for slot, outcome in enumerate(outcomes):
            call.settle(slot, outcome)

    def abandon(self, call: Submission) -> None:
        """Answer no more."""
        self.calls[call].cancel()

    def seal(self, transactions: Sequence[bytes]) -> None:
        """Append blocks that hold the transactions."""
        for first in range(0, len(transactions), MAX_BLOCK_TRANSACTIONS):
            self._seal_block(transactions[first : first + MAX_BLOCK_TRANSACTIONS])

    def _seal_block(self, transactions: Sequence[bytes]) -> None:
        wall_us = START_US + len(self.blocks) * 1_000_000
        block = self._sealer.seal(self._tip, term=1, transactions=transactions, wall_us=wall_us)
        self.blocks.append(block)
        self._tip = tip_after(self._tip, block)
        for position, raw in enumerate(transactions):
            receipt = Receipt(
                transaction_id(raw), block.index, position, block.hash, block.timestamp_us
            )
            self._receipts[receipt.id] = (receipt, raw)

    def _outcome(self, raw: bytes, refused: dict[bytes, Refusal]) -> Outcome:
        identifier = transaction_id(raw)
        if identifier in refused:
            refusal = refused[identifier]
            return Refusal(identifier, refusal.reason, refusal.detail, refusal.retry_after_s)
        if identifier not in self._receipts:
            self.pending.add(identifier)
            return Accepted(identifier)
        receipt, recorded = self._receipts[identifier]
        if recorded != raw:
            return Refusal(identifier, RefusalReason.CONFLICT, "the id has other content")
        return receipt

    async def read_barrier(self, *, timeout_s: float) -> int:
        """Confirm at once, or never."""
        if self.leader is None:
            raise NoLeaderError(f"no leader confirmed the read within {timeout_s:g} s")
        return self.applied_index

    async def history(
        self, user_id: str, *, after: Place | None, limit: int, newest_first: bool
    ) -> list[HistoryRow]:
        """Walk all blocks."""
        rows = [
            HistoryRow(Place(block.index, position), raw, block.timestamp_us)
            for block in self.blocks
            for position, raw in enumerate(block.transactions)
            if decode_transaction(raw).user_id == user_id
        ]
        if newest_first:
            rows.reverse()
        if after is not None:
            rows = [
                row for row in rows if (row.place < after if newest_first else row.place > after)
            ]
        return rows[:limit]

    async def receipt_status(self, transaction_id: bytes) -> ReceiptStatus:
        """Committed, pending or unknown."""
        if transaction_id in self._receipts:
            receipt, _ = self._receipts[transaction_id]
            return ReceiptStatus(TransactionState.COMMITTED, receipt)
        is_pending = transaction_id in self.pending
        return ReceiptStatus(TransactionState.PENDING if is_pending else TransactionState.UNKNOWN)

    async def block(self, index: int) -> Block:
        """A block, unless it is missing or the test has damaged it."""
        if index in self.damaged:
            raise DamagedBlockError(index, "another hash")
        if not 0 <= index < len(self.blocks):
            raise BlockNotFoundError(index, self.applied_index)
        return self.blocks[index]

    def status(self) -> ClusterStatus:
        """One member that leads, unless the test says otherwise."""
        self.administration.look()
        return ClusterStatus(
            cluster_id=self.cluster_id,
            incarnation=self.incarnation,
            name="test",
            node=self.name,
            role="leader" if self.leader == self.name else "follower",
            leader=self.leader,
            term=1,
            last_index=self.applied_index,
            commit_index=self.commit_index,
            applied_index=self.applied_index,
            catching_up_to=self.catching_up_to,
            members=tuple(self._member_status(member) for member in self.membership.members),
            alarms=self.alarms,
        )

    def _member_status(self, member: Member) -> MemberStatus:
        if member.public_key in self.membership.learners:
            return MemberStatus(member, "learner", 0 if self.leader == self.name else None)
        leads = member.name == (self.leader or self.member.name)
        return MemberStatus(member, "leader" if leads else "follower", self.applied_index)
