"""The simulated PostgreSQL: one server, shared by all machines, with the tables of the checkpoints.

It knows the statements of `storage.checkpoint` and no others, and keeps what PostgreSQL promises of
them: a transaction is all or nothing at its commit, others do not see it before, a moved row is
locked until then, keys are unique, and an advisory lock ends with its session. A server that dies
keeps what was committed and loses every session. Relies on the binary format of COPY.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors

from storage.checkpoint_rows import COPY_HEADER, COPY_TRAILER
from storage.checkpoint_schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Row = dict[str, Any]
"""A row's values by column. Those of a transaction are bytes, as they were sent."""
Place = tuple[int, int]

_FIELDS: Final = struct.Struct(">h")
_LENGTH: Final = struct.Struct(">i")


class RowLockedError(Exception):
    """Another transaction has moved the row and is not over: the statement must wait."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The row that says how far the chain is copied."""

    cluster_id: bytes
    index: int
    hash: bytes


@dataclass(slots=True)
class Draft:
    """What a transaction has written and not committed."""

    makes_tables: bool = False
    cursor: Cursor | None = None
    blocks: dict[int, Row] = field(default_factory=dict)
    transactions: dict[Place, Row] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Session:
    """What the server knows of one connection."""

    node: str
    is_alive: bool = True
    draft: Draft | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement returns, and how many rows it changed."""

    rows: tuple[tuple[object, ...], ...] = ()
    count: int = 0


class SimulatedDatabase:
    """The server: its tables, its sessions and their locks."""

    def __init__(self) -> None:
        """Up, without any table."""
        self.is_up = True
        self.has_tables = False
        self.cursor: Cursor | None = None
        self.blocks: dict[int, Row] = {}
        self.transactions: dict[Place, Row] = {}
        self.sessions: list[Session] = []
        self.lock_holder: Session | None = None
        self.on_commit: Callable[[Session, Draft], None] = lambda _session, _draft: None
        self._locks = 0
        self._row_holder: Session | None = None

    # Sessions

    def open_session(self, node: str) -> Session:
        """A client has connected; the server is up."""
        assert self.is_up, "nobody connects to a server that is down"
        session = Session(node)
        self.sessions.append(session)
        return session

    def end_session(self, session: Session) -> None:
        """A session is over: its transaction is undone and its locks are free."""
        if session.is_alive:
            session.is_alive = False
            self.sessions.remove(session)
            self.rollback(session)
            if self.lock_holder is session:
                self.lock_holder, self._locks = None, 0

    def die(self) -> None:
        """The server's processes end; what was committed is on its disk."""
        self.is_up = False
        for session in list(self.sessions):
            self.end_session(session)

    def start(self) -> None:
        """The server takes connections again."""
        self.is_up = True

    # Transactions

    def begin(self, session: Session) -> None:
        """A transaction begins."""
        assert session.draft is None, "one transaction at a time"
        session.draft = Draft()

    def rollback(self, session: Session) -> None:
        """The transaction, if there is one, never was."""
        session.draft = None
        if self._row_holder is session:
            self._row_holder = None

    def commit(self, session: Session) -> None:
        """All of the transaction is there; raises psycopg.Error where it cannot be."""
        draft = _draft_of(session)
        self.rollback(session)
        if draft.makes_tables and self.has_tables:
            raise errors.UniqueViolation("the tables were made by another transaction")
        self._check_keys(draft)
        self.has_tables |= draft.makes_tables
        self.cursor = draft.cursor or self.cursor
        self.blocks.update(draft.blocks)
        self.transactions.update(draft.transactions)
        if draft != Draft():
            self.on_commit(session, draft)

    def execute(self, session: Session, statement: str, values: Sequence[Any]) -> Answer:
        """One statement; without a transaction it is one of its own.

        Raises psycopg.Error, and RowLockedError where it has to wait.
        """
        perform = _STATEMENTS.get(" ".join(statement.split()))
        assert perform is not None, f"the simulated PostgreSQL does not know: {statement}"
        return self._perform(session, lambda: perform(self, session, values))

    def _perform(self, session: Session, statement: Callable[[], Answer]) -> Answer:
        """In the session's transaction, or in one of its own."""
        if session.draft is not None:
            return statement()
        self.begin(session)
        try:
            answer = statement()
            self.commit(session)
        finally:
            self.rollback(session)
        return answer

    def make_tables(self, session: Session) -> Answer:
        """The statements of all steps of `migrations/`."""
        draft = _draft_of(session)
        if self.has_tables or draft.makes_tables:
            raise errors.DuplicateTable("the tables are there already")
        draft.makes_tables = True
        return Answer()

    def copy_blocks(self, session: Session, rows: Sequence[Row]) -> Answer:
        """COPY into the table of blocks; raises UniqueViolation."""

        def copy() -> Answer:
            draft = _draft_of(session)
            for row in rows:
                _add(draft.blocks, row["index"], row)
            self._check_keys(draft)
            return Answer((), len(rows))

        return self._perform(session, copy)

    def copy_transactions(self, session: Session, columns: Sequence[str], data: bytes) -> Answer:
        """COPY into the table of transactions; raises UniqueViolation."""
        rows = [dict(zip(columns, values, strict=True)) for values in _binary_rows(data)]

        def copy() -> Answer:
            draft = _draft_of(session)
            for row in rows:
                place = (_integer(row["block_index"]), _integer(row["position"]))
                _add(draft.transactions, place, row)
            self._check_keys(draft)
            return Answer((), len(rows))

        return self._perform(session, copy)

    def _check_keys(self, draft: Draft) -> None:
        """Keys are unique; within a draft they are already."""
        if not self.blocks.keys().isdisjoint(draft.blocks):
            raise errors.UniqueViolation("duplicate key in the table of blocks")
        if not self.transactions.keys().isdisjoint(draft.transactions):
            raise errors.UniqueViolation("duplicate key in the table of transactions")

    # Statements

    def try_lock(self, session: Session, _values: Sequence[Any]) -> Answer:
        """The advisory lock, without waiting; a session may take it more than once."""
        if self.lock_holder is None:
            self.lock_holder = session
        is_ours = self.lock_holder is session
        self._locks += is_ours
        return Answer(((is_ours,),), 1)

    def unlock(self, session: Session, _values: Sequence[Any]) -> Answer:
        """The advisory lock is given back, as often as it was taken."""
        is_ours = self.lock_holder is session
        self._locks -= is_ours
        if self._locks == 0:
            self.lock_holder = None
        return Answer(((is_ours,),), 1)

    def hold_lock(self, session: Session, _values: Sequence[Any]) -> Answer:
        """The advisory lock until the transaction ends: the checkpointer has it by then."""
        assert self.lock_holder is session, "nobody makes tables without the lock"
        return Answer(((None,),), 1)

    def find_tables(self, session: Session, _values: Sequence[Any]) -> Answer:
        """The name of the table of versions, or nothing."""
        is_there = self.has_tables or _draft_of(session).makes_tables
        return Answer((("bitnexus.schema_version" if is_there else None,),), 1)

    def read_version(self, _session: Session, _values: Sequence[Any]) -> Answer:
        """The version of the tables."""
        return Answer(((SCHEMA_VERSION,),), 1)

    def read_cursor(self, session: Session, _values: Sequence[Any]) -> Answer:
        """How far the chain is copied, as this transaction sees it."""
        cursor = _draft_of(session).cursor or self.cursor
        if cursor is None:
            return Answer()
        return Answer(((cursor.cluster_id, cursor.index, cursor.hash),), 1)

    def begin_cursor(self, session: Session, values: Sequence[Any]) -> Answer:
        """The cursor before genesis, where there is none yet."""
        if self.cursor is not None:
            return Answer()
        self._lock_row(session)
        cluster_id, block_hash = values
        _draft_of(session).cursor = Cursor(cluster_id, -1, block_hash)
        return Answer((), 1)

    def move_cursor(self, session: Session, values: Sequence[Any]) -> Answer:
        """The cursor moves, where it stands as the statement says."""
        self._lock_row(session)
        draft = _draft_of(session)
        index, block_hash, *stands = values
        cursor = draft.cursor or self.cursor
        if cursor is None or [cursor.cluster_id, cursor.index, cursor.hash] != stands:
            return Answer()
        draft.cursor = Cursor(cursor.cluster_id, index, block_hash)
        return Answer(((None,),), 1)

    def _lock_row(self, session: Session) -> None:
        if self._row_holder not in {None, session}:
            raise RowLockedError
        self._row_holder = session


