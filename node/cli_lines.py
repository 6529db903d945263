"""Reads transactions from JSON lines, as the ledger itself would read them, in bounded batches.

Each line is one transaction: `user_id`, `kind`, `payload` and, better, an `id`. A line without an
id is given one here, once, so that every retry of this run keeps it. Relies on the strict reader of
the HTTP face, so that what is refused here is what a node would refuse.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final
from uuid import UUID

import msgspec

from consensus.block import decode_transaction
from node.api.json_input import MAX_BODY_BYTES, read_submission
from node.api.problems import ProblemError, ProblemKind, fault_error
from node.api.shapes import NewTransaction
from node.cli_errors import CommandError, ExitCode
from node.uuid7 import new_transaction_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

BATCH_LINES: Final = 1_000
BATCH_BYTES: Final = 4 << 20
"""Well below what a node takes in one request."""
_READ_BYTES: Final = 1 << 20
STANDARD_INPUT: Final = "-"


@dataclass(frozen=True, slots=True)
class Line:
    """One transaction and the line it stands on, counted from 1."""

    number: int
    transaction: NewTransaction


class LineError(Exception):
    """A line that is no transaction. `lines` are those before it that no batch has taken yet."""

    def __init__(self, number: int, detail: str, lines: list[Line]) -> None:
        super().__init__(f"line {number}: {detail}")
        self.lines = lines


@contextmanager
def open_lines(file: Path) -> Iterator[BinaryIO]:
    """Open a file of lines; `-` is standard input. Raises CommandError."""
    if str(file) == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", ExitCode.INPUT) from error
    with stream:
        yield stream


def count_lines(stream: BinaryIO) -> int | None:
    """How many lines a regular file has; None where only reading to the end would tell."""
    if not _is_regular(stream):
        return None
    count, last = 0, b"\n"
    while chunk := stream.read(_READ_BYTES):
        count += chunk.count(b"\n")
        last = chunk[-1:]
    stream.seek(0)
    return count + (last != b"\n")


async def batches(stream: BinaryIO) -> AsyncIterator[list[Line]]:
    """Yield the transactions in their order, some at a time; blank lines are passed over.

    From a pipe what is there is yielded at once: whoever writes slowly is not kept waiting.

    Raises:
        LineError: at the first line that is no transaction.
    """
    is_live = not _is_regular(stream)
    taken: list[Line] = []
    size_bytes = 0
    async for number, text in _lines(stream, is_live=is_live):
        if text is None:
            if is_live and taken:
                yield taken
                taken, size_bytes = [], 0
            continue
        if not text.strip():
            continue
        try:
            transaction = await _read_transaction(text)
        except ProblemError as error:
            raise LineError(number, error.problem.detail, taken) from error
        taken.append(Line(number, transaction))
        size_bytes += len(text)
        if len(taken) >= BATCH_LINES or size_bytes >= BATCH_BYTES:
            yield taken
            taken, size_bytes = [], 0
    if taken:
        yield taken


async def _lines(stream: BinaryIO, *, is_live: bool) -> AsyncIterator[tuple[int, bytes | None]]:
    """Yield lines with their numbers, and None each time all that was there has been yielded."""
    number = 0
    rest = b""
    while True:
        chunk = await _read_some(stream, is_live=is_live)
        *whole, rest = (rest + chunk).split(b"\n")
        for text in whole:
            number += 1
            yield number, text
        if not chunk:
            break
        if len(rest) > MAX_BODY_BYTES:
            break  # it is no transaction, however it goes on
        yield number, None
    if rest:
        yield number + 1, rest


async def _read_some(stream: BinaryIO, *, is_live: bool) -> bytes:
    """What there is to read now, at least a byte, or nothing at the end."""
    if not is_live:
        return stream.read(_READ_BYTES)
    # Not in a thread: one that waits for a terminal would keep the process from ending.
    await _until_readable(stream.fileno())
    return os.read(stream.fileno(), _READ_BYTES)


async def _until_readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        return  # a device such as /dev/null, which never makes a reader wait
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


async def _read_transaction(text: bytes) -> NewTransaction:
    """The transaction of one line; raises ProblemError as a node would answer."""
    submission = await read_submission(text, new_transaction_id)
    if submission.is_batch:
        raise fault_error(ProblemKind.INVALID_CONTENT, "$", "is a batch, not one transaction")
    transaction = decode_transaction(submission.transactions[0])
    return NewTransaction(
        id=UUID(bytes=transaction.id),
        user_id=transaction.user_id,
        kind=transaction.kind,
        payload=msgspec.msgpack.decode(transaction.payload),
    )


def _is_regular(stream: BinaryIO) -> bool:
    """Whether it is a file on disk, which has an end that is known."""
    return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
