"""The wire to the simulated PostgreSQL, in the shape of psycopg's connection.

`storage.checkpoint` runs unchanged on a `SimulatedConnection`: each of its calls is a message that
travels, may find the server slow, frozen or dead, and is answered, unless the connection breaks
first. The server finds out late that a client is gone: until then the session keeps its lock and
its transaction, and a commit that had left is carried out. Relies on `course` to wait and on
`database` for what the statements do.
"""

from __future__ import annotations

import re
from contextlib import suppress
from enum import StrEnum, unique
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg

from cluster.simulation.course import waiting
from cluster.simulation.database import Answer, RowLockedError
from cluster.simulation.faults import MICROS_PER_SECOND, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from cluster.simulation.course import Resume
    from cluster.simulation.database import Row, Session, SimulatedDatabase
    from cluster.simulation.events import EventQueue
    from cluster.simulation.record import Trace

TRIP_US: Final = 600
"""A statement and its answer take about this long in all."""
SYNC_US: Final = 1_500
"""What a commit's fsync adds to that."""
LOOK_AGAIN_US: Final = 20_000
"""How often a statement looks whether what it waits for is over: a freeze, or another's row."""
CONNECT_TIMEOUT_US: Final = 5 * MICROS_PER_SECOND
LOCK_TIMEOUT_US: Final = 10 * MICROS_PER_SECOND
ORPHAN_US: Final = 6 * MICROS_PER_SECOND
"""The server hears of a client that is gone within this time."""
_COPY: Final = re.compile(
    r"COPY bitnexus\.(?P<table>blocks|transactions) \((?P<columns>[a-z_, ]+)\)"
    r" FROM STDIN \(FORMAT BINARY\)"
)
_GONE: Final = "server closed the connection unexpectedly"


@unique
class CheckpointBoundary(StrEnum):
    """Where in the course of a checkpoint the machine that writes it crashes."""

    OPEN = "in the middle of the SQL transaction"
    BEFORE_COMMIT = "before the commit leaves"
    UNDERWAY = "while the commit is on its way"
    UNTOLD = "after the commit, before it is known"


class DatabaseWire:
    """What lies between all machines and the server, and what is wrong with it."""

    def __init__(
        self, *, database: SimulatedDatabase, queue: EventQueue, trace: Trace, random: Random
    ) -> None:
        """Nothing is wrong yet."""
        self.database = database
        self.queue = queue
        self.trace = trace
        self.random = random
        self.slow_us = 0
        self.frozen_until_us = 0
        self.crash_at: CheckpointBoundary | None = None
        """Whoever comes to this boundary next crashes there."""
        self.loses_commit: bool | None = None
        """The next commit is not answered: True where it is carried out all the same."""
        self.connections: list[SimulatedConnection] = []

    @property
    def is_frozen(self) -> bool:
        """Whether the server is there and does nothing."""
        return self.queue.now_us < self.frozen_until_us

    def trip_us(self) -> int:
        """How long the next message takes."""
        return self.random.randrange(TRIP_US // 2, TRIP_US * 2) + (
            self.random.randrange(self.slow_us) if self.slow_us else 0
        )

    def heal(self) -> None:
        """All faults are over; the server knows which clients are gone."""
        self.slow_us = self.frozen_until_us = 0
        self.crash_at = self.loses_commit = None
        self.database.start()
        kept = [connection.session for connection in self.connections]
        for session in list(self.database.sessions):
            if session not in kept:
                self.database.end_session(session)

    async def connect(self, node: str, on_boundary: Callable[[], None]) -> SimulatedConnection:
        """A connection of `node`, whose machine crashes when `on_boundary` is called.

        Raises psycopg.OperationalError.
        """
        asked_us = self.queue.now_us

        def arrive(resume: Resume) -> None:
            if not self.database.is_up:
                resume(psycopg.OperationalError("connection refused"))
            elif not self.is_frozen:
                resume(self.database.open_session(node))
            elif self.queue.now_us - asked_us > CONNECT_TIMEOUT_US:
                resume(psycopg.OperationalError("connection timeout expired"))
            else:
                self.queue.after(LOOK_AGAIN_US, partial(arrive, resume))

        session = await waiting(
            lambda resume: self.queue.after(self.trip_us(), partial(arrive, resume))
        )
        connection = SimulatedConnection(self, session, on_boundary)
        self.connections.append(connection)
        return connection


