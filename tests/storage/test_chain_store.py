"""The chain in LMDB: durability, a map that grows, a disk that fills, many readers."""

from __future__ import annotations

import shutil
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from consensus.ready import HardState
from storage.chain import ChainStore
from storage.errors import (
    FormatVersionError,
    NoSpaceError,
    StorageError,
    StorageFailedError,
    StoreMissingError,
    WrongClusterError,
)
from tests.storage.builders import Author, make_genesis, start_python
from tests.storage.chain_folder import MIB, append, edit, open_store, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from consensus.block import Block

SMALLEST_MAP_BYTES = 16 * 4096

Edit = tuple[str, bytes, bytes | None]

# Opening


def test_what_is_saved_is_there_after_reopening(
    stored: list[Block], path: Path, opened: Callable[[Path], ChainStore]
) -> None:
    """Blocks, hard state, terms and history outlive the process."""
    store = opened(path)

    assert stored == store.blocks(0, max_blocks=100, max_bytes=MIB)
    assert HardState(2, None, 5) == store.hard_state
    assert [(0, 0), (1, 1), (5, 2)] == store.term_starts()
    assert store.tip(7).history.size == 8


def test_a_restored_chain_says_so_until_it_is_taken_up(
    path: Path, author: Author, opened: Callable[[Path], ChainStore]
) -> None:
    """Durably, whatever is saved meanwhile; other chains never were restored."""
    store = ChainStore.open(path, genesis=author.genesis, reserve_bytes=0, restored=True)
    append(store, author.seal())
    store.close()
    store = opened(path)
    assert store.is_restored
    store.take_up()
    assert not store.is_restored
    store.close()
    assert not opened(path).is_restored
    other = open_store(path.with_name("other"), genesis=author.genesis)
    assert not other.is_restored
    other.close()


def test_the_same_genesis_opens_and_another_does_not(stored: list[Block], path: Path) -> None:
    """A data folder of another cluster is named as such."""
    open_store(path, genesis=stored[0]).close()
    with pytest.raises(WrongClusterError) as caught:
        open_store(path, genesis=make_genesis(name="other"))

    assert stored[0].hash == caught.value.found
    assert make_genesis(name="other").hash == caught.value.expected
    open_store(path).close()  # the refusal has let go of the files


@pytest.mark.parametrize("readonly", [False, True])
def test_without_a_store_and_a_genesis_there_is_nothing_to_open(
    path: Path, author: Author, readonly: bool
) -> None:
    """A folder that is missing or empty is no store, and reading makes none."""
    genesis = author.genesis if readonly else None
    with pytest.raises(StoreMissingError):
        open_store(path, genesis=genesis, readonly=readonly)
    path.mkdir()
    with pytest.raises(StoreMissingError):
        open_store(path, genesis=genesis, readonly=readonly)
    assert [] == list(path.iterdir())


def test_an_empty_folder_becomes_a_store(path: Path, author: Author) -> None:
    """Somebody may have made the folder already."""
    path.mkdir(parents=True)
    open_store(path, genesis=author.genesis).close()

    assert ["data.mdb", "lock.mdb"] == sorted(file.name for file in path.iterdir())


