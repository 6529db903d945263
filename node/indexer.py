"""The index writer: a child process that applies committed blocks, and its handle in the node.

Indexing is many small LMDB puts, each of which lets go of the GIL: in a thread beside a busy loop
they are fifty times slower, so they have a process of their own. It reads the chain and writes the
index; the node reads the index. They speak lines over the child's standard streams:

    node  -> child   apply N        index the blocks up to N, which are committed and saved here
    child -> node    applied N      at the start, and after each LMDB commit
                     full N why     the disk has no room; N is as far as it came

The child ends when its standard input does, so it never outlives the node, however that ends; it
ignores SIGINT and SIGTERM, which reach whole process groups, since the node says when to end. An
index that cannot be used is deleted and rebuilt at the start. What fails is one line on standard
error and a non-zero exit code. Relies on `storage.chain` and `storage.index`; run as
`python -m node.indexer DATA_DIR`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from node.config import CHAIN_FOLDER, INDEX_FOLDER
from storage.chain import ChainStore
from storage.errors import (
    DamagedStoreError,
    IndexUnusableError,
    NoSpaceError,
    StorageError,
    StorageFailedError,
)
from storage.index import IndexStore

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable, Sequence

    from consensus.block import Block
    from storage.contract import Chain

BATCH_TRANSACTIONS: Final = 10_000
"""Enough of them for one LMDB commit: more would make random ids little cheaper."""
PAUSE_S: Final = 0.2
"""The least time between two flushes: an fsync for every block would slow the chain's own."""
RETRY_S: Final = 1.0
"""How long to wait for room on the disk."""
CLOSE_TIMEOUT_S: Final = 10.0

_LOCK_FILE: Final = "index.lock"
_STANDARD_OUTPUT: Final = 1
_PROJECT: Final = str(Path(__file__).resolve().parents[1])


class IndexerFailedError(Exception):
    """The index process has ended by itself, or was killed."""


class IndexWriter(Protocol):
    """What is written of an index store."""

    @property
    def applied_index(self) -> int:
        """The index of the last block applied."""

    def apply(self, blocks: Sequence[Block]) -> None:
        """Index the blocks that follow the last one applied, durably."""


class Indexer:
    """The node's handle on its index process. All calls and callbacks are on one event loop."""

    def __init__(
        self,
        *,
        on_applied: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
        pause_s: float = PAUSE_S,
    ) -> None:
        """`on_applied` hears how far the index reaches, each time it is durable.

        `on_failure` hears once of the child's end where nobody asked for it, and of a callback
        that raised.
        """
        self._on_applied = on_applied
        self._on_failure = on_failure
        self._pause_s = pause_s
        self._process: Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._last_words = ""
        self._obstacle = ""
        self._applied: int | None = None
        self._wanted = -1
        self._asked: int | None = None
        self._hurry = -1
        self._pause: asyncio.TimerHandle | None = None
        self._is_closing = False

    @property
    def applied_index(self) -> int:
        """How far the index reaches, as last reported; -1 where not even genesis is in it."""
        return -1 if self._applied is None else self._applied

    @property
    def obstacle(self) -> str:
        """Why the index cannot go on for now: the disk has no room. Empty while it can."""
        return self._obstacle

    @property
    def process_id(self) -> int | None:
        """The child's process id, None before `start`."""
        return None if self._process is None else self._process.pid

    async def start(self, data_dir: Path) -> None:
        """Start the child on a data folder that has a chain; return once the index is open there.

        Raises IndexerFailedError where the child ends instead.
        """
        assert self._process is None, "an indexer is started once"
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            str(data_dir),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_child_environment(),
            start_new_session=True,  # a Ctrl-C must not reach it before it can ignore it
        )
        self._watch = asyncio.create_task(self._follow(self._process))
        self._watch.add_done_callback(self._on_end)
        while self._applied is None:
            await self._wait_for_news()

    def request(self, index: int) -> None:
        """Ask for the blocks up to `index`, which must be committed and saved on this node.

        Never waits; many requests become few flushes.
        """
        self._wanted = max(self._wanted, index)
        self._ask()

    async def catch_up(self, index: int) -> None:
        """Return once the index reaches `index`; raises IndexerFailedError where it cannot."""
        self._hurry = max(self._hurry, index)
        self.request(index)
        while self.applied_index < index:
            await self._wait_for_news()
            if self._obstacle:
                raise IndexerFailedError(self._obstacle)

    async def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait for the last flush and end the child; kill it where that takes too long."""
        self._is_closing = True
        if self._process is None or self._watch is None:
            return
        assert self._process.stdin is not None, "its standard input is a pipe"
        with suppress(TimeoutError, IndexerFailedError):
            async with asyncio.timeout(timeout_s):
                await self.catch_up(self._wanted)
                self._process.stdin.close()
                await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._cancel_pause()
        await asyncio.wait({self._watch})

    # What the child says

    async def _follow(self, process: Process) -> None:
        """Listen to the child until it ends; raises IndexerFailedError where nobody asked it to."""
        assert process.stdout is not None, "its standard output is a pipe"
        assert process.stderr is not None, "its standard error is a pipe"
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_reports(process.stdout))
            group.create_task(self._pass_on(process.stderr))
        code = await process.wait()
        if not self._is_closing:
            raise IndexerFailedError(self._last_words or f"the index process ended with {code}")

    async def _read_reports(self, reports: asyncio.StreamReader) -> None:
        async for line in reports:
            word, number, *why = line.decode().split(maxsplit=2)
            applied = int(number)
            if self._applied is None or applied > self._applied:
                self._applied = applied
                self._on_applied(applied)
            self._obstacle = "".join(why).strip()
            if word == "full":
                self._finish(RETRY_S)
            elif self._asked is not None and applied >= self._asked:
                self._finish(self._pause_s)
            self._news.set()

    async def _pass_on(self, errors: asyncio.StreamReader) -> None:
        """Repeat what the child says on standard error, and remember it."""
        async for line in errors:
            self._last_words = line.decode("utf-8", "replace").rstrip("\n")
            sys.stderr.write(f"{self._last_words}\n")

    def _on_end(self, watch: asyncio.Task[None]) -> None:
        self._cancel_pause()
        self._news.set()
        error = None if watch.cancelled() else watch.exception()
        # Until it has started, `start` raises what went wrong.
        if error is not None and self._applied is not None:
            self._on_failure(error)

    async def _wait_for_news(self) -> None:
        """Return when the child has reported something; raises IndexerFailedError at its end."""
        assert self._watch is not None, "the child has been started"
        self._news.clear()
        if not self._watch.done():
            await self._news.wait()
        if self._watch.done():
            raise IndexerFailedError(self._last_words or "the index process has ended")

    # What the child is asked

    def _ask(self) -> None:
        """Ask for what is wanted, unless a flush is running or the pause after one is."""
        if self._asked is not None or self._wanted <= self.applied_index:
            return
        if self._pause is not None and self.applied_index >= self._hurry:
            return
        assert self._process is not None, "the child has been started"
        assert self._process.stdin is not None, "its standard input is a pipe"
        self._cancel_pause()
        self._asked = self._wanted
        # One short line is in the pipe at a time, so that writing it never has to wait.
        self._process.stdin.write(b"apply %d\n" % self._asked)

    def _finish(self, pause_s: float) -> None:
        """A flush is over: the next may begin after a pause."""
        self._asked = None
        self._cancel_pause()
        self._pause = asyncio.get_running_loop().call_later(pause_s, self._end_pause)
        self._ask()

    def _end_pause(self) -> None:
        self._pause = None
        self._ask()

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None


def main(data_dir: Path) -> int:
    """Be the child; return its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    index_dir = data_dir / INDEX_FOLDER
    try:
        _serve(data_dir / CHAIN_FOLDER, index_dir)
    except BrokenPipeError:
        return 0  # nobody listens any more: the node is gone
    except StorageError as error:
        _say(str(error))
        if isinstance(error, DamagedStoreError | IndexUnusableError) and error.path == index_dir:
            _remove(index_dir)  # the next start rebuilds it
        return 1
    return 0


