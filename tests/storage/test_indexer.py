"""The index writer as a real child process: flushes, rebuilding, a full disk, sudden ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

import node.indexer
from consensus.block import transaction_id
from node.indexer import Indexer, IndexerFailedError
from storage.chain import ChainStore
from storage.index import IndexStore
from storage.recent import Place
from tests.storage.builders import RESERVE_BYTES, ROOT, Author, start_python

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from consensus.block import Block


@dataclass
class Heard:
    """What an indexer told its owner."""

    applied: list[int] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    failed: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, error: BaseException) -> None:
        """Take a failure."""
        self.failures.append(error)
        self.failed.set()


@pytest.fixture
def author() -> Author:
    """Who seals the blocks of the test."""
    return Author()


@pytest.fixture
def chain(tmp_path: Path, author: Author) -> Iterator[ChainStore]:
    """The chain of a data folder, open for writing as in a node."""
    store = ChainStore.open(tmp_path / "chain", genesis=author.genesis, reserve_bytes=RESERVE_BYTES)
    yield store
    store.close()


@pytest_asyncio.fixture
async def heard() -> Heard:
    """What the indexer of the test says."""
    return Heard()


@pytest_asyncio.fixture
async def indexer(heard: Heard) -> AsyncIterator[Indexer]:
    """An indexer that is not started yet and does not pause."""
    made = make_indexer(heard)
    yield made
    await made.close()


def make_indexer(heard: Heard, *, pause_s: float = 0) -> Indexer:
    """Return an indexer that tells `heard`."""
    return Indexer(on_applied=heard.applied.append, on_failure=heard.fail, pause_s=pause_s)


def append(chain: ChainStore, *blocks: Block) -> None:
    """Save blocks and nothing else."""
    chain.save(hard_state=None, truncate_from=None, blocks=blocks)


def read_index(folder: Path, chain: ChainStore) -> IndexStore:
    """Open the index beside its writer, as the node does."""
    return IndexStore.open(folder / "index", cluster_id=chain.cluster_id, readonly=True)


def build_index(folder: Path, author: Author, blocks: list[Block]) -> None:
    """Make an index of genesis and these blocks in this process."""
    index = IndexStore.open(
        folder / "index", cluster_id=author.genesis.hash, reserve_bytes=RESERVE_BYTES
    )
    index.apply([author.genesis, *blocks])
    index.close()


@pytest.mark.asyncio
async def test_blocks_reach_the_index_through_the_child(
    tmp_path: Path, chain: ChainStore, author: Author, indexer: Indexer, heard: Heard
) -> None:
    """The child makes the index, applies what is asked for, and the node reads it meanwhile."""
    await indexer.start(tmp_path)
    assert indexer.applied_index == -1
    index = read_index(tmp_path, chain)
    first, *more = [author.seal_for("alice", "bob", "alice") for _ in range(30)]
    append(chain, first)
    await indexer.catch_up(1)
    assert index.applied_index == indexer.applied_index == 1
    append(chain, *more)
    await indexer.catch_up(30)

    assert index.applied_index == indexer.applied_index == 30
    assert [Place(1, 1)] == index.places([transaction_id(first.transactions[1])])
    assert len(index.history("alice", after=None, limit=99, newest_first=True)) == 60
    assert [-1, 1, 30] == heard.applied
    assert [] == heard.failures
    index.close()


@pytest.mark.asyncio
async def test_many_requests_become_few_flushes(
    tmp_path: Path, chain: ChainStore, author: Author, heard: Heard
) -> None:
    """A request never waits; those that come during a flush or its pause become one."""
    indexer = make_indexer(heard, pause_s=3_600)
    await indexer.start(tmp_path)
    for block in author.blocks(20):
        append(chain, block)
        indexer.request(block.index)
    await indexer.catch_up(20)
    assert len(heard.applied) <= 3

    append(chain, *author.blocks(2))
    indexer.request(21)
    indexer.request(22)
    assert indexer._asked is None
    await indexer.close()
    assert heard.applied[-1] == 22
    with closing(read_index(tmp_path, chain)) as index:
        assert index.applied_index == 22


@pytest.mark.asyncio
async def test_a_flush_follows_by_itself_when_the_pause_is_over(
    tmp_path: Path, chain: ChainStore, author: Author, heard: Heard
) -> None:
    """What was asked for during a pause is not forgotten."""
    done = asyncio.Event()

    def on_applied(index: int) -> None:
        if index == 2:
            done.set()

    indexer = Indexer(on_applied=on_applied, on_failure=heard.fail, pause_s=0.01)
    await indexer.start(tmp_path)
    blocks = author.blocks(2)
    append(chain, *blocks)
    await indexer.catch_up(1)
    indexer.request(2)
    async with asyncio.timeout(10):
        await done.wait()
    await indexer.close()


@pytest.mark.asyncio
async def test_large_flushes_are_cut_into_batches(
    tmp_path: Path, chain: ChainStore, author: Author, indexer: Indexer, heard: Heard
) -> None:
    """No LMDB commit holds many more transactions than its limit, and each is reported."""
    names = [f"user-{number}" for number in range(2_000)]
    append(chain, *(author.seal_for(*names) for _ in range(8)))
    await indexer.start(tmp_path)
    await indexer.catch_up(8)

    # Genesis has one transaction: five full blocks are what fills a batch of 10,000.
    assert [-1, 5, 8] == heard.applied


@pytest.mark.asyncio
async def test_an_index_goes_on_where_it_ended(
    tmp_path: Path, chain: ChainStore, author: Author, heard: Heard
) -> None:
    """After a restart only what is missing is applied."""
    blocks = author.blocks(4)
    append(chain, *blocks)
    build_index(tmp_path, author, blocks[:2])
    indexer = make_indexer(heard)
    await indexer.start(tmp_path)
    assert indexer.applied_index == 2
    await indexer.catch_up(4)
    await indexer.close()

    assert [2, 4] == heard.applied


@pytest.mark.parametrize("fault", ["cluster", "beyond", "branch", "garbage", "file"])
def test_an_unusable_index_is_begun_anew(
    tmp_path: Path,
    chain: ChainStore,
    author: Author,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    """One that is of another cluster or chain, or cannot be read, is deleted, and it says so."""
    start = author.tip
    append(chain, *author.blocks(3))
    other = Author(seed=8, genesis=author.genesis)
    match fault:
        case "cluster":
            build_index(tmp_path, Author(seed=9), [])
        case "beyond":
            author.back_to(start)
            build_index(tmp_path, author, other.blocks(4))
        case "branch":
            build_index(tmp_path, author, other.blocks(2))
        case "garbage":
            build_index(tmp_path, author, [])
            (tmp_path / "index" / "data.mdb").write_bytes(b"garbage" * 1_000)
        case _:
            (tmp_path / "index").write_text("a file")
    with closing(node.indexer._open_index(tmp_path / "index", chain)) as index:
        assert index.applied_index == -1

    assert "the index must be rebuilt" in capsys.readouterr().err


@pytest.mark.asyncio
async def test_the_child_rebuilds_an_index_of_another_branch(
    tmp_path: Path,
    chain: ChainStore,
    author: Author,
    heard: Heard,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it says is passed on, and the index is that of the chain."""
    append(chain, *author.blocks(3))
    build_index(tmp_path, author, Author(seed=8, genesis=author.genesis).blocks(2))
    indexer = make_indexer(heard)
    await indexer.start(tmp_path)
    await indexer.catch_up(3)
    await indexer.close()

    assert [-1, 3] == heard.applied
    assert "its block 2 is not that of the chain" in capsys.readouterr().err
    with closing(read_index(tmp_path, chain)) as index:
        assert chain.block(3).hash == index.applied_hash