def test_a_half_made_store_is_made_anew(path: Path, author: Author) -> None:
    """A crash while the store is made leaves it beside its place; the next start begins again."""
    building = path.with_name("chain.new")
    building.mkdir(parents=True)
    (building / "data.mdb").write_bytes(b"half")
    store = open_store(path, genesis=author.genesis)

    assert author.genesis == store.block(0)
    assert not building.exists()
    store.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, author: Author) -> None:
    """Where the parent is a file, or may not be written, the error says which path failed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailedError, match=r"file/chain: storage failed: .*Not a directory"):
        open_store(tmp_path / "file" / "chain", genesis=author.genesis)


def test_another_format_version_is_refused_in_one_line(stored: list[Block], path: Path) -> None:
    """The error names the folder and both versions."""
    edit(path, "meta", b"format", lambda _: b"chain/2")
    with pytest.raises(FormatVersionError) as caught:
        open_store(path, genesis=stored[0])

    assert f"{path}: has format version 2; this program reads 1" == str(caught.value)


def test_a_store_is_open_once_in_a_process(
    stored: list[Block], path: Path, opened: Callable[[Path], ChainStore]
) -> None:
    """LMDB cannot open one file twice in a process, and says so."""
    opened(path)
    with pytest.raises(StorageFailedError, match="already open"):
        open_store(path)


def test_durability_is_lmdbs_default(
    stored: list[Block], path: Path, opened: Callable[[Path], ChainStore]
) -> None:
    """Data and meta page are both synced: with either left out, a power cut loses saves."""
    flags = opened(path)._environment._lmdb.flags()

    assert (flags["sync"], flags["metasync"]) == (True, True)
    assert (flags["map_async"], flags["writemap"]) == (False, False)


def test_a_truncation_leaves_nothing_behind(tmp_path: Path, author: Author) -> None:
    """A store that had another branch holds the same rows as one that never had it."""
    start = author.tip
    for name, branches in (("plain", (5,)), ("truncated", (13, 2, 8, 5))):
        store = open_store(tmp_path / name, genesis=author.genesis)
        for number, count in enumerate(branches):
            author = Author(genesis=author.genesis)
            author.back_to(start)
            term = 1 if number == len(branches) - 1 else number + 2
            blocks = [*author.blocks(count - 1, term=term), author.seal(term=term + 1)]
            store.save(hard_state=None, truncate_from=1, blocks=blocks)
        store.close()

    assert rows_of(tmp_path / "plain") == rows_of(tmp_path / "truncated")


# Room


def test_the_map_grows_before_it_is_full(path: Path, author: Author) -> None:
    """From the smallest map, any number of saves goes through, and all of it is there."""
    store = open_store(path, genesis=author.genesis, map_bytes=SMALLEST_MAP_BYTES)
    blocks = author.blocks(40, memo="m" * 20_000)
    for first in range(0, 40, 4):
        append(store, *blocks[first : first + 4])
        # Less than full: it was grown before the save, rather than in the middle of it.
        assert (path / "data.mdb").stat().st_size < store._environment.map_bytes * 0.91
    store.close()
    assert (path / "data.mdb").stat().st_size > 10 * SMALLEST_MAP_BYTES

    store = open_store(path)
    assert blocks == store.blocks(1, max_blocks=100, max_bytes=4 * MIB)
    store.close()


def test_a_map_that_is_full_all_the_same_grows_and_the_save_is_redone(
    path: Path, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guess of what a save needs may be too low; the save still goes through, once."""
    monkeypatch.setattr("storage.environment.Environment._grow_for", lambda *_: None)
    store = open_store(path, genesis=author.genesis, map_bytes=SMALLEST_MAP_BYTES)
    blocks = author.blocks(20, memo="m" * 20_000)
    append(store, *blocks)

    assert blocks == store.blocks(1, max_blocks=100, max_bytes=4 * MIB)
    store.close()


def test_near_the_end_of_the_disk_nothing_is_written(path: Path, author: Author) -> None:
    """Blocks are refused while the reserve is not free; when room returns the same save works."""
    open_store(path, genesis=author.genesis).close()
    before = (path / "data.mdb").read_bytes()
    block = author.seal_for("alice")
    store = open_store(path, reserve_bytes=1 << 62)
    with pytest.raises(NoSpaceError) as caught:
        append(store, block)
    with pytest.raises(NoSpaceError):
        store.check_room()
    assert caught.value.needed_bytes > 1 << 62
    assert store.last_index == 0
    assert before == (path / "data.mdb").read_bytes()
    store.close()

    store = open_store(path)
    store.check_room()
    append(store, block)
    assert block == store.block(1)
    store.close()


def test_the_reserve_is_for_votes(path: Path, author: Author) -> None:
    """A member whose disk is nearly full still votes and follows: a hard state may use it."""
    store = open_store(path, genesis=author.genesis, reserve_bytes=1 << 62)
    store.save(hard_state=HardState(1, b"v" * 32, 0), truncate_from=None, blocks=())

    assert HardState(1, b"v" * 32, 0) == store.hard_state
    store.close()


FAILING_DISK = """
import resource, sys
from pathlib import Path
from storage.chain import ChainStore
from storage.errors import StorageFailedError
from tests.storage.builders import Author

author = Author()
path = Path(sys.argv[1])
store = ChainStore.open(path, genesis=author.genesis, reserve_bytes=0)
blocks = author.blocks(2, memo="m" * 60_000)
# Writing beyond this size fails, as it does on a full disk or a spent quota.
size_bytes = (path / "data.mdb").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        store.save(hard_state=None, truncate_from=None, blocks=blocks)
    except StorageFailedError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(store.last_index)
"""