_STATEMENTS: Final[dict[str, Callable[[SimulatedDatabase, Session, Sequence[Any]], Answer]]] = {
    "SELECT pg_try_advisory_lock(%s, %s)": SimulatedDatabase.try_lock,
    "SELECT pg_advisory_unlock(%s, %s)": SimulatedDatabase.unlock,
    "SELECT pg_advisory_xact_lock(%s, %s)": SimulatedDatabase.hold_lock,
    "SELECT to_regclass('bitnexus.schema_version')": SimulatedDatabase.find_tables,
    "SELECT max(version) FROM bitnexus.schema_version": SimulatedDatabase.read_version,
    "SELECT cluster_id, index, hash FROM bitnexus.checkpoint": SimulatedDatabase.read_cursor,
    (
        "INSERT INTO bitnexus.checkpoint (cluster_id, index, hash) VALUES (%s, -1, %s)"
        " ON CONFLICT DO NOTHING"
    ): SimulatedDatabase.begin_cursor,
    (
        "UPDATE bitnexus.checkpoint SET index = %s, hash = %s, updated_at = now()"
        " WHERE cluster_id = %s AND index = %s AND hash = %s"
        " RETURNING bitnexus.make_partitions(index)"
    ): SimulatedDatabase.move_cursor,
}


def _draft_of(session: Session) -> Draft:
    """What the transaction of a session has written."""
    assert session.draft is not None, "only a transaction reads and writes"
    return session.draft


def _add(rows: dict[Any, Row], key: object, row: Row) -> None:
    if key in rows:
        raise errors.UniqueViolation(f"duplicate key {key}")
    rows[key] = row


def _integer(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


def _binary_rows(data: bytes) -> Iterator[list[bytes]]:
    """The values of each row in a binary COPY; asserts that its form is right."""
    assert data.startswith(COPY_HEADER), "a binary COPY begins with its signature"
    assert data.endswith(COPY_TRAILER), "a binary COPY ends with its trailer"
    offset, end = len(COPY_HEADER), len(data) - len(COPY_TRAILER)
    while offset < end:
        (fields,) = _FIELDS.unpack_from(data, offset)
        offset += _FIELDS.size
        values = []
        for _ in range(fields):
            (length,) = _LENGTH.unpack_from(data, offset)
            offset += _LENGTH.size
            values.append(data[offset : offset + length])
            offset += length
        yield values
    assert offset == end, "a binary COPY ends with a row"