@pytest.mark.asyncio
async def test_a_killed_child_is_reported(
    tmp_path: Path, chain: ChainStore, author: Author, indexer: Indexer, heard: Heard
) -> None:
    """Whoever waits for it hears at once, and so does the owner."""
    await indexer.start(tmp_path)
    assert indexer.process_id is not None
    os.kill(indexer.process_id, signal.SIGSTOP)
    append(chain, *author.blocks(1))
    waiting = asyncio.create_task(indexer.catch_up(1))
    await asyncio.sleep(0)
    os.kill(indexer.process_id, signal.SIGKILL)
    with pytest.raises(IndexerFailedError):
        await waiting
    async with asyncio.timeout(10):
        await heard.failed.wait()

    assert [IndexerFailedError] == [type(error) for error in heard.failures]
    with pytest.raises(IndexerFailedError):
        await indexer.catch_up(1)


@pytest.mark.asyncio
async def test_a_damaged_block_ends_the_child_with_its_words(
    tmp_path: Path,
    chain: ChainStore,
    author: Author,
    indexer: Indexer,
    heard: Heard,
) -> None:
    """The last line of the child's standard error is what the owner is told."""
    append(chain, *author.blocks(1))
    await indexer.start(tmp_path)
    body = chain._databases["bodies"]
    chain._environment.write(
        lambda txn: txn.put((1).to_bytes(8, "big"), b"\x90", db=body),
        needed_bytes=0,
        may_use_reserve=True,
    )
    with pytest.raises(IndexerFailedError, match="block 1 is damaged on disk: count"):
        await indexer.catch_up(1)
    async with asyncio.timeout(10):
        await heard.failed.wait()

    assert "block 1 is damaged" in str(heard.failures[0])


@pytest.mark.asyncio
async def test_a_folder_without_a_chain_fails_the_start(tmp_path: Path, heard: Heard) -> None:
    """`start` raises what the child said, and nobody else is told."""
    indexer = make_indexer(heard)
    with pytest.raises(IndexerFailedError, match="there is no store here"):
        await indexer.start(tmp_path)
    await indexer.close()

    assert [] == heard.failures