def test_a_failed_save_is_never_tried_again(path: Path, author: Author) -> None:
    """The error names path and cause, stays, and what was there before is there after."""
    child = start_python(FAILING_DISK, str(path))
    said, errors = child.communicate(timeout=20)

    first, second, last_index = said.splitlines() or [errors, "", ""]
    assert f"{path}: storage failed: " in first
    assert first == second
    assert last_index == "0"
    store = open_store(path)
    assert author.genesis == store.block(0)
    store.close()


# Several readers, and the end of the process


WRITER = """
import sys
from pathlib import Path
from consensus.ready import HardState
from storage.chain import ChainStore
from tests.storage.builders import Author

author = Author()
store = ChainStore.open(
    Path(sys.argv[1]), genesis=author.genesis, map_bytes=16 * 4096, reserve_bytes=0
)
print("opened", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        block = author.blocks(1, memo="m" * 9_000)[0]
        store.save(
            hard_state=HardState(1, None, block.index), truncate_from=None, blocks=[block]
        )
        print(block.index, block.hash.hex(), flush=True)
"""


def test_what_was_acknowledged_survives_sigkill(path: Path) -> None:
    """A process killed between and within saves loses nothing that it said was saved."""
    child = start_python(WRITER, str(path))
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("1000000\n")
    child.stdin.flush()
    acknowledged = [child.stdout.readline() for _ in range(40)]
    child.kill()
    acknowledged += child.stdout.read().splitlines(keepends=True)
    child.communicate()
    saved = [line.split() for line in acknowledged if line.endswith("\n")][1:]

    store = open_store(path, genesis=Author().genesis)
    assert len(saved) >= 39
    assert store.last_index >= len(saved)
    for index, block_hash in saved:
        assert block_hash == store.block(int(index)).hash.hex()
    assert store.last_index == store.hard_state.commit_index
    store.close()


def test_a_reader_in_another_process_sees_a_chain_that_grows(path: Path) -> None:
    """The writer's map doubles several times under a reader, who follows it."""
    child = start_python(WRITER, str(path))
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "opened\n"
    reader = open_store(path, readonly=True)
    assert reader.last_index == 0
    for last_index in (20, 60):
        child.stdin.write(f"{last_index - reader.last_index}\n")
        child.stdin.flush()
        said = ""
        while not said.startswith(f"{last_index} "):
            said = child.stdout.readline()
        assert last_index == reader.last_index == reader.hard_state.commit_index
        assert said.split()[1] == reader.block(last_index).hash.hex()
        assert reader.tip(last_index).history.size == last_index + 1
    reader.close()
    child.communicate(timeout=20)


def test_threads_read_while_another_saves_truncates_and_grows(path: Path, author: Author) -> None:
    """Readers always see a linked chain of whole blocks, whatever the writer does meanwhile."""
    store = open_store(path, genesis=author.genesis, map_bytes=SMALLEST_MAP_BYTES)
    stop = threading.Event()
    faults: list[object] = []

    def read() -> None:
        while not stop.is_set():
            try:
                blocks = store.blocks(0, max_blocks=50, max_bytes=4 * MIB)
                for parent, block in pairwise(blocks):
                    if block.previous_hash != parent.hash:
                        faults.append((parent.index, block.index))
            except StorageError as error:
                faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for round_number in range(1, 31):
        author.back_to(store.tip(round_number // 2))
        blocks = author.blocks(10, term=round_number, memo="m" * 6_000)
        store.save(hard_state=None, truncate_from=round_number // 2 + 1, blocks=blocks)
    stop.set()
    for reader in readers:
        reader.join()

    assert [] == faults
    assert store.last_index == 25
    store.close()


def test_blocks_that_were_verified_are_not_read_again(
    stored: list[Block], path: Path, opened: Callable[[Path], ChainStore]
) -> None:
    """The second reader of a block gets the very object the first one verified."""
    store = opened(path)

    assert store.block(3) is store.block(3)
    assert store.block(3) is store.blocks(3, max_blocks=2, max_bytes=MIB)[0]
    assert stored[3] == store.block(3)


def test_a_copied_folder_is_the_same_chain(
    stored: list[Block],
    path: Path,
    tmp_path: Path,
    opened: Callable[[Path], ChainStore],
) -> None:
    """A folder that is copied while nobody writes needs nothing from its old place."""
    shutil.copytree(path, tmp_path / "copy")

    assert stored == opened(tmp_path / "copy").blocks(0, max_blocks=100, max_bytes=MIB)
