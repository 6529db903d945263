"""Looks at the tables of PostgreSQL after every commit there: what they hold must be the chain's.

A gap-free prefix of what the watch knows to be committed, each block and each transaction once and
equal to it in every column, with the cursor at its end, written by the one session that has the
lock. It decodes and compares for itself, without the code that packs the rows. A breach raises
AssertionError.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from consensus.block import decode_transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.simulation.database import Cursor, Draft, Row, Session, SimulatedDatabase
    from cluster.simulation.record import Trace
    from consensus.block import Block


class CheckpointWatch:
    """All checks of what is in PostgreSQL."""

    def __init__(
        self,
        *,
        database: SimulatedDatabase,
        committed: list[Block],
        trace: Trace,
        now_us: Callable[[], int],
    ) -> None:
        """`committed` is the chain as it comes about."""
        self._database = database
        self._committed = committed
        self._trace = trace
        self._now_us = now_us
        self._blocks = 0
        self._transactions = 0
        self._writer = ""
        database.on_commit = self._on_commit

    @property
    def is_caught_up(self) -> bool:
        """Whether everything that is committed is in the tables."""
        return self._blocks == len(self._committed)

    def check_all(self) -> None:
        """Compare everything that is there."""
        self._blocks = self._transactions = 0
        self._check()

    def _on_commit(self, session: Session, draft: Draft) -> None:
        before = self._blocks
        self._check()
        if draft.blocks or draft.transactions or draft.cursor:
            assert self._database.lock_holder is session, (
                f"{session.node} writes to PostgreSQL without the lock"
            )
        if self._blocks > before:
            coverage = self._trace.coverage
            coverage["checkpoints committed"] += 1
            coverage["checkpoint writers changed"] += self._writer not in {"", session.node}
            self._writer = session.node
            now_us, last = self._now_us(), self._blocks - 1
            self._trace.event(now_us, "database", b"%d" % last)
            self._trace.line(now_us, f"{session.node} checkpoints blocks {before} to {last}")

    def _check(self) -> None:
        """What has come since the last look, and the cursor."""
        database = self._database
        for index in range(self._blocks, len(database.blocks)):
            assert index in database.blocks, f"PostgreSQL has a gap at block {index}"
            assert index < len(self._committed), f"PostgreSQL has the uncommitted block {index}"
            self._check_block(self._committed[index], database.blocks[index])
        self._blocks = len(database.blocks)
        assert self._transactions == len(database.transactions), (
            f"PostgreSQL has {len(database.transactions)} transactions, not {self._transactions}"
        )
        self._check_cursor(database.cursor)

    def _check_cursor(self, cursor: Cursor | None) -> None:
        """The cursor names the last block there is."""
        if cursor is None:
            assert self._blocks == 0, "PostgreSQL has blocks and no cursor"
            return
        assert cursor.cluster_id == self._committed[0].hash, "the cursor is of another cluster"
        last = self._blocks - 1
        assert cursor.index == last, f"the cursor is at {cursor.index}, the last block is {last}"
        expected = self._committed[last].hash if self._blocks else bytes(32)
        assert cursor.hash == expected, f"the cursor has another hash than block {last}"

    def _check_block(self, block: Block, row: Row) -> None:
        """Every column of a block, and its transactions."""
        for column, value in row.items():
            owner: Any = block if column in {"hash", "signature"} else block.header
            expected = getattr(owner, column)
            assert value == expected, f"{column} of block {block.index} differs in PostgreSQL"
        for position, raw in enumerate(block.transactions):
            stored = self._database.transactions.get((block.index, position))
            assert stored is not None, f"PostgreSQL lacks a transaction of block {block.index}"
            _check_transaction(raw, stored)
        self._transactions += len(block.transactions)


def _check_transaction(raw: bytes, row: Row) -> None:
    transaction = decode_transaction(raw)
    assert row["raw"] == raw, "another transaction in PostgreSQL"
    assert row["id"] == transaction.id, "another id in PostgreSQL"
    assert row["user_id"] == transaction.user_id.encode(), "another user in PostgreSQL"
    assert row["kind"] == transaction.kind.encode(), "another kind in PostgreSQL"
    payload = msgspec.msgpack.decode(transaction.payload)
    assert row["payload"][:1] == b"\x01", "a payload of another version of jsonb"
    assert json.loads(row["payload"][1:]) == payload, "another payload in PostgreSQL"
