"""`bitnexus backup`: committed blocks alone, whole or not at all."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from consensus.ready import HardState
from node.cli_errors import ExitCode
from storage.chain import ChainStore
from storage.index import IndexStore
from tests.node.archive_stage import (
    BLOCKS,
    HALF_WAY,
    NEW_NODE,
    back_up,
    bytes_of,
    chain_of,
    interrupt,
    make_folder,
    stopped_half_way,
)
from tests.node.cli_stage import run
from tests.storage.builders import make_transaction
from tests.storage.chain_folder import edit, flip, key_of
from tests.storage.society import Society

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def society() -> Society:
    """Three members and the chain they have sealed."""
    society = Society(3)
    for _ in range(BLOCKS):
        society.record()
    return society


@pytest.fixture
def folder(tmp_path: Path, society: Society) -> Path:
    """A member's folder; its last two blocks are not known to be committed."""
    return make_folder(tmp_path / "n2", society.blocks, committed=BLOCKS - 2)


def test_a_backup_is_the_committed_chain_and_no_memory_of_votes(
    tmp_path: Path, folder: Path, society: Society
) -> None:
    """Byte for byte, without the tail, the vote, the member's term, or the key."""
    result = back_up(folder, tmp_path / "b")
    assert (0, "") == (result.code, result.stderr)
    assert bytes_of(society.blocks[:-2]) == chain_of(tmp_path / "b")
    with closing(ChainStore.open(tmp_path / "b" / "chain", readonly=True)) as chain:
        assert HardState(1, None, BLOCKS - 2) == chain.hard_state
    seed = (folder / "identity.key").read_bytes().strip()
    files = [file for file in (tmp_path / "b").rglob("*") if file.is_file()]
    assert not any(
        seed in file.read_bytes() or bytes.fromhex(seed.decode()) in file.read_bytes()
        for file in files
    )


def test_the_manifest_says_what_is_in_it(tmp_path: Path, folder: Path, society: Society) -> None:
    """Which cluster, how far, and every other file; machines are told the same."""
    document = back_up(folder, tmp_path / "b", "--json").document
    last = society.blocks[-3]
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert {"folder": str(tmp_path / "b"), "manifest": manifest} == document
    assert (1, "society", society.genesis.hash.hex(), BLOCKS - 2, last.hash.hex()) == tuple(
        manifest[key] for key in ("format", "cluster", "cluster_id", "through", "hash")
    )
    assert {
        str(file.relative_to(tmp_path / "b")): sha256(file.read_bytes()).hexdigest()
        for file in (tmp_path / "b").rglob("*")
        if file.is_file() and file.name != "manifest.json"
    } == {file["name"]: file["sha256"] for file in manifest["files"]}


def test_what_the_index_holds_is_committed_too(
    tmp_path: Path, folder: Path, society: Society
) -> None:
    """An idle node saves no hard state after its last commit; its index knows, if it is its own."""
    with closing(
        IndexStore.open(folder / "index", cluster_id=society.genesis.hash, reserve_bytes=0)
    ) as index:
        index.apply(society.blocks[:-1])
    assert 0 == back_up(folder, tmp_path / "b").code
    assert bytes_of(society.blocks[:-1]) == chain_of(tmp_path / "b")
    shutil.rmtree(folder / "chain")
    other = Society(3)
    for _ in range(BLOCKS):
        other.seal([make_transaction(society.random)])
    make_folder(tmp_path / "other", other.blocks, committed=BLOCKS - 2)
    (tmp_path / "other" / "chain").rename(folder / "chain")
    assert 0 == back_up(folder, tmp_path / "c").code
    assert bytes_of(other.blocks[:-2]) == chain_of(tmp_path / "c")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_backup_leaves_nothing_that_passes_for_one(
    tmp_path: Path, folder: Path, society: Society, number: signal.Signals
) -> None:
    """Nothing stands at its place; the same command then makes it, and leaves nothing else."""
    code = interrupt(number, "backup", "--data-dir", folder, "--output", tmp_path / "b")
    assert code == (ExitCode.INTERRUPTED if number is signal.SIGINT else -signal.SIGKILL)
    assert (number is signal.SIGKILL) == (tmp_path / "b.partial").exists()
    assert not (tmp_path / "b").exists()
    partial = tmp_path / "b.partial"
    result = run("node", "init", "--data-dir", tmp_path / "n7", *NEW_NODE, "--from-backup", partial)
    assert (ExitCode.VERIFY_FAILED, f"{partial} is no backup: it has no manifest.json") == (
        result.code,
        result.error,
    )
    assert 0 == back_up(folder, tmp_path / "b").code
    assert bytes_of(society.blocks[:-2]) == chain_of(tmp_path / "b")
    assert ["b", "n2"] == sorted(entry.name for entry in tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, folder: Path) -> None:
    """Neither a backup, nor anything else at its place, nor what another run makes of it now."""
    assert 0 == back_up(folder, tmp_path / "b").code
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    assert ExitCode.ALREADY_THERE == back_up(folder, tmp_path / "b").code
    assert before == (tmp_path / "b" / "manifest.json").read_bytes()
    (tmp_path / "file").write_text("mine")
    assert ExitCode.ALREADY_THERE == back_up(folder, tmp_path / "file").code
    assert "mine" == (tmp_path / "file").read_text()
    (tmp_path / "c.partial").mkdir()
    (tmp_path / "c.partial" / "letters").write_text("mine")
    assert ExitCode.ALREADY_THERE == back_up(folder, tmp_path / "c").code
    assert "mine" == (tmp_path / "c.partial" / "letters").read_text()
    with stopped_half_way("backup", "--data-dir", folder, "--output", tmp_path / "d"):
        assert ExitCode.FOLDER_IN_USE == back_up(folder, tmp_path / "d").code


def test_a_damaged_chain_is_not_passed_on_as_a_good_backup(tmp_path: Path, folder: Path) -> None:
    """The block is named, and nothing is left."""
    edit(folder / "chain", "bodies", key_of(HALF_WAY), flip(20))
    result = back_up(folder, tmp_path / "b")
    assert (ExitCode.CORRUPT, True) == (result.code, f"block {HALF_WAY} is" in result.error)
    assert ["n2"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_folder_without_a_chain_is_refused(tmp_path: Path) -> None:
    """As by every other command."""
    result = back_up(tmp_path / "nothing", tmp_path / "b")
    assert (ExitCode.CONFIG, f"{tmp_path / 'nothing'} holds no chain") == (
        result.code,
        result.error,
    )


def test_a_backup_can_be_verified_and_backed_up_like_a_folder(tmp_path: Path, folder: Path) -> None:
    """It has the genesis, and the second is as good as the first."""
    assert 0 == back_up(folder, tmp_path / "b").code
    assert 0 == run("verify", "--data-dir", tmp_path / "b").code
    assert 0 == back_up(tmp_path / "b", tmp_path / "c").code
    assert chain_of(tmp_path / "b") == chain_of(tmp_path / "c")
