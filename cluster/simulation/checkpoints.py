"""The checkpointer of one simulated machine: the shipped one, on a simulated loop and database.

It does what `node.server` does: makes a `Checkpointer` over the applied blocks of each life, and
ends it with that life. Its waits are events: for the database, for a read of old blocks, for time,
for the next applied block. Relies on `course`, `database_client`, and on the machine's loop to say
when it has turned.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import psycopg

from cluster.simulation.course import Course, waiting
from cluster.simulation.faults import MICROS_PER_SECOND
from node.checkpointer import Checkpointer
from node.status import AppliedBlocks
from storage.checkpoint import CheckpointStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import AsyncConnection

    from cluster.simulation.course import Resume
    from cluster.simulation.database_client import DatabaseWire, SimulatedConnection
    from cluster.simulation.events import EventQueue
    from cluster.simulation.machine import Machine
    from cluster.simulation.record import Trace
    from consensus.block import Block

DAMAGED: Final = "is damaged on disk"
"""What `DamagedBlockError` says."""
READ_US: Final = 1_000
"""A thread reads old blocks within this time."""


class Checkpoints:
    """The checkpointer of a machine, which runs while the machine does."""

    def __init__(
        self, machine: Machine, *, wire: DatabaseWire, queue: EventQueue, trace: Trace
    ) -> None:
        """Nothing runs before `start`."""
        self._machine = machine
        self._wire = wire
        self._queue = queue
        self._trace = trace
        self._course: Course | None = None
        self._checkpointer: Checkpointer | None = None
        self._connection: SimulatedConnection | None = None
        self._held: list[Callable[[], None]] = []
        self._waiter: tuple[int, Resume] | None = None

    def start(self) -> None:
        """The machine has booted."""
        self._checkpointer = Checkpointer(
            "",
            AppliedBlocks(self, self._machine.chain, in_thread=self._read),
            cluster_id=self._machine.chain.cluster_id,
            random=Random(self._wire.random.getrandbits(64)),
            sleep=self._sleep,
            connect=self._connect,
            log=self,
            now=lambda: self._queue.now_us / MICROS_PER_SECOND,
        )
        self._course = Course(
            self._run(self._checkpointer), queue=self._queue, when_awake=self._when_awake
        )

    def crash(self) -> None:
        """The machine is gone, and PostgreSQL does not know."""
        if self._connection is not None:
            self._connection.break_off()
        if self._course is not None:
            self._course.drop()
        self._course = self._checkpointer = self._connection = self._waiter = None
        self._held.clear()

    def turn(self) -> None:
        """The machine's loop has turned: it may be awake again, and have applied more."""
        if self._held and not self._machine.is_paused:
            held, self._held = self._held, []
            for action in held:
                self._queue.after(0, partial(self._when_awake, action))
        if self._waiter is not None and self.applied_index > self._waiter[0]:
            resume, self._waiter = self._waiter[1], None
            self._queue.after(0, partial(resume, None))

    # What the checkpointer relies on

    @property
    def applied_index(self) -> int:
        """The last index that the machine has applied."""
        return self._machine.running.applied_index

    async def wait_applied(self, beyond: int) -> int:
        """Wait until more than `beyond` is applied; how far that is."""
        while self.applied_index <= beyond:
            await waiting(partial(self._wait_applied, beyond))
        return self.applied_index

    def info(self, event: str, **fields: object) -> None:
        """A line of the trace."""
        self._line(event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """A line of the trace."""
        self._trace.coverage["checkpointers without a database"] += 1
        self._line(event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Only a block that this machine reads badly may ask for a person."""
        reads_badly = DAMAGED in str(fields.get("error"))
        assert reads_badly, f"{self._machine.name}: {event} {fields}"
        self._trace.coverage["checkpointers before a damaged block"] += 1
        self._line(event, fields)

    async def _connect(self, _dsn: str, *, cluster_id: bytes) -> CheckpointStore:
        connection = await self._wire.connect(self._machine.name, self._crash_here)
        self._connection = connection
        return CheckpointStore(cast("AsyncConnection[Any]", connection), cluster_id)

    async def _read(self, work: Callable[[], list[Block]]) -> list[Block]:
        delay_us = self._wire.random.randrange(READ_US)
        await waiting(lambda resume: self._queue.after(delay_us, partial(resume, None)))
        return work()

    async def _sleep(self, seconds: float) -> None:
        delay_us = int(seconds * MICROS_PER_SECOND)
        await waiting(lambda resume: self._queue.after(delay_us, partial(resume, None)))

    # Small parts

    async def _run(self, checkpointer: Checkpointer) -> NoReturn:
        try:
            await checkpointer.run()
        except psycopg.Error as error:
            raise AssertionError(f"{self._machine.name}'s checkpointer ended: {error}") from error

    def _wait_applied(self, beyond: int, resume: Resume) -> None:
        """Whoever has nothing to copy keeps nobody else from it: it may be cut off for hours."""
        is_writer = self._connection is not None and self._connection.is_writer
        assert not is_writer, f"{self._machine.name} waits for blocks and keeps the lock"
        self._waiter = (beyond, resume)

    def _when_awake(self, action: Callable[[], None]) -> None:
        if self._machine.is_paused:
            self._held.append(action)
        else:
            action()

    def _crash_here(self) -> None:
        if self._machine.replica is not None:
            self._machine.crash("at a checkpoint")

    def _line(self, event: str, fields: dict[str, object]) -> None:
        if self._trace.is_readable:
            text = "".join(f" {name}={value}" for name, value in fields.items())
            self._trace.line(self._queue.now_us, f"{self._machine.name} {event}{text}")