class SimulatedConnection:
    """One machine's end of a session; in autocommit, as the shipped code opens it."""

    def __init__(
        self, wire: DatabaseWire, session: Session, on_boundary: Callable[[], None]
    ) -> None:
        """Use `DatabaseWire.connect`."""
        self.session = session
        self.database = wire.database
        self.info = _Info()
        self.is_broken = False
        self._wire = wire
        self._on_boundary = on_boundary
        self._resume: Resume | None = None

    @property
    def is_writer(self) -> bool:
        """Whether the session has the lock."""
        return self.database.lock_holder is self.session

    # What psycopg has

    async def execute(self, statement: str | bytes, values: Sequence[Any] = ()) -> SimulatedCursor:
        """Execute one statement, or the script that makes the tables."""
        cursor = self.cursor()
        await cursor.execute(statement, values)
        return cursor

    def cursor(self) -> SimulatedCursor:
        """Return a cursor."""
        return SimulatedCursor(self)

    def transaction(self) -> SimulatedTransaction:
        """Return a transaction to enter."""
        return SimulatedTransaction(self)

    async def close(self) -> None:
        """Take no time: the server hears of it soon."""
        if not self.is_broken:
            self._forget()
            end = partial(self._wire.database.end_session, self.session)
            self._wire.queue.after(self._wire.trip_us(), end)

    # How it ends otherwise

    def break_off(self) -> None:
        """The connection is reset: the client hears of it at once, the server some time later."""
        if self.is_broken:
            return
        self._forget()
        end = partial(self._wire.database.end_session, self.session)
        self._wire.queue.after(self._wire.random.randrange(ORPHAN_US), end)
        if self._resume is not None:
            resume, self._resume = self._resume, None
            error = psycopg.OperationalError(_GONE)
            self._wire.queue.after(1, partial(resume, error))

    def _forget(self) -> None:
        self.is_broken = True
        self._wire.connections.remove(self)

    # Messages

    async def ask(self, work: Callable[[], object]) -> object:
        """Let the server do `work`; what it returned, or raised."""
        self._check()
        answer: object = await waiting(partial(self._send, work))
        return answer

    async def commit(self) -> None:
        """Commit; where the connection breaks nobody knows whether it was carried out."""
        self._check()
        await waiting(self._send_commit)

    async def copy_in(self, work: Callable[[], object]) -> None:
        """Let the server take rows."""
        self._check()
        await waiting(partial(self._send_rows, work))

    def _check(self) -> None:
        if self.is_broken:
            raise psycopg.OperationalError("the connection is closed")

    def _send(self, work: Callable[[], object], resume: Resume) -> None:
        self._resume = resume
        arrive = partial(self._arrive, work, self._answer, self._wire.queue.now_us)
        self._wire.queue.after(self._wire.trip_us(), arrive)

    def _send_rows(self, work: Callable[[], object], resume: Resume) -> None:
        self._send(work, resume)
        self._crashes_at(CheckpointBoundary.OPEN)

    def _send_commit(self, resume: Resume) -> None:
        wire = self._wire
        self._resume = resume
        if self._crashes_at(CheckpointBoundary.BEFORE_COMMIT):
            return
        if wire.loses_commit is False:
            wire.loses_commit = None
            self.break_off()
            return
        work = partial(wire.database.commit, self.session)
        arrive = partial(self._arrive, work, self._answer_commit, wire.queue.now_us)
        wire.queue.after(wire.trip_us() + wire.random.randrange(SYNC_US), arrive)
        self._crashes_at(CheckpointBoundary.UNDERWAY)

    def _arrive(
        self, work: Callable[[], object], answer: Callable[[object], None], sent_us: int
    ) -> None:
        """The server works on a message, if there is a server and it is awake."""
        if not self.session.is_alive:
            answer(psycopg.OperationalError(_GONE))
            return
        again = partial(self._arrive, work, answer, sent_us)
        if self._wire.is_frozen:
            self._wire.queue.after(LOOK_AGAIN_US, again)
            return
        try:
            outcome = work()
        except RowLockedError:
            if self._wire.queue.now_us - sent_us < LOCK_TIMEOUT_US:
                self._wire.queue.after(LOOK_AGAIN_US, again)
                return
            outcome = psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
        except psycopg.Error as error:
            outcome = error
        answer(outcome)

    def _answer(self, outcome: object) -> None:
        if self._resume is not None:
            resume, self._resume = self._resume, None
            resume(outcome)

    def _answer_commit(self, outcome: object) -> None:
        """The answer to a commit travels for itself, for much may happen meanwhile."""
        wire = self._wire
        if not isinstance(outcome, Exception):
            if self._crashes_at(CheckpointBoundary.UNTOLD):
                return
            if wire.loses_commit:
                wire.loses_commit = None
                self.break_off()
        wire.queue.after(wire.trip_us(), partial(self._commit_answered, outcome))

    def _commit_answered(self, outcome: object) -> None:
        is_lost = self.is_broken or not self.session.is_alive
        if is_lost and not isinstance(outcome, Exception):
            self._wire.trace.coverage["checkpoints committed and not answered"] += 1
            outcome = psycopg.OperationalError(_GONE)
        self._answer(outcome)

    def _crashes_at(self, boundary: CheckpointBoundary) -> bool:
        """Whether the machine crashes here: it stops in this very event."""
        if self._wire.crash_at is not boundary or self.is_broken:
            return False
        self._wire.crash_at = None
        self._wire.trace.faults[f"{Fault.CRASH_AT_CHECKPOINT}, {boundary}"] += 1
        self._on_boundary()
        return True


