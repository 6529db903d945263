"""Runs the benchmarks' own programs as processes of their own, so that nobody shares their time.

A program's first line on its standard output is its result, or the address it serves at; one that
serves ends when its standard input does, however this process ends. Relies on asyncio.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

import msgspec

from cluster.bench.errors import BenchError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Sequence
    from typing import TypeVar

    Shape = TypeVar("Shape", bound=msgspec.Struct)


async def run_program(module: str, arguments: Sequence[str], shape: type[Shape]) -> Shape:
    """Run `python -m module` to its end and return what it printed; raises BenchError."""
    process = await _start(module, arguments, stderr=asyncio.subprocess.PIPE)
    output, complaint = await process.communicate()
    if process.returncode != 0:
        last_line = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise BenchError(f"{module} ended with exit code {process.returncode}: {last_line}")
    return msgspec.json.decode(output, type=shape)


@asynccontextmanager
async def serving(module: str, arguments: Sequence[str] = ()) -> AsyncIterator[str]:
    """Run `python -m module` within the block; yields the line in which it says where it serves."""
    process = await _start(module, arguments)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        line = (await process.stdout.readline()).decode().strip()
        if not line:
            raise BenchError(f"{module} ended before it served")
        yield line
    finally:
        process.stdin.close()
        await process.wait()


def end_with_standard_input() -> None:
    """End this process, at once, when nobody holds its standard input any more."""
    threading.Thread(target=_wait_for_end, daemon=True, name="standard input").start()


def tell(document: object) -> None:
    """Print a result on one line."""
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()


def _wait_for_end() -> NoReturn:
    sys.stdin.read()
    os._exit(0)


async def _start(module: str, arguments: Sequence[str], *, stderr: int | None = None) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )
