"""A chain as JSON lines, in a file that an interrupted run leaves good to go on with.

One object a line, in the chain's order and in the words of the HTTP face, so the same chain always
makes the same bytes. The file's last whole line says where to go on; it must be this chain's own
line, byte for byte. Relies on `node.api.answers` for the shapes.
"""

from __future__ import annotations

import fcntl
import os
from enum import StrEnum, unique
from typing import TYPE_CHECKING, Final

import msgspec

from node.api.answers import block_detail, history_item
from node.backup import blocks_through
from node.outcomes import HistoryRow
from storage.recent import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from consensus.block import Block
    from storage.chain import ChainStore

_STEP_BYTES: Final = 64 << 10
_ENCODER: Final = msgspec.json.Encoder()


class ExportError(Exception):
    """The file is not the start of this export; nothing was changed."""


@unique
class What(StrEnum):
    """What a line is."""

    BLOCKS = "blocks"
    TRANSACTIONS = "transactions"


class _Mark(msgspec.Struct):
    """Where a line stands; a line of blocks has no position."""

    index: int
    position: int | None = None


def lines_of(block: Block, what: What) -> Iterator[bytes]:
    """The lines of one block, each with its end."""
    if what is What.BLOCKS:
        yield _ENCODER.encode(block_detail(block)) + b"\n"
        return
    for position, raw in enumerate(block.transactions):
        row = HistoryRow(Place(block.index, position), raw, block.timestamp_us)
        yield _ENCODER.encode(history_item(row)) + b"\n"


def export(
    chain: ChainStore,
    through: int,
    file: Path,
    *,
    what: What,
    may_resume: bool,
    on_block: Callable[[int], None],
) -> int:
    """Write the blocks through `through`, or their transactions; returns how many lines it wrote.

    Where it may resume it goes on after the last whole line, as though it had never stopped.
    `on_block` hears each index.

    Raises:
        FileExistsError: the file is there, and was not to be resumed.
        ExportError: what is in it is not the start of this export, or another process writes it.
        StorageError, OSError: the chain cannot be read, or the file not be written.
    """
    with file.open("r+b" if may_resume and file.exists() else "xb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(f"{file} is being written by another process") from error
        first, skip = _find_end(stream, file, chain, through, what)
        lines = -skip
        for block in blocks_through(chain, first, through):
            for line in lines_of(block, what):
                lines += 1
                if lines > 0:
                    stream.write(line)
            on_block(block.index)
        stream.flush()
        os.fsync(stream.fileno())
    return lines


def _find_end(
    stream: BinaryIO, file: Path, chain: ChainStore, through: int, what: What
) -> tuple[int, int]:
    """Cut a torn last line off, and say which block comes next and how many of its lines are there.

    Raises ExportError where the last whole line is not this chain's; nothing is cut then.
    """
    end = _after_last_newline(stream, stream.seek(0, os.SEEK_END))
    place = (0, 0)
    if end > 0:
        start = _after_last_newline(stream, end - 1)
        stream.seek(start)
        place = _place_after(stream.read(end - start), file, chain, through, what)
    stream.truncate(end)
    stream.seek(end)
    return place


def _place_after(
    line: bytes, file: Path, chain: ChainStore, through: int, what: What
) -> tuple[int, int]:
    try:
        mark = msgspec.json.decode(line, type=_Mark)
    except ValueError as error:
        raise ExportError(f"{file}: its last line is no {what[:-1]}: {error}") from error
    if mark.index > through:
        detail = f"goes on to block {mark.index}, and this chain is known to be committed to"
        raise ExportError(f"{file} {detail} {through}")
    expected = list(lines_of(chain.block(mark.index), what)) if mark.index >= 0 else []
    number = mark.position or 0
    if not 0 <= number < len(expected) or expected[number] != line:
        detail = f"its last line is not what this chain has at block {mark.index}"
        raise ExportError(f"{file}: {detail}")
    return (mark.index, number + 1) if what is What.TRANSACTIONS else (mark.index + 1, 0)


def _after_last_newline(stream: BinaryIO, end: int) -> int:
    """The offset after the last newline before `end`; 0 where there is none."""
    while end > 0:
        start = max(0, end - _STEP_BYTES)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