class _Info:
    """What the server said of itself when it was connected to."""

    def parameter_status(self, name: str) -> str:
        """Return the encoding, for nothing else is asked."""
        assert name == "server_encoding", f"the simulated PostgreSQL does not tell its {name}"
        return "UTF8"


class SimulatedCursor:
    """What a statement answered."""

    def __init__(self, connection: SimulatedConnection) -> None:
        """Use `SimulatedConnection.cursor`."""
        self.rowcount = -1
        self._connection = connection
        self._rows: list[tuple[object, ...]] = []

    async def __aenter__(self) -> Self:
        """Nothing."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Nothing."""

    async def execute(self, statement: str | bytes, values: Sequence[Any] = ()) -> None:
        """Execute one statement, or the script that makes the tables."""
        database, session = self._connection.database, self._connection.session
        if isinstance(statement, bytes):
            assert b"CREATE TABLE bitnexus.checkpoint" in statement, "there is one script"
            work: Callable[[], Answer] = partial(database.make_tables, session)
        else:
            work = partial(database.execute, session, statement, values)
        answer = await self._connection.ask(work)
        assert isinstance(answer, Answer), "a statement has an answer"
        self._rows, self.rowcount = list(answer.rows), answer.count

    async def fetchone(self) -> tuple[object, ...] | None:
        """Return the next row."""
        return self._rows.pop(0) if self._rows else None

    def copy(self, statement: str) -> SimulatedCopy:
        """Return a COPY to enter."""
        return SimulatedCopy(self._connection, statement)


class SimulatedCopy:
    """A COPY FROM STDIN: what is written goes to the server at its end."""

    def __init__(self, connection: SimulatedConnection, statement: str) -> None:
        """Use `SimulatedCursor.copy`."""
        parts = _COPY.fullmatch(statement)
        assert parts is not None, f"the simulated PostgreSQL does not know: {statement}"
        self._table = parts["table"]
        self._columns = parts["columns"].split(", ")
        self._connection = connection
        self._rows: list[Row] = []
        self._data = bytearray()

    async def __aenter__(self) -> Self:
        """Nothing."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """Send it all, unless the client failed."""
        if kind is not None:
            return
        database, session = self._connection.database, self._connection.session
        work: Callable[[], object]
        if self._table == "blocks":
            work = partial(database.copy_blocks, session, self._rows)
        else:
            data = bytes(self._data)
            work = partial(database.copy_transactions, session, self._columns, data)
        await self._connection.copy_in(work)

    def set_types(self, types: Sequence[str]) -> None:
        """Take a type for each column."""
        assert len(types) == len(self._columns), "a type for each column"

    async def write_row(self, row: Sequence[object]) -> None:
        """Write one row of values."""
        self._rows.append(dict(zip(self._columns, row, strict=True)))

    async def write(self, data: bytes) -> None:
        """Write bytes of the binary format."""
        self._data += data


class SimulatedTransaction:
    """A transaction: committed at its end, undone where an error ends it."""

    def __init__(self, connection: SimulatedConnection) -> None:
        """Use `SimulatedConnection.transaction`."""
        self._connection = connection

    async def __aenter__(self) -> None:
        """Begin."""
        connection = self._connection
        await connection.ask(partial(connection.database.begin, connection.session))

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """Commit, or undo; where the connection is gone, so is the transaction."""
        connection = self._connection
        if kind is None:
            await connection.commit()
        elif not connection.is_broken:
            with suppress(psycopg.OperationalError):
                await connection.ask(partial(connection.database.rollback, connection.session))