@pytest.mark.asyncio
async def test_a_callback_that_raises_is_a_failure(tmp_path: Path, chain: ChainStore) -> None:
    """An error in the node's own callback is not swallowed."""
    heard = Heard()

    def on_applied(index: int) -> None:
        if index >= 0:
            raise ZeroDivisionError

    indexer = Indexer(on_applied=on_applied, on_failure=heard.fail, pause_s=0)
    await indexer.start(tmp_path)
    indexer.request(0)
    async with asyncio.timeout(10):
        await heard.failed.wait()
    await indexer.close()

    assert [ExceptionGroup] == [type(error) for error in heard.failures]


@pytest.mark.asyncio
async def test_a_child_that_does_not_end_is_killed(
    tmp_path: Path, chain: ChainStore, heard: Heard
) -> None:
    """Closing waits for the last flush as long as it is told, and not longer."""
    indexer = make_indexer(heard)
    await indexer.start(tmp_path)
    assert indexer.process_id is not None
    os.kill(indexer.process_id, signal.SIGSTOP)
    indexer.request(0)
    await indexer.close(timeout_s=0.05)

    with pytest.raises(ProcessLookupError):
        os.kill(indexer.process_id, 0)
    assert [] == heard.failures


@pytest.mark.asyncio
async def test_closing_before_the_start_is_harmless(heard: Heard) -> None:
    """A node that failed to start closes what it has."""
    await make_indexer(heard).close()

    assert [] == heard.failures


# The child by itself


FULL_DISK = """
import sys
from pathlib import Path
import node.indexer
import storage.index
storage.index.IndexStore.open.__func__.__kwdefaults__["reserve_bytes"] = 1 << 62
sys.exit(node.indexer.main(Path(sys.argv[1])))
"""


def start_child(folder: Path) -> subprocess.Popen[str]:
    """Start the child as the node does, with pipes of our own."""
    return subprocess.Popen(
        [sys.executable, "-m", "node.indexer", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_child_ignores_signals_and_ends_with_its_input(
    tmp_path: Path, chain: ChainStore
) -> None:
    """SIGINT and SIGTERM reach whole groups; only the end of its input is meant for the child."""
    child = start_child(tmp_path)
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline().split() == ["applied", "-1"]
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    child.stdin.write("apply 0\n")
    child.stdin.flush()
    assert child.stdout.readline().split() == ["applied", "0"]
    said, errors = child.communicate(timeout=10)

    assert (0, "", "") == (child.returncode, said, errors)


def test_a_child_whose_node_is_gone_ends_in_silence(
    tmp_path: Path, chain: ChainStore, author: Author
) -> None:
    """A report that nobody can read any more is no error."""
    append(chain, *author.blocks(1))
    child = start_child(tmp_path)
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    child.stdin.write("apply 1\n")
    child.stdin.close()
    errors = child.stderr.read()
    child.stderr.close()

    assert (0, "") == (child.wait(timeout=10), errors)


def test_the_next_child_waits_for_the_last_one(tmp_path: Path, chain: ChainStore) -> None:
    """After a node was killed and started again, two children never write at once."""
    first = start_child(tmp_path)
    assert first.stdout is not None
    assert first.stdin is not None
    first.stdout.readline()
    with (tmp_path / "index.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second = start_child(tmp_path)
    first.stdin.write("apply 0\n")
    first.stdin.flush()
    first.stdout.readline()
    first.communicate(timeout=10)
    assert second.stdout is not None

    assert second.stdout.readline().split() == ["applied", "0"]
    second.communicate(timeout=10)


def test_a_full_disk_is_reported_and_survived(tmp_path: Path, chain: ChainStore) -> None:
    """The child says how far it came, and can be asked again."""
    child = start_python(FULL_DISK, str(tmp_path))
    assert child.stdout is not None
    assert child.stdin is not None
    child.stdout.readline()
    for _ in range(2):
        child.stdin.write("apply 0\n")
        child.stdin.flush()
        word, applied, why = child.stdout.readline().split(maxsplit=2)
        assert ("full", "-1") == (word, applied)
        assert "bytes are free" in why
    child.communicate(timeout=10)

    assert child.returncode == 0


@pytest.mark.asyncio
async def test_waiting_for_a_full_disk_ends_with_its_reason(
    tmp_path: Path, chain: ChainStore, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start cannot wait for room; a running node goes on, and asks again by itself."""
    monkeypatch.setattr("node.indexer.RETRY_S", 0)
    indexer = make_indexer(heard)
    real_exec = asyncio.create_subprocess_exec
    monkeypatch.setattr(
        asyncio,
        "create_subprocess_exec",
        lambda *_, **options: real_exec(sys.executable, "-c", FULL_DISK, str(tmp_path), **options),
    )
    await indexer.start(tmp_path)
    with pytest.raises(IndexerFailedError, match="bytes are free"):
        await indexer.catch_up(0)
    with pytest.raises(IndexerFailedError, match="bytes are free"):
        await indexer.catch_up(0)
    await indexer.close()

    assert [] == heard.failures