def _serve(chain_dir: Path, index_dir: Path) -> None:
    """Apply what is asked for until standard input ends."""
    # Held until the process ends.
    lock = os.open(index_dir.parent / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Waits for the child of a node that was killed, until that child has seen its input end.
    fcntl.flock(lock, fcntl.LOCK_EX)
    with (
        closing(ChainStore.open(chain_dir, readonly=True)) as chain,
        closing(_open_index(index_dir, chain)) as index,
    ):
        _report("applied", index.applied_index, "")
        for line in sys.stdin.buffer:
            word, number = line.split()
            assert word == b"apply", "the node asks for nothing else"
            apply_through(chain, index, int(number), report=_report)


def apply_through(
    chain: Chain, index: IndexWriter, target: int, *, report: Callable[[str, int, str], None]
) -> None:
    """Index the blocks up to `target` in batches; each is durable before `report` hears of it.

    Raises what reading the chain raises, and `IndexStore.apply`, but for a full disk: that is
    reported.
    """
    applied = index.applied_index
    if applied >= target:
        report("applied", applied, "")
    while applied < target:
        blocks = _next_blocks(chain, applied + 1, target)
        try:
            index.apply(blocks)
        except NoSpaceError as error:
            report("full", applied, str(error))
            return
        applied = blocks[-1].index
        report("applied", applied, "")


def _next_blocks(chain: Chain, first: int, target: int) -> list[Block]:
    """Read blocks for one commit: up to `target`, or until there are transactions enough."""
    blocks: list[Block] = []
    transactions = 0
    for number in range(first, target + 1):
        if blocks and transactions >= BATCH_TRANSACTIONS:
            break
        block = chain.block(number)
        transactions += len(block.transactions)
        blocks.append(block)
    return blocks


def _open_index(path: Path, chain: ChainStore) -> IndexStore:
    """Open the index, or rebuild it where it is not one of this chain."""
    try:
        return _open_matching_index(path, chain)
    except IndexUnusableError as error:
        _say(str(error))
    _remove(path)
    return _open_matching_index(path, chain)


def _open_matching_index(path: Path, chain: ChainStore) -> IndexStore:
    """Open the index and compare its last block with the chain; raises IndexUnusableError."""
    index = IndexStore.open(path, cluster_id=chain.cluster_id)
    applied, last_index = index.applied_index, chain.last_index
    why: str | None = None
    if applied > last_index:
        why = f"it reaches block {applied}, and the chain ends at {last_index}"
    elif applied >= 0 and chain.header(applied).hash != index.applied_hash:
        why = f"its block {applied} is not that of the chain"
    if why is not None:
        index.close()
        raise IndexUnusableError(path, why)
    return index


def _remove(path: Path) -> None:
    """Delete an index, or whatever stands in its place."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise StorageFailedError(path, error) from error


def _report(word: str, number: int, detail: str) -> None:
    # Not through sys.stdout: its buffer would be flushed again at the end, into a closed pipe.
    os.write(_STANDARD_OUTPUT, f"{word} {number} {detail}\n".encode())


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _child_environment() -> dict[str, str]:
    """Return an environment in which the child finds this package where the node found it."""
    known = os.environ.get("PYTHONPATH")
    path = _PROJECT if known is None else f"{_PROJECT}{os.pathsep}{known}"
    return {**os.environ, "PYTHONPATH": path}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
